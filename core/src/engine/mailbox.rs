//! What the engine has drawn for a request and its reader has not taken yet: one piece that grows, not a queue.
//!
//! Whoever reads slowly finds more in the next piece. A pending token takes its id's four bytes (and its log-probabilities,
//! where the request asks for them), as in the sequence itself; so the engine never waits for a reader, and one that
//! trickles costs little more than one that keeps up.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::Error;
use crate::request::{FinishReason, TokenLogprobs, Version};
use crate::scheduler::Ending;

/// Everything since the last piece.
#[derive(Debug, Default)]
pub(super) struct Piece {
    /// Prompt tokens from the prefix cache, once it is admitted.
    pub(super) cached_tokens: Option<u32>,
    /// Log-probabilities of the next prompt tokens.
    pub(super) scored: Vec<TokenLogprobs>,
    /// The next tokens.
    pub(super) tokens: Vec<u32>,
    /// One a token, or none at all.
    pub(super) logprobs: Vec<TokenLogprobs>,
    /// What drew the tokens, and how many in a row.
    pub(super) versions: Vec<(Option<Version>, usize)>,
    /// Why nothing comes after it.
    pub(super) end: Option<End>,
}

/// The end of an output.
#[derive(Debug)]
pub(super) enum End {
    /// The last token ended it.
    Drawn(Ending),
    /// It ended without a token.
    Stopped(FinishReason),
    /// It failed.
    Failed(Error),
}

/// The engine's end.
#[derive(Debug)]
pub(super) struct Outbox(Arc<Shared>);

/// The reader's end.
#[derive(Debug)]
pub(super) struct Inbox(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    piece: Piece,
    /// Whether there is something to take.
    any: bool,
    /// Nobody writes any more.
    closed: bool,
}

/// Both ends of a new mailbox.
pub(super) fn mailbox() -> (Outbox, Inbox) {
    let shared = Arc::<Shared>::default();
    (Outbox(shared.clone()), Inbox(shared))
}

impl Outbox {
    pub(super) fn started(&self, cached_tokens: u32) {
        self.write(|piece| piece.cached_tokens = Some(cached_tokens));
    }

    pub(super) fn scored(&self, scores: impl Iterator<Item = TokenLogprobs>) {
        self.write(|piece| piece.scored.extend(scores));
    }

    /// A token, what drew it, and how it ended the output if it did.
    pub(super) fn drew(
        &self,
        token: u32,
        version: Option<Version>,
        logprobs: Option<TokenLogprobs>,
        ending: Option<Ending>,
    ) {
        self.write(|piece| {
            piece.tokens.push(token);
            piece.logprobs.extend(logprobs);
            match piece.versions.last_mut() {
                Some((last, count)) if *last == version => *count += 1,
                _ => piece.versions.push((version, 1)),
            }
            piece.end = ending.map(End::Drawn);
        });
    }

    pub(super) fn end(&self, end: End) {
        self.write(|piece| piece.end = Some(end));
    }

    fn write(&self, write: impl FnOnce(&mut Piece)) {
        let mut pending = self.0.pending.lock();
        write(&mut pending.piece);
        pending.any = true;
        drop(pending);
        self.0.arrived.notify_one();
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.0.pending.lock().closed = true;
        self.0.arrived.notify_one();
    }
}

impl Inbox {
    /// Waits for something and swaps it with `piece`, which is empty: its memory serves what comes next. False when
    /// nothing will come any more.
    pub(super) async fn take(&self, piece: &mut Piece) -> bool {
        loop {
            {
                let mut pending = self.0.pending.lock();
                if std::mem::take(&mut pending.any) {
                    std::mem::swap(&mut pending.piece, piece);
                    return true;
                }
                if pending.closed {
                    return false;
                }
            }
            self.0.arrived.notified().await;
        }
    }
}

impl Piece {
    /// Empties it and keeps a little of its memory: a reader that fell behind once does not hold a large piece for ever.
    pub(super) fn clear(&mut self) {
        const KEPT: usize = 64;
        self.cached_tokens = None;
        self.end = None;
        self.scored = Vec::new();
        self.tokens.clear();
        self.tokens.shrink_to(KEPT);
        self.logprobs.clear();
        self.logprobs.shrink_to(KEPT);
        self.versions.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(generation: u64) -> Option<Version> {
        Some(Version { generation, policy_version: None })
    }

    fn take(inbox: &Inbox, piece: &mut Piece) -> bool {
        futures::executor::block_on(inbox.take(piece))
    }

    #[test]
    fn a_reader_that_does_not_come_costs_a_few_bytes_a_token() {
        let (outbox, inbox) = mailbox();
        outbox.started(3);
        for token in 0..10_000 {
            outbox.drew(token, version(u64::from(token / 5000)), None, None);
        }
        outbox.end(End::Stopped(FinishReason::Abort));
        let held = |piece: &Piece| {
            piece.tokens.capacity() * size_of::<u32>()
                + piece.logprobs.capacity() * size_of::<TokenLogprobs>()
                + piece.versions.capacity() * size_of::<(Option<Version>, usize)>()
        };
        // A vector doubles: at most eight bytes a token.
        let pending = held(&inbox.0.pending.lock().piece);
        assert!(pending < 10_000 * 9, "{pending} bytes");
        let mut piece = Piece::default();
        assert!(take(&inbox, &mut piece));
        assert_eq!(piece.cached_tokens, Some(3));
        assert!(piece.tokens.iter().copied().eq(0..10_000));
        assert_eq!(piece.versions, [(version(0), 5000), (version(1), 5000)]);
        assert!(matches!(piece.end, Some(End::Stopped(FinishReason::Abort))));
        piece.clear();
        assert!(held(&piece) < 1024, "{} bytes are kept", held(&piece));
        drop(outbox);
        assert!(!take(&inbox, &mut piece), "nothing comes after the last piece");
    }

    #[test]
    fn what_was_written_before_the_end_is_read_after_it() {
        let (outbox, inbox) = mailbox();
        outbox.drew(7, None, None, None);
        drop(outbox);
        let mut piece = Piece::default();
        assert!(take(&inbox, &mut piece));
        assert_eq!((&piece.tokens[..], piece.end.is_none()), (&[7][..], true));
        piece.clear();
        assert!(!take(&inbox, &mut piece));
    }
}
