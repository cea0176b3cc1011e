//! One fetch a name at a time, whoever asks; and what was not there, remembered for a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
use moka::sync::Cache;
use parking_lot::Mutex;

use super::Adapter;
use crate::error::{Error, ErrorKind, Result};

/// Names that are fetched at once; one more is refused, so that invented names cannot fill memory.
const MAX_FLIGHTS: usize = 4096;
/// Names that are remembered as not there; the least used are forgotten first.
const MAX_ABSENT: u64 = 16_384;

/// A fetch under way. Clones wait for the same one.
pub(super) type Flight = Shared<BoxFuture<'static, Result<Arc<Adapter>>>>;

/// Ends a fetch: its waiters have its result; the next request starts anew, or learns of `error`.
#[derive(Debug)]
pub(super) struct Landing<'a> {
    flights: &'a Flights,
    name: &'a str,
    pub(super) error: Option<Error>,
}

/// Fetches under way, and names whose last one failed.
#[derive(Debug)]
pub(super) struct Flights {
    under_way: Mutex<HashMap<String, Flight>>,
    failed: Option<Cache<String, Error>>,
}

impl Flights {
    /// Failures are remembered for `negative_ttl`; zero remembers none.
    pub(super) fn new(negative_ttl: Duration) -> Self {
        let failed = (!negative_ttl.is_zero())
            .then(|| Cache::builder().max_capacity(MAX_ABSENT).time_to_live(negative_ttl).build());
        Self { under_way: Mutex::default(), failed }
    }

    /// The fetch of `name` that is under way, or the one that `start` makes.
    pub(super) fn join(
        &self,
        name: &str,
        start: impl FnOnce() -> BoxFuture<'static, Result<Arc<Adapter>>>,
    ) -> Result<Flight> {
        if let Some(error) = self.failed.as_ref().and_then(|failed| failed.get(name)) {
            return Err(error);
        }
        let mut under_way = self.under_way.lock();
        if let Some(flight) = under_way.get(name) {
            return Ok(flight.clone());
        }
        if under_way.len() >= MAX_FLIGHTS {
            return Err(Error::exhausted(format!(
                "{MAX_FLIGHTS} adapters are being fetched, the limit"
            )));
        }
        let flight = start().shared();
        under_way.insert(name.to_owned(), flight.clone());
        Ok(flight)
    }

    /// What ends the fetch of `name` when it is dropped, also by a panic.
    pub(super) fn landing<'a>(&'a self, name: &'a str) -> Landing<'a> {
        Landing { flights: self, name, error: None }
    }

    /// Forgets that `name` was not there.
    pub(super) fn forget(&self, name: &str) {
        if let Some(failed) = &self.failed {
            failed.invalidate(name);
        }
    }

    /// A future that ends with the task's result.
    pub(super) fn of_task(
        task: tokio::task::JoinHandle<Result<Arc<Adapter>>>,
    ) -> BoxFuture<'static, Result<Arc<Adapter>>> {
        async move {
            task.await.unwrap_or_else(|error| {
                Err(Error::internal(format!("fetching an adapter died: {error}")))
            })
        }
        .boxed()
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        if let (Some(failed), Some(error)) = (&self.flights.failed, self.error.take())
            // A full memory says nothing about the name.
            && !matches!(error.kind, ErrorKind::Exhausted | ErrorKind::Cancelled)
        {
            failed.insert(self.name.to_owned(), error);
        }
        self.flights.under_way.lock().remove(self.name);
    }
}
