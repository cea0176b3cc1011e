//! How much is asked for at once: listings, and files.
//!
//! Both are counted apart, so that a name whose files are in the cache does not wait for the downloads of others.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::progress::Progress;

/// How often who waits looks whether others get somewhere.
const LOOK: Duration = Duration::from_secs(1);

/// So many of each.
#[derive(Debug)]
pub(crate) struct Workers {
    listings: Semaphore,
    files: Semaphore,
    /// Rises with every chunk of any file.
    moved: AtomicU64,
}

impl Workers {
    pub(crate) fn new(each: usize) -> Self {
        let each = each.max(1);
        Self {
            listings: Semaphore::new(each),
            files: Semaphore::new(each),
            moved: AtomicU64::new(0),
        }
    }

    /// Waits to list a repository.
    pub(crate) async fn listing(&self) -> SemaphorePermit<'_> {
        self.listings.acquire().await.expect("it is never closed")
    }

    /// Waits to fetch a file, and says so while those before it get somewhere.
    pub(crate) async fn file(&self, progress: &dyn Progress) -> SemaphorePermit<'_> {
        let mut turn = pin!(self.files.acquire());
        loop {
            let before = self.moved.load(Ordering::Relaxed);
            if let Ok(permit) = timeout(LOOK, &mut turn).await {
                return permit.expect("it is never closed");
            }
            if self.moved.load(Ordering::Relaxed) > before {
                progress.waiting();
            }
        }
    }

    /// The progress of a file that is fetched, by which others see that something moves.
    pub(crate) fn watched<'a>(&'a self, progress: &'a dyn Progress) -> Watched<'a> {
        Watched { moved: &self.moved, progress }
    }
}

/// See [`Workers::watched`].
#[derive(Debug)]
pub(crate) struct Watched<'a> {
    moved: &'a AtomicU64,
    progress: &'a dyn Progress,
}

impl Progress for Watched<'_> {
    fn file(&self, file: &str, done: u64, total: u64) {
        self.moved.fetch_add(1, Ordering::Relaxed);
        self.progress.file(file, done, total);
    }

    fn waiting(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
        self.progress.waiting();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Told(AtomicU64);

    impl Progress for Told {
        fn file(&self, _file: &str, _done: u64, _total: u64) {}

        fn waiting(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn who_waits_says_so_while_others_get_somewhere() {
        let (workers, first, second) = (Workers::new(1), Told::default(), Told::default());
        let place = workers.file(&first).await;
        let transfer = workers.watched(&first);
        let told = || second.0.load(Ordering::Relaxed);
        let mut waits = pin!(workers.file(&second));
        // Nothing moves: whoever waits stands still too.
        assert!(timeout(3 * LOOK, &mut waits).await.is_err());
        assert_eq!(told(), 0);
        while told() < 2 {
            transfer.file("w", 1, 2);
            assert!(timeout(LOOK / 10, &mut waits).await.is_err());
        }
        drop(place);
        drop(waits.await);
        assert_eq!(first.0.load(Ordering::Relaxed), 0);
    }
}
