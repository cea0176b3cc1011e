//! Finds adapters in S3 and stores like it: the name of a request is a key below a prefix.
//!
//! `LORA_RESOLVER_S3_URI=s3://bucket/prefix/{lora_name}` says where an adapter's folder lies; `{base_model}` may stand in
//! it too, for the name under which the server calls its base model. Of a folder, `adapter_config.json` and
//! `adapter_model.safetensors` are read. The other options are the fields of [`Settings`].
//!
//! Credentials are those of `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`, of a role
//! (`AWS_WEB_IDENTITY_TOKEN_FILE` and `AWS_ROLE_ARN`), of a container or of the machine; with `AWS_SKIP_SIGNATURE=1` none,
//! for public buckets. `AWS_REGION` and `AWS_ENDPOINT_URL` say where the bucket is. They are read in this process.
//!
//! What is downloaded lies in a cache folder, which several servers may share. A name whose ETags are those of the cache
//! costs two small requests and no download.
//!
//! | module | holds |
//! |---|---|
//! | `settings` | [`Settings`] and [`Limits`] |
//! | `names` | names to keys |
//! | `adapter` | whether a configuration fits |
//! | `fetch` | one adapter into the cache, as it was at one moment |
//! | `workers` | how many names are asked for, and adapters downloaded, at once |
//! | `objects` | objects and their bytes, asked for again where they broke off |
//! | `outage` | a store that could not be reached is left alone for a moment |
//! | `store` | the store of a scheme; `gs` and `az` where the features of that name are on |
//! | `transport` | one request |
//! | `failure` | what goes wrong, and what resolvers call it |
//!
//! What this crate must never do: let a name choose a store, a bucket or what lies beside the prefix; mix two states of an
//! adapter; follow a redirect.
#![forbid(unsafe_code)]

#[cfg(not(all(feature = "gs", feature = "az")))]
mod absent;
mod adapter;
#[cfg(feature = "az")]
mod az;
mod failure;
mod fetch;
#[cfg(feature = "gs")]
mod gs;
mod names;
mod objects;
mod outage;
mod settings;
mod store;
mod transport;
mod workers;

#[cfg(not(feature = "az"))]
use absent as az;
#[cfg(not(feature = "gs"))]
use absent as gs;

use std::path::PathBuf;

use loraplex_plugin_sdk::{
    LoraRequest, LoraResolver, Progress, ResolveError, ResolverConfig, async_trait,
};
use loraplex_resolver_cache::{Cache, CacheOptions};

use fetch::Fetch;
use names::Template;
use objects::Objects;
use outage::Outage;
pub use settings::{Limits, Settings};
use workers::Workers;

/// Answers for the keys below a prefix of a bucket.
#[derive(Debug)]
pub struct S3Resolver {
    template: Template,
    fetch: Fetch,
}

impl S3Resolver {
    /// Reads the template, and `AWS_*` from the environment.
    pub fn from_config(config: ResolverConfig) -> Result<Self, ResolveError> {
        Self::new(config, &std::env::vars().collect::<Vec<_>>(), Limits::default())
    }

    /// A resolver with the environment `vars`.
    pub fn new(
        config: ResolverConfig,
        vars: &[(String, String)],
        limits: Limits,
    ) -> Result<Self, ResolveError> {
        let settings: Settings = config.parse()?;
        if settings.s3_uri.is_empty() {
            return Err(ResolveError::invalid(
                "LORA_RESOLVER_S3_URI is not set: it says where adapters lie, such as s3://bucket/prefix/{lora_name}",
            ));
        }
        let template = Template::parse(&settings.s3_uri)?;
        let store = store::open(&template, vars, &limits)?;
        let folder = settings.s3_cache_dir.clone().map_or_else(|| default_folder(vars), Ok)?;
        let cache = Cache::open(CacheOptions::new(folder, settings.s3_cache_bytes));
        let cache = cache.map_err(|error| {
            ResolveError::invalid(format!("LORA_RESOLVER_S3_CACHE_DIR: {error}"))
        })?;
        let (outage, verify_etag) = (Outage::default(), settings.s3_verify_etag);
        let objects = Objects { store, limits, outage, verify_etag };
        let (max_bytes, workers) = (settings.s3_max_bytes, Workers::new(settings.s3_downloads));
        let fetch = Fetch { objects, cache, base: config, max_bytes, workers };
        Ok(Self { template, fetch })
    }
}

/// `~/.cache/loraplex/s3`.
fn default_folder(vars: &[(String, String)]) -> Result<PathBuf, ResolveError> {
    let var = |wanted: &str| {
        let found = vars.iter().find(|(name, value)| name == wanted && !value.is_empty());
        found.map(|(_, value)| PathBuf::from(value))
    };
    let cache = var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
    cache.map(|cache| cache.join("loraplex/s3")).ok_or_else(|| {
        ResolveError::invalid("LORA_RESOLVER_S3_CACHE_DIR is not set, and there is no HOME")
    })
}

#[async_trait]
impl LoraResolver for S3Resolver {
    async fn resolve_lora(
        &self,
        base_model: &str,
        lora_name: &str,
    ) -> Result<Option<LoraRequest>, ResolveError> {
        let progress = Progress::current();
        let Some(key) = self.template.key(base_model, lora_name)? else { return Ok(None) };
        let Some(found) = self.fetch.find(lora_name, &key, &progress).await? else {
            return Ok(None);
        };
        let Template { scheme, bucket, .. } = &self.template;
        let mut request = LoraRequest::new(lora_name, found.entry.folder)
            .with_revision(found.entry.version)
            .with_digest(format!("sha256:{}", found.entry.digest))
            .with_metadata("source", format!("{scheme}://{bucket}/{key}"));
        if let Some(base_model) = found.base_model {
            request = request.with_base_model(base_model);
        }
        Ok(Some(request))
    }
}

loraplex_plugin_sdk::export_resolver!("lora_s3_resolver", S3Resolver::from_config);
