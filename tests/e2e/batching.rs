//! Invariant 11: a token is the same alone, in a batch, in chunks, preempted, or from the prefix cache.

use futures::future::join_all;
use loraplex_tests::Client;
use serde_json::{Value, json};

use super::{completion, serve, tokens};

/// Twenty requests of all kinds: four models, greedy and seeded, short prompts and long ones.
fn requests() -> Vec<Value> {
    let models = ["base", "pirate", "shout", "poet"];
    (0..20)
        .map(|index| {
            let prompt = format!("{}Once upon a time there was", "A small fox ran. ".repeat(index));
            let temperature = if index % 3 == 0 { 0.0 } else { 0.9 };
            completion(
                models[index % 4],
                json!({
                    "prompt": prompt,
                    "max_tokens": 24,
                    "temperature": temperature,
                    "top_p": if index % 2 == 0 { 1.0 } else { 0.8 },
                    "frequency_penalty": if index % 5 == 0 { 0.5 } else { 0.0 },
                    "seed": index,
                    "return_token_ids": true,
                    "logprobs": 2,
                }),
            )
        })
        .collect()
}

async fn alone(client: &Client) -> Vec<Answer> {
    let mut answers = Vec::new();
    for body in requests() {
        answers.push(ask(client, &body).await);
    }
    answers
}

async fn together(client: &Client) -> Vec<Answer> {
    join_all(requests().iter().map(|body| ask(client, body))).await
}

type Answer = (Vec<u64>, Value);

async fn ask(client: &Client, body: &Value) -> Answer {
    let answer = client.ok("/v1/completions", body).await;
    (tokens(&answer), answer["choices"][0]["logprobs"]["token_logprobs"].clone())
}

/// Equal to the last bit of every log-probability.
fn same(first: &[Answer], again: &[Answer], how: &str) {
    for (index, (a, b)) in first.iter().zip(again).enumerate() {
        assert!(a == b, "request {index} {how}:\n{a:?}\n{b:?}");
    }
}

#[tokio::test]
async fn tokens_do_not_depend_on_company() {
    let server = serve(&[]).await;
    let first = alone(server.client()).await;
    same(&first, &together(server.client()).await, "in a batch, prefixes from the cache");
    drop(server);

    let server = serve(&[
        "--no-enable-prefix-caching",
        "--max-num-batched-tokens",
        "24",
        "--max-num-seqs",
        "20",
    ])
    .await;
    same(&first, &together(server.client()).await, "in chunks, nothing cached");
    drop(server);

    let server = serve(&["--threads", "1"]).await;
    same(&first, &together(server.client()).await, "on one thread");
    drop(server);

    let server = serve(&["--async-scheduling", "--max-num-seqs", "20"]).await;
    same(&first, &alone(server.client()).await, "alone, in steps that run ahead");
    same(&first, &together(server.client()).await, "in a batch, in steps that run ahead");
    let metrics = server.client().get("/metrics").await.text;
    let line = metrics.lines().find(|line| line.starts_with("loraplex:steps_ahead_total"));
    let ahead: f64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    // Half of the 480 tokens that are drawn alone would be, but for those with penalties.
    assert!(ahead > 240.0, "{metrics}");
}

#[tokio::test]
async fn preempted_requests_give_the_same_tokens() {
    let server = serve(&[]).await;
    let first = alone(server.client()).await;
    drop(server);
    // Room for one and a half of the longest requests: most of the batch gives way several times.
    let small = ["--max-model-len", "192", "--kv-cache-memory-bytes", "700KiB"];
    let server = serve(&small).await;
    same(&first, &together(server.client()).await, "preempted");
    let metrics = server.client().get("/metrics").await.text;
    let line = metrics.lines().find(|line| line.starts_with("vllm:num_preemptions_total"));
    let preemptions: f64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(preemptions > 0.0, "the cache was small enough:\n{metrics}");
}

#[tokio::test]
async fn the_prefix_cache_serves_each_salt_and_model_apart() {
    let server = serve(&[]).await;
    let long = "A small fox ran over the hill. ".repeat(12);
    let cached = async |model: &str, salt: Option<&str>| {
        let mut body = completion(model, json!({"prompt": long, "max_tokens": 1}));
        if let Some(salt) = salt {
            body["cache_salt"] = salt.into();
        }
        let answer = server.client().ok("/v1/completions", &body).await;
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
    };
    for (model, salt) in [("base", None), ("poet", None), ("poet", Some("a")), ("poet", Some("b"))]
    {
        assert_eq!(cached(model, salt).await, 0, "{model} {salt:?} starts empty");
        assert!(cached(model, salt).await > 32, "{model} {salt:?} finds its own");
    }
}
