//! Transfers that break, stand still, arrive damaged, or of objects that change.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::header;
use loraplex_plugin_sdk::testing::{Adapter, CONFIG, WEIGHTS};
use loraplex_plugin_sdk::{ErrorKind, LoraResolver, Progress};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::bucket::{self, Fault};
use crate::{BASE, World, find, kept, weights};

const ALWAYS: usize = usize::MAX;

#[tokio::test]
async fn s3_a_transfer_that_does_not_get_on_is_given_up() {
    let mut world = World::new().await;
    let content = world.adapter("poet", 1, 4000);
    world.limits.progress_window = Duration::from_millis(300);
    let resolver = world.resolver(json!({}));
    for fault in [Fault::Stall(0), Fault::Stall(1), Fault::Trickle(1, 100)] {
        world.bucket.heal();
        world.bucket.fail(WEIGHTS, ALWAYS, fault);
        let error = find(&resolver, "poet").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        assert!(error.message.contains("bytes in 0.3 s"), "{error}");
        assert_eq!(kept(world.cache.path()), (0, 0));
    }
    world.bucket.heal();
    // One that stands still once goes on where it was; the rest of it has the time that a busy machine needs.
    world.limits.progress_window = Duration::from_secs(2);
    let resolver = world.resolver(json!({}));
    world.bucket.pass(WEIGHTS);
    world.bucket.fail(WEIGHTS, 1, Fault::Stall(1500));
    world.bucket.seen();
    assert_eq!(weights(&resolver, "poet").await, content);
    let ranges: Vec<_> = world.bucket.seen().into_iter().filter_map(|seen| seen.range).collect();
    assert_eq!(ranges, ["bytes=0-3999", "bytes=1500-3999"]);
}

#[tokio::test]
async fn s3_a_slow_transfer_that_gets_on_is_let_be() {
    let mut world = World::new().await;
    let content = world.adapter("poet", 1, 4000);
    // Four windows pass before it is done.
    world.limits.progress_window = Duration::from_millis(400);
    world.limits.progress_bytes = 10;
    // A machine that stands still lets a window pass too: one turn without that is enough.
    let mut requests = Vec::new();
    while !requests.contains(&1) {
        assert!(requests.len() < 20, "somebody asked again each time: {requests:?}");
        let cache = tempfile::tempdir().unwrap();
        let (vars, limits) = (world.bucket.vars(), world.limits.clone());
        let resolver = crate::resolver(&vars, cache.path(), limits, json!({})).unwrap();
        world.bucket.pass(WEIGHTS);
        world.bucket.fail(WEIGHTS, ALWAYS, Fault::Trickle(100, 40));
        let progress = Progress::default();
        let found = progress.clone().scope(resolver.resolve_lora(BASE, "poet")).await;
        let pieces = world.bucket.seen().into_iter().filter(|seen| seen.range.is_some()).count();
        requests.push(pieces);
        world.bucket.heal();
        if pieces == 1 {
            let path = found.unwrap().unwrap().path;
            assert_eq!(std::fs::read(path.join(WEIGHTS)).unwrap(), content);
            assert!(progress.total() >= 4000, "the host sees that bytes arrive");
        }
    }
}

#[tokio::test]
async fn s4_a_transfer_that_is_cut_goes_on_or_leaves_nothing() {
    let world = World::new().await;
    let adapter = Adapter::new("poet", BASE, 1);
    for (file, content) in &adapter.files {
        let len = content.len();
        world.bucket.put(&format!("loras/poet/{file}"), content);
        let end = match *file == WEIGHTS {
            true => 8 + u64::from_le_bytes(content[..8].try_into().unwrap()) as usize,
            false => len / 3,
        };
        let file = if *file == WEIGHTS { WEIGHTS } else { CONFIG };
        for at in [0, 1, 7, 8, 9, end - 1, end, end + 1, len / 2, len - 2, len - 1] {
            let cache = tempfile::tempdir().unwrap();
            let new = |attempts| {
                let mut limits = world.limits.clone();
                limits.attempts = attempts;
                crate::resolver(&world.bucket.vars(), cache.path(), limits, json!({})).unwrap()
            };
            if file == WEIGHTS {
                for (file, content) in &adapter.files {
                    world.bucket.put(&format!("loras/poet/{file}"), content);
                }
                world.bucket.pass(file);
            }
            world.bucket.fail(file, ALWAYS, Fault::Cut(at.min(len - 1)));
            let cut = new(1);
            let error = find(&cut, "poet").await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unavailable, "{at}: {error}");
            assert_eq!(kept(cache.path()), (0, 0), "{file} {at}");
            world.bucket.heal();
            if file == WEIGHTS {
                world.bucket.pass(file);
                world.bucket.fail(file, 1, Fault::Cut(at));
                world.bucket.seen();
                assert_eq!(weights(&new(2), "poet").await, *content, "{at}");
                let ranges: Vec<_> =
                    world.bucket.seen().into_iter().filter_map(|seen| seen.range).collect();
                assert_eq!(ranges[1], format!("bytes={at}-{}", len - 1), "it goes on");
                assert_eq!(kept(cache.path()), (1, 0));
            }
            world.bucket.heal();
        }
    }
}

#[tokio::test]
async fn s5_what_arrives_damaged_is_not_let_in() {
    let world = World::new().await;
    let content = world.adapter("poet", 1, 3000);
    let resolver = world.resolver(json!({}));
    // A multiplier that is coprime to both lengths: the seeds meet each part of the files.
    for seed in 0..100_usize {
        let name = format!("poet-{seed}");
        world.adapter(&name, 1, 3000);
        let config = std::fs::read(world.bucket.path("loras").join(&name).join(CONFIG)).unwrap();
        let (file, at) = match seed % 4 {
            0 => (CONFIG, seed * 7919 % config.len()),
            _ => (WEIGHTS, seed * 7919 % content.len()),
        };
        if file == WEIGHTS {
            // What the weights are is asked first, without a body.
            world.bucket.pass(file);
        }
        world.bucket.fail(file, 1, Fault::Flip(at));
        let found = find(&resolver, &name).await.unwrap().unwrap();
        for (name, expected) in [(CONFIG, &config), (WEIGHTS, &content)] {
            assert_eq!(std::fs::read(found.path.join(name)).unwrap(), *expected, "{file} {at}");
        }
        world.bucket.heal();
    }
    for file in [CONFIG, WEIGHTS] {
        world.bucket.fail(file, ALWAYS, Fault::Flip(17));
        let error = find(&world.resolver(json!({})), "poet").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains("MD5"), "{error}");
        assert_eq!(kept(world.cache.path()), (1, 0), "the one content of all before");
        world.bucket.heal();
    }
    // Where the operator says that ETags are no digests, the entry's digest tells.
    world.bucket.fail(WEIGHTS, ALWAYS, Fault::Flip(17));
    let trusting = world.resolver(json!({"s3_verify_etag": false}));
    let damaged = find(&trusting, "poet").await.unwrap().unwrap();
    world.bucket.heal();
    let cache = tempfile::tempdir().unwrap();
    let limits = world.limits.clone();
    let other = crate::resolver(&world.bucket.vars(), cache.path(), limits, json!({})).unwrap();
    let sound = find(&other, "poet").await.unwrap().unwrap();
    assert_ne!(damaged.digest, sound.digest);
    assert_eq!(damaged.revision, sound.revision);
}

#[tokio::test]
async fn s5_an_object_with_a_key_of_its_own_has_no_md5_for_an_etag() {
    let world = World::new().await;
    let content = world.adapter("poet", 1, 3000);
    let etag = || Fault::Header(header::ETAG, format!("\"{}\"", "a".repeat(32)));
    world.bucket.fail(WEIGHTS, ALWAYS, etag());
    let resolver = world.resolver(json!({}));
    find(&resolver, "poet").await.unwrap_err();
    world.bucket.heal();
    let kms = header::HeaderName::from_static("x-amz-server-side-encryption");
    world.bucket.fail(WEIGHTS, ALWAYS, Fault::Header(kms, "aws:kms".into()));
    assert_eq!(weights(&resolver, "poet").await, content);
}

/// Puts an adapter whose two files say which version they are of.
fn put(world: &World, version: u8) {
    let adapter = Adapter::new("poet", BASE, version);
    for (file, content) in adapter.files {
        let content = if file == WEIGHTS { vec![version; 3000] } else { content };
        world.bucket.put(&format!("loras/poet/{file}"), &content);
    }
}

#[tokio::test]
async fn s6_an_adapter_that_changes_while_it_is_read_is_never_mixed() {
    for knows_if_match in [true, false] {
        let mut world = World::new().await;
        world.limits.piece = 1000;
        world.limits.pieces = 1;
        let resolver = world.resolver(json!({}));
        let places = ["config", "head", "piece", "piece", "piece", "config again"];
        for turn in 0..100_usize {
            let (old, new) = ((turn * 2 % 200) as u8, (turn * 2 % 200 + 1) as u8);
            put(&world, old);
            // Before the request of this turn both files are replaced.
            let place = turn % places.len();
            let (count, at) = (AtomicUsize::new(0), world.bucket.path("loras/poet"));
            let replace = move || {
                if count.fetch_add(1, Ordering::Relaxed) == place {
                    let adapter = Adapter::new("poet", BASE, new);
                    for (file, content) in adapter.files {
                        let content = if file == WEIGHTS { vec![new; 3000] } else { content };
                        bucket::put(&at.join(file), &content);
                    }
                }
            };
            world.bucket.fail("", ALWAYS, Fault::Before(Box::new(replace)));
            world.bucket.is_deaf_to_if_match(!knows_if_match);
            let found = find(&resolver, "poet").await.unwrap().unwrap();
            world.bucket.heal();
            let config: Value =
                serde_json::from_slice(&std::fs::read(found.path.join(CONFIG)).unwrap()).unwrap();
            let weights = std::fs::read(found.path.join(WEIGHTS)).unwrap();
            let version = config["lora_alpha"].as_u64().unwrap() - 1;
            assert_eq!(weights, vec![version as u8; 3000], "{}", places[place]);
            assert_eq!(version, u64::from(new), "{}", places[place]);
        }
    }
}

#[tokio::test]
async fn s6_weights_that_change_alone_are_never_mixed() {
    let mut world = World::new().await;
    world.limits.piece = 1000;
    world.limits.pieces = 1;
    // Neither the store nor a digest notices: that leaves the ETags of the answers.
    world.bucket.is_deaf_to_if_match(true);
    let resolver = world.resolver(json!({"s3_verify_etag": false}));
    for place in 0..6_usize {
        put(&world, 1);
        let (count, at) = (AtomicUsize::new(0), world.bucket.path("loras/poet").join(WEIGHTS));
        let replace = move || {
            if count.fetch_add(1, Ordering::Relaxed) == place {
                bucket::put(&at, &[100 + place as u8; 3000]);
            }
        };
        world.bucket.fail(WEIGHTS, ALWAYS, Fault::Before(Box::new(replace)));
        let found = weights(&resolver, "poet").await;
        world.bucket.heal();
        assert!(found.iter().all(|byte| *byte == found[0]), "before request {place}");
        // After the fourth nothing is asked any more.
        assert_eq!(found[0], if place < 4 { 100 + place as u8 } else { 1 });
    }
}

#[tokio::test]
async fn s6_an_adapter_that_never_stays_is_given_up() {
    let world = World::new().await;
    put(&world, 1);
    let (count, at) = (Arc::new(AtomicUsize::new(0)), world.bucket.path("loras/poet"));
    let times = count.clone();
    let replace = move || {
        let version = times.fetch_add(1, Ordering::Relaxed) as u8;
        bucket::put(&at.join(WEIGHTS), &vec![version; 3000]);
    };
    world.bucket.fail(WEIGHTS, ALWAYS, Fault::Before(Box::new(replace)));
    let error = find(&world.resolver(json!({})), "poet").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("has changed"), "{error}");
    assert_eq!(
        count.load(Ordering::Relaxed),
        8,
        "read once and three times again, two requests each"
    );
    assert_eq!(kept(world.cache.path()), (0, 0));
}

#[tokio::test]
async fn an_older_entry_is_not_read_when_the_store_has_a_newer_one() {
    let world = World::new().await;
    let resolver = world.resolver(json!({}));
    put(&world, 1);
    let old = find(&resolver, "poet").await.unwrap().unwrap();
    // Whoever reads it finds it damaged and removes it.
    std::fs::write(old.path.join(WEIGHTS), [9; 3000]).unwrap();
    put(&world, 2);
    assert_eq!(weights(&resolver, "poet").await, [2; 3000]);
    assert!(old.path.exists(), "an older one is of no interest");
    put(&world, 1);
    assert_eq!(weights(&resolver, "poet").await, [1; 3000]);
}

/// Only one is downloaded at a time.
#[tokio::test]
async fn what_is_in_the_cache_does_not_wait_for_downloads_of_others() {
    let mut world = World::new().await;
    world.limits.attempts = 1;
    let content = world.adapter("poet", 1, 4000);
    world.adapter("slow", 2, 4000);
    let resolver = Arc::new(world.resolver(json!({"s3_downloads": 1})));
    assert_eq!(weights(&resolver, "poet").await, content);
    world.bucket.pass("slow/adapter_model.safetensors");
    world.bucket.fail("slow/adapter_model.safetensors", ALWAYS, Fault::Hang);
    let mut downloads = JoinSet::new();
    downloads.spawn({
        let resolver = resolver.clone();
        async move { find(&resolver, "slow").await }
    });
    while world.bucket.hanging().1 == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(weights(&resolver, "poet").await, content);
    assert!(downloads.try_join_next().is_none(), "the other has been waited for");
}
