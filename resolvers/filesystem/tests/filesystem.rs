//! The resolver over real folders: what is found, what never is, and which changes are seen.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lora_filesystem_resolver::FilesystemResolver;
use loraplex_plugin_sdk::testing::{Adapter, Fixture, contract};
use loraplex_plugin_sdk::{
    ErrorKind, LoraRequest, LoraResolver, ResolveError, ResolverConfig, async_trait,
};
use serde_json::{Value, json};
use tempfile::TempDir;

struct World {
    folder: TempDir,
}

impl World {
    /// `root/` with `poet`, `org/poet` and `org/poet2`, and `outside/` beside it.
    fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        for adapter in ["root/poet", "root/org/poet", "root/org/poet2", "outside/secret"] {
            write(&world.path(adapter), json!({}), adapter);
        }
        world
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(below)
    }

    fn resolver(&self, table: Value) -> FilesystemResolver {
        let mut config: ResolverConfig = serde_json::from_value(json!({
            "table": table,
            "base_model_names": ["/models/Tiny-1B", "served", "alias"],
        }))
        .unwrap();
        config.environment.insert(
            "LORA_RESOLVER_CACHE_DIR".into(),
            self.path("root").display().to_string().into(),
        );
        FilesystemResolver::from_config(config).unwrap()
    }
}

/// An adapter's folder; only what the resolver looks at is real.
fn write(folder: &Path, config: Value, weights: &str) {
    fs::create_dir_all(folder).unwrap();
    let mut all = json!({"peft_type": "LORA", "base_model_name_or_path": "org/tiny-1b"});
    for (key, value) in config.as_object().unwrap() {
        all[key] = value.clone();
    }
    fs::write(folder.join("adapter_config.json"), all.to_string()).unwrap();
    fs::write(folder.join("adapter_model.safetensors"), weights).unwrap();
}

async fn find(
    resolver: &FilesystemResolver,
    name: &str,
) -> Result<Option<LoraRequest>, ResolveError> {
    resolver.resolve_lora("served", name).await
}

#[tokio::test]
async fn names_are_paths_below_the_root() {
    let world = World::new();
    let resolver = world.resolver(json!({}));
    for name in ["poet", "org/poet", "org/poet2"] {
        let found = find(&resolver, name).await.unwrap().unwrap();
        assert_eq!((found.name.as_str(), &found.path), (name, &world.path("root").join(name)));
        assert_eq!(found.base_model.as_deref(), Some("org/tiny-1b"));
    }
    for name in ["nobody", "org", "org/poe", "poet/adapter_config.json"] {
        assert_eq!(find(&resolver, name).await.unwrap(), None, "{name}");
    }
}

#[tokio::test]
async fn no_name_and_no_link_leads_out_of_the_root() {
    let world = World::new();
    symlink(world.path("outside/secret"), world.path("root/leak")).unwrap();
    symlink("../outside", world.path("root/up")).unwrap();
    symlink(world.path("root/org/poet"), world.path("root/inside")).unwrap();
    symlink("org/poet", world.path("root/relative")).unwrap();
    // An adapter whose weights lie outside, and one whose weights lie elsewhere in the root.
    for (name, target) in [("foreign", "outside/secret"), ("shared", "root/poet")] {
        write(&world.path("root").join(name), json!({}), "x");
        let weights = world.path("root").join(name).join("adapter_model.safetensors");
        fs::remove_file(&weights).unwrap();
        let target = world.path(target);
        let up = Path::new("../..").join(target.strip_prefix(world.path("")).unwrap());
        symlink(up.join("adapter_model.safetensors"), weights).unwrap();
    }
    let resolver = world.resolver(json!({}));
    let secret = world.path("outside/secret").display().to_string();
    let long = "x".repeat(4096);
    for name in [
        secret.as_str(),
        "../outside/secret",
        "poet/../../outside/secret",
        "..",
        ".",
        "",
        "/",
        "//",
        "/poet",
        "poet/",
        "org//poet",
        "./poet",
        "org/./poet",
        "org/../poet",
        "..%2foutside%2fsecret",
        "%2e%2e/outside/secret",
        "..\\outside\\secret",
        "poet\0",
        "poet\0/../../outside/secret",
        "poet\n",
        "\u{202e}teop",
        "．．/outside/secret",
        "‥/outside/secret",
        "~",
        "~root",
        "leak",
        "up/secret",
        "leak/../poet",
        long.as_str(),
    ] {
        assert_eq!(find(&resolver, name).await.unwrap(), None, "{name:?}");
    }
    for name in ["inside", "relative", "shared"] {
        let found = find(&resolver, name).await.unwrap();
        assert!(found.is_some_and(|found| found.path.starts_with(world.path("root"))), "{name}");
    }
    // It is in the root, so it may be said that its weights are not.
    let foreign = find(&resolver, "foreign").await.unwrap_err();
    assert_eq!(foreign.kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn what_does_not_fit_says_so() {
    let world = World::new();
    for (config, kind, part) in [
        (json!({"base_model_name_or_path": "org/other"}), ErrorKind::NotFound, "org/other"),
        (json!({"peft_type": "IA3"}), ErrorKind::NotFound, "IA3"),
    ] {
        write(&world.path("root/odd"), config, "x");
        let error = find(&world.resolver(json!({})), "odd").await.unwrap_err();
        assert_eq!(error.kind, kind);
        assert!(error.message.contains(part), "{error}");
    }
    write(&world.path("root/odd"), json!({"base_model_name_or_path": "alias"}), "x");
    assert!(find(&world.resolver(json!({})), "odd").await.unwrap().is_some());
    let config = world.path("root/odd/adapter_config.json");
    for (text, part) in [("{".to_owned(), "adapter_config.json"), (" ".repeat(1 << 21), "2097152")]
    {
        fs::write(&config, text).unwrap();
        let error = find(&world.resolver(json!({})), "odd").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidRequest);
        assert!(error.message.contains(part), "{error}");
    }
    fs::remove_file(world.path("root/poet/adapter_model.safetensors")).unwrap();
    let error = find(&world.resolver(json!({})), "poet").await.unwrap_err();
    assert!(error.message.contains("adapter \"poet\" has no adapter_model.safetensors yet"));
}

#[tokio::test]
async fn nothing_is_read_before_its_marker() {
    let world = World::new();
    let resolver = world.resolver(json!({"require_marker": "COMPLETE"}));
    assert_eq!(find(&resolver, "poet").await.unwrap(), None);
    fs::write(world.path("root/poet/COMPLETE"), "").unwrap();
    assert!(find(&resolver, "poet").await.unwrap().is_some());
}

#[test]
fn a_root_that_is_none_stops_the_start() {
    for (config, part) in [
        (json!({}), "LORA_RESOLVER_CACHE_DIR is not set"),
        (json!({"table": {"cache_dir": "/nowhere/at/all"}}), "/nowhere/at/all"),
        (json!({"table": {"cache_dir": "/", "wach": true}}), "unknown key `wach`"),
        (json!({"table": {"cache_dir": "/", "watch_poll_seconds": 0}}), "watch_poll_seconds"),
    ] {
        let config = serde_json::from_value(config).unwrap();
        let error = FilesystemResolver::from_config(config).unwrap_err();
        assert!(error.message.contains(part), "{error}");
    }
}

/// S8: whatever is done to a folder while it is looked at, the answer is an adapter that was there, or none.
#[tokio::test]
async fn a_folder_that_is_swapped_under_the_look() {
    let world = World::new();
    write(&world.path("spare/v1"), json!({}), "one");
    write(&world.path("spare/v2"), json!({}), "two");
    let resolver = world.resolver(json!({}));
    let place = world.path("root/swapped");
    let swap = world.path("root/.swap");
    let (from, to, out) = (world.path("spare"), place.clone(), world.path("outside/secret"));
    let swapping = tokio::task::spawn_blocking(move || {
        for turn in 0..400 {
            let target = match turn % 4 {
                0 => from.join("v1"),
                1 => from.join("v2"),
                _ => out.clone(),
            };
            let _ = fs::remove_file(&swap);
            if turn % 4 == 3 {
                let _ = fs::remove_file(&to);
            } else {
                symlink(target, &swap).unwrap();
                fs::rename(&swap, &to).unwrap();
            }
        }
    });
    while !swapping.is_finished() {
        // All of the targets lie outside of the root.
        let found = find(&resolver, "swapped").await;
        assert!(matches!(found, Ok(None)), "{found:?}");
        let found = find(&resolver, "poet").await.unwrap().unwrap();
        assert_eq!(found.path, world.path("root/poet"));
    }
}

async fn changes(table: Value) {
    let world = World::new();
    let resolver = world.resolver(table);
    for name in ["poet", "org/poet"] {
        find(&resolver, name).await.unwrap().unwrap();
    }
    let next = async |resolver: &FilesystemResolver| {
        let change = tokio::time::timeout(Duration::from_secs(120), resolver.next_change()).await;
        change.expect("a change is seen").unwrap().name
    };
    // In place; what nobody was answered is nobody's business.
    write(&world.path("root/org/poet2"), json!({}), "changed, but never asked for");
    write(&world.path("root/org/poet"), json!({}), "changed in place");
    assert_eq!(next(&resolver).await, "org/poet");
    find(&resolver, "org/poet").await.unwrap().unwrap();
    // Another folder takes its place.
    write(&world.path("spare"), json!({}), "a whole new folder");
    fs::rename(world.path("root/poet"), world.path("old")).unwrap();
    fs::rename(world.path("spare"), world.path("root/poet")).unwrap();
    assert_eq!(next(&resolver).await, "poet");
    find(&resolver, "poet").await.unwrap().unwrap();
    // A folder that is not complete is no change until it is.
    fs::remove_file(world.path("root/poet/adapter_model.safetensors")).unwrap();
    write(&world.path("root/org/poet"), json!({}), "again");
    assert_eq!(next(&resolver).await, "org/poet");
    write(&world.path("root/poet"), json!({}), "complete again");
    assert_eq!(next(&resolver).await, "poet");
}

#[tokio::test]
async fn changes_are_seen_as_the_system_tells_them() {
    changes(json!({"watch": true})).await;
}

#[tokio::test]
async fn changes_are_seen_by_looking() {
    changes(json!({"watch": true, "watch_poll_seconds": 0.1})).await;
}

#[tokio::test]
async fn who_does_not_watch_says_so() {
    let world = World::new();
    assert_eq!(world.resolver(json!({})).next_change().await, None);
}

/// The root as the contract suite wants it.
struct Contracted(World);

#[async_trait]
impl Fixture for Contracted {
    async fn resolver(&self) -> Arc<dyn LoraResolver> {
        Arc::new(self.0.resolver(json!({})))
    }

    async fn put(&self, adapter: &Adapter) {
        adapter.install(&self.0.path("root")).unwrap();
    }

    async fn remove(&self, name: &str) {
        fs::remove_dir_all(self.0.path("root").join(name)).unwrap();
    }

    fn base_model(&self) -> &str {
        "served"
    }

    async fn outside(&self) -> Vec<String> {
        let leak = self.0.path("root/contract-leak");
        let _ = fs::remove_file(&leak);
        symlink(self.0.path("outside/secret"), leak).unwrap();
        vec!["contract-leak".to_owned(), self.0.path("outside/secret").display().to_string()]
    }
}

#[tokio::test]
async fn the_contract_holds() {
    contract(&Contracted(World::new())).await;
}
