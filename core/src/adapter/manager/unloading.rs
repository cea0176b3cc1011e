//! A name goes, and its generations with the last that holds them.

use std::sync::Arc;

use super::{AdapterManager, unknown};
use crate::error::Result;

impl AdapterManager {
    /// Takes a name out: from here on it is unknown. Requests under way finish on their generation; with `wait` the call
    /// ends when all generations of the name have left memory. Returns the generation that it pointed to.
    pub async fn unload(self: &Arc<Self>, name: &str, wait: bool) -> Result<u64> {
        let guard = self.locks.lock(name).await;
        self.registry.peek(name).ok_or_else(|| unknown(name))?;
        if let Some(journal) = self.journal.get().cloned() {
            let name = name.to_owned();
            self.loader.run(move || journal.unloaded(&name)).await?;
        }
        let entry = self.registry.remove(name).ok_or_else(|| unknown(name))?;
        drop(guard);
        self.flights.forget(name);
        let generations = entry.alive();
        let last = entry.newest().generation;
        entry.clear();
        drop(entry);
        if wait {
            let gone = || generations.iter().all(|generation| generation.strong_count() == 0);
            self.store.wait_until(gone).await;
        }
        self.release().await?;
        Ok(last)
    }
}
