//! Finds adapters on the Hugging Face Hub.
//!
//! A name is `org/name`, `org/name/sub/folder`, each with `@revision` or without, of a repository that the operator has
//! put on `LORA_RESOLVER_HF_REPO_LIST`. `HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME` and the variables beside them are read in
//! this process and mean what they mean to `huggingface_hub`, whose cache folder is used.
//!
//! What this crate must never do: let a client choose a repository that is not on the list.
#![forbid(unsafe_code)]

mod adapter;
mod failure;
mod listings;
mod repos;

use std::time::Duration;

use loraplex_hub_client::{HubClient, HubErrorKind, HubOptions};
use loraplex_plugin_sdk::{
    LoraRequest, LoraResolver, Progress, ResolveError, ResolverConfig, async_trait, config,
};
use serde::Deserialize;

use adapter::Adapter;
use listings::Listings;
use repos::Repos;

/// How long what a repository holds is believed: a new adapter is found so much later at most, and a Hub that is down is
/// asked so seldom.
const LISTING_AGE: Duration = Duration::from_secs(5);

/// Asks the Hub for adapters of listed repositories.
#[derive(Debug)]
pub struct HfHubResolver {
    client: HubClient,
    repos: Repos,
    listings: Listings,
    config: ResolverConfig,
}

#[derive(Deserialize)]
struct Settings {
    #[serde(default, deserialize_with = "config::list")]
    hf_repo_list: Vec<String>,
}

impl HfHubResolver {
    /// Reads the list, and `HF_*` from the environment.
    pub fn from_config(config: ResolverConfig) -> Result<Self, ResolveError> {
        #[allow(clippy::disallowed_methods, reason = "HF_* are this plugin's own configuration")]
        let options = HubOptions::from_vars(|name| std::env::var(name).ok());
        Self::new(config, options.map_err(failure::from)?, LISTING_AGE)
    }

    /// A resolver that asks the Hub of `options` what a repository holds when its last answer is `listing_age` old.
    pub fn new(
        config: ResolverConfig,
        options: HubOptions,
        listing_age: Duration,
    ) -> Result<Self, ResolveError> {
        let settings: Settings = config.parse()?;
        let repos = Repos::parse(&settings.hf_repo_list)?;
        let client = HubClient::new(options).map_err(failure::from)?;
        Ok(Self { client, repos, listings: Listings::new(listing_age), config })
    }

    /// The adapter, if its folder is in the repository.
    async fn find(
        &self,
        adapter: &Adapter,
        progress: &Progress,
    ) -> Result<Option<LoraRequest>, ResolveError> {
        let (repo, revision) = (&adapter.repo, &adapter.revision);
        let listing = match self.listings.get(&self.client, repo, revision).await {
            Ok(listing) => listing,
            Err(error) if error.kind == HubErrorKind::Unavailable => {
                // What an earlier call has brought serves while the Hub does not answer.
                let cached = self.client.cached(repo, revision).await;
                match cached.filter(|listing| adapter.is_whole(listing)) {
                    Some(listing) => {
                        tracing::warn!(%repo, %error, "served from the cache");
                        listing.into()
                    }
                    None => return Err(failure::from(error)),
                }
            }
            Err(error) => return Err(failure::from(error)),
        };
        progress.advance(1);
        adapter.fetch(&self.client, &listing, &self.config, progress).await
    }
}

#[async_trait]
impl LoraResolver for HfHubResolver {
    async fn resolve_lora(
        &self,
        _base_model: &str,
        lora_name: &str,
    ) -> Result<Option<LoraRequest>, ResolveError> {
        let progress = Progress::current();
        for adapter in self.repos.places(lora_name)? {
            if let Some(found) = self.find(&adapter, &progress).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

loraplex_plugin_sdk::export_resolver!("lora_hf_hub_resolver", HfHubResolver::from_config);
