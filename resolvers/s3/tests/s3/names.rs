//! Which names are found, what they cost, and what does not fit.

use loraplex_plugin_sdk::ErrorKind;
use loraplex_plugin_sdk::testing::{Adapter, CONFIG, WEIGHTS};
use serde_json::json;

use crate::{BASE, World, find, weights};

#[tokio::test]
async fn a_name_that_is_cached_downloads_nothing() {
    let mut world = World::new().await;
    world.limits.piece = 1000;
    let content = world.adapter("team/poet", 1, 10_500);
    let resolver = world.resolver(json!({}));
    assert_eq!(weights(&resolver, "team/poet").await, content);
    let seen = world.bucket.seen();
    let pieces = seen.iter().filter(|seen| seen.range.is_some()).count();
    // The configuration, the weights' ETag, eleven pieces, and whether the configuration is still the same.
    assert_eq!((pieces, seen.len()), (11, 14), "{seen:#?}");
    for resolver in [resolver, world.resolver(json!({}))] {
        assert_eq!(weights(&resolver, "team/poet").await, content);
        let seen = world.bucket.seen();
        let asked: Vec<_> = seen.iter().map(|seen| seen.method.as_str()).collect();
        assert_eq!(asked, ["GET", "HEAD"], "{seen:#?}");
    }
}

#[tokio::test]
async fn what_does_not_fit_says_so() {
    let world = World::new().await;
    for (name, file, content) in [
        ("other", CONFIG, &br#"{"base_model_name_or_path": "org/other"}"#[..]),
        ("other", WEIGHTS, b"x"),
        ("prompt", CONFIG, br#"{"peft_type": "IA3"}"#),
        ("prompt", WEIGHTS, b"x"),
        ("early", CONFIG, b"{}"),
        ("broken", CONFIG, b"{"),
        ("broken", WEIGHTS, b"x"),
        ("huge", CONFIG, &[b' '; (1 << 20) + 1]),
        ("null", CONFIG, br#"{"base_model_name_or_path": null}"#),
        ("null", WEIGHTS, b"x"),
    ] {
        world.bucket.put(&format!("loras/{name}/{file}"), content);
    }
    world.adapter("large", 1, 5000);
    let resolver = world.resolver(json!({"s3_max_bytes": "4999"}));
    for (name, kind, part) in [
        ("other", ErrorKind::NotFound, "org/other, this server has /models/Tiny-1B, served"),
        ("prompt", ErrorKind::NotFound, "peft_type \"IA3\""),
        ("early", ErrorKind::NotFound, "adapter \"early\" has no adapter_model.safetensors yet"),
        ("broken", ErrorKind::InvalidRequest, "adapter_config.json of \"broken\""),
        ("huge", ErrorKind::InvalidRequest, "has 1048577 bytes, the limit is 1048576"),
        ("large", ErrorKind::InvalidRequest, "has 5000 bytes, the limit is 4999"),
    ] {
        let error = find(&resolver, name).await.unwrap_err();
        assert_eq!(error.kind, kind, "{name}: {error}");
        assert!(error.message.contains(part), "{error}");
    }
    assert!(find(&resolver, "null").await.unwrap().is_some());
    let asked = world.bucket.seen();
    let weights = asked.iter().filter(|seen| seen.method == "GET" && seen.path.ends_with(WEIGHTS));
    assert_eq!(weights.count(), 1, "only those that fit are downloaded");
}

#[tokio::test]
async fn d1_a_cache_that_is_full_says_so_and_what_is_here_stays() {
    let world = World::new().await;
    let content = world.adapter("one", 1, 3000);
    world.adapter("two", 2, 3000);
    world.adapter("large", 3, 9000);
    let resolver = world.resolver(json!({"s3_cache_bytes": 5000}));
    assert_eq!(weights(&resolver, "one").await, content);
    for (name, kind, part) in [
        ("two", ErrorKind::Unavailable, "do not fit: the cache holds"),
        ("large", ErrorKind::InvalidRequest, "never fit the cache's limit of 5000"),
    ] {
        let error = find(&resolver, name).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(part), "{error}");
        assert!(error.message.contains("LORA_RESOLVER_S3_CACHE_BYTES"), "{error}");
        assert_eq!(crate::kept(world.cache.path()), (1, 0));
    }
    assert_eq!(weights(&resolver, "one").await, content);
}

#[tokio::test]
async fn the_base_models_name_may_be_part_of_the_key() {
    let world = World::new().await;
    let adapter = Adapter::new("poet", BASE, 1);
    std::fs::create_dir_all(world.bucket.path("by/served")).unwrap();
    adapter.install(&world.bucket.path("by/served")).unwrap();
    let resolver = world.resolver(json!({"s3_uri": "s3://adapters/by/{base_model}/{lora_name}"}));
    let found = find(&resolver, "poet").await.unwrap().unwrap();
    assert_eq!(found.metadata["source"], "s3://adapters/by/served/poet");
    assert_eq!(find(&resolver, "served/poet").await.unwrap(), None);
}

#[tokio::test]
async fn settings_that_cannot_work_stop_the_start() {
    let world = World::new().await;
    let make = |settings| {
        crate::resolver(&world.bucket.vars(), world.cache.path(), crate::limits(), settings)
    };
    for (settings, part) in [
        (json!({"s3_uri": ""}), "LORA_RESOLVER_S3_URI is not set"),
        (json!({"s3_uri": "s3://b/x"}), "does not hold {lora_name}"),
        (json!({"s3_uri": "ftp://b/{lora_name}"}), "the scheme ftp"),
        (json!({"s3_cache_bytes": "many"}), "\"many\" is no number"),
        (json!({"s3_cache_dir": "/proc/none"}), "LORA_RESOLVER_S3_CACHE_DIR"),
        (json!({"s3_url": "x"}), "unknown key `s3_url`"),
    ] {
        let error = make(settings).unwrap_err();
        assert!(error.message.contains(part), "{error}");
    }
    let mut vars = world.bucket.vars();
    vars[0].1 = "localhost:9000?password=x".into();
    let error = crate::resolver(&vars, world.cache.path(), crate::limits(), json!({})).unwrap_err();
    assert_eq!(error.message, "AWS_ENDPOINT_URL is no http(s) address, such as http://host:9000");
}
