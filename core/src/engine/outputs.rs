//! Where the engine puts tokens: one sink a sequence.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use loraplex_kernels::StepOutput;
use tokio::sync::mpsc::UnboundedSender;

use crate::error::Error;
use crate::request::{FinishReason, TokenLogprobs, Version};
use crate::scheduler::{Ending, SeqId, Sequence};

/// What a stream is told. Their number is bounded by the request's own `max_tokens`, so the channel needs no bound and
/// a slow reader never holds the engine up.
#[derive(Debug)]
pub(super) enum Event {
    /// Admitted, with this many prompt tokens from the prefix cache.
    Started { cached_tokens: u32 },
    /// Log-probabilities of the next prompt tokens.
    Scored(Vec<TokenLogprobs>),
    /// The next token, and how it ended the output if it did.
    Token {
        id: u32,
        logprobs: Option<Box<TokenLogprobs>>,
        /// What drew it.
        version: Option<Version>,
        ending: Option<Ending>,
    },
    /// The output ended without a token.
    Ended(FinishReason),
    /// It failed.
    Failed(Error),
}

/// The engine's end of a stream.
#[derive(Debug)]
pub(super) struct Sink {
    events: UnboundedSender<Event>,
    last_token: Option<Instant>,
}

impl Sink {
    pub(super) fn new(events: UnboundedSender<Event>) -> Self {
        Self { events, last_token: None }
    }

    /// Says that nothing comes, and why.
    pub(super) fn fail(self, error: Error) {
        self.send(Event::Failed(error));
    }

    fn send(&self, event: Event) {
        // A stream that was dropped has sent an abort, which is on its way here.
        let _ = self.events.send(event);
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
        if sequence.preemptions == 0 {
            let cached_tokens = sequence.cached_tokens as u32;
            self.send(sequence.id, Event::Started { cached_tokens });
        }
    }

    /// Prompt log-probabilities: `samples` are their places in `results`.
    pub(super) fn scored(&self, sequence: &Sequence, results: &StepOutput, samples: Range<usize>) {
        let scores = samples.map(|at| logprobs(results, at)).collect();
        self.send(sequence.id, Event::Scored(scores));
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
        let logprobs = sequence.params.logprobs.map(|_| Box::new(logprobs(results, at)));
        let version = sequence.version();
        sink.send(Event::Token { id: results.tokens[at], logprobs, version, ending });
        if ended {
            self.sinks.remove(&sequence.id);
        }
        gap
    }

    pub(super) fn end(&mut self, id: SeqId, reason: FinishReason) {
        if let Some(sink) = self.sinks.remove(&id) {
            sink.send(Event::Ended(reason));
        }
    }

    pub(super) fn fail(&mut self, id: SeqId, error: &Error) {
        if let Some(sink) = self.sinks.remove(&id) {
            sink.fail(error.clone());
        }
    }

    fn send(&self, id: SeqId, event: Event) {
        if let Some(sink) = self.sinks.get(&id) {
            sink.send(event);
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
