//! Resolving: who is asked, how often, and what the client learns when it comes to nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use loraplex_plugin_sdk::{
    AdapterChange, LoraRequest, LoraResolver, Progress, ResolveError, async_trait,
};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::error::ErrorKind;

/// What a resolver does, by the name that it is asked for.
type Script = fn(&str) -> Result<Option<LoraRequest>, ResolveError>;

#[derive(Debug)]
struct Scripted {
    index: usize,
    script: Script,
    calls: Arc<AtomicUsize>,
    changes: Mutex<UnboundedReceiver<AdapterChange>>,
}

#[async_trait]
impl LoraResolver for Scripted {
    async fn resolve_lora(
        &self,
        base_model: &str,
        lora_name: &str,
    ) -> Result<Option<LoraRequest>, ResolveError> {
        assert_eq!(base_model, "demo");
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.index == 0 && lora_name == "r0 hangs" {
            std::future::pending::<()>().await;
        }
        match lora_name.strip_prefix("after ").and_then(|rest| rest.split_once(" s ")) {
            // Works for some seconds, and says so if it is to.
            Some((seconds, rest)) => {
                let progress = Progress::current();
                for _ in 0..seconds.parse().unwrap() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    if rest != "silent" {
                        progress.advance(1);
                    }
                }
                Ok(Some(named(lora_name, "poet")))
            }
            None => (self.script)(lora_name),
        }
    }

    async fn next_change(&self) -> Option<AdapterChange> {
        self.changes.lock().await.recv().await
    }
}

/// A registry that asks resolvers with these scripts, and how often each has been asked.
fn resolving(
    change: impl FnOnce(&mut LoraConfig),
    scripts: &[Script],
) -> (Arc<AdapterManager>, Vec<Arc<AtomicUsize>>) {
    let manager = manager(change);
    let mut resolvers = ResolverRegistry::new();
    let mut calls = Vec::new();
    for (index, &script) in scripts.iter().enumerate() {
        let (_, changes) = unbounded_channel();
        let counter = Arc::<AtomicUsize>::default();
        calls.push(counter.clone());
        let scripted = Scripted { index, script, calls: counter, changes: Mutex::new(changes) };
        resolvers.push(format!("r{index}"), Arc::new(scripted));
    }
    manager.install_resolvers(resolvers);
    (manager, calls)
}

fn asked(calls: &[Arc<AtomicUsize>]) -> Vec<usize> {
    calls.iter().map(|calls| calls.load(Ordering::Relaxed)).collect()
}

/// Asks until the adapter is there: the loader's threads do not know that the clock is a paused one.
async fn patient(manager: &Arc<AdapterManager>, name: &str) -> Arc<Adapter> {
    loop {
        match manager.get(name).await {
            Ok(adapter) => return adapter,
            Err(error) => assert_eq!(error.kind, ErrorKind::Unavailable, "{error}"),
        }
    }
}

const POET: Script = |name| Ok(Some(named(name, "poet")));
const SHOUT: Script = |name| Ok(Some(named(name, "shout")));
const NOT_MINE: Script = |_| Ok(None);
const UNREACHABLE: Script =
    |_| Err(ResolveError::unavailable("no route", Some(Duration::from_secs(9))));
const BROKEN: Script = |name| Ok(Some(LoraRequest::new(name, "/nowhere/at/all")));
const PANICS: Script = |_| panic!("on purpose");
const GATED: Script = |_| Err(ResolveError::denied("gated").with_code("adapter_source_gated"));
const OTHER_BASE: Script = |_| Err(ResolveError::not_found("it is for another base model"));

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_requests_for_one_name_are_one_resolve_and_one_load() {
    let (manager, calls) = resolving(|_| {}, &[POET]);
    let mut gets = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let manager = manager.clone();
        gets.spawn(async move { manager.get("new").await.unwrap().generation });
    }
    let generations = gets.join_all().await;
    assert!(generations.iter().all(|&generation| generation == generations[0]));
    assert_eq!(asked(&calls), [1]);
    assert_eq!(manager.get("new").await.unwrap().generation, generations[0]);
    assert_eq!(asked(&calls), [1], "a registered name is not asked for");
    assert_eq!(manager.status("new").unwrap().requests, 10_001);
    let next = manager.load(named("other", "poet")).await.unwrap().adapter.generation;
    assert_eq!(next, generations[0] + 1, "one load");
}

#[tokio::test]
async fn resolvers_are_asked_in_order_until_one_has_it() {
    let (manager, calls) = resolving(|_| {}, &[NOT_MINE, SHOUT, POET]);
    let adapter = manager.get("x").await.unwrap();
    assert!(adapter.request.path.ends_with("shout"));
    assert_eq!(asked(&calls), [1, 1, 0]);
    assert_eq!(manager.status("x").unwrap().origin, Origin::Resolver("r1".into()));
}

#[tokio::test]
async fn a_resolver_in_trouble_does_not_hide_the_next() {
    for trouble in [UNREACHABLE, PANICS, GATED, BROKEN, OTHER_BASE] {
        let (manager, calls) = resolving(|_| {}, &[trouble, POET]);
        assert!(manager.get("x").await.is_ok());
        assert_eq!(asked(&calls), [1, 1]);
    }
}

#[tokio::test]
async fn a_client_learns_the_most_telling_failure() {
    for (scripts, kind, part) in [
        (&[NOT_MINE, NOT_MINE], ErrorKind::NotFound, ""),
        (&[NOT_MINE, OTHER_BASE], ErrorKind::NotFound, "r1: it is for another base model"),
        (&[UNREACHABLE, OTHER_BASE], ErrorKind::Unavailable, "r0: no route"),
        (&[GATED, UNREACHABLE], ErrorKind::Unavailable, "r0: gated; r1: no route"),
        (&[GATED, NOT_MINE], ErrorKind::PermissionDenied, "r0: gated"),
        (&[UNREACHABLE, BROKEN], ErrorKind::InvalidRequest, "was found but could not be loaded"),
        (&[NOT_MINE, PANICS], ErrorKind::Internal, "r1: the resolver panicked"),
    ] {
        let (manager, _) = resolving(|_| {}, scripts);
        let error = manager.get("x").await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(part), "{error}");
        match kind {
            ErrorKind::Unavailable => assert_eq!(error.retry_after, Some(Duration::from_secs(9))),
            ErrorKind::PermissionDenied => {
                assert_eq!(error.code.as_deref(), Some("adapter_source_gated"));
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_is_not_there_is_remembered_for_a_while() {
    let (manager, calls) = resolving(|_| {}, &[NOT_MINE]);
    for _ in 0..3 {
        assert!(manager.get("x").await.is_err());
    }
    assert_eq!(asked(&calls), [1]);
    // A load makes the name known, an unload makes it askable again.
    manager.load(named("x", "poet")).await.unwrap();
    assert!(manager.get("x").await.is_ok());
    manager.unload("x", true).await.unwrap();
    assert!(manager.get("x").await.is_err());
    assert_eq!(asked(&calls), [2]);
    let (manager, calls) = resolving(|config| config.negative_ttl = Duration::ZERO, &[NOT_MINE]);
    for _ in 0..3 {
        assert!(manager.get("x").await.is_err());
    }
    assert_eq!(asked(&calls), [3]);
}

#[tokio::test]
async fn names_that_no_adapter_can_have_are_not_asked_for() {
    let (manager, calls) = resolving(|_| {}, &[POET]);
    let long = "x".repeat(257);
    for name in ["", "/etc", "../x", "a/../../x", "a\0b", "a\\b", long.as_str()] {
        let error = manager.get(name).await.unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::NotFound, ""));
    }
    assert_eq!(asked(&calls), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_goes_on_without_the_client_that_asked_for_it() {
    let (manager, calls) = resolving(|_| {}, &[POET]);
    let name = "after 70 s ";
    // Each client waits for 30 s of a resolver that takes 70.
    for _ in 0..2 {
        let error = manager.get(name).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        assert!(error.retry_after.is_some());
    }
    patient(&manager, name).await;
    assert_eq!(asked(&calls), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_hangs_loses_its_call_and_the_next_is_asked() {
    let (manager, calls) = resolving(|_| {}, &[POET, SHOUT]);
    // Without progress the call is given up after twice the 30 s that a client waits.
    let error = manager.get("r0 hangs").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    // Other names are served meanwhile.
    patient(&manager, "other").await;
    assert!(patient(&manager, "r0 hangs").await.request.path.ends_with("shout"));
    assert_eq!(asked(&calls), [2, 1]);
    assert_eq!(manager.resolvers_status()[0].failed, 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_waits_as_long_as_calls_end() {
    let (manager, calls) = resolving(|_| {}, &[POET]);
    // Three times as many as are asked for at once, 50 s each: the last begin after 100 s.
    let names: Vec<String> = (0..192).map(|i| format!("after 50 s number {i}")).collect();
    let mut gets = tokio::task::JoinSet::new();
    for name in &names {
        let (manager, name) = (manager.clone(), name.clone());
        gets.spawn(async move { manager.get(&name).await });
    }
    for answer in gets.join_all().await {
        let error = answer.expect_err("a client waits 30 s");
        assert!(!error.message.contains("none has ended"), "{error}");
    }
    while manager.resolvers_status()[0].answered < 192 {
        assert_eq!(manager.resolvers_status()[0].failed, 0, "somebody was given up");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(asked(&calls), [192]);
}

#[tokio::test(start_paused = true)]
async fn no_fetch_outlasts_the_limit() {
    let (manager, _) = resolving(|config| config.negative_ttl = Duration::from_secs(60), &[POET]);
    let mut failures = 0;
    while failures < 100 {
        let error = manager.get("after 5000 s ").await.unwrap_err();
        if error.message.contains("no end after 900 s") {
            return;
        }
        failures += 1;
    }
    panic!("the fetch goes on for ever");
}

#[tokio::test]
async fn a_resolver_that_keeps_failing_is_degraded_until_it_answers() {
    let (manager, _) = resolving(
        |config| config.negative_ttl = Duration::ZERO,
        &[|name| match name {
            "good" => Ok(Some(named(name, "poet"))),
            _ => panic!("on purpose"),
        }],
    );
    for turn in 0..3 {
        assert!(!manager.resolvers_status()[0].degraded, "{turn}");
        assert!(manager.get("bad").await.is_err());
    }
    assert!(manager.resolvers_status()[0].degraded);
    manager.get("good").await.unwrap();
    let status = &manager.resolvers_status()[0];
    assert_eq!((status.degraded, status.answered, status.failed), (false, 1, 3));
}

#[tokio::test]
async fn a_change_at_the_source_replaces_in_place() {
    let manager = manager(|_| {});
    let (changed, changes) = unbounded_channel();
    let calls = Arc::<AtomicUsize>::default();
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("a");
    let point_to = |source: &str| {
        let _ = std::fs::remove_file(&place);
        std::os::unix::fs::symlink(demo("adapters").join(source), &place).unwrap();
    };
    point_to("poet");
    static PLACE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    PLACE.set(place.clone()).unwrap();
    let script: Script = |name| Ok(Some(LoraRequest::new(name, PLACE.get().unwrap())));
    let scripted = Scripted { index: 0, script, calls, changes: Mutex::new(changes) };
    let mut resolvers = ResolverRegistry::new();
    resolvers.push("watching", Arc::new(scripted));
    manager.install_resolvers(resolvers);
    let first = manager.get("a").await.unwrap();
    point_to("shout");
    changed.send(AdapterChange::new("never asked for")).unwrap();
    changed.send(AdapterChange::new("a")).unwrap();
    let floor = Floor { generation: Some(first.generation + 1), ..Floor::default() };
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let second = manager.get_at_least("a", floor, deadline).await.unwrap();
    assert_ne!(second.digest, first.digest);
    // Files that cannot be loaded leave the generation that is there.
    point_to("absent");
    changed.send(AdapterChange::new("a")).unwrap();
    drop(changed);
    manager.drain().await;
    assert_eq!(manager.get("a").await.unwrap().generation, second.generation);
}
