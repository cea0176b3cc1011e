//! How a resolver says that it is still getting somewhere.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use abi_stable::std_types::RArc;

thread_local! {
    /// The progress of the call whose future is being polled on this thread.
    static CURRENT: RefCell<Option<Progress>> = const { RefCell::new(None) };
}

/// A count that rises while a call of [`resolve_lora`](crate::LoraResolver::resolve_lora) gets somewhere.
///
/// The host gives up a call whose count stands still for twice `--resolver-timeout`, and any call after 15 minutes. A
/// resolver that answers within seconds need not bother; one that downloads takes [`Progress::current`] at the start of
/// its call and advances it by the bytes that arrive; a call that waits for others of the same resolver advances it
/// while those get somewhere. Clones share the count, so it can go to other tasks.
#[derive(Debug, Clone)]
pub struct Progress(RArc<AtomicUsize>);

impl Default for Progress {
    fn default() -> Self {
        Self(RArc::new(AtomicUsize::new(0)))
    }
}

impl Progress {
    /// The progress of the call that runs on this task; one that nobody reads outside of a call.
    pub fn current() -> Self {
        CURRENT.with_borrow(|current| current.clone().unwrap_or_default())
    }

    /// Something happened: `amount` bytes, or 1 for any step.
    pub fn advance(&self, amount: u64) {
        self.0.fetch_add(amount as usize, Ordering::Relaxed);
    }

    /// All that happened so far.
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed) as u64
    }

    pub(crate) fn of(shared: RArc<AtomicUsize>) -> Self {
        Self(shared)
    }

    /// The count itself, which may cross to a plugin.
    pub(crate) fn shared(&self) -> RArc<AtomicUsize> {
        self.0.clone()
    }

    /// Runs `call` so that [`Progress::current`] inside it is this one.
    pub async fn scope<F: Future>(self, call: F) -> F::Output {
        let mut call = pin!(call);
        poll_fn(|context| {
            let before = CURRENT.replace(Some(self.clone()));
            // Put back on a panic too: the thread goes on to poll other calls.
            let _restore = Restore(before);
            call.as_mut().poll(context)
        })
        .await
    }
}

struct Restore(Option<Progress>);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}
