//! A registered name and what stands behind it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use loraplex_plugin_sdk::LoraRequest;
use parking_lot::Mutex;

use super::{Adapter, LoadedAdapter};

/// Who brought an adapter, and so where it can be had again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Somebody named its folder: on the command line, or to a control route.
    Operator,
    /// This resolver found it.
    Resolver(Arc<str>),
    /// Its bytes came with a request; there is nowhere to read them again.
    Upload,
}

/// A name, its newest generation and where that came from.
#[derive(Debug)]
pub(super) struct Entry {
    /// `None` while its weights are out of memory; they are read again when somebody asks.
    current: ArcSwapOption<Adapter>,
    /// Rises with the manager's clock at each use.
    used: AtomicU64,
    requests: AtomicU64,
    source: Mutex<Source>,
}

#[derive(Debug)]
struct Source {
    request: LoraRequest,
    origin: Origin,
    pinned: bool,
    /// What the name points to, in memory or not.
    newest: LoadedAdapter,
    /// Generations that may still be in memory.
    alive: Vec<Weak<Adapter>>,
}

/// A registered adapter as operators see it.
#[derive(Debug, Clone)]
pub struct AdapterStatus {
    /// Its name and source.
    pub request: LoraRequest,
    /// Who brought it.
    pub origin: Origin,
    /// The newest generation, in memory or not.
    pub newest: LoadedAdapter,
    /// The same with its weights; `None` while they are out of memory.
    pub adapter: Option<Arc<Adapter>>,
    /// Never evicted from host memory.
    pub pinned: bool,
    /// Who holds the newest generation beside the registry: sequences, and requests on their way to the engine.
    pub leases: usize,
    /// Older generations that somebody still holds.
    pub old_generations: usize,
    /// Requests that named it, since it was registered.
    pub requests: u64,
}

impl Entry {
    pub(super) fn new(adapter: Arc<Adapter>, origin: Origin, pinned: bool) -> Self {
        let source = Source {
            request: adapter.request.clone(),
            origin,
            pinned,
            newest: LoadedAdapter::from(&*adapter),
            alive: vec![Arc::downgrade(&adapter)],
        };
        Self {
            current: ArcSwapOption::new(Some(adapter)),
            used: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            source: Mutex::new(source),
        }
    }

    /// The newest generation, if it is in memory.
    pub(super) fn current(&self) -> Option<Arc<Adapter>> {
        self.current.load_full()
    }

    /// Notes a use at `tick`.
    pub(super) fn touch(&self, tick: u64) {
        self.used.store(tick, Ordering::Relaxed);
    }

    /// Counts a request that named it.
    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// When it was last used, by the manager's clock.
    pub(super) fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Points the name to a new generation. Pins stay unless the load says otherwise.
    pub(super) fn replace(&self, adapter: Arc<Adapter>, origin: Origin, pinned: Option<bool>) {
        let mut source = self.source.lock();
        source.request = adapter.request.clone();
        source.origin = origin;
        source.newest = LoadedAdapter::from(&*adapter);
        source.pinned = pinned.unwrap_or(source.pinned);
        source.alive.retain(|generation| generation.strong_count() > 0);
        source.alive.push(Arc::downgrade(&adapter));
        self.current.store(Some(adapter));
    }

    /// Takes the weights out of memory if nobody but the registry holds them and they can be had again.
    pub(super) fn evict(&self) -> bool {
        let source = self.source.lock();
        if source.pinned || source.origin == Origin::Upload {
            return false;
        }
        // One for the entry itself. A request that loads the pointer in this moment keeps the generation alive for
        // itself, which is a use of memory and no error.
        let idle =
            self.current.load().as_ref().is_some_and(|adapter| Arc::strong_count(adapter) == 1);
        if idle {
            self.current.store(None);
        }
        idle
    }

    /// Takes the newest generation out for good.
    pub(super) fn clear(&self) {
        self.current.store(None);
    }

    /// Generations that are in memory, as far as anybody knows.
    pub(super) fn alive(&self) -> Vec<Weak<Adapter>> {
        self.source.lock().alive.clone()
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.source.lock().pinned
    }

    pub(super) fn set_pinned(&self, pinned: bool) {
        self.source.lock().pinned = pinned;
    }

    /// Where it can be had again.
    pub(super) fn source(&self) -> (LoraRequest, Origin) {
        let source = self.source.lock();
        (source.request.clone(), source.origin.clone())
    }

    /// What the name points to, in memory or not.
    pub(super) fn newest(&self) -> LoadedAdapter {
        self.source.lock().newest.clone()
    }

    pub(super) fn status(&self) -> AdapterStatus {
        let source = self.source.lock();
        let adapter = self.current();
        let newest = adapter.as_ref().map(Arc::downgrade);
        let old = source.alive.iter().filter(|generation| {
            generation.strong_count() > 0
                && !newest.as_ref().is_some_and(|newest| newest.ptr_eq(generation))
        });
        AdapterStatus {
            request: source.request.clone(),
            origin: source.origin.clone(),
            pinned: source.pinned,
            newest: source.newest.clone(),
            // One for the entry, one for the status itself.
            leases: adapter.as_ref().map_or(0, |a| Arc::strong_count(a).saturating_sub(2)),
            old_generations: old.count(),
            requests: self.requests.load(Ordering::Relaxed),
            adapter,
        }
    }
}
