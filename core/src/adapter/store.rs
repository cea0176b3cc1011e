//! Host memory for adapters: how much is in use, and whether there is room for more.
//!
//! Every generation holds a [`Room`] for as long as it lives, old ones that sequences still use included, so that the
//! count is what generations really hold. What they leave behind waits a little while for the next ones, within a limit
//! of its own ([`AdapterMemory`](loraplex_kernels::AdapterMemory)).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Limits and use of host memory.
#[derive(Debug)]
pub(super) struct HostStore {
    max_adapters: usize,
    max_bytes: usize,
    used: Arc<Usage>,
}

#[derive(Debug, Default)]
struct Usage {
    adapters: AtomicUsize,
    bytes: AtomicUsize,
    freed: Notify,
}

/// One generation's share; given back on drop.
#[derive(Debug)]
pub(super) struct Room {
    bytes: usize,
    used: Arc<Usage>,
}

impl HostStore {
    /// Room for this many adapters and bytes.
    pub(super) fn new(max_adapters: usize, max_bytes: Option<usize>) -> Self {
        let max_bytes = max_bytes.unwrap_or(usize::MAX);
        Self { max_adapters, max_bytes, used: Arc::default() }
    }

    /// Takes a share, whether or not it fits: a new generation is in memory already when its size is known.
    pub(super) fn take(&self, bytes: usize) -> Room {
        self.used.adapters.fetch_add(1, Ordering::Relaxed);
        self.used.bytes.fetch_add(bytes, Ordering::Relaxed);
        Room { bytes, used: self.used.clone() }
    }

    /// Whether more is in use than the limits allow, when `(adapters, bytes)` of it are about to go.
    pub(super) fn is_over(&self, (adapters, bytes): (usize, usize)) -> bool {
        self.adapters().saturating_sub(adapters) > self.max_adapters
            || self.bytes().saturating_sub(bytes) > self.max_bytes
    }

    /// Generations in memory.
    pub(super) fn adapters(&self) -> usize {
        self.used.adapters.load(Ordering::Relaxed)
    }

    /// Bytes in use.
    pub(super) fn bytes(&self) -> usize {
        self.used.bytes.load(Ordering::Relaxed)
    }

    /// What is full, for a message.
    pub(super) fn describe(&self) -> String {
        let bytes = match self.max_bytes {
            usize::MAX => String::new(),
            most => format!(" and {} of {most} bytes (--lora-host-memory)", self.bytes()),
        };
        format!(
            "host memory for adapters is full: {} of {} adapters (--max-cpu-loras){bytes} are in use, pinned or uploaded",
            self.adapters(),
            self.max_adapters
        )
    }

    /// Waits until `gone` is true; asked again whenever a generation is freed.
    pub(super) async fn wait_until(&self, gone: impl Fn() -> bool) {
        loop {
            let freed = self.used.freed.notified();
            let mut freed = std::pin::pin!(freed);
            // Listens from here on, so that what is freed after the look is not missed.
            freed.as_mut().enable();
            if gone() {
                return;
            }
            freed.await;
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.used.adapters.fetch_sub(1, Ordering::Relaxed);
        self.used.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.used.freed.notify_waiters();
    }
}
