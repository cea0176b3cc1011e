//! One adapter in a repository: its configuration is read and judged before its weights are asked for.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use loraplex_hub_client::{HubClient, Listing, RepoId, Revision};
use loraplex_plugin_sdk::{LoraRequest, Progress, ResolveError, ResolverConfig};
use serde_json::Value;

use crate::failure;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const MAX_CONFIG: u64 = 1 << 20;
const MAX_WEIGHTS: u64 = 16 << 30;

/// Where an adapter may be.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// What the client asked for.
    pub(crate) name: String,
    pub(crate) repo: RepoId,
    /// Empty for the repository itself.
    pub(crate) folder: String,
    pub(crate) revision: Revision,
}

impl Adapter {
    fn file(&self, name: &str) -> String {
        match self.folder.as_str() {
            "" => name.to_owned(),
            folder => format!("{folder}/{name}"),
        }
    }

    /// Whether `listing` has both of its files.
    pub(crate) fn is_whole(&self, listing: &Listing) -> bool {
        [CONFIG, WEIGHTS].iter().all(|name| listing.file(&self.file(name)).is_some())
    }

    /// Brings its files into the cache; `None` when its folder is no adapter's.
    pub(crate) async fn fetch(
        &self,
        client: &HubClient,
        listing: &Listing,
        base: &ResolverConfig,
        progress: &Progress,
    ) -> Result<Option<LoraRequest>, ResolveError> {
        let Self { name, repo, folder, revision } = self;
        let (config, weights) = (self.file(CONFIG), self.file(WEIGHTS));
        if listing.file(&config).is_none() {
            return Ok(None);
        }
        if listing.file(&weights).is_none() {
            if client.options().offline {
                return Err(failure::from(client.not_cached(repo, revision)));
            }
            let commit = &listing.commit;
            return Err(ResolveError::invalid(format!(
                "{repo} has {config} and no {weights} at {commit}: weights must be safetensors"
            )));
        }
        let bytes = Bytes { progress, seen: AtomicU64::new(0) };
        let fetch = async |file, limit| {
            bytes.seen.store(0, Ordering::Relaxed);
            client.fetch(listing, &[file], limit, &bytes).await.map_err(failure::from)
        };
        let snapshot = fetch(config.clone(), MAX_CONFIG).await?;
        let base_model = self.judge(&snapshot.join(&config), base).await?;
        fetch(weights, MAX_WEIGHTS).await?;
        let mut request = LoraRequest::new(name, snapshot.join(folder))
            .with_revision(&listing.commit)
            .with_metadata("repo", repo.as_str());
        if let Some(base_model) = base_model {
            request = request.with_base_model(base_model);
        }
        Ok(Some(request))
    }

    /// Refuses what is no LoRA adapter or belongs to another base model; the base model's name.
    async fn judge(
        &self,
        path: &Path,
        base: &ResolverConfig,
    ) -> Result<Option<String>, ResolveError> {
        let text = tokio::fs::read(path).await.map_err(|error| {
            ResolveError::internal(format!("cannot read {}: {error}", path.display()))
        })?;
        let config: Value = serde_json::from_slice(&text).map_err(|error| {
            ResolveError::invalid(format!("{} of {}: {error}", self.file(CONFIG), self.repo))
        })?;
        base.fits(&self.name, &config)
    }
}

/// Tells the host of bytes as they arrive.
#[derive(Debug)]
struct Bytes<'a> {
    progress: &'a Progress,
    seen: AtomicU64,
}

impl loraplex_hub_client::Progress for Bytes<'_> {
    fn file(&self, _file: &str, done: u64, _total: u64) {
        let before = self.seen.swap(done, Ordering::Relaxed);
        self.progress.advance(done.saturating_sub(before));
    }

    fn waiting(&self) {
        self.progress.advance(1);
    }
}
