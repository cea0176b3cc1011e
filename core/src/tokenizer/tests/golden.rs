//! Encodings that transformers, sentencepiece and a real model's tokenizer gave.

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    ids_with_special: Vec<u32>,
    decoded: String,
    decoded_skip_special: Option<String>,
}

/// Checks a tokenizer against golden cases, also that a stream says what a decode says.
fn check(tokenizer: Tokenizer, cases: &str) {
    let tokenizer = Arc::new(tokenizer);
    let cases: Cases = serde_json::from_slice(&std::fs::read(fixture(cases)).unwrap()).unwrap();
    assert!(cases.cases.len() > 10);
    for case in cases.cases {
        let text = &case.text;
        assert_eq!(tokenizer.encode(text, false).unwrap(), case.ids, "{text:?}");
        assert_eq!(tokenizer.encode(text, true).unwrap(), case.ids_with_special, "{text:?}");
        assert_eq!(tokenizer.decode(&case.ids, false).unwrap(), case.decoded, "{text:?}");
        if let Some(skipped) = &case.decoded_skip_special {
            assert_eq!(&tokenizer.decode(&case.ids, true).unwrap(), skipped, "{text:?}");
        }
        assert_eq!(streamed(&tokenizer, &case.ids, false), case.decoded, "{text:?}");
    }
}

#[test]
fn byte_level_vocabularies_agree_with_transformers() {
    for pre in ["default", "gpt-2", "smollm", "qwen2", "llama-bpe"] {
        println!("{pre}");
        check(
            from_gguf(&format!("gguf/bpe/{pre}.gguf")),
            &format!("gguf/bpe/{pre}.encodings.json"),
        );
        let json = from_json(&format!("gguf/bpe/{pre}.tokenizer.json"));
        check(json, &format!("gguf/bpe/{pre}.encodings.json"));
    }
    for name in ["llama", "qwen2"] {
        let cases = format!("gguf/models/{name}.encodings.json");
        check(from_gguf(&format!("gguf/models/{name}-f32.gguf")), &cases);
        check(from_json(&format!("gguf/models/{name}.tokenizer.json")), &cases);
    }
    check(smollm(), "smollm2/encodings.json");
}

#[test]
fn sentencepiece_vocabularies_agree_with_sentencepiece() {
    for name in ["prefix", "no-prefix"] {
        println!("{name}");
        check(
            from_gguf(&format!("gguf/spm/{name}.gguf")),
            &format!("gguf/spm/{name}.encodings.json"),
        );
    }
}

#[test]
fn golden_prompts_of_a_real_model() {
    let tokenizer = Arc::new(smollm());
    let mut seen = 0;
    for entry in std::fs::read_dir(fixture("smollm2/golden")).unwrap() {
        let path = entry.unwrap().path();
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let ids =
                |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
            if let Some(prompt) = case["prompt"].as_str() {
                assert_eq!(tokenizer.encode(prompt, false).unwrap(), ids("prompt_token_ids"));
                assert_eq!(tokenizer.encode(prompt, true).unwrap(), ids("prompt_token_ids"));
            }
            if let Some(text) = case["text"].as_str() {
                assert_eq!(tokenizer.decode(&ids("token_ids"), true).unwrap(), text);
                assert_eq!(streamed(&tokenizer, &ids("token_ids"), true), text);
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen}");
}
