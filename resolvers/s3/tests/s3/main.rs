//! The resolver against an S3 server of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod bucket;
mod names;
mod refusals;
mod transfer;
mod unreachable;

use std::sync::Arc;
use std::time::Duration;

use bucket::{BUCKET, Bucket};
use lora_s3_resolver::{Limits, S3Resolver};
use loraplex_plugin_sdk::testing::{Adapter, CONFIG, Fixture, WEIGHTS, contract};
use loraplex_plugin_sdk::{LoraRequest, LoraResolver, ResolveError, ResolverConfig, async_trait};
use serde_json::{Value, json};

const BASE: &str = "served";

/// A bucket, a cache, and what the resolvers over them are made with.
struct World {
    bucket: Bucket,
    cache: tempfile::TempDir,
    limits: Limits,
}

impl World {
    async fn new() -> Self {
        let (bucket, cache) = (Bucket::start().await, tempfile::tempdir().unwrap());
        Self { bucket, cache, limits: limits() }
    }

    fn resolver(&self, settings: Value) -> S3Resolver {
        resolver(&self.bucket.vars(), self.cache.path(), self.limits.clone(), settings).unwrap()
    }

    /// An adapter below `loras/`, with so many bytes of weights.
    fn adapter(&self, name: &str, version: u8, len: usize) -> Vec<u8> {
        let adapter = Adapter::new(name, BASE, version);
        let weights = (0..len).map(|i| (i as u64 * 31 / 7) as u8 ^ version).collect::<Vec<u8>>();
        self.bucket.put(&format!("loras/{name}/{CONFIG}"), &adapter.files[CONFIG]);
        self.bucket.put(&format!("loras/{name}/{WEIGHTS}"), &weights);
        weights
    }
}

/// What lies in the cache: entries, and everything that is not done.
fn kept(cache: &std::path::Path) -> (usize, usize) {
    let count = |name: &str| std::fs::read_dir(cache.join("v1").join(name)).unwrap().count();
    (count("entries"), count("staging") + count("locks") + count("trash"))
}

/// What fails is asked for again soon. Nothing here waits for the others to pass, and no machine is so busy that one does:
/// tests count requests.
fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.backoff = Duration::from_millis(5);
    let long = Duration::from_secs(600);
    (limits.connect, limits.answer, limits.progress_window) = (long, long, long);
    limits
}

fn resolver(
    vars: &[(String, String)],
    cache: &std::path::Path,
    limits: Limits,
    settings: Value,
) -> Result<S3Resolver, ResolveError> {
    let mut table =
        json!({"s3_uri": format!("s3://{BUCKET}/loras/{{lora_name}}"), "s3_cache_dir": cache});
    for (key, value) in settings.as_object().unwrap() {
        table[key] = value.clone();
    }
    let config: ResolverConfig = serde_json::from_value(
        json!({"table": table, "base_model_names": ["/models/Tiny-1B", BASE]}),
    )
    .unwrap();
    S3Resolver::new(config, vars, limits)
}

async fn find(resolver: &S3Resolver, name: &str) -> Result<Option<LoraRequest>, ResolveError> {
    resolver.resolve_lora(BASE, name).await
}

/// The weights that were found.
async fn weights(resolver: &S3Resolver, name: &str) -> Vec<u8> {
    let found = find(resolver, name).await.unwrap().unwrap();
    std::fs::read(found.path.join(WEIGHTS)).unwrap()
}

/// The bucket as the contract suite wants it.
struct Contracted(World);

#[async_trait]
impl Fixture for Contracted {
    async fn resolver(&self) -> Arc<dyn LoraResolver> {
        Arc::new(self.0.resolver(json!({})))
    }

    async fn put(&self, adapter: &Adapter) {
        std::fs::create_dir_all(self.0.bucket.path("loras")).unwrap();
        adapter.install(&self.0.bucket.path("loras")).unwrap();
    }

    async fn remove(&self, name: &str) {
        std::fs::remove_dir_all(self.0.bucket.path("loras").join(name)).unwrap();
    }

    fn base_model(&self) -> &str {
        BASE
    }

    async fn outside(&self) -> Vec<String> {
        let secret = Adapter::new("secret", BASE, 1);
        secret.install(&self.0.bucket.path("")).unwrap();
        ["../secret", "x/../../secret", "..%2fsecret", "%2e%2e/secret"].map(str::to_owned).into()
    }
}

#[tokio::test]
async fn the_contract_holds() {
    contract(&Contracted(World::new().await)).await;
}
