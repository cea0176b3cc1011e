//! T-NUM: every numeric field with every value that a number can go wrong by. The answer is 200 or 400, never anything
//! else, and the server goes on.

use serde_json::{Value, json};

use super::{completion, serve};

const COMPLETION: [&str; 22] = [
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "best_of",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logprobs",
    "prompt_logprobs",
    "priority",
    "stop_token_ids",
    "logit_bias",
    "stream",
    "echo",
    "ignore_eos",
    "stream_options",
    "truncate_prompt_tokens",
];
const CHAT: [&str; 4] = ["top_logprobs", "max_completion_tokens", "logprobs", "n"];

/// As raw JSON, since some of them are no values of a JSON library.
const VALUES: [&str; 16] = [
    "-1",
    "0",
    "1",
    "2147483648",
    "9223372036854775807",
    "18446744073709551616",
    "1e308",
    "-1e308",
    "0.5",
    "\"NaN\"",
    "true",
    "\"1\"",
    "null",
    "[]",
    "{}",
    "[-1]",
];

#[tokio::test]
async fn every_number_is_bounded() {
    let server = serve(&["--max-num-seqs", "8"]).await;
    let client = server.client();
    let chat = json!({
        "model": "shout",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 2,
    });
    let completion = completion("shout", json!({"max_tokens": 2}));
    let cases = COMPLETION
        .map(|field| ("/v1/completions", &completion, field))
        .into_iter()
        .chain(CHAT.map(|field| ("/v1/chat/completions", &chat, field)));
    for (path, body, field) in cases {
        for value in VALUES {
            let mut fields = body.as_object().unwrap().clone();
            fields.remove(field);
            let mut text = Value::Object(fields).to_string();
            text.pop();
            text.push_str(&format!(",\"{field}\":{value}}}"));
            let answer = client.post_text(path, "application/json", text.as_str()).await;
            assert!(
                [200, 400].contains(&answer.status),
                "{text}\n{} {}",
                answer.status,
                answer.text
            );
            if answer.status == 400 {
                let error = &answer.json()["error"];
                assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{text}");
                assert_eq!(error["code"], 400);
            }
        }
    }
    client.ok("/v1/completions", &completion).await;
}

#[tokio::test]
async fn documented_refusals() {
    let server = serve(&["--max-model-len", "256"]).await;
    let client = server.client();
    let long = "word ".repeat(2000);
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    for (change, param) in [
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 1.1}), "top_p"),
        (json!({"min_p": 1.5}), "min_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"n": 0}), "n"),
        (json!({"n": 1_000_000}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": 257}), "max_tokens"),
        (json!({"presence_penalty": 2.5}), "presence_penalty"),
        (json!({"frequency_penalty": -2.5}), "frequency_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"logprobs": 1000}), "logprobs"),
        (json!({"stop": vec!["x"; 100]}), "stop"),
        (json!({"stop_token_ids": [1_000_000]}), "stop_token_ids"),
        (json!({"logit_bias": {"1000000": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": 1000}}), "logit_bias"),
        (json!({"prompt": long}), "prompt"),
        (json!({"prompt": [1_000_000]}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": {"a": 1}}), "prompt"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"best_of": 3}), "best_of"),
    ] {
        let body = completion("base", change.clone());
        let answer = client.post("/v1/completions", &body).await;
        assert_eq!(answer.status, 400, "{change}\n{}", answer.text);
        let error = answer.json()["error"].clone();
        let told = error["param"] == param || error["message"].as_str().unwrap().contains(param);
        assert!(told, "{change}: {error}");
    }
    let nested = format!("{{\"model\":\"base\",\"prompt\":{deep}}}");
    let answer = client.post_text("/v1/completions", "application/json", nested).await;
    assert_eq!(answer.status, 400);
}
