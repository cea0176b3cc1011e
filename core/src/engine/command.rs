//! What crosses into the engine's thread.

use std::time::Instant;

use tokio::sync::oneshot;

use super::outputs::Sink;
use crate::request::GenerateRequest;
use crate::scheduler::SeqId;

#[derive(Debug)]
pub(super) enum Command {
    /// A new sequence.
    Submit { id: SeqId, request: Box<GenerateRequest>, arrival: Instant, sink: Sink },
    /// Its stream was dropped, or somebody asked.
    Abort(SeqId),
    /// Forget cached prefixes that nobody uses; answers whether none remains.
    ResetPrefixCache(oneshot::Sender<bool>),
    /// Give back what the device holds of generations that nobody uses; answers at the next step boundary.
    ReleaseAdapters(oneshot::Sender<()>),
    /// Take nothing new; end when the rest has ended.
    Stop(Drain),
}

/// What happens to requests under way when the engine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drain {
    /// They finish.
    Finish,
    /// They end now, with the tokens that they have.
    Abort,
}
