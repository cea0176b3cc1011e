//! Answers of SGLang's `/generate`: whole ones, and the events of a stream, each of which holds all of the output so far.

use loraplex_core::{Finish, FinishReason, Output, TokenLogprobs};

use super::logprobs::finite;
use super::spans::Spans;
use super::{Head, Writer, finish_reason, json, stop_reason};
use crate::convert::Echo;
use crate::sglang::wire::{FinishInfo, GenerateAnswer, MetaInfo, TokenScore};

/// One answer for each output.
pub(crate) fn answers(head: &Head, outputs: Vec<Output>) -> Vec<GenerateAnswer> {
    let answer = |(index, output): (usize, Output)| {
        let mut whole = SoFar::default();
        whole.add(head, output);
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
    /// SGLang's own benchmark takes every line for an event.
    const COMMENTS: bool = false;

    fn piece(&mut self, index: usize, piece: Output) -> Vec<String> {
        let several = self.outputs.len() > 1;
        let Open { head, index: own, so_far } = &mut self.outputs[index];
        so_far.add(&self.heads[*head], piece);
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
    scores: Vec<TokenLogprobs>,
    /// Of the prompt.
    prompt: Option<Vec<Option<TokenLogprobs>>>,
    cached_tokens: u32,
    spans: Spans,
    finish: Option<Finish>,
}

impl SoFar {
    fn add(&mut self, head: &Head, piece: Output) {
        self.cached_tokens += piece.cached_tokens;
        self.prompt = piece.prompt_logprobs.or(self.prompt.take());
        self.finish = piece.finish;
        if head.reply.echo == Echo::PromptAlone {
            return;
        }
        self.text.push_str(&piece.text);
        self.tokens.extend(piece.tokens.iter().map(|token| token.id));
        self.spans.add(&piece.tokens);
        self.scores.extend(piece.tokens.into_iter().filter_map(|token| token.logprobs));
    }

    fn answer(&self, head: &Head, index: usize) -> GenerateAnswer {
        let reply = &head.reply;
        let prompt = &head.prompt(index).tokens;
        let own = |scores: &TokenLogprobs| score(head, scores.token, scores.logprob);
        let best = |scores: &TokenLogprobs, top: usize| {
            let best = scores.top.iter().take(top);
            best.map(|&(token, logprob)| score(head, token, logprob)).collect()
        };
        let positions = self.prompt.as_ref().map(|all| {
            let all = all.iter().zip(prompt).skip(reply.prompt_start).enumerate();
            // The first has none, wherever it stands.
            all.map(|(at, (scores, &token))| (token, scores.as_ref().filter(|_| at > 0)))
        });
        let input_top = reply.prompt_logprobs.filter(|&top| top > 0);
        let output_top = reply.logprobs.filter(|&top| top > 0);
        let unscored = |token: u32| (None, token, text(head, token));
        GenerateAnswer {
            text: self.text.clone(),
            output_ids: self.tokens.clone(),
            meta_info: MetaInfo {
                id: head.id.clone(),
                finish_reason: self.finish.as_ref().map(|finish| finish_info(head, finish)),
                prompt_tokens: prompt.len(),
                completion_tokens: self.tokens.len(),
                cached_tokens: self.cached_tokens,
                input_token_logprobs: positions.clone().map(|all| {
                    all.map(|(token, scores)| scores.map_or_else(|| unscored(token), own)).collect()
                }),
                input_top_logprobs: positions.zip(input_top).map(|(all, top)| {
                    all.map(|(_, scores)| scores.map(|scores| best(scores, top))).collect()
                }),
                output_token_logprobs: reply
                    .logprobs
                    .map(|_| self.scores.iter().map(own).collect()),
                output_top_logprobs: output_top
                    .map(|top| self.scores.iter().map(|scores| best(scores, top)).collect()),
                weight_versions: self.spans.clone().take(),
            },
            index: None,
        }
    }
}

fn score(head: &Head, token: u32, logprob: f32) -> TokenScore {
    (Some(finite(logprob)), token, text(head, token))
}

fn text(head: &Head, token: u32) -> Option<String> {
    head.reply.token_texts.then(|| head.names.text(token))
}

fn finish_info(head: &Head, finish: &Finish) -> FinishInfo {
    // Whatever was drawn for an answer without output is not in it.
    if head.reply.echo == Echo::PromptAlone && finish.reason != FinishReason::Abort {
        return FinishInfo { kind: "length", matched: None };
    }
    FinishInfo { kind: finish_reason(finish), matched: stop_reason(finish.clone()) }
}
