//! A store that could not be reached: it is left alone for a moment, whatever names clients ask for.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::{Cause, Failure};

/// The longest that a store's own word keeps it from being asked.
const MAX: Duration = Duration::from_secs(60);

/// The last failure to reach the store, until a request is answered.
#[derive(Debug, Default)]
pub(crate) struct Outage(Mutex<Option<(Instant, Failure)>>);

impl Outage {
    /// The failure again, while the store is left alone.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let state = self.state();
        let Some((until, failure)) = &*state else { return Ok(()) };
        match until.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => {
                Err(Failure { retry_after: Some(left), ..failure.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Whether the last request was in vain.
    pub(crate) fn is_recent(&self) -> bool {
        self.state().is_some()
    }

    /// A request was answered.
    pub(crate) fn end(&self) {
        *self.state() = None;
    }

    /// All attempts failed: the store is left alone for `pause`, or as long as it says.
    pub(crate) fn begin(&self, failure: &Failure, pause: Duration) {
        if matches!(failure.cause, Cause::Unreachable | Cause::Overloaded) {
            let pause = failure.retry_after.unwrap_or(pause).min(MAX);
            // Whoever is told of it asked for something else.
            let failure = Failure { about: None, ..failure.clone() };
            *self.state() = Some((Instant::now() + pause, failure));
        }
    }

    fn state(&self) -> MutexGuard<'_, Option<(Instant, Failure)>> {
        // Every change of it is a single assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
