//! How much is done at once: names that are asked for, and adapters that are downloaded.
//!
//! Both are counted apart, so that a name whose adapter is in the cache does not wait for the downloads of others.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use loraplex_plugin_sdk::Progress;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// How often who waits looks whether others get somewhere.
const LOOK: Duration = Duration::from_secs(1);

/// So many of each.
#[derive(Debug)]
pub(crate) struct Workers {
    asks: Semaphore,
    downloads: Semaphore,
    /// Rises with every chunk of any download.
    moved: AtomicU64,
}

impl Workers {
    pub(crate) fn new(each: usize) -> Self {
        let each = each.max(1);
        Self {
            asks: Semaphore::new(each),
            downloads: Semaphore::new(each),
            moved: AtomicU64::new(0),
        }
    }

    /// Waits to ask the store, and the cache, for a name.
    pub(crate) async fn ask(&self) -> SemaphorePermit<'_> {
        self.asks.acquire().await.expect("it is never closed")
    }

    /// Waits to download an adapter. While the downloads before it get somewhere, so does the call that waits.
    pub(crate) async fn download(&self, progress: &Progress) -> SemaphorePermit<'_> {
        let mut turn = pin!(self.downloads.acquire());
        loop {
            let before = self.moved.load(Ordering::Relaxed);
            if let Ok(permit) = timeout(LOOK, &mut turn).await {
                return permit.expect("it is never closed");
            }
            if self.moved.load(Ordering::Relaxed) > before {
                progress.advance(1);
            }
        }
    }

    /// A download got somewhere.
    pub(crate) fn moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_gets_somewhere_while_downloads_do() {
        let (workers, first, second) = (Workers::new(1), Progress::default(), Progress::default());
        let place = workers.download(&first).await;
        let mut waits = pin!(workers.download(&second));
        // Nothing moves: whoever waits stands still too.
        assert!(timeout(3 * LOOK, &mut waits).await.is_err());
        assert_eq!(second.total(), 0);
        while second.total() < 2 {
            workers.moved();
            assert!(timeout(LOOK / 10, &mut waits).await.is_err());
        }
        drop(place);
        drop(waits.await);
        assert_eq!(first.total(), 0);
    }
}
