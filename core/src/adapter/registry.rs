//! The names, in order of registration.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indexmap::IndexMap;
use parking_lot::RwLock;

use super::entry::Entry;
use super::{Adapter, Origin};

/// All registered names. Looking one up is a hash and a shared lock; nothing is held while anybody waits.
#[derive(Debug, Default)]
pub(super) struct Registry {
    entries: RwLock<IndexMap<String, Arc<Entry>>>,
    /// Counts uses, which orders entries by recency without a clock.
    ticks: AtomicU64,
}

impl Registry {
    /// The entry of `name`, counted as a use.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Entry>> {
        let entry = self.entries.read().get(name).cloned()?;
        entry.touch(self.ticks.fetch_add(1, Ordering::Relaxed));
        Some(entry)
    }

    /// The entry of `name`; looking is no use.
    pub(super) fn peek(&self, name: &str) -> Option<Arc<Entry>> {
        self.entries.read().get(name).cloned()
    }

    /// Registers a name that is not taken, or points it to a new generation. The caller holds the name's lock.
    pub(super) fn put(&self, adapter: Arc<Adapter>, origin: Origin, pinned: Option<bool>) {
        let tick = self.ticks.fetch_add(1, Ordering::Relaxed);
        if let Some(entry) = self.peek(adapter.name()) {
            entry.touch(tick);
            entry.replace(adapter, origin, pinned);
            return;
        }
        let name = adapter.name().to_owned();
        let entry = Entry::new(adapter, origin, pinned.unwrap_or(false));
        entry.touch(tick);
        self.entries.write().insert(name, Arc::new(entry));
    }

    /// Takes a name out; the others keep their order.
    pub(super) fn remove(&self, name: &str) -> Option<Arc<Entry>> {
        self.entries.write().shift_remove(name)
    }

    /// Puts these names into this order, behind the others.
    pub(super) fn sort(&self, names: &[String]) {
        let place: HashMap<&str, usize> =
            names.iter().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
        self.entries.write().sort_by_cached_key(|name, _| place.get(name.as_str()).copied());
    }

    /// All entries, in order of registration.
    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        self.entries.read().values().cloned().collect()
    }

    /// Takes weights out of memory, least recently used first, until `enough`. A name that a resolver can find again
    /// goes with its weights, so that it is resolved anew; an operator's stays and is read again from its folder.
    /// `keep` is left alone.
    pub(super) fn evict(&self, keep: &str, enough: impl Fn() -> bool) {
        if enough() {
            return;
        }
        let mut by_use: Vec<(u64, String, Arc<Entry>)> = self
            .entries
            .read()
            .iter()
            .filter(|(name, _)| *name != keep)
            .map(|(name, entry)| (entry.last_used(), name.clone(), entry.clone()))
            .collect();
        by_use.sort_unstable_by_key(|(used, ..)| *used);
        for (_, name, entry) in by_use {
            if !entry.evict() {
                continue;
            }
            let (_, origin) = entry.source();
            tracing::debug!(name, "an adapter's weights left host memory");
            if matches!(origin, Origin::Resolver(_)) {
                self.entries.write().shift_remove(&name);
            }
            if enough() {
                return;
            }
        }
    }
}
