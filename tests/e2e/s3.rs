//! Adapters of a bucket, by the plugin, in the real server.

use std::fs;
use std::path::Path;

use loraplex_tests::{ServerProcess, plugin_dir};
use serde_json::{Value, json};

use super::{completion, demo, tokens};
use bucket::{Bucket, Fault};

#[allow(dead_code, reason = "the resolver's own tests use the rest")]
#[path = "../../resolvers/s3/tests/s3/bucket.rs"]
mod bucket;

/// A demo adapter as objects below `key`, trained for `base`.
fn put(bucket: &Bucket, key: &str, adapter: &str, base: &str) {
    let read =
        |name: &str| fs::read(Path::new(&demo("adapters")).join(adapter).join(name)).unwrap();
    let mut config: Value = serde_json::from_slice(&read("adapter_config.json")).unwrap();
    config["base_model_name_or_path"] = json!(base);
    bucket.put(&format!("{key}/adapter_config.json"), config.to_string().as_bytes());
    let weights = "adapter_model.safetensors";
    bucket.put(&format!("{key}/{weights}"), &read(weights));
}

async fn resolving(bucket: &Bucket, cache: &Path) -> ServerProcess {
    let (dir, cache) = (plugin_dir().display().to_string(), cache.display().to_string());
    let vars = bucket.vars();
    let mut env: Vec<_> =
        vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    env.extend([
        ("ALLOW_RUNTIME_LORA_UPDATING", "1"),
        ("PLUGINS", "lora_s3_resolver"),
        ("PLUGIN_DIR", dir.as_str()),
        ("LORA_RESOLVER_S3_URI", "s3://adapters/by/{base_model}/{lora_name}"),
        ("LORA_RESOLVER_S3_CACHE_DIR", cache.as_str()),
    ]);
    let (model, module) = (demo("model"), format!("loaded={}", demo("adapters/poet")));
    let args = [
        &*model,
        "--served-model-name",
        "base",
        "--resolver-negative-ttl",
        "0",
        "--lora-modules",
        &module,
    ];
    ServerProcess::start_with(&args, &env).await
}

#[tokio::test]
async fn an_adapter_of_a_bucket_is_found_by_its_name_and_stays() {
    let (bucket, cache) = (Bucket::start().await, tempfile::tempdir().unwrap());
    put(&bucket, "by/base/team/poet", "poet", "somebody/BASE");
    put(&bucket, "by/base/other", "poet", "somebody/other-model");
    put(&bucket, "by/base/late", "poet", "base");
    put(&bucket, "by/secret", "poet", "base");
    bucket.put("by/base/broken/adapter_config.json", b"{}");
    bucket.put("by/base/broken/adapter_model.safetensors", b"not this");
    let server = resolving(&bucket, cache.path()).await;
    let client = server.client();
    let body = |model: &str| completion(model, json!({"return_token_ids": true}));
    let found = client.ok("/v1/completions", &body("team/poet")).await;
    assert_eq!(found["model"], "team/poet");
    let loaded = client.ok("/v1/completions", &body("loaded")).await;
    assert_eq!(tokens(&found), tokens(&loaded));
    assert!(!bucket.seen().is_empty());
    client.ok("/v1/completions", &body("team/poet")).await;
    assert_eq!(bucket.seen().len(), 0, "a registered name is not resolved");
    let card = client.get("/v1/lora_adapters/team%2Fpoet").await.json();
    assert_eq!(card["source"], "lora_s3_resolver");

    for (name, status, part) in [
        ("nobody", 404, "nobody"),
        ("other", 404, "somebody/other-model"),
        ("../secret", 404, ""),
        ("x/../../secret", 404, ""),
        ("/secret", 404, ""),
        ("broken", 400, "was found but could not be loaded"),
    ] {
        let answer = client.post("/v1/completions", &body(name)).await;
        assert_eq!(answer.status, status, "{name}: {}", answer.text);
        assert!(answer.text.contains(part), "{part:?} in {}", answer.text);
    }
    assert!(bucket.seen().iter().all(|request| !request.path.contains("secret")));

    let refused = |status, code| Fault::Status(status, code, vec![("retry-after", "40".into())]);
    for (fault, status, code) in [
        (refused(403, "AccessDenied"), 403, json!("adapter_source_unauthorized")),
        (refused(503, "SlowDown"), 503, json!(503)),
    ] {
        bucket.fail("", usize::MAX, fault);
        let answer = client.post("/v1/completions", &body("late")).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (status, &code));
        assert_eq!(answer.headers.contains_key("retry-after"), status == 503);
        bucket.heal();
    }
    // Who has an adapter is not troubled by that.
    assert_eq!(tokens(&client.ok("/v1/completions", &body("team/poet")).await), tokens(&loaded));
    drop(server);

    // The bucket is away; another server finds what the first has left.
    bucket.seen();
    bucket.fail("", usize::MAX, Fault::Status(500, "InternalError", Vec::new()));
    let server = resolving(&bucket, cache.path()).await;
    let again = server.client().ok("/v1/completions", &body("team/poet")).await;
    assert_eq!(tokens(&again), tokens(&loaded));
    assert!(!server.logged().contains(bucket::SECRET));
}
