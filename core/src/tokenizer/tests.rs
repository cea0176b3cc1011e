//! What a tokenizer says of its tokens, and what its files may say of it.

mod cost;
mod golden;
mod streams;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::model::Checkpoint;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

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

fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip_special: bool) -> String {
    let mut stream = TokenStream::new(Arc::clone(tokenizer), skip_special);
    let mut text: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
    text.extend(stream.flush());
    text
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
