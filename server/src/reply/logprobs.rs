//! Log-probabilities in the shapes of both routes.

use std::collections::BTreeMap;
use std::sync::Arc;

use loraplex_core::{Output, OutputToken, TokenLogprobs, Tokenizer};

use super::Head;
use crate::openai::logprobs::{
    ChatLogprobs, ChatTokenLogprob, CompletionLogprobs, PromptLogprob, PromptLogprobs, Scores,
    TopLogprob,
};

/// JSON has no infinity; vLLM says this instead.
const LEAST: f32 = -9999.0;

/// How tokens are written.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// As `token_id:123`.
    pub(crate) as_ids: bool,
}

impl Names {
    fn name(&self, id: u32) -> String {
        if self.as_ids { format!("token_id:{id}") } else { self.text(id) }
    }

    pub(super) fn text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.tokenizer.token_bytes(id)).into_owned()
    }
}

impl CompletionLogprobs {
    /// Appends a drawn token. `offset` is where its text starts and moves behind it.
    pub(super) fn push(&mut self, head: &Head, scores: &TokenLogprobs, offset: &mut usize) {
        let names = &head.names;
        let mut top = Scores(vec![(names.name(scores.token), finite(scores.logprob))]);
        // The engine scores a prompt with as many as either of two fields wants.
        for &(id, logprob) in scores.top.iter().take(head.reply.logprobs.unwrap_or(0)) {
            let name = names.name(id);
            // Two tokens may read alike; the better one counts.
            if top.0.iter().all(|(other, _)| *other != name) {
                top.0.push((name, finite(logprob)));
            }
        }
        self.push_token(names, scores.token, offset);
        self.token_logprobs.push(Some(finite(scores.logprob)));
        self.top_logprobs.push(Some(top));
    }

    /// Appends a token that has no probability: the first of a prompt.
    pub(super) fn push_first(&mut self, names: &Names, id: u32, offset: &mut usize) {
        self.push_token(names, id, offset);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
    }

    fn push_token(&mut self, names: &Names, id: u32, offset: &mut usize) {
        self.text_offset.push(*offset);
        *offset += names.text(id).chars().count();
        self.tokens.push(names.name(id));
    }
}

/// Log-probabilities of a piece of an answer.
pub(super) fn chat(names: &Names, tokens: &[OutputToken]) -> ChatLogprobs {
    let content = tokens.iter().filter_map(|token| token.logprobs.as_ref()).map(|scores| {
        let top = scores.top.iter().map(|&(id, logprob)| TopLogprob {
            token: names.name(id),
            logprob: finite(logprob),
            bytes: names.tokenizer.token_bytes(id),
        });
        ChatTokenLogprob {
            token: names.name(scores.token),
            logprob: finite(scores.logprob),
            bytes: names.tokenizer.token_bytes(scores.token),
            top_logprobs: top.collect(),
        }
    });
    ChatLogprobs { content: content.collect() }
}

/// Log-probabilities of a prompt, as vLLM writes them, with the `top` best tokens of each position.
pub(super) fn prompt(
    names: &Names,
    positions: &[Option<TokenLogprobs>],
    top: usize,
) -> PromptLogprobs {
    let position = |scores: &TokenLogprobs| {
        let mut tokens = BTreeMap::new();
        let mut insert = |id: u32, logprob: f32, rank: u64| {
            let logprob = finite(logprob);
            let entry = PromptLogprob { logprob, rank, decoded_token: names.text(id) };
            tokens.entry(id).or_insert(entry);
        };
        insert(scores.token, scores.logprob, u64::from(scores.rank) + 1);
        for (&(id, logprob), rank) in scores.top.iter().take(top).zip(1..) {
            insert(id, logprob, rank);
        }
        tokens
    };
    positions.iter().map(|scores| scores.as_ref().map(position)).collect()
}

/// Log-probabilities of the prompt that all `outputs` share, if they are wanted.
pub(super) fn of_prompt(head: &Head, outputs: &[Output]) -> Option<PromptLogprobs> {
    let positions = outputs.first()?.prompt_logprobs.as_deref()?;
    head.reply.prompt_logprobs.map(|top| prompt(&head.names, positions, top))
}

pub(super) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LEAST }
}
