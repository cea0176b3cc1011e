//! Sleeping under vLLM's names, pausing under SGLang's, and which weights are served.

use axum::body::Body;
use axum::http::Request;
use futures::future::join;
use loraplex_core::{Llm, PauseMode};
use serde_json::{Value, json};
use std::sync::Arc;

use crate::{Answer, app, drawn, drawn_more, load, metric, post_request, send};

/// One server for all calls of a test: whether it sleeps is its own state.
struct Server {
    llm: Llm,
    router: axum::Router,
}

impl Server {
    fn new() -> Self {
        let llm = load(|_| {});
        Self { router: app(&llm, &[], &[]), llm }
    }

    async fn bare(&self, method: &str, path: &str) -> Answer {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        send(self.router.clone(), request).await
    }

    async fn call(&self, path: &str, body: Value) -> Answer {
        send(self.router.clone(), post_request(path, &body)).await
    }

    async fn is(&self, what: &str) -> bool {
        self.bare("GET", &format!("/is_{what}")).await.json()[format!("is_{what}")] == true
    }

    /// Prompt tokens of a long prompt that came from the prefix cache.
    async fn cached(&self) -> u64 {
        let body = json!({"prompt": vec![5; 200], "max_tokens": 1});
        let usage = self.call("/v1/completions", body).await.json()["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or_default()
    }

    /// A long request, and `then` while it waits in an engine that is paused, so that it cannot end before.
    async fn during<T>(&self, then: impl AsyncFnOnce() -> T) -> (Answer, T) {
        let body = json!({"model": "pirate", "prompt": "a", "max_tokens": 300, "ignore_eos": true});
        self.llm.engine().pause(PauseMode::Keep, false, None).await.unwrap();
        let then = async {
            while self.llm.engine().open_requests() == 0 {
                tokio::task::yield_now().await;
            }
            then().await
        };
        join(self.call("/v1/completions", body), then).await
    }
}

fn finish(answer: &Answer) -> Value {
    answer.json()["choices"][0]["finish_reason"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleep_is_a_pause_that_forgets_prefixes() {
    let server = Server::new();
    let short = json!({"prompt": "a", "max_tokens": 1});
    assert!(!server.is("sleeping").await);
    server.cached().await;
    assert!(server.cached().await > 0, "prefixes are cached");
    // Nothing is forgotten at level 0.
    assert_eq!(server.bare("POST", "/sleep?level=0").await.status, 200);
    assert_eq!(server.bare("POST", "/wake_up").await.json()["status"], "awake");
    assert!(server.cached().await > 0);
    let (answer, slept) = server.during(async || server.bare("POST", "/sleep").await).await;
    assert_eq!(
        (finish(&answer), slept.json()["status"].clone()),
        ("abort".into(), "sleeping".into())
    );
    assert!(server.is("sleeping").await && server.is("paused").await);
    assert_eq!(server.call("/v1/completions", short.clone()).await.status, 503);
    // Weights alone are not enough to go on, and never slept.
    assert_eq!(server.bare("POST", "/wake_up?tags=weights").await.json()["status"], "sleeping");
    assert!(server.is("sleeping").await);
    let woken = server.bare("POST", "/wake_up?tags=weights&tags=kv_cache").await;
    assert_eq!(woken.json()["status"], "awake");
    assert!(!server.is("sleeping").await && !server.is("paused").await);
    assert_eq!(server.cached().await, 0, "the sleep has forgotten it");
    // Waking twice does no harm, and resuming wakes as well.
    assert_eq!(server.bare("POST", "/wake_up").await.status, 200);
    let (answer, _) = server.during(async || server.bare("POST", "/sleep?mode=wait").await).await;
    assert_eq!(finish(&answer), "length");
    server.bare("POST", "/resume").await;
    assert!(!server.is("sleeping").await);
    // A pause is no sleep.
    server.bare("POST", "/pause").await;
    assert!(!server.is("sleeping").await && server.is("paused").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleep_takes_adapters_off_the_device_and_requests_bring_them_back() {
    let server = Server::new();
    // What an answer has used stays on the device; the engine says so a moment after the answer is out.
    let pool = async || {
        while metric(&server.llm, "loraplex:lora_pool_bytes") == 0 {
            tokio::task::yield_now().await;
        }
        metric(&server.llm, "loraplex:lora_pool_bytes")
    };
    let ask = async || {
        let body = json!({"model": "pirate", "prompt": "Once", "max_tokens": 8, "ignore_eos": true, "temperature": 0});
        server.call("/v1/completions", body).await.json()["choices"][0]["text"].clone()
    };
    let before = ask().await;
    let held = pool().await;
    let shallow = server.bare("POST", "/sleep?level=0").await.json();
    assert_eq!(shallow["lora_pool_bytes_freed"], 0);
    let deep = server.bare("POST", "/sleep").await.json();
    assert_eq!(deep["lora_pool_bytes_freed"], held);
    // The engine reports before it waits for what comes next.
    while metric(&server.llm, "loraplex:lora_pool_bytes") != 0 {
        tokio::task::yield_now().await;
    }
    server.bare("POST", "/wake_up").await;
    assert_eq!(ask().await, before);
    assert_eq!(pool().await, held);
    // What a frozen request holds stays where it is. All that the last one drew has been counted.
    while drawn(&server.llm) != 16 {
        tokio::task::yield_now().await;
    }
    let body = json!({"model": "pirate", "prompt": "a", "max_tokens": 500, "ignore_eos": true});
    let (answer, slept) = join(server.call("/v1/completions", body), async {
        drawn_more(&server.llm, 16).await;
        let slept = server.bare("POST", "/sleep?mode=keep").await.json();
        server.bare("POST", "/wake_up").await;
        slept
    })
    .await;
    assert_eq!((finish(&answer), &slept["lora_pool_bytes_freed"]), ("length".into(), &json!(0)));
}

#[tokio::test]
async fn what_cannot_sleep_is_refused_and_nothing_is_paused() {
    let server = Server::new();
    let (_, reason) = server.bare("POST", "/sleep?level=2").await.error(501);
    assert!(reason.contains("level 1"), "{reason}");
    server.bare("POST", "/sleep?level=3").await.error(400);
    server.bare("POST", "/sleep?mode=deep").await.error(400);
    server.bare("POST", "/wake_up?tags=lora").await.error(400);
    assert!(!server.is("paused").await && !server.is("sleeping").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn sglangs_pauses_queue_new_requests() {
    let server = Arc::new(Server::new());
    for (body, ending) in
        [(None, "abort"), (Some("in_place"), "length"), (Some("retract"), "length")]
    {
        let paused = server.clone();
        let (answer, new) = server
            .during(async || {
                let answer = match body {
                    None => paused.bare("POST", "/pause_generation").await,
                    Some(mode) => paused.call("/pause_generation", json!({"mode": mode})).await,
                };
                assert_eq!(answer.json()["status"], "ok");
                assert!(paused.is("paused").await);
                let queued =
                    paused.call("/v1/completions", json!({"prompt": "a", "max_tokens": 1}));
                let (queued, resumed) = join(queued, async {
                    let others = usize::from(body.is_some());
                    while paused.llm.engine().open_requests() <= others {
                        tokio::task::yield_now().await;
                    }
                    paused.call("/continue_generation", json!({})).await
                })
                .await;
                assert_eq!(resumed.json()["status"], "ok");
                queued
            })
            .await;
        assert_eq!((finish(&answer), new.status.as_u16()), (ending.into(), 200), "{body:?}");
    }
    assert_eq!(server.call("/pause_generation", json!({"mode": "later"})).await.status, 400);
    assert!(!server.is("paused").await);
}

#[tokio::test]
async fn weights_have_versions() {
    let server = Server::new();
    let info = server.bare("GET", "/weight_info").await.json();
    assert_eq!(info["weight_version"], Value::Null);
    let listed = server.bare("GET", "/v1/lora_adapters").await.json();
    for card in listed["data"].as_array().unwrap() {
        let versions = &info["adapters"][card["name"].as_str().unwrap()];
        assert_eq!(versions["generation"], card["generation"]);
        assert!(versions["generation"].is_u64());
    }
    assert_eq!(info["adapters"].as_object().unwrap().len(), 2);
}
