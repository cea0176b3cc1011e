//! What happened to the adapters' names, in the order in which it was asked and answered.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use loraplex_tests::oracle::{LABELS, Label};

/// A moment: moments are counted, not measured. Whatever ended before something else began has a smaller one.
pub(crate) type Moment = u64;

/// A moment that has not come.
const NEVER: Moment = Moment::MAX;

/// A change of a name: a load, or an unload where `label` is `None`.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) name: String,
    pub(crate) label: Option<Label>,
    /// What the server made of a load; its own answer says it.
    pub(crate) generation: Option<u64>,
    pub(crate) began: Moment,
    pub(crate) ended: Moment,
}

impl Change {
    /// Whether the server has not answered yet.
    pub(crate) fn is_open(&self) -> bool {
        self.ended == NEVER
    }
}

/// All changes so far, and the labels that are free.
#[derive(Debug)]
pub(crate) struct History {
    clock: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    changes: Vec<Change>,
    /// The next label is the one that has rested longest.
    labels: VecDeque<Label>,
    newest: HashMap<String, Label>,
}

/// A change under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket(usize);

impl History {
    pub(crate) fn new() -> Self {
        let labels = (1..LABELS).collect();
        let inner = Inner { changes: Vec::new(), labels, newest: HashMap::new() };
        Self { clock: AtomicU64::new(0), inner: Mutex::new(inner) }
    }

    pub(crate) fn now(&self) -> Moment {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// A load of `name` begins, under a label that no name has.
    pub(crate) fn begin_load(&self, name: &str) -> (Ticket, Label) {
        let mut inner = self.inner();
        let newest = &inner.newest;
        let free = |label: &Label| !newest.values().any(|taken| taken == label);
        let at = inner.labels.iter().position(free).expect("fewer than 99 names are loaded");
        let label = inner.labels.remove(at).expect("it was found");
        inner.labels.push_back(label);
        inner.newest.insert(name.to_owned(), label);
        (self.begin(inner, name, Some(label)), label)
    }

    pub(crate) fn begin_unload(&self, name: &str) -> Ticket {
        let mut inner = self.inner();
        inner.newest.remove(name);
        self.begin(inner, name, None)
    }

    fn begin(&self, mut inner: MutexGuard<'_, Inner>, name: &str, label: Option<Label>) -> Ticket {
        let began = self.now();
        let name = name.to_owned();
        inner.changes.push(Change { name, label, generation: None, began, ended: NEVER });
        Ticket(inner.changes.len() - 1)
    }

    /// The server has acknowledged the change.
    pub(crate) fn end(&self, Ticket(at): Ticket, generation: Option<u64>) {
        let mut inner = self.inner();
        inner.changes[at].generation = generation;
        inner.changes[at].ended = self.now();
    }

    /// Everything so far.
    pub(crate) fn changes(&self) -> Vec<Change> {
        self.inner().changes.clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}
