//! Answers of SGLang's `/generate`.

use loraplex_core::Output;

use super::spans::Spans;
use super::{Head, finish_reason, stop_reason};
use crate::sglang::wire::{FinishInfo, GenerateAnswer, MetaInfo};

/// One answer for each output.
pub(crate) fn answers(head: &Head, outputs: Vec<Output>) -> Vec<GenerateAnswer> {
    let answer = |(index, output): (usize, Output)| {
        let mut spans = Spans::default();
        spans.add(&output.tokens);
        let logprobs = head.reply.logprobs.map(|_| {
            let scores = output.tokens.iter().filter_map(|token| token.logprobs.as_ref());
            scores.map(|scores| (scores.logprob, scores.token, None)).collect()
        });
        let kind = output.finish.as_ref().map(finish_reason);
        let matched = output.finish.and_then(stop_reason);
        GenerateAnswer {
            text: output.text,
            output_ids: output.tokens.iter().map(|token| token.id).collect(),
            meta_info: MetaInfo {
                id: head.id.clone(),
                finish_reason: kind.map(|kind| FinishInfo { kind, matched }),
                prompt_tokens: head.prompt(index).tokens.len(),
                completion_tokens: output.tokens.len(),
                cached_tokens: output.cached_tokens,
                output_token_logprobs: logprobs,
                weight_versions: spans.take(),
            },
        }
    };
    outputs.into_iter().enumerate().map(answer).collect()
}
