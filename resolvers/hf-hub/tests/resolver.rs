//! The resolver against a Hub of its own: which names it knows, what it asks for, what its failures say.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[allow(dead_code, reason = "the client's own tests use the rest")]
#[path = "../../hub-client/tests/hub/stub.rs"]
mod stub;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lora_hf_hub_resolver::HfHubResolver;
use loraplex_hub_client::HubOptions;
use loraplex_plugin_sdk::testing::{Adapter, Fixture, contract};
use loraplex_plugin_sdk::{ErrorKind, LoraResolver, Progress, ResolverConfig, async_trait};
use stub::{Access, Fault, Stub};

const BASE: &str = "org/base";
const CONFIG: &[u8] =
    br#"{"peft_type": "LORA", "base_model_name_or_path": "upstream/Base", "r": 8}"#;

/// Asks once and believes it for longer than any run of this suite.
fn resolver(stub: &Stub, folder: &Path, list: &str, offline: bool) -> HfHubResolver {
    made(options(stub, folder, offline), list, Duration::from_secs(86_400))
}

fn options(stub: &Stub, folder: &Path, offline: bool) -> HubOptions {
    let mut options = HubOptions::new(folder);
    options.endpoint = stub.url().parse().unwrap();
    options.offline = offline;
    options
}

fn made(options: HubOptions, list: &str, listing_age: Duration) -> HfHubResolver {
    let config: ResolverConfig = serde_json::from_value(serde_json::json!({
        "environment": {"LORA_RESOLVER_HF_REPO_LIST": list, "LORA_RESOLVER_CACHE_DIR": "/another's"},
        "base_model_names": [BASE],
    }))
    .unwrap();
    HfHubResolver::new(config, options, listing_age).unwrap()
}

#[tokio::test]
async fn names_that_start_alike_are_different_adapters() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    let files: Vec<(String, Vec<u8>)> = (1..=50)
        .flat_map(|n| {
            [
                (format!("{n}/adapter_config.json"), CONFIG.to_vec()),
                (format!("{n}/adapter_model.safetensors"), format!("weights {n}").into_bytes()),
            ]
        })
        .collect();
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let commit = stub.push("org/many", Access::Public, &files);
    stub.push("org/many2", Access::Public, &[]);
    let resolver = resolver(&stub, folder.path(), "org/many,org/many2", false);
    for n in [1, 5, 50] {
        let name = format!("org/many/{n}");
        let found = resolver.resolve_lora(BASE, &name).await.unwrap().unwrap();
        assert_eq!(found.name, name);
        assert_eq!(found.revision.as_deref(), Some(commit.as_str()));
        assert_eq!(found.base_model.as_deref(), Some("upstream/Base"));
        let weights = std::fs::read(found.path.join("adapter_model.safetensors")).unwrap();
        assert_eq!(weights, format!("weights {n}").into_bytes());
    }
    let requests = stub.seen().len();
    for name in
        ["org/many", "org/many2", "org/many/51", "org/many/5/x", "org/many2/5", "org/manyx/5"]
    {
        assert_eq!(resolver.resolve_lora(BASE, name).await.unwrap(), None, "{name}");
    }
    assert_eq!(stub.seen().len(), 1, "the listing of org/many2, once");
    // A listing; for each adapter two HEAD, and GET at the Hub and at the other host; the configurations are one blob.
    assert_eq!(requests, 1 + 3 * 4 + 1);
}

#[tokio::test]
async fn a_revision_is_what_its_name_says() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    for weights in ["one", "two"] {
        let files: [(&str, &[u8]); 2] =
            [("adapter_config.json", CONFIG), ("adapter_model.safetensors", weights.as_bytes())];
        stub.push("org/a", Access::Public, &files);
    }
    let resolver = resolver(&stub, folder.path(), "org/a", false);
    for (name, expected) in [("org/a", "two"), ("org/a@v1", "one"), ("org/a@main", "two")] {
        let found = resolver.resolve_lora(BASE, name).await.unwrap().unwrap();
        let weights =
            std::fs::read_to_string(found.path.join("adapter_model.safetensors")).unwrap();
        assert_eq!(weights, expected, "{name}");
    }
    let error = resolver.resolve_lora(BASE, "org/a@v9").await.unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::NotFound, "org/a has no revision v9")
    );
}

#[tokio::test]
async fn what_is_unusable_says_why_before_its_weights_are_fetched() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    let weights: (&str, &[u8]) = ("adapter_model.safetensors", b"weights");
    for (repo, config) in [
        ("org/prompt", &br#"{"peft_type": "PROMPT_TUNING"}"#[..]),
        ("org/other", br#"{"peft_type": "LORA", "base_model_name_or_path": "x/Llama-8B"}"#),
        ("org/broken", b"{"),
        ("org/null", br#"{"peft_type": "LORA", "base_model_name_or_path": null}"#),
    ] {
        stub.push(repo, Access::Public, &[("adapter_config.json", config), weights]);
    }
    let pickle: [(&str, &[u8]); 2] = [("adapter_config.json", CONFIG), ("adapter_model.bin", b"x")];
    stub.push("org/pickle", Access::Public, &pickle);
    let list = "org/prompt,org/other,org/broken,org/null,org/pickle";
    let resolver = resolver(&stub, folder.path(), list, false);
    for (name, kind, part) in [
        ("org/prompt", ErrorKind::NotFound, "peft_type \"PROMPT_TUNING\""),
        ("org/other", ErrorKind::NotFound, "base model x/Llama-8B, this server has org/base"),
        ("org/broken", ErrorKind::InvalidRequest, "adapter_config.json of org/broken"),
        ("org/pickle", ErrorKind::InvalidRequest, "no adapter_model.safetensors"),
    ] {
        let error = resolver.resolve_lora(BASE, name).await.unwrap_err();
        assert_eq!(error.kind, kind, "{name}: {error}");
        assert!(error.message.contains(part), "{error}");
    }
    assert!(stub.seen().iter().all(|request| request.host == "hub"), "no weights");
    let found = resolver.resolve_lora(BASE, "org/null").await.unwrap().unwrap();
    assert_eq!(found.base_model, None);
}

#[tokio::test]
async fn refusals_of_the_source_keep_their_code() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    stub.push("org/gated", Access::Gated, &[]);
    stub.push("org/private", Access::Private("token"), &[]);
    let resolver = resolver(&stub, folder.path(), "org/gated,org/private,org/down", false);
    for (name, code) in
        [("org/gated", "adapter_source_gated"), ("org/private/x", "adapter_source_unauthorized")]
    {
        let error = resolver.resolve_lora(BASE, name).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::PermissionDenied);
        assert_eq!(error.code.as_deref(), Some(code));
    }
    stub.fail(Fault::Status(503, vec![("retry-after", "9")]));
    let error = resolver.resolve_lora(BASE, "org/down").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert_eq!(error.retry_after.unwrap().as_secs(), 9);
    stub.seen();
    for n in 0..8 {
        resolver.resolve_lora(BASE, &format!("org/down/{n}")).await.unwrap_err();
    }
    assert_eq!(stub.seen().len(), 0, "an outage is not asked about again at once");
}

#[tokio::test]
async fn the_cache_serves_offline_and_through_an_outage() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    let files: [(&str, &[u8]); 4] = [
        ("a/adapter_config.json", CONFIG),
        ("a/adapter_model.safetensors", b"a"),
        ("b/adapter_config.json", CONFIG),
        ("b/adapter_model.safetensors", b"b"),
    ];
    stub.push("org/r", Access::Public, &files);
    let first = resolver(&stub, folder.path(), "org/r", false);
    let found = first.resolve_lora(BASE, "org/r/a").await.unwrap().unwrap();
    let offline = resolver(&stub, folder.path(), "org/r", true);
    stub.seen();
    assert_eq!(offline.resolve_lora(BASE, "org/r/a").await.unwrap(), Some(found.clone()));
    assert_eq!(offline.resolve_lora(BASE, "org/r/b").await.unwrap(), None);
    assert!(stub.seen().is_empty());
    stub.fail(Fault::Status(500, vec![]));
    let outage = resolver(&stub, folder.path(), "org/r", false);
    assert_eq!(outage.resolve_lora(BASE, "org/r/a").await.unwrap(), Some(found));
    let error = outage.resolve_lora(BASE, "org/r/b").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn the_host_sees_that_bytes_arrive() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    let weights = vec![7; 300_000];
    let files: [(&str, &[u8]); 2] =
        [("adapter_config.json", CONFIG), ("adapter_model.safetensors", &weights)];
    stub.push("org/a", Access::Public, &files);
    let resolver = resolver(&stub, folder.path(), "org/a", false);
    let progress = Progress::default();
    progress.clone().scope(resolver.resolve_lora(BASE, "org/a")).await.unwrap().unwrap();
    assert_eq!(progress.total(), 1 + (weights.len() + CONFIG.len()) as u64);
}

/// A repository whose folders are the contract suite's adapters: each change is a commit.
struct Contracted {
    stub: Stub,
    cache: tempfile::TempDir,
    files: Mutex<BTreeMap<String, Vec<u8>>>,
}

const REPO: &str = "me/adapters";

impl Contracted {
    fn push(&self, change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>)) {
        let mut files = self.files.lock().unwrap();
        change(&mut files);
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        self.stub.push(REPO, Access::Public, &files);
    }

    fn folder(name: &str) -> String {
        format!("{}/", name.strip_prefix(REPO).unwrap().trim_start_matches('/'))
    }
}

#[async_trait]
impl Fixture for Contracted {
    async fn resolver(&self) -> Arc<dyn LoraResolver> {
        // Nothing is believed to be as it was: the suite looks at once.
        Arc::new(made(options(&self.stub, self.cache.path(), false), REPO, Duration::ZERO))
    }

    async fn put(&self, adapter: &Adapter) {
        let folder = Self::folder(&adapter.name);
        self.push(|files| {
            let new = adapter.files.iter();
            files.extend(new.map(|(name, bytes)| (format!("{folder}{name}"), bytes.clone())));
        });
    }

    async fn remove(&self, name: &str) {
        let folder = Self::folder(name);
        self.push(|files| files.retain(|name, _| !name.starts_with(&folder)));
    }

    fn base_model(&self) -> &str {
        BASE
    }

    fn name(&self, plain: &str) -> String {
        format!("{REPO}/{plain}")
    }

    async fn outside(&self) -> Vec<String> {
        let files: [(&str, &[u8]); 2] =
            [("a/adapter_config.json", CONFIG), ("a/adapter_model.safetensors", b"weights")];
        self.stub.push("me/unlisted", Access::Public, &files);
        ["me/unlisted/a", "me/adapters/../unlisted/a", "me/adapters@../../unlisted/a"]
            .map(str::to_owned)
            .into()
    }
}

#[tokio::test]
async fn the_contract_holds() {
    let fixture = Contracted {
        stub: Stub::start().await,
        cache: tempfile::tempdir().unwrap(),
        files: Mutex::default(),
    };
    contract(&fixture).await;
}
