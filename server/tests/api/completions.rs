//! `/v1/completions`.

use axum::http::HeaderValue;
use serde_json::{Value, json};

use crate::{app, ok, post, post_request, send, shared};

const PATH: &str = "/v1/completions";

fn body(more: Value) -> Value {
    let mut body = json!({"prompt": "Once upon a", "max_tokens": 5, "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn prompts_in_four_forms() {
    let tokens = ok("/tokenize", json!({"prompt": "Once upon a"})).await["tokens"].clone();
    let text = ok(PATH, body(json!({}))).await["choices"][0]["text"].clone();
    for prompt in [json!(["Once upon a"]), tokens.clone(), json!([tokens])] {
        let answer = ok(PATH, body(json!({ "prompt": prompt }))).await;
        assert_eq!(answer["choices"][0]["text"], text);
        assert_eq!(answer["object"], "text_completion");
    }
}

#[tokio::test]
async fn choices_come_prompt_by_prompt() {
    let prompts = json!(["Once upon a", "Hello", "The mouse"]);
    let more = json!({"prompt": prompts, "n": 2, "return_token_ids": true, "model": "pirate"});
    let answer = ok(PATH, body(more.clone())).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    let mut prompt_tokens = 0;
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let prompt = prompts[index / 2].as_str().unwrap();
        let tokens = ok("/tokenize", json!({ "prompt": prompt })).await["tokens"].clone();
        assert_eq!(choice["prompt_token_ids"], tokens);
        assert_eq!(choice["text"], choices[index / 2 * 2]["text"], "greedy choices are alike");
        prompt_tokens += if index % 2 == 0 { tokens.as_array().unwrap().len() } else { 0 };
    }
    assert_eq!(answer["usage"]["prompt_tokens"], prompt_tokens);
    assert_eq!(answer["usage"]["completion_tokens"], 30);
    let mut streamed = body(more);
    streamed["stream"] = json!(true);
    let mut texts = vec![String::new(); 6];
    for chunk in post(PATH, streamed).await.chunks() {
        let choice = &chunk["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    let whole: Vec<_> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, whole);
}

#[tokio::test]
async fn echo_and_scores_cover_prompt_and_output() {
    let whole = ok(PATH, body(json!({"echo": true, "logprobs": 2}))).await;
    let choice = &whole["choices"][0];
    let text = choice["text"].as_str().unwrap();
    assert!(text.starts_with("Once upon a"));
    let scores = &choice["logprobs"];
    let list = |field: &str| scores[field].as_array().unwrap().clone();
    let total = whole["usage"]["total_tokens"].as_u64().unwrap() as usize;
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(field).len(), total, "{field}");
    }
    assert!(list("token_logprobs")[0].is_null() && list("top_logprobs")[0].is_null());
    assert!(list("token_logprobs")[1..].iter().all(|score| score.as_f64().unwrap() <= 0.0));
    let tokens: Vec<String> = serde_json::from_value(scores["tokens"].clone()).unwrap();
    assert_eq!(tokens.concat(), text);
    let mut offset = 0;
    for (index, token) in tokens.iter().enumerate() {
        assert_eq!(scores["text_offset"][index], offset);
        offset += token.chars().count();
        if index > 0 {
            let top = scores["top_logprobs"][index].as_object().unwrap();
            assert_eq!(top[token], scores["token_logprobs"][index]);
            assert!((2..=3).contains(&top.len()), "the token and the two best");
        }
    }
    let mut streamed = body(json!({"echo": true, "logprobs": 2}));
    streamed["stream"] = json!(true);
    let chunks = post(PATH, streamed).await.chunks();
    let joined: Vec<Value> = chunks
        .iter()
        .flat_map(|chunk| {
            chunk["choices"][0]["logprobs"]["text_offset"].as_array().unwrap().clone()
        })
        .collect();
    assert_eq!(joined, list("text_offset"));
    let both = ok(PATH, body(json!({"echo": true, "logprobs": 0, "prompt_logprobs": 3}))).await;
    let choice = &both["choices"][0];
    assert_eq!(choice["logprobs"]["top_logprobs"][1].as_object().unwrap().len(), 1);
    assert!(choice["prompt_logprobs"][1].as_object().unwrap().len() >= 3);
    let alone = ok(PATH, body(json!({"echo": true, "logprobs": 0, "max_tokens": 0}))).await;
    let choice = &alone["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["finish_reason"]),
        (&json!("Once upon a"), &json!("length"))
    );
    assert_eq!(alone["usage"]["completion_tokens"], 0);
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), total - 5);
}

#[tokio::test]
async fn scores_in_the_forms_that_trainers_send() {
    let zero = ok(PATH, body(json!({"logprobs": 0}))).await;
    let scores = &zero["choices"][0]["logprobs"];
    assert_eq!(scores["token_logprobs"].as_array().unwrap().len(), 5);
    assert_eq!(scores["top_logprobs"][0].as_object().unwrap().len(), 1);
    let named =
        json!({"logprobs": true, "return_tokens_as_token_ids": true, "return_token_ids": true});
    let answer = ok(PATH, body(named)).await;
    let choice = &answer["choices"][0];
    for (name, id) in std::iter::zip(
        choice["logprobs"]["tokens"].as_array().unwrap(),
        choice["token_ids"].as_array().unwrap(),
    ) {
        assert_eq!(name.as_str().unwrap(), format!("token_id:{id}"));
    }
    let prompt = ok(PATH, body(json!({"prompt_logprobs": 2}))).await;
    let positions = prompt["choices"][0]["prompt_logprobs"].as_array().unwrap().clone();
    assert_eq!(positions.len() as u64, prompt["usage"]["prompt_tokens"].as_u64().unwrap());
    assert!(prompt["choices"][0]["logprobs"].is_null());
}

#[tokio::test]
async fn min_tokens_and_ignore_eos_hold_the_end_back() {
    let prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
    let short = ok(PATH, body(json!({"prompt": prompt, "max_tokens": 200}))).await;
    assert_eq!(short["choices"][0]["finish_reason"], "stop");
    assert!(short["choices"][0]["stop_reason"].is_null());
    let long = json!({"prompt": prompt, "max_tokens": 200, "ignore_eos": true});
    let long = ok(PATH, body(long)).await;
    assert_eq!(long["usage"]["completion_tokens"], 200);
    let least = json!({"prompt": prompt, "max_tokens": 200, "min_tokens": 150});
    let least = ok(PATH, body(least)).await["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(least > 150, "{least}");
}

#[tokio::test]
async fn ids_are_the_clients_own() {
    let answer = post(PATH, body(json!({"request_id": "mine"}))).await;
    assert_eq!(answer.json()["id"], "cmpl-mine");
    assert_eq!(answer.headers["x-request-id"], "cmpl-mine");
    let headed = async |id: &[u8]| {
        let mut request = post_request(PATH, &body(json!({"request_id": "mine"})));
        request.headers_mut().insert("x-request-id", HeaderValue::from_bytes(id).unwrap());
        send(app(shared(), &[], &[]), request).await
    };
    assert_eq!(headed(b"other").await.json()["id"], "cmpl-other");
    // A proxy's, of which the client knows nothing.
    for no_id in [" ".as_bytes(), b"a b", "ä".as_bytes(), b"\xff", &[b'a'; 257]] {
        assert_eq!(headed(no_id).await.json()["id"], "cmpl-mine");
    }
}

#[tokio::test]
async fn a_stop_text_waits_for_min_tokens() {
    let long = json!({"max_tokens": 30, "ignore_eos": true, "return_token_ids": true});
    let free = ok(PATH, body(long.clone())).await["choices"][0].clone();
    let text = free["text"].as_str().unwrap();
    // A letter that would end the output within its first tokens, and that comes again.
    let stop = text.trim_start().chars().next().unwrap().to_string();
    assert!(text.matches(&stop).count() > 1, "{text}");
    let mut more = long;
    more["stop"] = json!(stop);
    let at_once = ok(PATH, body(more.clone())).await["choices"][0].clone();
    assert!(at_once["token_ids"].as_array().unwrap().len() < 5, "{at_once}");
    more["min_tokens"] = json!(5);
    let whole = ok(PATH, body(more.clone())).await["choices"][0].clone();
    let tokens = whole["token_ids"].as_array().unwrap();
    assert!(tokens.len() > 5, "{whole}");
    assert_eq!(whole["stop_reason"], json!(stop));
    assert!(text.starts_with(whole["text"].as_str().unwrap()), "{text}: {whole}");
    assert!(free["token_ids"].as_array().unwrap().starts_with(tokens));
    more["stream"] = json!(true);
    let chunks = post(PATH, body(more)).await.chunks();
    let pieces = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap());
    assert_eq!(pieces.collect::<String>(), whole["text"].as_str().unwrap());
}
