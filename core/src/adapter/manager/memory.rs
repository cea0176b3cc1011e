//! Host memory for adapters: what is in it, what stays, and room for one more.

use super::{AdapterManager, unknown};
use crate::adapter::peft;
use crate::adapter::store::Room;
use crate::error::{Error, Result};

impl AdapterManager {
    /// Generations and bytes in host memory.
    pub fn host_usage(&self) -> (usize, usize) {
        (self.store.adapters(), self.store.bytes())
    }

    /// Bytes of weights that an adapter can have at most.
    pub fn max_upload(&self) -> usize {
        let most = peft::largest_file(&self.builder.model, &self.builder.limits);
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// Keeps an adapter in host memory, or lets it go when memory is short.
    pub async fn set_pinned(&self, name: &str, pinned: bool) -> Result<()> {
        let _guard = self.locks.lock(name).await;
        let entry = self.registry.peek(name).ok_or_else(|| unknown(name))?;
        if let Some(journal) = self.journal.get().cloned() {
            let name = name.to_owned();
            self.loader.run(move || journal.pinned(&name, pinned)).await?;
        }
        entry.set_pinned(pinned);
        Ok(())
    }

    /// Takes `bytes` for a generation of `name`. What is over the limits then, not counting the `(adapters, bytes)` that are
    /// about to go, gives way: weights of other names that nobody uses, least recently used first.
    pub(super) async fn make_room(
        &self,
        name: &str,
        bytes: usize,
        going: (usize, usize),
    ) -> Result<Room> {
        let room = self.store.take(bytes);
        let is_full = || self.store.is_over(going);
        // An answer is out before its step ends and lets its adapter go. The first release ends with that step, so a second
        // look finds what the first could not have.
        for _ in 0..2 {
            if is_full() {
                self.registry.evict(name, || !is_full());
                // The engine may have what has just given way, and keeps it until it is told.
                self.release().await?;
            }
        }
        if is_full() {
            drop(room);
            return Err(Error::exhausted(self.store.describe()));
        }
        Ok(room)
    }

    /// Lets the engine give back what it holds of generations that nobody uses any more.
    pub(super) async fn release(&self) -> Result<()> {
        match &self.engine {
            Some(engine) => engine.release_adapters().await,
            None => Ok(()),
        }
    }
}
