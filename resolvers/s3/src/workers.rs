//! How much is done at once: names that are asked for, and adapters that are downloaded.
//!
//! Both are counted apart, so that a name whose adapter is in the cache does not wait for the downloads of others.

use tokio::sync::{Semaphore, SemaphorePermit};

/// So many of each.
#[derive(Debug)]
pub(crate) struct Workers {
    asks: Semaphore,
    downloads: Semaphore,
}

impl Workers {
    pub(crate) fn new(each: usize) -> Self {
        let each = each.max(1);
        Self { asks: Semaphore::new(each), downloads: Semaphore::new(each) }
    }

    /// Waits to ask the store, and the cache, for a name.
    pub(crate) async fn ask(&self) -> SemaphorePermit<'_> {
        self.asks.acquire().await.expect("it is never closed")
    }

    /// Waits to download an adapter.
    pub(crate) async fn download(&self) -> SemaphorePermit<'_> {
        self.downloads.acquire().await.expect("it is never closed")
    }
}
