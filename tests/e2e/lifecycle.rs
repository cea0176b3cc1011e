//! Overload, keys, and the end.

use futures::future::{join, join_all};
use loraplex_tests::{Answer, ServerProcess};
use reqwest::Method;
use serde_json::json;

use super::{completion, demo, serve};

#[tokio::test]
async fn a_full_queue_answers_429_and_the_rest_is_served() {
    let server = serve(&["--max-num-seqs", "1", "--max-queued-requests", "2"]).await;
    let body = completion("base", json!({"max_tokens": 100}));
    let answers = join_all((0..12).map(|_| server.client().post("/v1/completions", &body))).await;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!(count(200) + count(429), 12);
    assert!(count(200) >= 3 && count(429) >= 1, "{} served", count(200));
    for refused in answers.iter().filter(|answer| answer.status == 429) {
        assert!(refused.headers.contains_key("retry-after"), "{:?}", refused.headers);
    }
}

#[tokio::test]
async fn keys_guard_what_they_should() {
    let server = serve(&["--api-key", "one", "two", "--admin-api-key", "boss"]).await;
    let body = completion("base", json!({"max_tokens": 1}));
    for (key, status) in [("one", 200), ("two", 200), ("boss", 200), ("three", 401), ("", 401)] {
        let answer = server.client().with_key(key).post("/v1/completions", &body).await;
        assert_eq!(answer.status, status, "{key:?}");
    }
    assert_eq!(server.client().get("/v1/models").await.status, 401);
    assert_eq!(server.client().get("/health").await.status, 200);
    assert!(!server.logged().contains("boss"), "keys are not logged");
}

#[tokio::test]
async fn sigterm_lets_requests_finish() {
    let mut server = serve(&[]).await;
    let body = completion("base", json!({"max_tokens": 150, "stream": true}));
    let request = server.client().request(Method::POST, "/v1/completions").json(&body);
    // The head says that the request is under way.
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let id = server.id().to_string();
    assert!(std::process::Command::new("kill").arg(id).status().unwrap().success());
    let answer = Answer { status, headers, text: response.text().await.unwrap() };
    assert_eq!(answer.events().last().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.logged());
}

#[tokio::test]
async fn what_has_no_time_to_finish_says_so() {
    let model = demo("model");
    let args = [&model, "--served-model-name", "base", "--shutdown-timeout", "0"];
    let mut server =
        ServerProcess::start_with(&args, &[("ALLOW_RUNTIME_LORA_UPDATING", "1")]).await;
    let client = server.client();
    // Nothing ends by itself.
    let pause = client.request(Method::POST, "/pause?mode=keep").send().await.unwrap();
    assert_eq!(pause.status().as_u16(), 200);
    let streamed = completion("base", json!({"max_tokens": 50, "stream": true}));
    let whole = completion("base", json!({"max_tokens": 50}));
    let answers = [&streamed, &whole].map(|body| client.post("/v1/completions", body));
    let stop = async {
        let waiting = "vllm:num_requests_waiting{engine=\"0\",model_name=\"base\"} 2";
        while !client.get("/metrics").await.text.contains(waiting) {
            tokio::task::yield_now().await;
        }
        let id = server.id().to_string();
        assert!(std::process::Command::new("kill").arg(id).status().unwrap().success());
    };
    let (answers, ()) = join(join_all(answers), stop).await;
    let events = answers[0].events();
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "abort");
    assert_eq!(answers[1].json()["choices"][0]["finish_reason"], "abort");
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.logged());
}
