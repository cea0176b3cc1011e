//! `/v1/chat/completions`.

use serde_json::{Value, json};

use crate::{ok, post};

const PATH: &str = "/v1/chat/completions";

fn body(model: &str, more: Value) -> Value {
    let messages = json!([{"role": "user", "content": "Tell me a story about a mouse."}]);
    let mut body =
        json!({"model": model, "messages": messages, "max_tokens": 12, "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn golden_answers() {
    let golden = std::fs::read_to_string(crate::demo("golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    for (name, model) in [("base", "demo"), ("pirate", "pirate"), ("shout", "org/shout")] {
        for case in golden[name].as_array().unwrap() {
            let more =
                json!({"messages": case["messages"], "max_tokens": 24, "return_token_ids": true});
            let answer = ok(PATH, body(model, more)).await;
            assert_eq!(answer["prompt_token_ids"], case["prompt_token_ids"]);
            assert_eq!(answer["model"], model);
            let ids = |value: &Value| serde_json::from_value::<Vec<u32>>(value.clone()).unwrap();
            let (got, expected) =
                (ids(&answer["choices"][0]["token_ids"]), ids(&case["token_ids"]));
            let gaps: Vec<f32> = serde_json::from_value(case["gaps"].clone()).unwrap();
            // bf16 may rightly choose the other of two tokens that are this close.
            let sure = gaps.iter().position(|&gap| gap < 0.5).unwrap_or(gaps.len());
            assert_eq!(got[..sure], expected[..sure], "{name}: {}", case["messages"]);
        }
    }
}

#[tokio::test]
async fn the_answer_has_openais_shape() {
    let answer = ok(PATH, body("pirate", json!({}))).await;
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("chat.completion"), &json!("pirate"))
    );
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(!choice["message"]["content"].as_str().unwrap().is_empty());
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!((&choice["logprobs"], &choice["stop_reason"]), (&Value::Null, &Value::Null));
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], 12);
    let sum = usage["prompt_tokens"].as_u64().unwrap() + 12;
    assert_eq!(usage["total_tokens"], sum);
    assert!(usage["prompt_tokens_details"]["cached_tokens"].is_u64());
    assert!(choice.get("token_ids").is_none() && answer.get("prompt_token_ids").is_none());
    for name in [json!("alias"), json!(""), Value::Null] {
        assert_eq!(ok(PATH, body("", json!({"model": name}))).await["model"], "demo");
    }
}

#[tokio::test]
async fn a_stream_adds_up_to_the_whole() {
    let more = json!({"n": 2, "logprobs": true, "top_logprobs": 2, "return_token_ids": true,
        "return_tokens_as_token_ids": true});
    let whole = ok(PATH, body("org/shout", more.clone())).await;
    let mut streamed = body("org/shout", more);
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
    let answer = post(PATH, streamed).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
    let chunks = answer.chunks();
    let id = chunks[0]["id"].as_str().unwrap();
    assert_eq!(answer.headers["x-request-id"], id);
    let (last, chunks) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    // The second call finds the prompt of the first in the cache; the rest is the same.
    for field in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][field], whole["usage"][field]);
    }
    for index in 0..2 {
        let of_this = |chunk: &&Value| chunk["choices"][0]["index"] == index;
        let own: Vec<_> = chunks.iter().filter(of_this).collect();
        assert_eq!(own[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        assert_eq!(own[0]["prompt_token_ids"], whole["prompt_token_ids"]);
        let mut text = String::new();
        let (mut ids, mut scores) = (Vec::new(), Vec::new());
        for chunk in &own {
            assert!(chunk["usage"]["total_tokens"].is_u64() && chunk["id"] == id);
            let choice = &chunk["choices"][0];
            text += choice["delta"]["content"].as_str().unwrap_or_default();
            ids.extend(choice["token_ids"].as_array().into_iter().flatten().cloned());
            scores.extend(choice["logprobs"]["content"].as_array().into_iter().flatten().cloned());
        }
        let choice = &whole["choices"][index];
        assert_eq!(text, choice["message"]["content"].as_str().unwrap());
        assert_eq!(json!(ids), choice["token_ids"]);
        let tokens = |scores: &Value| -> Vec<Value> {
            scores.as_array().unwrap().iter().map(|score| score["token"].clone()).collect()
        };
        assert_eq!(tokens(&json!(scores)), tokens(&choice["logprobs"]["content"]));
        assert_eq!(own.last().unwrap()["choices"][0]["finish_reason"], "length");
        assert!(
            own[..own.len() - 1].iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null())
        );
    }
}

#[tokio::test]
async fn log_probabilities() {
    let more = json!({"logprobs": true, "top_logprobs": 3, "prompt_logprobs": 1});
    let answer = ok(PATH, body("demo", more)).await;
    let scores = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(scores.len(), 12);
    let mut text = Vec::new();
    for score in scores {
        let top = score["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(top[0]["token"], score["token"], "greedy draws the best");
        assert!(
            (score["logprob"].as_f64().unwrap() - top[0]["logprob"].as_f64().unwrap()).abs() < 1e-4
        );
        assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64());
        text.extend(
            score["bytes"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8),
        );
    }
    assert_eq!(
        String::from_utf8(text).unwrap(),
        answer["choices"][0]["message"]["content"].as_str().unwrap()
    );
    let prompt = answer["prompt_logprobs"].as_array().unwrap();
    assert_eq!(prompt.len() as u64, answer["usage"]["prompt_tokens"].as_u64().unwrap());
    assert!(prompt[0].is_null());
    let entry = prompt[1].as_object().unwrap().values().next().unwrap();
    assert!(entry["rank"].as_u64().unwrap() >= 1 && entry["logprob"].as_f64().unwrap() <= 0.0);
    assert!(entry["decoded_token"].is_string());
}

#[tokio::test]
async fn stops_say_which() {
    let whole = ok(PATH, body("demo", json!({"return_token_ids": true}))).await;
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let stop = &text[6..9];
    let answer = ok(PATH, body("demo", json!({ "stop": [stop, "never"] }))).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], text[..text.find(stop).unwrap()]);
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(stop)));
    let kept = json!({ "stop": stop, "include_stop_str_in_output": true });
    let kept = ok(PATH, body("demo", kept)).await;
    assert!(kept["choices"][0]["message"]["content"].as_str().unwrap().ends_with(stop));
    let token = whole["choices"][0]["token_ids"][3].as_u64().unwrap();
    let answer = ok(PATH, body("demo", json!({ "stop_token_ids": [token] }))).await;
    assert_eq!(answer["choices"][0]["stop_reason"], token);
}

#[tokio::test]
async fn the_last_message_can_go_on() {
    let messages = json!([
        {"role": "user", "content": "Tell me a story about a mouse."},
        {"role": "assistant", "content": "Once upon a"}
    ]);
    let more = json!({"messages": messages, "add_generation_prompt": false,
        "continue_final_message": true, "echo": true});
    let answer = ok(PATH, body("demo", more.clone())).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with("Once upon a time"), "{text}");
    let mut streamed = body("demo", more);
    streamed["stream"] = json!(true);
    let chunks = post(PATH, streamed).await.chunks();
    assert_eq!(chunks[1]["choices"][0]["delta"]["content"], "Once upon a");
}

#[tokio::test]
async fn seeds_repeat_and_choices_differ() {
    let more = json!({"temperature": 1.5, "seed": 7, "n": 3, "max_completion_tokens": 20});
    let texts = |answer: &Value| -> Vec<String> {
        let choices = answer["choices"].as_array().unwrap();
        choices.iter().map(|choice| choice["message"]["content"].to_string()).collect()
    };
    let first = texts(&ok(PATH, body("demo", more.clone())).await);
    assert_eq!(first, texts(&ok(PATH, body("demo", more)).await));
    assert_ne!(first[0], first[1]);
    let next = json!({"temperature": 1.5, "seed": 8, "max_completion_tokens": 20});
    assert_eq!(texts(&ok(PATH, body("demo", next)).await)[0], first[1], "choice i has seed + i");
}
