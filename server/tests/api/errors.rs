//! What is refused: with which status, in which words; and that the server goes on.

use axum::body::Body;
use axum::http::{Method, Request};
use loraplex_core::PauseMode;
use serde_json::{Value, json};

use crate::{app, get, load, ok, post, post_request, send, shared};

#[tokio::test]
async fn an_unknown_model_is_404_on_every_route() {
    for (path, body) in [
        ("/v1/completions", json!({"prompt": "a"})),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "a"}]})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "stream": true}),
        ),
        ("/tokenize", json!({"prompt": "a"})),
        ("/detokenize", json!({"tokens": [5]})),
    ] {
        for name in ["nobody", "Pirate", "pirate ", "../pirate", "/tmp/x/pirate", "a\u{0}b", "ä"] {
            let mut body = body.clone();
            body["model"] = json!(name);
            let answer = post(path, body).await;
            let (param, message) = answer.error(404);
            assert_eq!(param, "model");
            assert!(message.ends_with("does not exist. Valid aliases: demo, alias."), "{message}");
            assert_eq!(answer.json()["error"]["type"], "NotFoundError");
        }
    }
    let long = post("/v1/completions", json!({"prompt": "a", "model": "x".repeat(100_000)})).await;
    assert!(long.error(404).1.len() < 200);
}

#[tokio::test]
async fn every_number_takes_every_value() {
    let values = [
        "-1",
        "0",
        "1",
        "2147483648",
        "9223372036854775807",
        "18446744073709551616",
        "1e308",
        "\"NaN\"",
        "NaN",
        "true",
        "\"1\"",
        "null",
        "[]",
        "{}",
    ];
    let fields = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "n",
        "best_of",
        "min_tokens",
        "max_tokens",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logprobs",
        "top_logprobs",
        "prompt_logprobs",
        "priority",
        "max_completion_tokens",
        "echo",
        "stream",
        "stop",
        "stop_token_ids",
        "logit_bias",
        "cache_salt",
        "request_id",
        "stream_options",
    ];
    for field in fields {
        for value in values {
            for (path, rest) in [
                ("/v1/completions", r#""prompt":"a""#),
                ("/v1/chat/completions", r#""messages":[{"role":"user","content":"a"}]"#),
            ] {
                let limit = if field.starts_with("max_") { "" } else { r#","max_tokens":1"# };
                let body = format!("{{{rest}{limit},\"{field}\":{value},\"stop\":\"e\"}}");
                let body = if field == "stop" {
                    format!("{{{rest}{limit},\"stop\":{value}}}")
                } else {
                    body
                };
                let request = Request::post(path).header("content-type", "application/json");
                let answer =
                    send(app(shared(), &[], &[]), request.body(body.into()).unwrap()).await;
                assert!(
                    [200, 400].contains(&answer.status.as_u16()),
                    "{field} {value}: {}",
                    answer.text
                );
                if answer.status == 400 && value != "NaN" {
                    let (param, message) = answer.error(400);
                    let named = param.as_str().is_some_and(|param| param.starts_with(field));
                    assert!(named || message.contains(field), "{field} {value}: {message}");
                }
            }
        }
    }
    ok("/v1/completions", json!({"prompt": "a", "max_tokens": 1})).await;
}

#[tokio::test]
async fn bodies_that_are_no_requests() {
    for body in [
        "",
        "{",
        "[]",
        "3",
        "null",
        "\"a\"",
        "{\"prompt\":\"\\ud800\"}",
        "{}",
        "{\"prompt\":\"a\"}}",
    ] {
        let request = Request::post("/v1/completions")
            .header("content-type", "application/json; charset=utf-8");
        send(app(shared(), &[], &[]), request.body(body.into()).unwrap()).await.error(400);
    }
    let deep = format!("{{\"prompt\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let request = Request::post("/v1/completions").header("content-type", "application/json");
    send(app(shared(), &[], &[]), request.body(deep.into()).unwrap()).await.error(400);
    for media in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        let request = Request::post("/v1/completions").header("content-type", media);
        let answer = send(app(shared(), &[], &[]), request.body("{}".into()).unwrap()).await;
        assert!(answer.error(400).1.contains("Only 'application/json' is allowed"));
    }
    let huge = vec![b' '; (32 << 20) + 1];
    let request = Request::post("/v1/completions").header("content-type", "application/json");
    send(app(shared(), &[], &[]), request.body(huge.into()).unwrap()).await.error(413);
}

#[tokio::test]
async fn prompts_that_cost_too_much_are_refused_at_once() {
    let start = std::time::Instant::now();
    let messages = vec![json!({"role": "user", "content": "a"}); 100_000];
    post("/v1/chat/completions", json!({ "messages": messages })).await.error(400);
    post("/v1/completions", json!({"prompt": "a".repeat(1 << 20)})).await.error(400);
    post("/v1/completions", json!({"prompt": vec!["a"; 1025]})).await.error(400);
    post("/v1/completions", json!({"prompt": vec!["a"; 65]})).await.error(400);
    post("/v1/completions", json!({"prompt": vec![5; 1 << 20]})).await.error(400);
    post("/tokenize", json!({"prompt": "a".repeat(1 << 20)})).await.error(400);
    assert!(start.elapsed().as_secs() < 120, "{:?}", start.elapsed());
}

#[tokio::test]
async fn no_such_route_or_method() {
    let answer = get("/v1/nowhere").await;
    answer.error(404);
    assert_eq!(answer.json()["detail"], "Not Found");
    for path in ["/v1/completions/", "//v1/models", "/V1/models", "/v1%2fmodels", "/v1/models/"] {
        get(path).await.error(404);
    }
    let answer = get("/v1/completions").await;
    answer.error(405);
    assert_eq!(answer.json()["detail"], "Method Not Allowed");
    let options = Request::builder().method(Method::OPTIONS).uri("/v1/models");
    let answer = send(app(shared(), &[], &[]), options.body(Body::empty()).unwrap()).await;
    answer.error(405);
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_full_queue_is_429_and_nothing_is_left_behind() {
    let llm = load(|config| {
        config.scheduler.max_num_seqs = 1;
        config.scheduler.max_waiting = 2;
    });
    let body = |n: u32| json!({"prompt": "a", "n": n, "max_tokens": 400, "ignore_eos": true});
    let app = app(&llm, &[], &[]);
    // None of the two ends before all have been turned away.
    llm.engine().pause(PauseMode::Keep, false, None).await.unwrap();
    let first = tokio::task::JoinSet::from_iter([
        send(app.clone(), post_request("/v1/completions", &body(1))),
        send(app.clone(), post_request("/v1/completions", &body(1))),
    ]);
    while llm.engine().open_requests() < 2 {
        tokio::task::yield_now().await;
    }
    // One of the two outputs would fit; a call is taken whole or not at all.
    let answer = send(app.clone(), post_request("/v1/completions", &body(2))).await;
    answer.error(429);
    assert_eq!(answer.headers["retry-after"], "1");
    let streamed = json!({"prompt": "a", "n": 2, "max_tokens": 400, "stream": true});
    send(app.clone(), post_request("/v1/completions", &streamed)).await.error(429);
    llm.engine().resume().await.unwrap();
    for answer in first.join_all().await {
        assert_eq!(answer.status, 200);
    }
    assert_eq!(llm.engine().open_requests(), 0);
    llm.shutdown(true);
    let answer = send(app.clone(), post_request("/v1/completions", &body(1))).await;
    answer.error(503);
    assert!(answer.headers.contains_key("retry-after"));
    let health = Request::get("/health").body(Body::empty()).unwrap();
    assert_eq!(send(app, health).await.status, 503);
}

#[tokio::test]
async fn what_is_not_supported_says_so() {
    for more in [
        json!({"tools": [{"type": "function", "function": {"name": "f"}}]}),
        json!({"response_format": {"type": "json_object"}}),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}),
    ] {
        let mut body = json!({"messages": [{"role": "user", "content": "a"}]});
        let fields: serde_json::Map<String, Value> = serde_json::from_value(more).unwrap();
        body.as_object_mut().unwrap().extend(fields);
        let (param, _) = post("/v1/chat/completions", body).await.error(400);
        assert!(param.is_string());
    }
}
