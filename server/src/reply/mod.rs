//! Engine outputs to wire answers: whole ones and the chunks of streams. Pure: no I/O, no engine.

pub(crate) mod chat;
pub(crate) mod completion;
pub(crate) mod inference;
pub(crate) mod logprobs;
pub(crate) mod sglang;
mod spans;

use std::time::{SystemTime, UNIX_EPOCH};

use loraplex_core::{Finish, FinishReason, Output, StopReason};

use crate::convert::{Echo, Prompt, Reply, Streaming};
use crate::openai::completion::StopReason as WireStop;
use crate::openai::usage::Usage;
use logprobs::Names;

/// What all pieces of an answer share.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) id: String,
    /// Unix seconds.
    pub(crate) created: u64,
    /// The adapter's name, or the first name of the base.
    pub(crate) model: String,
    pub(crate) reply: Reply,
    pub(crate) names: Names,
    pub(crate) prompts: Vec<Prompt>,
    /// Outputs for each prompt.
    pub(crate) n: usize,
}

/// Makes a stream's chunks, as JSON.
pub(crate) trait Writer: Send + 'static {
    /// Whether clients know that lines that begin with a colon are comments.
    const COMMENTS: bool = true;

    /// Chunks for the next piece of output `index`.
    fn piece(&mut self, index: usize, piece: Output) -> Vec<String>;

    /// Chunks after the last piece of all outputs.
    fn end(&mut self) -> Vec<String>;
}

impl Head {
    fn prompt(&self, index: usize) -> &Prompt {
        &self.prompts[index / self.n]
    }

    fn streaming(&self) -> Streaming {
        self.reply.stream.unwrap_or_default()
    }
}

/// Counts tokens while pieces pass by.
#[derive(Debug, Default)]
struct Tally {
    cached: u64,
    completion: u64,
}

impl Tally {
    /// Of whole outputs.
    fn of(head: &Head, outputs: &[Output]) -> Self {
        let mut tally = Self::default();
        for (index, output) in outputs.iter().enumerate() {
            tally.add(head, index, output);
        }
        tally
    }

    fn add(&mut self, head: &Head, index: usize, piece: &Output) {
        if head.reply.echo != Echo::PromptAlone {
            self.completion += piece.tokens.len() as u64;
        }
        // The outputs of one prompt share it, and it counts once.
        if index.is_multiple_of(head.n) {
            self.cached += u64::from(piece.cached_tokens);
        }
    }

    fn usage(&self, head: &Head) -> Usage {
        let prompt = head.prompts.iter().map(|prompt| prompt.tokens.len() as u64).sum();
        Usage::new(prompt, self.completion, self.cached)
    }
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn finish_reason(finish: &Finish) -> &'static str {
    match finish.reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Abort => "abort",
    }
}

fn stop_reason(finish: Finish) -> Option<WireStop> {
    finish.stop.map(|stop| match stop {
        StopReason::Token(id) => WireStop::Token(id),
        StopReason::Text(text) => WireStop::Text(text),
    })
}

fn json<T: serde::Serialize>(chunk: &T) -> String {
    serde_json::to_string(chunk).expect("wire types have string keys and no failing serialisers")
}
