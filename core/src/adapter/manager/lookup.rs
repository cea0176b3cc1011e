//! A request's name to its newest generation: in memory, read again, or found by a resolver.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use tokio::time::{timeout, timeout_at};

use super::AdapterManager;
use crate::adapter::entry::Entry;
use crate::adapter::flights::Flights;
use crate::adapter::{Adapter, LoadRequest, names};
use crate::error::{Error, Result};

/// The oldest content that a request is content with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Floor {
    /// Generation at least.
    pub generation: Option<u64>,
    /// Policy version at least; an adapter without one is below every floor.
    pub policy_version: Option<u64>,
}

impl fmt::Display for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.generation, self.policy_version) {
            (Some(generation), Some(version)) => {
                write!(f, "generation {generation} and policy version {version}")
            }
            (Some(generation), None) => write!(f, "generation {generation}"),
            (None, Some(version)) => write!(f, "policy version {version}"),
            (None, None) => f.write_str("any generation"),
        }
    }
}

impl Floor {
    fn allows(&self, adapter: &Adapter) -> bool {
        self.generation.is_none_or(|least| adapter.generation >= least)
            && self.policy_version.is_none_or(|least| adapter.policy_version >= Some(least))
    }
}

impl AdapterManager {
    /// The newest generation of `name`; not found carries what resolvers had to say, which may be nothing. One that nobody loaded is asked of the resolvers, one that is out of memory is
    /// read again; both go on when the caller's patience (`resolver_timeout`) is at its end, and the next call joins.
    pub async fn get(self: &Arc<Self>, name: &str) -> Result<Arc<Adapter>> {
        let entry = self.registry.get(name);
        if let Some(entry) = &entry {
            entry.count_request();
            if let Some(adapter) = entry.current() {
                return Ok(adapter);
            }
        } else if self.resolvers().is_none() || !names::is_valid(name) {
            return Err(Error::not_found(""));
        }
        let flight = self.flights.join(name, || {
            let (this, name) = (self.clone(), name.to_owned());
            Flights::of_task(self.tasks.spawn(async move { this.fetch(&name).await }))
        })?;
        let Ok(fetched) = timeout(self.config.resolver_timeout, flight).await else {
            return Err(Error::unavailable(format!(
                "LoRA adapter '{name}' is still being fetched; try again"
            )));
        };
        if entry.is_none()
            && let Some(entry) = self.registry.peek(name)
        {
            entry.count_request();
        }
        fetched
    }

    /// As [`AdapterManager::get`], and waits until `deadline` for a generation that `floor` allows.
    pub async fn get_at_least(
        self: &Arc<Self>,
        name: &str,
        floor: Floor,
        deadline: Instant,
    ) -> Result<Arc<Adapter>> {
        // Listens before the first look, so that no flip is missed between.
        let mut flips = self.flips.subscribe();
        loop {
            let adapter = self.get(name).await?;
            if floor.allows(&adapter) {
                return Ok(adapter);
            }
            flips.mark_unchanged();
            if self
                .registry
                .peek(name)
                .and_then(|entry| entry.current())
                .is_some_and(|newest| floor.allows(&newest))
            {
                continue;
            }
            if timeout_at(deadline.into(), flips.changed()).await.is_err() {
                let version = match adapter.policy_version {
                    Some(version) => format!("policy version {version}"),
                    None => "without a policy version".into(),
                };
                return Err(Error::unavailable(format!(
                    "LoRA adapter '{name}' is at generation {} ({version}), the request asks for at least {floor}",
                    adapter.generation
                )));
            }
        }
    }

    /// Brings a name's weights into memory and ends its flight.
    async fn fetch(self: &Arc<Self>, name: &str) -> Result<Arc<Adapter>> {
        let mut landing = self.flights.landing(name);
        let fetched = match self.registry.peek(name) {
            Some(entry) => self.refill(name, &entry).await,
            None => self.resolve(name).await,
        };
        landing.error = fetched.as_ref().err().cloned();
        fetched
    }

    /// Reads a registered adapter again whose weights had to leave memory.
    async fn refill(self: &Arc<Self>, name: &str, entry: &Entry) -> Result<Arc<Adapter>> {
        let arrived = Instant::now();
        let guard = self.locks.lock(name).await;
        if let Some(adapter) = entry.current() {
            return Ok(adapter);
        }
        let (request, origin) = entry.source();
        let ask =
            LoadRequest { again: Some(entry.newest()), ..LoadRequest::new(request).in_place() };
        Ok(self.load_locked(ask, origin, &guard, arrived).await?.0)
    }
}
