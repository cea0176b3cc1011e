//! What crosses into the engine's thread.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::outputs::Sink;
use super::pause::Pause;
use crate::adapter::Adapter;
use crate::request::GenerateRequest;
use crate::scheduler::SeqId;

#[derive(Debug)]
pub(super) enum Command {
    /// A new sequence.
    Submit { id: SeqId, request: Box<GenerateRequest>, arrival: Instant, sink: Sink },
    /// Its stream was dropped.
    Abort(SeqId),
    /// Somebody asked by the requests' own ids, `None` for all; answers how many sequences ended.
    AbortRequests(Option<Vec<String>>, oneshot::Sender<usize>),
    /// A name points to this generation from here on.
    Replace(Arc<Adapter>, oneshot::Sender<()>),
    /// Stop the flow of tokens; answers when the mode's condition holds, or never will.
    Pause(Pause, oneshot::Sender<bool>),
    /// Go on.
    Resume(oneshot::Sender<()>),
    /// Forget cached prefixes that nobody uses; answers whether none remains.
    ResetPrefixCache(oneshot::Sender<bool>),
    /// Give back what the device holds of generations that nobody uses; answers at the next step boundary.
    ReleaseAdapters(oneshot::Sender<()>),
    /// Give back what the device holds of adapters that no sequence has a lease on; answers the bytes.
    EvictAdapters(oneshot::Sender<usize>),
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
