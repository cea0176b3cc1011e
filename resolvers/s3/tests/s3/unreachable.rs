//! A store that cannot be reached: it is left alone, and what the cache has serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use loraplex_plugin_sdk::ErrorKind;
use loraplex_plugin_sdk::testing::WEIGHTS;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

use crate::bucket::{Bucket, Fault};
use crate::{World, find, kept, limits, weights};

#[tokio::test]
async fn s1_a_store_that_refuses_connections_is_left_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let count = connections.clone();
    // Each connection is closed at once, so that they can be counted.
    tasks.spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut world = World::new().await;
    let mut vars = world.bucket.vars();
    vars[0].1 = format!("http://{address}");
    // Longer than any run of this suite.
    world.limits.outage = Duration::from_secs(86_400);
    let resolver =
        crate::resolver(&vars, world.cache.path(), world.limits.clone(), json!({})).unwrap();
    let names: Vec<_> = (0..16).map(|n| format!("new-{n}")).collect();
    let answers = join_all(names.iter().map(|name| find(&resolver, name))).await;
    for answer in answers {
        let error = answer.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    }
    // The first four ask, each four times; who comes later is told at once, and when to come again.
    let asked = connections.load(Ordering::Relaxed);
    assert!((4..=16).contains(&asked), "{asked} connections for 16 names");
    for name in &names {
        let error = find(&resolver, name).await.unwrap_err();
        assert!(error.retry_after.is_some_and(|after| !after.is_zero()), "{error}");
        assert!(!error.message.contains("new-"), "it was another name that was asked for: {error}");
    }
    assert_eq!(connections.load(Ordering::Relaxed), asked);
}

#[tokio::test]
async fn s1_a_store_that_comes_back_is_used_again() {
    // It is ours, and refuses connections until somebody listens.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let mut limits = limits();
    limits.outage = Duration::from_millis(50);
    let bucket = Bucket::start().await;
    let mut vars = bucket.vars();
    vars[0].1 = format!("http://{}", socket.local_addr().unwrap());
    let resolver = crate::resolver(&vars, cache.path(), limits.clone(), json!({})).unwrap();
    let error = find(&resolver, "poet").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("the store cannot be reached: Connection refused"), "{error}");
    let world = World { bucket: Bucket::start_on(socket.listen(64).unwrap()), cache, limits };
    let content = world.adapter("poet", 1, 3000);
    let mut turns = 0;
    while let Err(error) = find(&resolver, "poet").await {
        turns += 1;
        assert!(turns < 1000, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(weights(&resolver, "poet").await, content);
}

#[tokio::test]
async fn s2_a_store_that_never_answers_holds_few_connections() {
    let mut world = World::new().await;
    world.limits.answer = Duration::from_millis(200);
    world.limits.attempts = 2;
    world.limits.outage = Duration::ZERO;
    let content = world.adapter("poet", 1, 3000);
    world.bucket.fail("", usize::MAX, Fault::Hang);
    let resolver = world.resolver(json!({}));
    let names: Vec<_> = (0..32).map(|n| format!("new-{n}")).collect();
    let answers = join_all(names.iter().map(|name| find(&resolver, name))).await;
    for answer in answers {
        let error = answer.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains("did not answer within 0.2 s"), "{error}");
    }
    let (_, most) = world.bucket.hanging();
    // A connection that was given up may be seen to close a little later.
    assert!((1..=8).contains(&most), "{most} requests at once for 32 names, with 4 workers");
    world.bucket.heal();
    world.limits.answer = Duration::from_secs(30);
    assert_eq!(weights(&world.resolver(json!({})), "poet").await, content);
}

#[tokio::test]
async fn what_the_cache_has_serves_while_the_store_does_not() {
    let mut world = World::new().await;
    world.limits.attempts = 1;
    world.limits.outage = Duration::ZERO;
    let content = world.adapter("poet", 1, 3000);
    world.adapter("other", 2, 3000);
    assert_eq!(weights(&world.resolver(json!({})), "poet").await, content);
    world.bucket.fail("", usize::MAX, Fault::Status(503, "SlowDown", Vec::new()));
    let resolver = world.resolver(json!({}));
    assert_eq!(weights(&resolver, "poet").await, content);
    let error = find(&resolver, "other").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    // Once the store has said that it has another, the old one does not serve.
    world.bucket.heal();
    world.adapter("poet", 3, 3000);
    world.bucket.pass(WEIGHTS);
    world.bucket.fail(WEIGHTS, usize::MAX, Fault::Status(503, "SlowDown", Vec::new()));
    let error = find(&resolver, "poet").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    // A refusal is no outage: it is the store's answer.
    world.bucket.heal();
    world.bucket.fail("", usize::MAX, Fault::Status(403, "AccessDenied", Vec::new()));
    let error = find(&resolver, "poet").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn one_of_many_callers_downloads() {
    let world = World::new().await;
    let content = world.adapter("poet", 1, 100_000);
    // Resolvers of their own, as servers that share the folder have.
    let resolvers: Vec<_> = (0..6).map(|_| world.resolver(json!({}))).collect();
    let answers = join_all(resolvers.iter().map(|resolver| weights(resolver, "poet"))).await;
    assert!(answers.iter().all(|answer| *answer == content));
    let seen = world.bucket.seen();
    let pieces = seen.iter().filter(|seen| seen.range.is_some() && seen.path.ends_with(WEIGHTS));
    assert_eq!(pieces.count(), 1);
    assert_eq!(kept(world.cache.path()), (1, 0));
}
