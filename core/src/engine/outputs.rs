//! Where the engine puts tokens: one sink a sequence.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use loraplex_kernels::StepOutput;

use super::mailbox::{End, Outbox};
use crate::error::Error;
use crate::request::{FinishReason, TokenLogprobs};
use crate::scheduler::{Ending, SeqId, Sequence};

/// The engine's end of a stream. What cannot be delivered is dropped with it: a stream that is gone has sent an abort.
#[derive(Debug)]
pub(super) struct Sink {
    outbox: Outbox,
    last_token: Option<Instant>,
}

impl Sink {
    pub(super) fn new(outbox: Outbox) -> Self {
        Self { outbox, last_token: None }
    }

    /// Says that nothing comes, and why.
    pub(super) fn fail(self, error: Error) {
        self.outbox.end(End::Failed(error));
    }
}

/// All open sinks.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    sinks: HashMap<SeqId, Sink>,
}

impl Outputs {
    pub(super) fn insert(&mut self, id: SeqId, sink: Sink) {
        self.sinks.insert(id, sink);
    }

    pub(super) fn started(&self, sequence: &Sequence) {
        if sequence.preemptions == 0
            && let Some(sink) = self.sinks.get(&sequence.id)
        {
            sink.outbox.started(sequence.cached_tokens as u32);
        }
    }

    /// Prompt log-probabilities: `samples` are their places in `results`.
    pub(super) fn scored(&self, sequence: &Sequence, results: &StepOutput, samples: Range<usize>) {
        if let Some(sink) = self.sinks.get(&sequence.id) {
            sink.outbox.scored(samples.map(|at| logprobs(results, at)));
        }
    }

    /// A token. Returns the time since the sequence's last one, `None` for the first.
    pub(super) fn drew(
        &mut self,
        sequence: &Sequence,
        (results, at): (&StepOutput, usize),
        ending: Option<Ending>,
        now: Instant,
    ) -> Option<Duration> {
        let sink = self.sinks.get_mut(&sequence.id)?;
        let gap = sink.last_token.map(|last| now - last);
        sink.last_token = Some(now);
        let ended = ending.is_some();
        let logprobs = sequence.params.logprobs.map(|_| logprobs(results, at));
        sink.outbox.drew(results.tokens[at], sequence.version(), logprobs, ending);
        if ended {
            self.sinks.remove(&sequence.id);
        }
        gap
    }

    pub(super) fn end(&mut self, id: SeqId, reason: FinishReason) {
        if let Some(sink) = self.sinks.remove(&id) {
            sink.outbox.end(End::Stopped(reason));
        }
    }

    pub(super) fn fail(&mut self, id: SeqId, error: &Error) {
        if let Some(sink) = self.sinks.remove(&id) {
            sink.fail(error.clone());
        }
    }
}

fn logprobs(results: &StepOutput, at: usize) -> TokenLogprobs {
    TokenLogprobs {
        token: results.tokens[at],
        logprob: results.logprobs[at],
        rank: results.ranks[at],
        top: results.top_of(at).to_vec(),
    }
}
