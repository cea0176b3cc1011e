//! `/generate` as SGLang's clients send it: adapters of each prompt, scores, streams.

use futures::future::join;
use serde_json::{Value, json};

use crate::{call, drawn_more, drawn_so_far, load};

#[tokio::test]
async fn sglangs_prompts_have_adapters_of_their_own() {
    let llm = load(|_| {});
    let body = json!({
        "text": ["Once upon a time", "Once upon a time", "Once upon a time"],
        "lora_path": ["pirate", null, "org/shout"],
        "sampling_params": {"max_new_tokens": 8, "temperature": 0, "ignore_eos": true},
        "return_logprob": true,
    });
    let answers = call(&llm, "/generate", body).await.json();
    let answers = answers.as_array().unwrap();
    let texts: Vec<&str> = answers.iter().map(|answer| answer["text"].as_str().unwrap()).collect();
    for (model, text) in ["pirate", "demo", "org/shout"].iter().zip(&texts) {
        let body = json!({"model": model, "prompt": "Once upon a time", "max_tokens": 8,
                          "temperature": 0, "ignore_eos": true});
        let alone = call(&llm, "/v1/completions", body).await.json();
        assert_eq!(alone["choices"][0]["text"].as_str().unwrap(), *text, "{model}");
    }
    for answer in answers {
        let meta = &answer["meta_info"];
        assert_eq!(
            (&meta["completion_tokens"], &meta["finish_reason"]["type"]),
            (&json!(8), &json!("length"))
        );
        let scores = meta["output_token_logprobs"].as_array().unwrap();
        for (score, id) in scores.iter().zip(answer["output_ids"].as_array().unwrap()) {
            assert_eq!(&score[1], id);
        }
    }
    let one = json!({"input_ids": [5, 6], "lora_path": "pirate", "sampling_params": {"max_new_tokens": 1}});
    assert_eq!(call(&llm, "/generate", one).await.json()["meta_info"]["prompt_tokens"], 2);
    for (bad, status) in [
        (json!({"text": "a", "lora_path": "nobody"}), 404),
        (json!({"text": ["a"], "lora_path": ["pirate", null]}), 400),
        (json!({"text": "a", "input_ids": [5]}), 400),
        (json!({"text": []}), 400),
        (json!({"text": "a", "lora_path": "nobody", "stream": true}), 404),
    ] {
        assert_eq!(call(&llm, "/generate", bad.clone()).await.status, status, "{bad}");
    }
}

/// As teachers score a student's tokens.
#[tokio::test]
async fn sglangs_prompts_are_scored() {
    let llm = load(|_| {});
    let ids = json!([5, 6, 7, 8, 9]);
    let ask = async |fields: Value, max_new_tokens: u32| {
        let params =
            json!({"temperature": 0, "max_new_tokens": max_new_tokens, "ignore_eos": true});
        let mut body = json!({"input_ids": ids, "return_logprob": true, "sampling_params": params});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        call(&llm, "/generate", body).await
    };
    for model in ["demo", "pirate"] {
        let body = json!({"model": model, "prompt": ids, "max_tokens": 3, "temperature": 0, "logprobs": 2,
                          "ignore_eos": true, "echo": true, "return_tokens_as_token_ids": true});
        let expected = call(&llm, "/v1/completions", body).await.json();
        let expected = &expected["choices"][0]["logprobs"];
        let scores = |from: usize, to: usize| -> Vec<Value> {
            let (logprobs, tokens) = (&expected["token_logprobs"], &expected["tokens"]);
            let id = |at: usize| tokens[at].as_str().unwrap().replace("token_id:", "");
            (from..to)
                .map(|at| json!([logprobs[at], id(at).parse::<u32>().unwrap(), null]))
                .collect()
        };
        let fields = json!({"model": model, "logprob_start_len": 0, "top_logprobs_num": 2});
        let alone = ask(fields.clone(), 0).await.json();
        let meta = &alone["meta_info"];
        assert_eq!(meta["input_token_logprobs"], json!(scores(0, 5)), "{model}");
        assert_eq!(meta["input_token_logprobs"][0], json!([null, 5, null]));
        let top = meta["input_top_logprobs"].as_array().unwrap();
        assert_eq!((&top[0], top.len()), (&Value::Null, 5));
        for (best, theirs) in top.iter().zip(expected["top_logprobs"].as_array().unwrap()).skip(1) {
            let best = best.as_array().unwrap();
            assert!(best.len() == 2 && best[0][0].as_f64() >= best[1][0].as_f64());
            for entry in best {
                assert_eq!(theirs[format!("token_id:{}", entry[1])], entry[0]);
            }
        }
        assert_eq!((&alone["text"], &alone["output_ids"]), (&json!(""), &json!([])));
        assert_eq!((&meta["completion_tokens"], &meta["prompt_tokens"]), (&json!(0), &json!(5)));
        assert_eq!(meta["finish_reason"], json!({"type": "length"}));
        assert_eq!(
            (&meta["output_token_logprobs"], &meta["weight_versions"]),
            (&json!([]), &json!([]))
        );

        let drawn = ask(fields, 3).await.json()["meta_info"].clone();
        assert_eq!(drawn["input_token_logprobs"], meta["input_token_logprobs"]);
        assert_eq!(drawn["output_token_logprobs"], json!(scores(5, 8)));
        assert_eq!(drawn["output_top_logprobs"].as_array().unwrap().len(), 3);

        // The first of those that are wanted has none.
        let later =
            json!({"model": model, "logprob_start_len": 2, "return_text_in_logprobs": true});
        let later = ask(later, 0).await.json()["meta_info"]["input_token_logprobs"].clone();
        let later = later.as_array().unwrap();
        assert_eq!((later.len(), &later[0][0]), (3, &Value::Null));
        assert_eq!(later[1][0], expected["token_logprobs"][3]);
        assert!(later.iter().all(|score| score[2].is_string()), "{later:?}");
    }
    let several = json!({"input_ids": [ids, ids, ids], "logprob_start_len": [9, -1, null]});
    let several = ask(several, 1).await.json();
    assert_eq!(several[0]["meta_info"]["input_token_logprobs"], json!([]));
    for answer in &several.as_array().unwrap()[1..] {
        assert_eq!(answer["meta_info"].get("input_token_logprobs"), None);
    }
    let streamed = json!({"logprob_start_len": 0, "stream": true});
    assert_eq!(ask(streamed, 2).await.error(400).0, "logprob_start_len");
    let streamed = json!({"logprob_start_len": -1, "top_logprobs_num": 1, "stream": true});
    let last = ask(streamed, 2).await.chunks().pop().unwrap();
    assert_eq!(last["meta_info"]["output_top_logprobs"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn sglangs_model_is_served_where_no_lora_path_says_otherwise() {
    let llm = load(|_| {});
    let ask = async |fields: Value| {
        let mut body = json!({
            "text": "Once upon a time",
            "sampling_params": {"max_new_tokens": 8, "temperature": 0, "ignore_eos": true},
        });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        call(&llm, "/generate", body).await
    };
    let text = async |fields: Value| ask(fields).await.json()["text"].clone();
    let base = text(json!({})).await;
    let pirate = text(json!({"lora_path": "pirate"})).await;
    assert_ne!(base, pirate);
    assert_eq!(text(json!({"model": "alias"})).await, base);
    for same in [
        json!({"model": "pirate"}),
        json!({"model": "pirate", "lora_path": null}),
        json!({"model": "pirate", "lora_path": "pirate"}),
        json!({"model": "demo", "lora_path": "pirate"}),
    ] {
        assert_eq!(text(same.clone()).await, pirate, "{same}");
    }
    assert_eq!(ask(json!({"model": "nobody"})).await.error(404).0, "model");
    let two = json!({"model": "org/shout", "lora_path": "pirate"});
    assert_eq!(ask(two).await.error(400).0, "model");
}

#[tokio::test]
async fn sglangs_streams_repeat_all_that_has_come() {
    let llm = load(|_| {});
    // So many that whoever reads late still finds some to come.
    let body = |stream: bool| {
        json!({
            "text": "Once upon a time", "lora_path": "pirate", "return_logprob": true, "rid": "mine",
            "sampling_params": {"max_new_tokens": 200, "temperature": 0, "ignore_eos": true}, "stream": stream,
        })
    };
    let mut whole = call(&llm, "/generate", body(false)).await.json();
    let events = call(&llm, "/generate", body(true)).await.chunks();
    assert!(events.len() > 1, "{events:?}");
    let mut tokens = 0;
    for pair in events.windows(2) {
        let [one, next] = pair else { unreachable!("windows of two") };
        let text = |event: &Value| event["text"].as_str().unwrap().to_owned();
        assert!(text(next).starts_with(&text(one)), "{one} then {next}");
        let ids = one["output_ids"].as_array().unwrap();
        assert!(ids.len() > tokens && next["output_ids"].as_array().unwrap().starts_with(ids));
        tokens = ids.len();
        let meta = &one["meta_info"];
        assert_eq!((&meta["finish_reason"], &meta["id"]), (&Value::Null, &json!("sgl-mine")));
        assert_eq!(meta["output_token_logprobs"].as_array().unwrap().len(), tokens);
        assert_eq!(meta["weight_versions"][0]["end"], tokens);
    }
    // What the cache kept of the first call is all that differs.
    let mut last = events.last().unwrap().clone();
    assert_eq!(last["index"], Value::Null);
    for answer in [&mut whole, &mut last] {
        answer["meta_info"]["cached_tokens"] = Value::Null;
    }
    assert_eq!(last, whole);
}

#[tokio::test]
async fn sglangs_streams_of_several_prompts_say_whose_an_event_is_and_end_at_an_abort() {
    let llm = load(|_| {});
    let body = json!({
        "text": ["Once", "Once"], "lora_path": ["pirate", "org/shout"], "rid": "both", "stream": true,
        "sampling_params": {"max_new_tokens": 400, "temperature": 0, "ignore_eos": true},
    });
    let running = call(&llm, "/generate", body);
    let abort = async {
        drawn_more(&llm, 0).await;
        assert_eq!(call(&llm, "/abort_request", json!({})).await.status, 400);
        call(&llm, "/abort_request", json!({"rid": "both-1"})).await
    };
    let (answer, aborted) = join(running, abort).await;
    assert_eq!(aborted.json()["aborted"], 1);
    let events = answer.chunks();
    let endings = [0, 1].map(|index| {
        let last = events.iter().rev().find(|event| event["index"] == index).unwrap();
        (
            last["meta_info"]["finish_reason"]["type"].clone(),
            last["output_ids"].as_array().unwrap().len(),
        )
    });
    assert_eq!(endings[0], (json!("length"), 400));
    assert!(endings[1].0 == "abort" && endings[1].1 < 400, "{endings:?}");
    // The call's own id names both; so do those that a client has given them.
    for (rids, named, count) in
        [(json!("all"), "all", 2), (json!(["first", "second"]), "second", 1)]
    {
        let body = json!({"text": ["Once", "Once"], "rid": rids, "sampling_params": {"max_new_tokens": 400, "ignore_eos": true}});
        let before = drawn_so_far(&llm).await;
        let abort = async {
            drawn_more(&llm, before).await;
            call(&llm, "/abort_request", json!({"rid": named})).await
        };
        let (answer, aborted) = join(call(&llm, "/generate", body), abort).await;
        assert_eq!(aborted.json()["aborted"], count);
        let reasons = answer.json();
        let reasons =
            reasons.as_array().unwrap().iter().map(|it| &it["meta_info"]["finish_reason"]["type"]);
        assert_eq!(reasons.filter(|reason| *reason == "abort").count(), count);
    }
    let body = json!({"text": ["Once", "Once"], "rid": ["alone"]});
    assert_eq!(call(&llm, "/generate", body).await.status, 400);
}
