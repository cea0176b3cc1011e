//! Answers of SGLang's `/generate`: whole ones, and the events of a stream, each of which holds all of the output so far.

use loraplex_core::{Finish, Output};

use super::spans::Spans;
use super::{Head, Writer, finish_reason, json, stop_reason};
use crate::sglang::wire::{FinishInfo, GenerateAnswer, MetaInfo};

/// One answer for each output.
pub(crate) fn answers(head: &Head, outputs: Vec<Output>) -> Vec<GenerateAnswer> {
    let answer = |(index, output): (usize, Output)| {
        let mut whole = SoFar::default();
        whole.add(output);
        whole.answer(head, index)
    };
    outputs.into_iter().enumerate().map(answer).collect()
}

/// The events of a streamed call.
#[derive(Debug)]
pub(crate) struct GenerateWriter {
    /// One a prompt.
    heads: Vec<Head>,
    outputs: Vec<Open>,
}

/// An output of a stream.
#[derive(Debug)]
struct Open {
    head: usize,
    /// Among its head's.
    index: usize,
    so_far: SoFar,
}

impl GenerateWriter {
    /// For the outputs of `heads`, in their order.
    pub(crate) fn new(heads: Vec<Head>) -> Self {
        let open = |(head, of): (usize, &Head)| {
            let count = of.prompts.len() * of.n;
            (0..count).map(move |index| Open { head, index, so_far: SoFar::default() })
        };
        let outputs = heads.iter().enumerate().flat_map(open).collect();
        Self { heads, outputs }
    }
}

impl Writer for GenerateWriter {
    fn piece(&mut self, index: usize, piece: Output) -> Vec<String> {
        let several = self.outputs.len() > 1;
        let Open { head, index: own, so_far } = &mut self.outputs[index];
        so_far.add(piece);
        let mut answer = so_far.answer(&self.heads[*head], *own);
        answer.index = several.then_some(index);
        vec![json(&answer)]
    }

    fn end(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// All that has come of an output.
#[derive(Debug, Default)]
struct SoFar {
    text: String,
    tokens: Vec<u32>,
    scores: Vec<(f32, u32, Option<String>)>,
    cached_tokens: u32,
    spans: Spans,
    finish: Option<Finish>,
}

impl SoFar {
    fn add(&mut self, piece: Output) {
        self.text.push_str(&piece.text);
        self.tokens.extend(piece.tokens.iter().map(|token| token.id));
        let scores = piece.tokens.iter().filter_map(|token| token.logprobs.as_ref());
        self.scores.extend(scores.map(|scores| (scores.logprob, scores.token, None)));
        self.cached_tokens += piece.cached_tokens;
        self.spans.add(&piece.tokens);
        self.finish = piece.finish;
    }

    fn answer(&self, head: &Head, index: usize) -> GenerateAnswer {
        let finish_reason = self.finish.as_ref().map(|finish| FinishInfo {
            kind: finish_reason(finish),
            matched: stop_reason(finish.clone()),
        });
        GenerateAnswer {
            text: self.text.clone(),
            output_ids: self.tokens.clone(),
            meta_info: MetaInfo {
                id: head.id.clone(),
                finish_reason,
                prompt_tokens: head.prompt(index).tokens.len(),
                completion_tokens: self.tokens.len(),
                cached_tokens: self.cached_tokens,
                output_token_logprobs: head.reply.logprobs.map(|_| self.scores.clone()),
                weight_versions: self.spans.clone().take(),
            },
            index: None,
        }
    }
}
