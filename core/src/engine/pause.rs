//! Pausing: what happens to requests while a trainer works on the weights.

use std::time::Instant;

use tokio::sync::oneshot;

/// What a pause does to requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseMode {
    /// Those under way end now, with the tokens that they have; new ones are refused.
    Abort,
    /// Those under way finish; new ones are refused.
    Wait,
    /// All stay where they are; new ones queue.
    Keep,
}

/// A pause that somebody asks for.
#[derive(Debug)]
pub(super) struct Pause {
    pub(super) mode: PauseMode,
    /// Forget cached prefixes as well.
    pub(super) clear_cache: bool,
    /// The engine resumes by itself then.
    pub(super) until: Option<Instant>,
}

/// Whether the engine is paused, and who waits for it to be quiet.
#[derive(Debug, Default)]
pub(super) struct PauseState {
    current: Option<(PauseMode, Option<Instant>)>,
    clear_when_quiet: bool,
    /// Told whether the pause that they asked for came to hold.
    quiet: Vec<oneshot::Sender<bool>>,
}

impl PauseState {
    /// Starts a pause, or changes the one that is. `done` is answered by [`PauseState::settle`].
    pub(super) fn start(&mut self, pause: &Pause, done: oneshot::Sender<bool>) {
        self.answer(false);
        self.current = Some((pause.mode, pause.until));
        self.clear_when_quiet |= pause.clear_cache;
        self.quiet.push(done);
    }

    /// Ends it. Who still waits learns that it never held.
    pub(super) fn end(&mut self) {
        self.current = None;
        self.clear_when_quiet = false;
        self.answer(false);
    }

    /// Whether new requests are refused.
    pub(super) fn refuses(&self) -> bool {
        self.current.is_some_and(|(mode, _)| mode != PauseMode::Keep)
    }

    /// Whether nothing is stepped.
    pub(super) fn is_frozen(&self) -> bool {
        self.current.is_some_and(|(mode, _)| mode == PauseMode::Keep)
    }

    /// When it ends by itself.
    pub(super) fn until(&self) -> Option<Instant> {
        self.current.and_then(|(_, until)| until)
    }

    /// Answers those who wait, if the engine is as quiet as they asked; true when cached prefixes are to be forgotten.
    pub(super) fn settle(&mut self, has_work: bool) -> bool {
        if self.current.is_none() || (has_work && !self.is_frozen()) {
            return false;
        }
        self.answer(true);
        std::mem::take(&mut self.clear_when_quiet)
    }

    fn answer(&mut self, held: bool) {
        for done in self.quiet.drain(..) {
            // A receiver that left does not want the answer.
            let _ = done.send(held);
        }
    }
}
