//! What trainers do: push while tokens flow, pause, abort, and ask which weights made which tokens.

use std::time::Duration;

use axum::http::Request;
use futures::future::join;
use serde_json::{Value, json};

use crate::{
    app, app_with, bare, call, demo, drawn_more, drawn_so_far, load, metric, post_request, send,
};

fn push(adapter: &str, version: u64) -> Value {
    let path = demo("adapters").join(adapter).display().to_string();
    json!({"lora_name": "policy", "lora_path": path, "load_inplace": true, "policy_version": version})
}

/// A completion that goes on for a while.
fn long(change: Value) -> Value {
    let mut body = json!({
        "model": "policy", "prompt": "Once upon a time", "max_tokens": 300, "ignore_eos": true,
        "temperature": 0, "return_weight_versions": true, "return_token_ids": true,
    });
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// Pushes a new policy once tokens flow; the generations and policy versions of the answer's spans.
async fn spans_over_a_push(policy: &str) -> (Vec<(u64, u64)>, Vec<Value>) {
    let llm = load(|_| {});
    call(&llm, "/load_lora_adapter", push("poet", 1)).await;
    let mid_way = async {
        drawn_more(&llm, 20).await;
        // However long the load takes, the request is still there when it ends.
        bare(&llm, "POST", "/pause?mode=keep").await;
        let pushed = call(&llm, "/load_lora_adapter", push("shout", 2)).await;
        bare(&llm, "POST", "/resume").await;
        pushed
    };
    let body = long(json!({"lora_update_policy": policy}));
    let (answer, pushed) = join(call(&llm, "/v1/completions", body), mid_way).await;
    assert_eq!((answer.status.as_u16(), pushed.status.as_u16()), (200, 200), "{}", answer.text);
    let choice = answer.json()["choices"][0].clone();
    let tokens = choice["token_ids"].as_array().unwrap().clone();
    let spans = choice["weight_versions"].as_array().unwrap();
    let mut end = 0;
    let mut found = Vec::new();
    for span in spans {
        assert_eq!(span["start"].as_u64(), Some(end), "spans are contiguous");
        end = span["end"].as_u64().unwrap();
        let number = |key: &str| span[key].as_u64().unwrap();
        found.push((number("generation"), number("policy_version")));
    }
    assert_eq!(end, tokens.len() as u64);
    (found, tokens)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_request_finishes_on_its_weights_and_a_follower_takes_the_new_ones() {
    let (pinned, _) = spans_over_a_push("pin").await;
    assert_eq!(pinned.iter().map(|span| span.1).collect::<Vec<_>>(), [1]);
    let (followed, _) = spans_over_a_push("follow").await;
    assert_eq!(followed.iter().map(|span| span.1).collect::<Vec<_>>(), [1, 2]);
    assert!(followed[0].0 < followed[1].0);
}

#[tokio::test]
async fn a_request_waits_for_the_policy_that_it_wants() {
    let llm = load(|_| {});
    call(&llm, "/load_lora_adapter", push("poet", 1)).await;
    let body = |version: i64| {
        json!({"model": "policy", "prompt": "a", "max_tokens": 1, "min_policy_version": version,
               "return_weight_versions": true})
    };
    let newer = call(&llm, "/v1/completions", body(2));
    let (answer, _) = join(newer, call(&llm, "/load_lora_adapter", push("shout", 2))).await;
    let span = answer.json()["choices"][0]["weight_versions"][0].clone();
    assert_eq!((&span["policy_version"], &span["end"]), (&json!(2), &json!(1)));
    let base = json!({"prompt": "a", "min_generation": 1});
    assert_eq!(call(&llm, "/v1/completions", base).await.status, 400);
    assert_eq!(call(&llm, "/v1/completions", body(-1)).await.status, 400);
}

#[tokio::test]
async fn token_routes_take_the_policy_beside_their_sampling_params_and_in_them() {
    let llm = load(|_| {});
    call(&llm, "/load_lora_adapter", push("poet", 1)).await;
    let routes = [
        ("/inference/v1/generate", json!({"model": "policy", "token_ids": [5, 6]})),
        ("/generate", json!({"lora_path": "policy", "input_ids": [5, 6]})),
    ];
    for (path, body) in routes {
        let ask = async |beside: Value, inside: Value| {
            let mut body = body.clone();
            body.as_object_mut().unwrap().extend(beside.as_object().unwrap().clone());
            body["sampling_params"] = json!({"max_tokens": 1});
            let params = body["sampling_params"].as_object_mut().unwrap();
            params.extend(inside.as_object().unwrap().clone());
            let impatient = app_with(&llm, |serving| serving.adapter_wait = Duration::ZERO);
            send(impatient, post_request(path, &body)).await
        };
        for (stale, words) in [
            (json!({"min_policy_version": 2}), "at least policy version 2"),
            (json!({"min_generation": 1_u64 << 62}), "at least generation 4611686018427387904"),
        ] {
            let (_, message) = ask(stale.clone(), json!({})).await.error(503);
            assert!(message.contains("(policy version 1)") && message.contains(words), "{message}");
            ask(json!({}), stale).await.error(503);
        }
        let fresh = json!({"min_policy_version": 1, "return_weight_versions": true});
        for (beside, inside) in [(&fresh, &json!({})), (&json!({}), &fresh), (&fresh, &fresh)] {
            let answer = ask(beside.clone(), inside.clone()).await.json();
            let spans =
                [&answer["choices"][0]["weight_versions"], &answer["meta_info"]["weight_versions"]];
            assert!(spans.iter().any(|spans| spans[0]["policy_version"] == 1), "{path} {answer}");
        }
        for (field, beside, inside) in [
            ("min_policy_version", json!(1), json!(2)),
            ("min_generation", json!(0), json!(1)),
            ("return_weight_versions", json!(true), json!(false)),
            ("lora_update_policy", json!("pin"), json!("follow")),
            ("cache_salt", json!("a"), json!("b")),
            ("priority", json!(1), json!(2)),
        ] {
            let answer = ask(json!({ field: beside }), json!({ field: inside })).await;
            assert_eq!(answer.error(400).0, field, "{path}");
        }
        let neither = ask(json!({"lora_update_policy": "later"}), json!({})).await;
        assert_eq!(neither.error(400).0, "lora_update_policy", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_in_three_modes() {
    let llm = load(|_| {});
    let short = json!({"prompt": "a", "max_tokens": 2});
    let paused = async || bare(&llm, "GET", "/is_paused").await.json()["is_paused"].clone();
    // Abort: partial tokens with 200, and new requests are told to come back.
    let running =
        call(&llm, "/v1/completions", long(json!({"model": "pirate", "request_id": "r"})));
    let pause = async {
        drawn_more(&llm, 0).await;
        bare(&llm, "POST", "/pause?mode=abort&clear_cache=false").await
    };
    let (answer, pause) = join(running, pause).await;
    assert_eq!(pause.json()["status"], "paused");
    assert_eq!(answer.status, 200);
    let choice = &answer.json()["choices"][0];
    assert_eq!(choice["finish_reason"], "abort");
    assert!(choice["token_ids"].as_array().unwrap().len() < 300);
    let refused = call(&llm, "/v1/completions", short.clone()).await;
    assert_eq!(refused.status, 503);
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(paused().await, true);
    // Loads go on while it is paused, and resume may be said twice.
    assert_eq!(call(&llm, "/load_lora_adapter", push("poet", 1)).await.status, 200);
    for _ in 0..2 {
        assert_eq!(bare(&llm, "POST", "/resume").await.json()["status"], "resumed");
    }
    assert_eq!(paused().await, false);
    assert_eq!(call(&llm, "/v1/completions", short.clone()).await.status, 200);
    // Wait: what runs finishes first.
    let before = drawn_so_far(&llm).await;
    let (answer, _) = join(call(&llm, "/v1/completions", long(json!({"max_tokens": 60}))), async {
        drawn_more(&llm, before).await;
        bare(&llm, "POST", "/pause?mode=wait").await;
        bare(&llm, "POST", "/resume").await
    })
    .await;
    assert_eq!(answer.json()["choices"][0]["finish_reason"], "length");
    // Keep: requests queue, and the lease ends it.
    bare(&llm, "POST", "/pause?mode=keep&lease_seconds=0.05").await;
    assert_eq!(call(&llm, "/v1/completions", short).await.status, 200);
    assert_eq!(paused().await, false);
    assert_eq!(bare(&llm, "POST", "/pause?mode=later").await.status, 400);
    assert_eq!(bare(&llm, "POST", "/pause?lease_seconds=-1").await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_aborted_by_their_ids() {
    let llm = load(|_| {});
    let running = |id: &str, n: usize| {
        call(&llm, "/v1/completions", long(json!({"model": "pirate", "request_id": id, "n": n})))
    };
    let abort = async {
        while metric(&llm, "vllm:num_requests_running") < 3 {
            tokio::task::yield_now().await;
        }
        // However slow this is, none ends by itself.
        assert_eq!(call(&llm, "/pause?mode=keep", json!({})).await.status, 200);
        let mut counts = Vec::new();
        for ids in [json!(["other", "r-"]), json!(["r"]), json!(["r-0"])] {
            let aborted = call(&llm, "/abort_requests", json!({"request_ids": ids})).await;
            counts.push(aborted.json()["aborted"].clone());
        }
        call(&llm, "/resume", json!({})).await;
        counts
    };
    let answers = join(running("r", 2), running("r-0", 1));
    let ((answer, other), aborted) = join(answers, abort).await;
    assert_eq!(aborted, [0, 2, 1]);
    for answer in [answer, other] {
        for choice in answer.json()["choices"].as_array().unwrap() {
            assert_eq!(choice["finish_reason"], "abort");
        }
    }
    for body in ["", "{}", "{\"reset_running_requests\":true}"] {
        let request =
            Request::post("/reset_prefix_cache").header("content-type", "application/json");
        let answer = send(app(&llm, &[], &[]), request.body(body.to_owned().into()).unwrap()).await;
        assert_eq!(answer.json()["success"], true);
    }
}

#[tokio::test]
async fn tokens_in_tokens_out() {
    let llm = load(|_| {});
    let sampling = json!({
        "max_tokens": 5, "temperature": 0, "logprobs": 1, "n": 2, "prompt_logprobs": 0, "seed": 1,
        "skip_special_tokens": false, "output_kind": 2, "ignore_eos": true,
    });
    let body = json!({"model": "pirate", "token_ids": [5, 6, 7], "sampling_params": sampling,
                      "cache_salt": "v1", "request_id": "mine"});
    let answer = call(&llm, "/inference/v1/generate", body).await.json();
    assert_eq!(answer["request_id"], "generate-mine");
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    for choice in answer["choices"].as_array().unwrap() {
        let ids = choice["token_ids"].as_array().unwrap();
        let scores = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!((ids.len(), scores.len()), (5, 5));
        for (id, score) in ids.iter().zip(scores) {
            assert_eq!(score["token"], format!("token_id:{id}"));
            assert_eq!(&score["token_id"], id);
            assert!(score["logprob"].as_f64().unwrap().is_finite());
        }
    }
    assert_eq!(answer["prompt_logprobs"].as_array().unwrap().len(), 3);
    // Without max_tokens the output may fill the model's length.
    let open = json!({"token_ids": vec![5; 500], "sampling_params": {"ignore_eos": true, "temperature": 0}});
    let answer = call(&llm, "/inference/v1/generate", open).await.json();
    assert_eq!(answer["choices"][0]["token_ids"].as_array().unwrap().len(), 12);
    for bad in [
        json!({"token_ids": []}),
        json!({"token_ids": [-1]}),
        json!({"token_ids": [1 << 30]}),
        json!({}),
        json!({"token_ids": [5], "sampling_params": {"max_tokens": 0}}),
        json!({"token_ids": [5], "sampling_params": {"logprobs": 1000}}),
        json!({"token_ids": [5], "stream": true}),
    ] {
        assert_eq!(call(&llm, "/inference/v1/generate", bad.clone()).await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn what_token_routes_cannot_do_is_refused_and_what_clients_always_send_is_not() {
    let llm = load(|_| {});
    let bodies = [
        ("/inference/v1/generate", json!({"token_ids": [5, 6]})),
        ("/generate", json!({"input_ids": [5, 6], "return_logprob": true})),
    ];
    let ask = async |path: &str, body: &Value, beside: Value, inside: Value| {
        let mut body = body.clone();
        body.as_object_mut().unwrap().extend(beside.as_object().unwrap().clone());
        body["sampling_params"] = json!({"max_tokens": 1});
        let params = body["sampling_params"].as_object_mut().unwrap();
        params.extend(inside.as_object().unwrap().clone());
        call(&llm, path, body).await
    };
    let asked = json!({
        "guided_json": {"type": "object"}, "bad_words": ["a"], "allowed_token_ids": [1],
        "structured_outputs": {"regex": "a"}, "json_schema": "{}", "regex": "a", "ebnf": "root ::= a",
        "structural_tag": "{}", "custom_logit_processor": "x", "image_data": ["http://x"],
        "audio_data": "http://x", "return_hidden_states": true,
    });
    // As SGLang's own client, verl's, slime's and AReaL's send them, and a dump of vLLM's class.
    let beside = json!({
        "image_data": [null], "audio_data": null, "video_data": [], "logprob_start_len": -1,
        "top_logprobs_num": 0, "token_ids_logprob": [], "custom_logit_processor": null,
        "return_hidden_states": false, "return_routed_experts": false, "modalities": [],
        "return_text_in_logprobs": false, "log_metrics": true, "session_params": null,
    });
    let inside = json!({
        "json_schema": null, "regex": null, "ebnf": null, "structural_tag": null, "top_k": 100_000_000,
        "spaces_between_special_tokens": false, "skip_special_tokens": false, "bad_words": [],
        "structured_outputs": null, "allowed_token_ids": null, "output_kind": 2, "detokenize": true,
        "frequency_penalty": 0.0, "stop": null, "stop_token_ids": [], "custom_params": null,
    });
    for (path, body) in &bodies {
        for (field, value) in asked.as_object().unwrap() {
            for (beside, inside) in
                [(json!({ field: value }), json!({})), (json!({}), json!({ field: value }))]
            {
                let (param, message) = ask(path, body, beside, inside).await.error(400);
                assert_eq!(param, json!(field), "{path}");
                assert!(message.contains(field), "{message}");
            }
        }
        let answer = ask(path, body, beside.clone(), inside.clone()).await;
        assert_eq!(answer.status, 200, "{path} {}", answer.text);
    }
    let (path, body) = &bodies[1];
    for (field, value) in [("token_ids_logprob", json!([[5]])), ("top_logprobs_num", json!(21))] {
        let answer = ask(path, body, json!({ field: value }), json!({})).await;
        assert_eq!(answer.error(400).0, field);
        let unasked = json!({ field: value, "return_logprob": false });
        assert_eq!(ask(path, body, unasked, json!({})).await.status, 200);
    }
    let scored = ask(path, body, json!({}), json!({"prompt_logprobs": 1})).await;
    assert_eq!(scored.error(400).0, "prompt_logprobs");
}

#[tokio::test]
async fn a_refusal_names_the_field_that_was_sent() {
    let llm = load(|_| {});
    let sglang = |params: Value| json!({"input_ids": [5, 6], "sampling_params": params});
    for (path, body, param) in [
        ("/generate", sglang(json!({"max_new_tokens": -1})), "max_new_tokens"),
        ("/generate", sglang(json!({"max_tokens": -1})), "max_tokens"),
        ("/generate", sglang(json!({"min_new_tokens": 9, "max_new_tokens": 1})), "min_new_tokens"),
        ("/generate", sglang(json!({"sampling_seed": "x"})), "sampling_seed"),
        ("/generate", json!({"input_ids": [1 << 30]}), "input_ids"),
        ("/generate", json!({"input_ids": vec![vec![5]; 99]}), "input_ids"),
        ("/generate", json!({"text": "word ".repeat(10_000)}), "text"),
        ("/inference/v1/generate", json!({"token_ids": []}), "token_ids"),
    ] {
        let (found, message) = call(&llm, path, body.clone()).await.error(400);
        assert_eq!(found, param, "{message}");
        let speaks_of = |field: &str| {
            message.split(|c: char| c != '_' && !c.is_alphanumeric()).any(|word| word == field)
        };
        assert!(
            ["prompt", "max_tokens"].iter().all(|ours| *ours == param || !speaks_of(ours)),
            "{message}"
        );
    }
}

#[tokio::test]
async fn what_trainers_ask_before_they_start() {
    let llm = load(|_| {});
    let info = bare(&llm, "GET", "/server_info?config_format=json").await.json();
    let config = &info["vllm_config"];
    assert_eq!(config["lora_config"], json!({"max_lora_rank": 64, "max_loras": 8}));
    assert_eq!(config["parallel_config"]["data_parallel_size"], 1);
    assert_eq!(config["weight_transfer_config"], Value::Null);
    assert_eq!(bare(&llm, "GET", "/get_world_size").await.json()["world_size"], 1);
    assert_eq!(bare(&llm, "GET", "/art/capabilities").await.json()["runtime"], "art_vllm");
    assert_eq!(bare(&llm, "GET", "/ping").await.status, 200);
}
