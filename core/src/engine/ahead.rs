//! Running ahead: where the device works beside the engine, the next step is queued before the one under way has ended, so
//! that planning it, handing out tokens and launching kernels take no time of the device.
//!
//! Whatever changes more than a token a sequence (commands, admissions, prompts, flips) waits until nothing is under way.
//! The step is queued late, when most of the one before is over, so that a request or a reload that comes meanwhile does
//! not wait for a second step; and not at all while a reload is about to come.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::Engine;
use crate::runner::StepError;
use crate::scheduler::StepPlan;

/// Of the time that the last step took, what passes before the next one is queued.
const LATE: f64 = 0.75;
/// How often a step is asked meanwhile whether it has ended.
const GLANCE: Duration = Duration::from_micros(250);

/// The steps under way.
#[derive(Debug)]
pub(super) struct Flight {
    /// Whether steps run ahead at all.
    enabled: bool,
    /// Replacements that are about to come.
    expected: Arc<AtomicUsize>,
    /// Whether the engine's plan has been submitted and not collected.
    pub(super) under_way: bool,
    /// The step after it.
    next: StepPlan,
    /// When the one under way began: at its submission, or when the one before had ended.
    since: Instant,
    /// How long the last one took.
    took: Duration,
}

impl Flight {
    pub(super) fn new(enabled: bool, expected: Arc<AtomicUsize>) -> Self {
        Self {
            enabled,
            expected,
            under_way: false,
            next: StepPlan::default(),
            since: Instant::now(),
            took: Duration::ZERO,
        }
    }

    /// Whether a replacement is about to come.
    fn is_expecting(&self) -> bool {
        self.expected.load(Ordering::Relaxed) > 0
    }

    /// A step is submitted while none is under way.
    pub(super) fn begin(&mut self) {
        self.under_way = true;
        self.since = Instant::now();
    }

    fn end(&mut self) {
        let now = Instant::now();
        self.under_way = false;
        self.took = now - self.since;
        self.since = now;
    }
}

impl Engine {
    /// Submits the step after the one under way, if it can be known.
    pub(super) fn submit_next(&mut self) -> bool {
        if !self.flight.enabled || self.command_comes() || self.flight.is_expecting() {
            return false;
        }
        let next = &mut self.flight.next;
        if !self.scheduler.schedule_ahead(&self.plan, next, &mut self.blocks) {
            return false;
        }
        let submitted = self.runner.submit(next, self.scheduler.sequences());
        if let Err(StepError { error, .. }) = &submitted {
            // It is planned again from what the one under way gives, and fails there if it must.
            tracing::warn!(%error, "a step could not be queued ahead");
        }
        submitted.is_ok()
    }

    /// Whether a command comes before it is time to queue the next step. It is kept for [`Engine::take_commands`].
    fn command_comes(&mut self) -> bool {
        if self.held.is_some() {
            return true;
        }
        let late = self.flight.since + self.flight.took.mul_f64(LATE);
        loop {
            // It may be shorter than the last.
            let left = late.saturating_duration_since(Instant::now());
            let left = if self.runner.has_ended() { Duration::ZERO } else { left.min(GLANCE) };
            match self.commands.recv_timeout(left) {
                Ok(command) => self.held = Some(command),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return false,
                Err(RecvTimeoutError::Timeout) => continue,
                // Who drains the queue finds out as well.
                Err(RecvTimeoutError::Disconnected) => {}
            }
            return true;
        }
    }

    /// Collects the step under way, if there is one, and hands its tokens out.
    pub(super) fn land(&mut self) {
        if !self.flight.under_way {
            return;
        }
        let ran = self.runner.collect(&mut self.results);
        self.flight.end();
        match ran {
            Ok(()) => self.commit(),
            Err(error) => self.fail_step(&error, None),
        }
        self.report();
    }

    /// The step that was submitted behind the one that has ended is the one under way.
    pub(super) fn take_next(&mut self) {
        std::mem::swap(&mut self.plan, &mut self.flight.next);
        self.flight.under_way = true;
        self.metrics.ran_ahead();
    }
}
