//! What may be an adapter's name, and a lock for each name in use.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// Bytes of a name at most.
const MAX_BYTES: usize = 256;

/// Whether `name` can be an adapter's: names are opaque, slashes and colons allowed, but nothing that a path could make
/// something else of.
pub(super) fn is_valid(name: &str) -> bool {
    (1..=MAX_BYTES).contains(&name.len())
        && !name.chars().any(char::is_control)
        && !name.starts_with('/')
        && !name.contains('\\')
        && !name.split('/').any(|segment| segment == "." || segment == "..")
}

/// Locks by name: changes of one name follow each other, those of different names do not wait for each other.
#[derive(Debug, Default)]
pub(super) struct NameLocks {
    /// Held by the guards alone, so that a name that nobody changes takes no memory.
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// The right to change a name.
#[derive(Debug)]
pub(super) struct NameGuard<'a> {
    locks: &'a NameLocks,
    name: String,
    held: Option<OwnedMutexGuard<()>>,
}

impl NameLocks {
    pub(super) async fn lock(&self, name: &str) -> NameGuard<'_> {
        let lock = {
            let mut locks = self.locks.lock();
            match locks.get(name).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::default();
                    locks.insert(name.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        // Made before the wait, so that a caller that gives up tidies up as well.
        let mut guard = NameGuard { locks: self, name: name.to_owned(), held: None };
        guard.held = Some(lock.lock_owned().await);
        guard
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.locks.lock().len()
    }
}

impl Drop for NameGuard<'_> {
    fn drop(&mut self) {
        let mut locks = self.locks.locks.lock();
        self.held = None;
        if locks.get(&self.name).is_some_and(|lock| lock.strong_count() == 0) {
            locks.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_opaque_within_bounds() {
        let long = "x".repeat(256);
        for good in ["a", "org/model", "a:b", "a.b", "..a", "日本", "a b", "%2e%2e", long.as_str()]
        {
            assert!(is_valid(good), "{good}");
        }
        let longer = "x".repeat(257);
        for bad in
            ["", "/a", "..", "a/..", "a/../b", ".", "./a", "a\\b", "a\0", "a\nb", longer.as_str()]
        {
            assert!(!is_valid(bad), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_name_that_nobody_changes_takes_no_memory() {
        let locks = NameLocks::default();
        let first = locks.lock("a").await;
        let other = locks.lock("b").await;
        assert_eq!(locks.len(), 2);
        let mut second = Box::pin(locks.lock("a"));
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        assert!(futures::poll!(&mut second).is_ready());
        drop(second);
        drop(other);
        assert_eq!(locks.len(), 0);
    }
}
