//! What is accepted, what is refused, and with which field.

use std::sync::OnceLock;

use loraplex_core::Tokenizer;
use loraplex_core::model::GenerationDefaults;
use serde_json::{Value, json};

use super::*;

/// Reading the tokenizer takes a while.
fn converter() -> &'static Converter {
    static CONVERTER: OnceLock<Converter> = OnceLock::new();
    CONVERTER.get_or_init(new_converter)
}

fn new_converter() -> Converter {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/smollm2/tokenizer");
    let config = std::fs::read_to_string(format!("{folder}/tokenizer_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let template = ChatTemplate::new(config["chat_template"].as_str().unwrap(), Vec::new());
    Converter {
        tokenizer: Arc::new(Tokenizer::from_folder(folder.as_ref()).unwrap()),
        model: ModelInfo {
            architecture: "LlamaForCausalLM".into(),
            max_model_len: 128,
            vocab_size: 49_152,
            eos_token_ids: vec![2],
            chat_template: None,
            special_tokens: Vec::new(),
            dtype: loraplex_core::DType::F32,
            device: String::new(),
            kv_blocks: 1,
            block_size: 16,
            generation_defaults: GenerationDefaults {
                temperature: Some(0.5),
                ..GenerationDefaults::default()
            },
        },
        template,
        max_outputs: 1024,
    }
}

fn completion(fields: &Value) -> ApiResult<Call> {
    let mut body = json!({"prompt": "Hello"});
    merge(&mut body, fields);
    converter().completion(body.to_string().as_bytes())
}

fn chat(fields: &Value) -> ApiResult<Call> {
    let mut body = json!({"messages": [{"role": "user", "content": "Hello"}]});
    merge(&mut body, fields);
    converter().chat(body.to_string().as_bytes())
}

fn merge(body: &mut Value, fields: &Value) {
    let (body, fields) = (body.as_object_mut().unwrap(), fields.as_object().unwrap());
    body.extend(fields.clone());
}

fn refusal(call: ApiResult<Call>) -> (Option<String>, String) {
    let error = call.unwrap_err();
    assert_eq!(error.status(), 400);
    let body = error.body().error;
    (body.param, body.message)
}

#[test]
fn golden_prompt_tokens() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/smollm2/golden/base.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let expected: Vec<u32> = serde_json::from_value(case["prompt_token_ids"].clone()).unwrap();
        if expected.len() < 128 {
            let call = chat(&json!({"messages": case["messages"]})).unwrap();
            assert_eq!(call.prompts[0].tokens, expected);
        }
    }
}

#[test]
fn defaults() {
    let call = completion(&json!({})).unwrap();
    assert_eq!(call.n, 1);
    assert_eq!(call.prompts[0].max_tokens, 16);
    assert_eq!(call.prompts[0].text.as_deref(), Some("Hello"));
    assert_eq!(call.params.temperature, 0.5, "the checkpoint's own");
    assert_eq!((call.params.top_p, call.params.top_k, call.params.logprobs), (1.0, 0, None));
    assert!(call.text.skip_special_tokens && call.reply.stream.is_none());
    let call = chat(&json!({})).unwrap();
    assert_eq!(call.prompts[0].max_tokens as usize, 128 - call.prompts[0].tokens.len());
}

#[test]
fn every_field_arrives() {
    let call = completion(&json!({
        "model": "m", "prompt": [[1, 2], [3]], "n": 2, "best_of": 2, "temperature": 1, "top_p": 0.5,
        "top_k": -1, "min_p": 0.1, "seed": -1, "stop": "x", "stop_token_ids": [5], "max_tokens": 9,
        "min_tokens": 3, "ignore_eos": true, "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.5, "logit_bias": {"7": -100}, "logprobs": true, "prompt_logprobs": 0,
        "skip_special_tokens": false, "include_stop_str_in_output": true, "return_token_ids": true,
        "return_tokens_as_token_ids": true, "cache_salt": "s", "priority": -3, "request_id": "r",
        "user": {"any": "thing"}, "unknown": 1
    }))
    .unwrap();
    assert_eq!(call.prompts.len() * call.n, 4);
    let params = SamplingParams {
        temperature: 1.0,
        top_p: 0.5,
        top_k: 0,
        min_p: 0.1,
        seed: Some(u64::MAX),
        presence_penalty: 1.0,
        frequency_penalty: -1.0,
        repetition_penalty: 1.5,
        logit_bias: vec![(7, -100.0)],
        logprobs: Some(1),
        max_tokens: 0,
        min_tokens: 3,
        ignore_eos: true,
        stop_token_ids: vec![5],
    };
    assert_eq!(call.params, params);
    let text =
        TextOptions { stop: vec!["x".into()], include_stop: true, skip_special_tokens: false };
    assert_eq!(call.text, text);
    assert_eq!((call.priority, call.prompt_logprobs), (-3, Some(0)));
    assert_eq!((call.cache_salt.as_deref(), call.request_id.as_deref()), (Some("s"), Some("r")));
    assert!(call.reply.token_ids && call.reply.tokens_as_ids);
}

#[test]
fn echo_brings_the_prompts_scores() {
    let call = completion(&json!({"echo": true, "logprobs": 2})).unwrap();
    assert_eq!((call.reply.echo, call.prompt_logprobs), (Echo::Prompt, Some(2)));
    assert!(call.reply.prompt_logprobs.is_none(), "they stand among the tokens' own");
    let call = completion(&json!({"echo": true, "max_tokens": 0})).unwrap();
    assert_eq!((call.reply.echo, call.prompts[0].max_tokens), (Echo::PromptAlone, 1));
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let open = json!({"messages": messages, "echo": true, "add_generation_prompt": false, "continue_final_message": true});
    assert_eq!(chat(&open).unwrap().reply.echo, Echo::Text("b".into()));
}

#[test]
fn numbers_out_of_bounds_are_named() {
    for (field, values) in [
        ("n", json!([-1, 0, 129, 2_147_483_648_u64])),
        ("best_of", json!([0, 2])),
        ("temperature", json!([-1, 2.1, 1e308])),
        ("top_p", json!([-1, 0, 1.1])),
        ("top_k", json!([-2])),
        ("min_p", json!([-0.1, 2])),
        ("presence_penalty", json!([-3, 3])),
        ("frequency_penalty", json!([1e308])),
        ("repetition_penalty", json!([0, -1, 101])),
        ("max_tokens", json!([-1, 0, 1000, i64::MAX])),
        ("min_tokens", json!([-1, 128, i64::MAX])),
        ("logprobs", json!([-1, 21])),
        ("prompt_logprobs", json!([-1, 21])),
        ("priority", json!([2_147_483_648_u64])),
        ("stop_token_ids", json!([[-1], [49_152], vec![1; 257]])),
        ("stop", json!(["", [""], vec!["a"; 17], "a".repeat(1025)])),
        ("logit_bias", json!([{"49152": 1}, {"1": 101}])),
        ("cache_salt", json!([""])),
        ("request_id", json!(["", "a b", "a\n", "ä", "a".repeat(257)])),
        ("prompt", json!([[], "", [[]], [49_152], vec![1; 128], "a".repeat(100_000)])),
    ] {
        for value in values.as_array().unwrap() {
            let (param, message) = refusal(completion(&json!({ field: value })));
            assert_eq!(param.as_deref(), Some(field), "{value}: {message}");
        }
    }
    let many: serde_json::Map<_, _> = (0..1025).map(|id| (id.to_string(), 1.into())).collect();
    let (param, message) = refusal(completion(&json!({"logit_bias": many})));
    assert!(param.unwrap().starts_with("logit_bias") && message.contains("1024 entries"));
}

#[test]
fn every_number_takes_every_value() {
    let values =
        json!([-1, 0, 1, 2_147_483_648_u64, i64::MAX, u64::MAX, 1e308, "NaN", true, "1", null]);
    let fields = [
        "n",
        "best_of",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "max_tokens",
        "min_tokens",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logprobs",
        "top_logprobs",
        "prompt_logprobs",
        "priority",
        "max_completion_tokens",
    ];
    for field in fields {
        for value in values.as_array().unwrap() {
            for call in [completion(&json!({ field: value })), chat(&json!({ field: value }))] {
                if let Err(error) = call {
                    assert_eq!(error.status(), 400, "{field} {value}");
                }
            }
        }
    }
}

#[test]
fn combinations_that_make_no_sense() {
    for (fields, param) in [
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "prompt_logprobs": 1}), "prompt_logprobs"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"guided_json": {"type": "object"}}), "guided_json"),
        (json!({"prompt": vec!["a"; 9], "n": 128}), "n"),
        (json!({"prompt": null}), "prompt"),
    ] {
        assert_eq!(refusal(completion(&fields)).0.as_deref(), Some(param));
    }
    for (fields, param) in [
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"continue_final_message": true}), "continue_final_message"),
        (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs"),
        (json!({"chat_template": "{{ 1 }}"}), "chat_template"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": [{"role": "user"}]}), "messages[0]"),
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens"),
    ] {
        assert_eq!(refusal(chat(&fields)).0.as_deref(), Some(param));
    }
}

#[test]
fn a_prompt_that_is_too_long_is_told_in_words_that_clients_know() {
    for prompt in [json!(vec![1; 200]), json!("word ".repeat(200)), json!("a".repeat(1 << 20))] {
        let (_, message) = refusal(completion(&json!({ "prompt": prompt })));
        assert!(message.contains("This model's maximum context length is 128 tokens"), "{message}");
    }
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(200)}]});
    assert!(refusal(chat(&long)).1.contains("maximum context length"));
    let (param, message) = refusal(completion(&json!({"max_tokens": 128})));
    assert_eq!(param.as_deref(), Some("max_tokens"));
    assert!(message.contains("maximum context length"), "{message}");
}

#[test]
fn a_model_without_a_template_says_so() {
    let converter =
        Converter { template: Err("the model has no chat template".into()), ..new_converter() };
    let body = br#"{"messages":[{"role":"user","content":"a"}]}"#;
    let (_, message) = refusal(converter.chat(body));
    assert!(message.contains("--chat-template"), "{message}");
}

#[test]
fn tokenize_and_back() {
    let converter = converter();
    let tokens =
        converter.tokenize(br#"{"prompt":"Hello world","return_token_strs":true}"#).unwrap();
    assert_eq!(tokens.spellings.unwrap()[1], "\u{120}world");
    let body = json!({"tokens": tokens.tokens}).to_string();
    assert_eq!(converter.detokenize(body.as_bytes()).unwrap().1, "Hello world");
    let chat = converter.tokenize(br#"{"messages":[{"role":"user","content":"Hi"}]}"#).unwrap();
    assert_eq!(chat.tokens[0], 1);
    for body in ["{}", r#"{"messages":[]}"#, r#"{"prompt":1}"#] {
        assert_eq!(converter.tokenize(body.as_bytes()).unwrap_err().status(), 400);
    }
    for body in ["{}", r#"{"tokens":[49152]}"#, r#"{"tokens":[-1]}"#, r#"{"tokens":"a"}"#] {
        assert_eq!(converter.detokenize(body.as_bytes()).unwrap_err().status(), 400);
    }
}
