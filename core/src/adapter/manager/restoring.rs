//! What was loaded at run time comes back after a restart.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt as _;

use super::AdapterManager;
use crate::adapter::journal::{Journal, Record};
use crate::adapter::{Content, LoadRequest};
use crate::error::Result;

/// Adapters that are brought back at once: enough for the loaders to have one to read while they pack another.
const RESTORES: usize = 4;

impl AdapterManager {
    /// Loads what `journal` holds and notes every later load and unload in it; called once. What cannot be loaded now is
    /// logged, and stays in the journal for the next start. Returns how many are back and how many are not.
    pub async fn restore(self: &Arc<Self>, journal: Journal) -> (usize, usize) {
        let journal = Arc::new(journal);
        self.next_generation.fetch_max(journal.first_generation(), Ordering::Relaxed);
        let records = journal.records();
        let names: Vec<String> = records.iter().map(|record| record.request.name.clone()).collect();
        let loads = futures::stream::iter(records).map(|record| {
            let journal = journal.clone();
            async move {
                let name = record.request.name.clone();
                let restored = self.restore_one(record, &journal).await;
                if let Err(error) = &restored {
                    tracing::error!(name, %error, "an adapter of the last run cannot be loaded");
                }
                restored.is_ok()
            }
        });
        let restored: Vec<bool> = loads.buffered(RESTORES).collect().await;
        self.registry.sort(&names);
        if self.journal.set(journal).is_err() {
            tracing::error!("a journal is installed once; the second is ignored");
        }
        let back = restored.iter().filter(|&&back| back).count();
        (back, restored.len() - back)
    }

    async fn restore_one(self: &Arc<Self>, record: Record, journal: &Arc<Journal>) -> Result<()> {
        let content = match record.upload.clone() {
            None => Content::Folder,
            Some(digest) => {
                let journal = journal.clone();
                self.loader.run(move || journal.upload(&digest)).await?
            }
        };
        let ask = LoadRequest {
            content,
            pinned: Some(record.pinned),
            policy_version: record.policy_version,
            // Over what the command line has given the name.
            ..LoadRequest::new(record.request).in_place()
        };
        self.load(ask).await?;
        Ok(())
    }
}
