//! Answers of `/inference/v1/generate`.

use loraplex_core::{Output, TokenLogprobs};

use super::spans::Spans;
use super::{Head, Tally, finish_reason, logprobs};
use crate::openai::inference::{
    InferenceChoice, InferenceLogprob, InferenceLogprobs, InferenceResponse, InferenceTop,
};

/// The whole answer.
pub(crate) fn whole(head: Head, outputs: Vec<Output>) -> InferenceResponse {
    let tally = Tally::of(&head, &outputs);
    let prompt_logprobs = logprobs::of_prompt(&head, &outputs);
    let reply = &head.reply;
    let choice = |(index, output): (usize, Output)| {
        let mut spans = Spans::default();
        spans.add(&output.tokens);
        let scores = output.tokens.iter().filter_map(|token| token.logprobs.as_ref());
        InferenceChoice {
            index,
            finish_reason: output.finish.as_ref().map(finish_reason),
            token_ids: output.tokens.iter().map(|token| token.id).collect(),
            logprobs: reply
                .logprobs
                .map(|top| InferenceLogprobs { content: scores.map(|s| scored(s, top)).collect() }),
            weight_versions: reply.weight_versions.then(|| spans.take()),
        }
    };
    InferenceResponse {
        choices: outputs.into_iter().enumerate().map(choice).collect(),
        usage: tally.usage(&head),
        prompt_logprobs,
        request_id: head.id.clone(),
    }
}

fn scored(scores: &TokenLogprobs, top: usize) -> InferenceLogprob {
    let name = |id: u32| format!("token_id:{id}");
    let best = scores.top.iter().take(top);
    InferenceLogprob {
        token: name(scores.token),
        token_id: scores.token,
        logprob: scores.logprob,
        top_logprobs: best
            .map(|&(id, logprob)| InferenceTop { token: name(id), token_id: id, logprob })
            .collect(),
    }
}
