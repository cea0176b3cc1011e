//! The router over a real engine with the demo model: wire formats, bounds, keys, streams, connections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod auth;
mod chat;
mod completions;
mod connections;
mod control;
mod errors;
mod models;
mod sglang;
mod sleep;
mod trainers;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use loraplex_core::{Device, EngineConfig, Llm, LoraRequest, Quiet, UpdatePolicy};
use loraplex_server::auth::Guard;
use loraplex_server::control::paths::PathPolicy;
use loraplex_server::routes::router;
use loraplex_server::state::{AppState, Serving};
use serde_json::Value;
use tower::ServiceExt;

/// An answer, read to its end.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The chunks of a stream that ends as it should.
    fn chunks(&self) -> Vec<Value> {
        let frames: Vec<&str> = self.text.split_terminator("\n\n").collect();
        let (last, frames) = frames.split_last().unwrap();
        assert_eq!(*last, "data: [DONE]");
        let chunk = |frame: &&str| serde_json::from_str(frame.strip_prefix("data: ").unwrap());
        frames.iter().map(chunk).collect::<Result<_, _>>().unwrap()
    }

    /// `error.param` and `error.message` of a failure with `status`.
    fn error(&self, status: u16) -> (Value, String) {
        assert_eq!(self.status, status, "{}", self.text);
        let error = self.json()["error"].clone();
        assert_eq!(error["code"], status);
        (error["param"].clone(), error["message"].as_str().unwrap().to_owned())
    }
}

fn demo(below: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/demo")).join(below)
}

fn load(change: impl FnOnce(&mut EngineConfig)) -> Llm {
    let mut config = EngineConfig::new(demo("model"));
    config.device = Device::Cpu;
    change(&mut config);
    let llm = Llm::load(config, &Quiet).unwrap();
    for name in ["pirate", "org/shout"] {
        let folder = demo("adapters").join(name.rsplit('/').next().unwrap());
        llm.adapters().load_blocking(LoraRequest::new(name, folder)).unwrap();
    }
    llm
}

/// What a server without keys answers to a POST.
async fn call(llm: &Llm, path: &str, body: Value) -> Answer {
    send(app(llm, &[], &[]), post_request(path, &body)).await
}

/// The same to a request without a body.
async fn bare(llm: &Llm, method: &str, path: &str) -> Answer {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    send(app(llm, &[], &[]), request).await
}

fn app(llm: &Llm, user: &[&str], admin: &[&str]) -> Router {
    let keys = |keys: &[&str]| keys.iter().map(|key| key.parse().unwrap()).collect::<Vec<_>>();
    app_with(llm, |serving| serving.guard = Guard::new(&keys(user), &keys(admin)))
}

fn app_with(llm: &Llm, change: impl FnOnce(&mut Serving)) -> Router {
    let mut serving = Serving {
        served: vec!["demo".into(), "alias".into()],
        root: "/models/demo".into(),
        guard: Guard::new(&[], &[]),
        loopback: true,
        max_outputs: 64,
        updating: true,
        paths: PathPolicy::Any,
        update_policy: UpdatePolicy::Pin,
        adapter_wait: Duration::from_secs(60),
        lora_limits: Some((64, 8)),
        hub: None,
    };
    change(&mut serving);
    router(Arc::new(AppState::new(llm, serving)))
}

/// One engine for all tests that can share it.
fn shared() -> &'static Llm {
    static LLM: OnceLock<Llm> = OnceLock::new();
    LLM.get_or_init(|| load(|_| {}))
}

/// The value of a metric; 0 before it is first counted. The engine reports a step after its answers are out.
fn metric(llm: &Llm, name: &str) -> u64 {
    let text = llm.metrics().encode();
    let line = text
        .lines()
        .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64)
}

/// Tokens that the engine has drawn since its start. To wait for more is to wait for what does not pass by: a request
/// may have come and gone between two looks at what is running.
fn drawn(llm: &Llm) -> u64 {
    metric(llm, "vllm:generation_tokens_total")
}

/// The same once nothing runs: the last of an answer is counted after it is out.
async fn drawn_so_far(llm: &Llm) -> u64 {
    while metric(llm, "vllm:num_requests_running") > 0 {
        tokio::task::yield_now().await;
    }
    drawn(llm)
}

/// Waits until the engine has drawn more than `count` tokens.
async fn drawn_more(llm: &Llm, count: u64) {
    while drawn(llm) <= count {
        tokio::task::yield_now().await;
    }
}

async fn send(app: Router, request: Request<Body>) -> Answer {
    let response = app.oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    Answer { status, headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

async fn get(path: &str) -> Answer {
    let request = Request::get(path).body(Body::empty()).unwrap();
    send(app(shared(), &[], &[]), request).await
}

fn post_request(path: &str, body: &Value) -> Request<Body> {
    let request = Request::post(path).header("content-type", "application/json");
    request.body(body.to_string().into()).unwrap()
}

async fn post(path: &str, body: Value) -> Answer {
    send(app(shared(), &[], &[]), post_request(path, &body)).await
}

/// A call that must succeed; its JSON.
async fn ok(path: &str, body: Value) -> Value {
    let answer = post(path, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}
