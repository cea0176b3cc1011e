//! One adapter in a repository: its configuration is read and judged before its weights are asked for.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use loraplex_hub_client::{HubClient, Listing, RepoId, Revision};
use loraplex_plugin_sdk::{ErrorKind, LoraRequest, Progress, ResolveError, ResolverConfig};
use serde::Deserialize;

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

/// What matters in `adapter_config.json`; every other key is the engine's.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    peft_type: Option<String>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
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
        let Self { repo, .. } = self;
        let file = self.file(CONFIG);
        let text = tokio::fs::read(path).await.map_err(|error| {
            ResolveError::internal(format!("cannot read {}: {error}", path.display()))
        })?;
        let config: Config = serde_json::from_slice(&text)
            .map_err(|error| ResolveError::invalid(format!("{file} of {repo}: {error}")))?;
        let elsewhere = |why: String| ResolveError::new(ErrorKind::NotFound, why);
        let kind = config.peft_type.unwrap_or_default();
        if !kind.eq_ignore_ascii_case("LORA") {
            return Err(elsewhere(format!(
                "{file} of {repo} has the peft_type {kind:?}, not LORA"
            )));
        }
        match &config.base_model_name_or_path {
            Some(name) if !base.is_base_model(name) => Err(elsewhere(format!(
                "{file} of {repo} is for the base model {name:?}, and this one is {}: set \
                 LORA_RESOLVER_BASE_ALIASES if they are the same",
                base.base_model_names.join(", ")
            ))),
            // Trainers that start from a model in memory write null.
            other => Ok(other.clone()),
        }
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
}
