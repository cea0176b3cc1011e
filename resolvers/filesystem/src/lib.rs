//! Finds adapters in a folder: the name of a request is a path below it.
//!
//! | module | holds |
//! |---|---|
//! | `find` | a name to a folder that holds an adapter of this base model |
//! | `watch` | changes of folders that have been answered |
//!
//! What this crate must never do: read, or tell anything of, what lies outside of its root.
#![forbid(unsafe_code)]

mod find;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use loraplex_plugin_sdk::config::flag;
use loraplex_plugin_sdk::{
    AdapterChange, LoraRequest, LoraResolver, ResolveError, ResolverConfig, async_trait,
};
use serde::Deserialize;

use find::{Found, Root};
use watch::Watch;

/// Settings: the keys of `[plugins.lora_filesystem_resolver]`, or `LORA_RESOLVER_*`.
#[derive(Debug, Clone, Deserialize)]
pub struct Settings {
    /// `LORA_RESOLVER_CACHE_DIR`: the root.
    pub cache_dir: PathBuf,
    /// `LORA_RESOLVER_WATCH`: report adapters whose files change.
    #[serde(default, deserialize_with = "flag")]
    pub watch: bool,
    /// Look for changes every so many seconds instead of waiting for the system to tell: for network file systems.
    #[serde(default)]
    pub watch_poll_seconds: Option<f64>,
    /// A file that must lie in an adapter's folder before anything there is read, for writers that cannot rename.
    #[serde(default)]
    pub require_marker: Option<String>,
}

/// Answers for the folders below a root.
#[derive(Debug)]
pub struct FilesystemResolver {
    root: Arc<Root>,
    watch: Option<Watch>,
}

impl FilesystemResolver {
    /// Opens the root.
    pub fn from_config(config: ResolverConfig) -> Result<Self, ResolveError> {
        if !config.table.contains_key("cache_dir")
            && !config.environment.contains_key("LORA_RESOLVER_CACHE_DIR")
        {
            return Err(ResolveError::invalid(
                "LORA_RESOLVER_CACHE_DIR is not set: it names the folder of adapters",
            ));
        }
        let settings: Settings = config.parse()?;
        let poll = match settings.watch_poll_seconds.map(Duration::try_from_secs_f64) {
            None => None,
            Some(Ok(interval)) if !interval.is_zero() => Some(interval),
            Some(_) => {
                return Err(ResolveError::invalid("watch_poll_seconds must be over 0"));
            }
        };
        let root = Root::open(&settings.cache_dir, settings.require_marker, config)?;
        let watch = settings.watch.then(|| Watch::start(poll)).transpose()?;
        Ok(Self { root: Arc::new(root), watch })
    }

    async fn find(&self, name: &str) -> Result<Option<Found>, ResolveError> {
        let (root, name) = (self.root.clone(), name.to_owned());
        let found = tokio::task::spawn_blocking(move || root.find(&name)).await;
        found.map_err(|error| ResolveError::internal(format!("looking died: {error}")))?
    }
}

#[async_trait]
impl LoraResolver for FilesystemResolver {
    async fn resolve_lora(
        &self,
        _base_model: &str,
        lora_name: &str,
    ) -> Result<Option<LoraRequest>, ResolveError> {
        let Some(found) = self.find(lora_name).await? else { return Ok(None) };
        if let Some(watch) = &self.watch {
            watch.add(lora_name, &found);
        }
        let mut request = LoraRequest::new(lora_name, found.folder);
        if let Some(base) = found.base_model {
            request = request.with_base_model(base);
        }
        Ok(Some(request))
    }

    async fn next_change(&self) -> Option<AdapterChange> {
        self.watch.as_ref()?.next(&self.root).await.map(AdapterChange::new)
    }
}

loraplex_plugin_sdk::export_resolver!("lora_filesystem_resolver", FilesystemResolver::from_config);
