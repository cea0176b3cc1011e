//! The rules, one function each.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::{JoinSet, yield_now};

use super::{Adapter, Fixture, hostile_names};
use crate::{ErrorKind, LoraRequest, LoraResolver, ResolveError};

/// How many polls a dropped call is given, at most.
const DROPS: u8 = 24;
/// Callers of the rule about concurrency, for each name.
const CALLERS: usize = 16;

type Answer = Result<Option<LoraRequest>, ResolveError>;

pub(super) async fn finds_what_is_there<F: Fixture + ?Sized>(fixture: &F) {
    let rule = "finds-what-is-there";
    let adapter = put(fixture, "found", 1).await;
    let resolver = fixture.resolver().await;
    let first = found(rule, fixture, &*resolver, &adapter).await;
    for _ in 0..3 {
        let again = found("repeated-calls-are-stable", fixture, &*resolver, &adapter).await;
        assert!(again == first, "repeated-calls-are-stable: {first:?} became {again:?}");
    }
    let other = fixture.resolver().await;
    found("a-new-resolver-finds-it-too", fixture, &*other, &adapter).await;
}

pub(super) async fn unknown_is_not_found<F: Fixture + ?Sized>(fixture: &F) {
    let resolver = fixture.resolver().await;
    let name = fixture.name("nobody-has-this");
    let answer = resolver.resolve_lora(fixture.base_model(), &name).await;
    assert!(not_found(&answer), "unknown-is-not-found: {name:?} got {answer:?}");
}

pub(super) async fn hostile_is_unknown<F: Fixture + ?Sized>(fixture: &F) {
    let rule = "hostile-is-unknown";
    let adapter = put(fixture, "victim", 1).await;
    let resolver = fixture.resolver().await;
    let unknown = fixture.name("nobody-has-this");
    let expected = shape(&resolver.resolve_lora(fixture.base_model(), &unknown).await, &unknown);
    let mut names = hostile_names(&adapter.name);
    names.extend(fixture.outside().await);
    for name in names {
        let answer = resolver.resolve_lora(fixture.base_model(), &name).await;
        let shown: String = name.chars().take(100).collect();
        assert!(not_found(&answer), "{rule}: {shown:?} got {answer:?}");
        let shape = shape(&answer, &name);
        assert!(
            shape == expected,
            "{rule}: {shown:?} is told apart from an unknown name: {shape:?} is not {expected:?}"
        );
    }
    found("hostile-names-do-no-harm", fixture, &*resolver, &adapter).await;
}

pub(super) async fn prefixes_are_told_apart<F: Fixture + ?Sized>(fixture: &F) {
    let rule = "prefixes-are-told-apart";
    let mut adapters = Vec::new();
    for plain in ["mix", "mix2", "mix-2", "mi"] {
        adapters.push(put(fixture, plain, 1).await);
    }
    let resolver = fixture.resolver().await;
    for adapter in &adapters {
        found(rule, fixture, &*resolver, adapter).await;
    }
    for plain in ["m", "mix-", "mix-22", "MIX"] {
        let name = fixture.name(plain);
        let answer = resolver.resolve_lora(fixture.base_model(), &name).await;
        assert!(not_found(&answer), "{rule}: nothing is called {name:?}, and it got {answer:?}");
    }
}

pub(super) async fn nested_names<F: Fixture + ?Sized>(fixture: &F) {
    if !fixture.nested() {
        return;
    }
    let rule = "nested-names";
    let inner = put(fixture, "team/style/one", 1).await;
    let beside = put(fixture, "team/style/two", 2).await;
    let resolver = fixture.resolver().await;
    for adapter in [&inner, &beside] {
        found(rule, fixture, &*resolver, adapter).await;
    }
    for plain in ["team/style", "one", "style/one", "team/one"] {
        let name = fixture.name(plain);
        let answer = resolver.resolve_lora(fixture.base_model(), &name).await;
        assert!(not_found(&answer), "{rule}: {name:?} is no adapter, and it got {answer:?}");
    }
}

pub(super) async fn other_base_models<F: Fixture + ?Sized>(fixture: &F) {
    if !fixture.checks_base_model() {
        return;
    }
    const OTHER: &str = "somebody/another-model-7b";
    let rule = "other-base-models";
    let adapter = Adapter::new(fixture.name("misfit"), OTHER, 1);
    fixture.put(&adapter).await;
    let resolver = fixture.resolver().await;
    let answer = resolver.resolve_lora(fixture.base_model(), &adapter.name).await;
    let says_why = matches!(
        &answer,
        Err(error) if error.kind == ErrorKind::NotFound && error.message.contains(OTHER)
    );
    assert!(
        says_why,
        "{rule}: an adapter for {OTHER} must be an error of kind NotFound that names it, and it got {answer:?}"
    );
}

pub(super) async fn concurrent_calls_agree<F: Fixture + ?Sized>(fixture: &F) {
    let rule = "concurrent-calls-agree";
    let mut adapters = Vec::new();
    for version in 1..=6 {
        adapters.push(put(fixture, &format!("crowd-{version}"), version).await);
    }
    let resolver = fixture.resolver().await;
    let mut calls = JoinSet::new();
    for caller in 0..CALLERS * adapters.len() {
        let adapter = adapters[caller % adapters.len()].clone();
        let (resolver, base) = (Arc::clone(&resolver), fixture.base_model().to_owned());
        calls.spawn(async move {
            let answer = resolver.resolve_lora(&base, &adapter.name).await;
            check(rule, &adapter, answer)
        });
    }
    let mut paths = std::collections::BTreeMap::<String, PathBuf>::new();
    while let Some(call) = calls.join_next().await {
        let request = call.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => panic!("{rule}: a call ended early: {error}"),
        });
        let path = paths.entry(request.name.clone()).or_insert_with(|| request.path.clone());
        assert!(
            *path == request.path,
            "{rule}: {:?} lies in {path:?} and in {:?}",
            request.name,
            request.path
        );
    }
}

pub(super) async fn dropped_calls<F: Fixture + ?Sized>(fixture: &F) {
    let resolver = fixture.resolver().await;
    for polls in 0..DROPS {
        // Another version each time, so that there is something to do when the call is dropped.
        let adapter = put(fixture, "dropped", polls).await;
        tokio::select! {
            biased;
            _ = resolver.resolve_lora(fixture.base_model(), &adapter.name) => {}
            () = yields(polls) => {}
        }
        found("a-dropped-call-does-no-harm", fixture, &*resolver, &adapter).await;
    }
}

pub(super) async fn changes_are_seen<F: Fixture + ?Sized>(fixture: &F) {
    let rule = "changes-are-seen";
    let resolver = fixture.resolver().await;
    for version in 1..=4 {
        let adapter = put(fixture, "changing", version).await;
        found(rule, fixture, &*resolver, &adapter).await;
    }
    if fixture.forgets_removed() {
        let name = fixture.name("changing");
        fixture.remove(&name).await;
        let answer = resolver.resolve_lora(fixture.base_model(), &name).await;
        assert!(not_found(&answer), "removed-is-not-found: {name:?} got {answer:?}");
        let back = put(fixture, "changing", 9).await;
        found("what-comes-back-is-found", fixture, &*resolver, &back).await;
    }
}

async fn put<F: Fixture + ?Sized>(fixture: &F, plain: &str, version: u8) -> Adapter {
    let adapter = Adapter::new(fixture.name(plain), fixture.base_model(), version);
    fixture.put(&adapter).await;
    adapter
}

async fn yields(count: u8) {
    for _ in 0..count {
        yield_now().await;
    }
}

async fn found<F: Fixture + ?Sized>(
    rule: &str,
    fixture: &F,
    resolver: &dyn LoraResolver,
    adapter: &Adapter,
) -> LoraRequest {
    check(rule, adapter, resolver.resolve_lora(fixture.base_model(), &adapter.name).await)
}

/// The answer is a folder with this adapter's files, byte for byte.
fn check(rule: &str, adapter: &Adapter, answer: Answer) -> LoraRequest {
    let request = match answer {
        Ok(Some(request)) => request,
        other => panic!("{rule}: {:?} is there, and it got {other:?}", adapter.name),
    };
    let LoraRequest { name, path, .. } = &request;
    assert!(*name == adapter.name, "{rule}: {:?} was answered as {name:?}", adapter.name);
    assert!(path.is_absolute(), "{rule}: the path of {name:?} is relative: {path:?}");
    for (file, expected) in &adapter.files {
        match std::fs::read(path.join(file)) {
            Ok(bytes) if bytes == *expected => {}
            Ok(bytes) => panic!(
                "{rule}: {file} of {name:?} in {path:?} holds {} bytes that are not those of the source",
                bytes.len()
            ),
            Err(error) => panic!("{rule}: {file} of {name:?} in {path:?}: {error}"),
        }
    }
    request
}

fn not_found(answer: &Answer) -> bool {
    match answer {
        Ok(found) => found.is_none(),
        Err(error) => error.kind == ErrorKind::NotFound,
    }
}

/// What a client could tell two refusals apart by, with the name itself taken out.
fn shape(answer: &Answer, name: &str) -> Option<String> {
    let error = answer.as_ref().err()?;
    let (escaped, mut message) = (name.escape_debug().to_string(), error.message.clone());
    if !name.is_empty() {
        message = message.replace(&escaped, "…").replace(name, "…");
    }
    Some(format!("{:?} {:?} {message}", error.kind, error.code))
}
