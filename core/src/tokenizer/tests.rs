//! Golden encodings, streams against whole decodes, and texts made to take long.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::model::Checkpoint;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

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

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

fn from_gguf(name: &str) -> Tokenizer {
    let (file, _) = crate::model::checkpoint::gguf::GgufFile::open(&fixture(name)).unwrap();
    Tokenizer::from_gguf(&file.header.metadata).unwrap()
}

fn from_json(name: &str) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture(name), folder.path().join("tokenizer.json")).unwrap();
    Tokenizer::from_folder(folder.path()).unwrap()
}

fn smollm() -> Tokenizer {
    Tokenizer::from_folder(&fixture("smollm2/tokenizer")).unwrap()
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

fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip_special: bool) -> String {
    let mut stream = TokenStream::new(Arc::clone(tokenizer), skip_special);
    let mut text: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
    text.extend(stream.flush());
    text
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

#[test]
fn tokens_have_texts_bytes_and_kinds() {
    let tokenizer = smollm();
    assert_eq!(tokenizer.vocab_size(), 49_152);
    assert_eq!(tokenizer.id_of("<|im_end|>"), Some(2));
    assert!(
        tokenizer.is_special(2) && !tokenizer.is_special(19_556) && !tokenizer.is_special(u32::MAX)
    );
    assert_eq!(tokenizer.token_text(905).as_deref(), Some("Ġworld"));
    assert_eq!(tokenizer.token_bytes(905), b" world");
    assert_eq!(tokenizer.token_bytes(2), b"<|im_end|>");
    assert_eq!(tokenizer.token_bytes(u32::MAX), b"");
    assert_eq!(tokenizer.token_text(u32::MAX), None);
    assert_eq!(tokenizer.decode(&[905, u32::MAX, 905], false).unwrap(), " world world");
    let spm = from_gguf("gguf/spm/prefix.gguf");
    let newline = spm.id_of("<0x0A>").unwrap();
    assert_eq!(spm.token_bytes(newline), b"\n");
    assert_eq!(spm.token_text(newline).as_deref(), Some("<0x0A>"));
    assert_eq!(spm.token_bytes(spm.id_of("▁the").unwrap()), b" the");
}

#[test]
fn a_continued_text_keeps_its_space() {
    let tokenizer = Arc::new(from_gguf("gguf/spm/prefix.gguf"));
    let ids = tokenizer.encode("the", false).unwrap();
    assert_eq!(streamed(&tokenizer, &ids, false), "the");
    let mut stream = TokenStream::continuing(Arc::clone(&tokenizer), false);
    let text: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
    assert_eq!(text, " the");
}

#[test]
fn characters_arrive_whole() {
    let bytes = Arc::new(from_gguf("gguf/bpe/gpt-2.gguf"));
    let spm = Arc::new(from_gguf("gguf/spm/no-prefix.gguf"));
    for (tokenizer, marks) in [(&bytes, 1), (&spm, 3)] {
        let id = |byte: u8| -> u32 {
            let found =
                (0..tokenizer.vocab_size() as u32).find(|id| tokenizer.token_bytes(*id) == [byte]);
            found.unwrap()
        };
        let mut stream = TokenStream::new(Arc::clone(tokenizer), true);
        let crab: Vec<_> = "🦀".bytes().map(&id).collect();
        let pushed: Vec<_> = crab.iter().map(|id| stream.push(*id)).collect();
        assert_eq!(pushed, [None, None, None, Some("🦀".into())]);
        assert_eq!(stream.flush(), None);
        for id in &crab[..3] {
            assert_eq!(stream.push(*id), None);
        }
        let mark = "\u{fffd}".repeat(marks);
        assert_eq!(stream.flush().as_deref(), Some(&mark[..]));
        // A character that never ends gives way to the next.
        stream.push(crab[0]);
        assert_eq!(stream.push(id(b'a')).as_deref(), Some("\u{fffd}a"));
    }
}

#[test]
fn the_configuration_decides_what_goes_around_a_text() {
    let around = |config: serde_json::Value| {
        let folder = tempfile::tempdir().unwrap();
        let path = fixture("gguf/bpe/gpt-2.tokenizer.json");
        std::fs::copy(path, folder.path().join("tokenizer.json")).unwrap();
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        Tokenizer::from_folder(folder.path()).unwrap().encode("", true).unwrap()
    };
    let names = json!({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}});
    let with = |key: &str, value: bool| {
        let mut config = names.clone();
        config[key] = json!(value);
        around(config)
    };
    assert_eq!(around(names.clone()), [] as [u32; 0]);
    assert_eq!(with("add_bos_token", true), [1]);
    assert_eq!(with("add_eos_token", true), [2]);
    assert_eq!(with("add_bos_token", false), [] as [u32; 0]);
    assert_eq!(around(json!({"add_bos_token": true})), [] as [u32; 0]);
}

#[test]
fn truncation_and_padding_of_the_file_are_ignored() {
    let mut file: Value =
        serde_json::from_slice(&std::fs::read(fixture("gguf/bpe/gpt-2.tokenizer.json")).unwrap())
            .unwrap();
    file["truncation"] =
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    let ids = tokenizer.encode("a b c d e f", true).unwrap();
    assert!((6..12).contains(&ids.len()), "{ids:?}");
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let decoder = |decoder: Value| {
        let table = Pieces::new(&decoder, vec![Some("a".into())], |_| false);
        table.map(|pieces| pieces.scheme()).map_err(|error| error.message)
    };
    let wordpiece = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    assert!(decoder(wordpiece).unwrap_err().contains("WordPiece"));
    let strip = json!({"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    assert!(decoder(strip).unwrap_err().contains("Strip"));
    let late = json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"},
        {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}]});
    assert!(decoder(late).unwrap_err().contains("Replace"));
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"});
    assert!(matches!(decoder(metaspace), Ok(pieces::Scheme::Unspaced)));
    let error = Tokenizer::from_folder(Path::new(FIXTURES)).unwrap_err().message;
    assert!(error.contains("no tokenizer.json"), "{error}");
    let unknown =
        Checkpoint::open(&fixture("tiny/llama")).unwrap().tokenizer().unwrap_err().message;
    assert!(unknown.contains("no tokenizer.json"), "{unknown}");
}

#[test]
fn no_text_takes_long() {
    let spm = from_gguf("gguf/spm/prefix.gguf");
    let mut tokenizers = vec![("smollm", smollm()), ("spm", spm)];
    for pre in ["default", "qwen2", "llama-bpe"] {
        tokenizers.push((pre, from_gguf(&format!("gguf/bpe/{pre}.gguf"))));
    }
    for (name, tokenizer) in tokenizers {
        for unit in [
            "a",
            " ",
            "\n",
            "1",
            "!",
            "é",
            "🦀",
            "a ",
            "\u{301}",
            "'",
            "\t \n",
            "<|im_start|>",
            "<|",
        ] {
            let text = unit.repeat((1 << 16) / unit.len());
            let start = Instant::now();
            let ids = tokenizer.encode(&text, false).unwrap();
            let encoded = start.elapsed();
            assert!(tokenizer.least_tokens(&text) <= ids.len(), "{name} {unit:?}");
            let decoded = tokenizer.decode(&ids, false).unwrap();
            let both = start.elapsed();
            println!("{name:10} {unit:?} {} ids, {encoded:?}, {both:?}", ids.len());
            assert!(decoded.len() <= text.len());
            assert!(both < Duration::from_secs(5), "{name} {unit:?}: {both:?}");
        }
    }
}

#[test]
fn texts_that_cannot_fit_are_known_before_they_are_read() {
    let text = "x".repeat(1 << 20);
    let check = |tokenizer: Tokenizer, least: usize| {
        assert_eq!(tokenizer.least_tokens(""), 0);
        assert!((least..1 << 20).contains(&tokenizer.least_tokens(&text)));
    };
    check(smollm(), (1 << 20) / 81);
    check(from_gguf("gguf/bpe/qwen2.gguf"), 10_000);
    check(from_gguf("gguf/bpe/llama-bpe.gguf"), 10_000);
    check(from_gguf("gguf/spm/prefix.gguf"), 10_000);
    // Bytes that a vocabulary lacks count for nothing.
    let small = from_gguf("gguf/models/llama-f16.gguf");
    assert_eq!(small.least_tokens(&"é".repeat(1000)), 0);
    assert!(small.least_tokens(&text) > 10_000);
}

proptest! {
    #[test]
    fn streams_say_what_decodes_say(
        ids in proptest::collection::vec(0u32..420, 0..60),
        skip in any::<bool>(),
        which in 0usize..4,
    ) {
        let name = ["gguf/spm/prefix.gguf", "gguf/spm/no-prefix.gguf", "gguf/bpe/gpt-2.gguf", "gguf/bpe/qwen2.gguf"][which];
        let tokenizer = Arc::new(from_gguf(name));
        prop_assert_eq!(streamed(&tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap());
        // Byte-level decoding is that of the library, broken characters included.
        if which >= 2 {
            let library = tokenizer.inner.decode(&ids, skip).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, skip).unwrap(), library);
        }
    }
}
