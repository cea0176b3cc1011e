//! Answers of `/v1/completions`.

use loraplex_core::{Output, TokenLogprobs};

use super::spans::Spans;
use super::{Head, Tally, Writer, finish_reason, json, logprobs, stop_reason};
use crate::convert::Echo;
use crate::openai::completion::{CompletionChoice, CompletionResponse};
use crate::openai::logprobs::CompletionLogprobs;
use crate::openai::usage::Usage;

/// The whole answer.
pub(crate) fn whole(head: Head, outputs: Vec<Output>) -> CompletionResponse {
    let mut tally = Tally::default();
    let mut choices = Vec::with_capacity(outputs.len());
    for (index, output) in outputs.into_iter().enumerate() {
        tally.add(&head, index, &output);
        choices.push(Choice::default().piece(&head, index, output));
    }
    let usage = tally.usage(&head);
    response(&head, choices, Some(usage))
}

/// The chunks of a streamed answer.
#[derive(Debug)]
pub(crate) struct CompletionWriter {
    head: Head,
    choices: Vec<Choice>,
    tally: Tally,
}

impl CompletionWriter {
    pub(crate) fn new(head: Head) -> Self {
        let outputs = head.prompts.len() * head.n;
        let choices = (0..outputs).map(|_| Choice::default()).collect();
        Self { head, choices, tally: Tally::default() }
    }
}

impl Writer for CompletionWriter {
    fn piece(&mut self, index: usize, piece: Output) -> Vec<String> {
        self.tally.add(&self.head, index, &piece);
        let choice = self.choices[index].piece(&self.head, index, piece);
        let says_something = !choice.text.is_empty()
            || choice.finish_reason.is_some()
            || choice.logprobs.is_some()
            || choice.token_ids.is_some();
        if !says_something {
            return Vec::new();
        }
        let continuous = self.head.streaming().continuous_usage;
        let usage = continuous.then(|| self.tally.usage(&self.head));
        vec![json(&response(&self.head, vec![choice], usage))]
    }

    fn end(&mut self) -> Vec<String> {
        if !self.head.streaming().usage {
            return Vec::new();
        }
        let usage = self.tally.usage(&self.head);
        vec![json(&response(&self.head, Vec::new(), Some(usage)))]
    }
}

/// How far an output has been written.
#[derive(Debug, Default)]
struct Choice {
    started: bool,
    /// Characters of the tokens written so far.
    offset: usize,
    spans: Spans,
}

impl Choice {
    fn piece(&mut self, head: &Head, index: usize, piece: Output) -> CompletionChoice {
        let mut choice = CompletionChoice { index, ..CompletionChoice::default() };
        let first = !std::mem::replace(&mut self.started, true);
        let mut scores = CompletionLogprobs::default();
        if first {
            self.begin(head, &piece, &mut choice, &mut scores);
        }
        let alone = head.reply.echo == Echo::PromptAlone;
        if !alone {
            choice.text.push_str(&piece.text);
            for scored in piece.tokens.iter().filter_map(|token| token.logprobs.as_ref()) {
                scores.push(head, scored, &mut self.offset);
            }
        }
        choice.logprobs = (!scores.tokens.is_empty()).then_some(scores);
        if head.reply.token_ids {
            let tokens = if alone { &[] } else { piece.tokens.as_slice() };
            choice.token_ids = Some(tokens.iter().map(|token| token.id).collect());
        }
        if head.reply.weight_versions && !alone {
            self.spans.add(&piece.tokens);
            choice.weight_versions = piece.finish.is_some().then(|| self.spans.take());
        }
        if let Some(finish) = piece.finish {
            choice.finish_reason = Some(if alone { "length" } else { finish_reason(&finish) });
            choice.stop_reason = if alone { None } else { stop_reason(finish) };
        }
        choice
    }

    /// What stands on an output's first piece alone.
    fn begin(
        &mut self,
        head: &Head,
        piece: &Output,
        choice: &mut CompletionChoice,
        scores: &mut CompletionLogprobs,
    ) {
        let prompt = head.prompt(choice.index);
        let positions = piece.prompt_logprobs.as_deref();
        if head.reply.token_ids {
            choice.prompt_token_ids = Some(prompt.tokens.clone());
        }
        if let Some(top) = head.reply.prompt_logprobs {
            choice.prompt_logprobs = positions.map(|list| logprobs::prompt(&head.names, list, top));
        }
        if head.reply.echo == Echo::None {
            return;
        }
        choice.text = match &prompt.text {
            Some(text) => text.clone(),
            None => head.names.tokenizer.decode(&prompt.tokens, false).unwrap_or_default(),
        };
        if head.reply.logprobs.is_some() {
            self.echo_scores(head, &prompt.tokens, positions.unwrap_or_default(), scores);
        }
    }

    fn echo_scores(
        &mut self,
        head: &Head,
        tokens: &[u32],
        positions: &[Option<TokenLogprobs>],
        scores: &mut CompletionLogprobs,
    ) {
        for (&token, position) in tokens.iter().zip(positions) {
            match position {
                Some(position) => scores.push(head, position, &mut self.offset),
                None => scores.push_first(&head.names, token, &mut self.offset),
            }
        }
    }
}

fn response(
    head: &Head,
    choices: Vec<CompletionChoice>,
    usage: Option<Usage>,
) -> CompletionResponse {
    CompletionResponse {
        id: head.id.clone(),
        object: "text_completion",
        created: head.created,
        model: head.model.clone(),
        choices,
        usage,
    }
}
