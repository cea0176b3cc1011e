//! Folders and GGUF files of the same tiny models, and folders that must be refused.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;
use crate::model::RopeScaling;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap()
}

/// Every tensor name that the engine asks for.
fn names(config: &ModelConfig) -> Vec<String> {
    let mut names = vec!["model.embed_tokens.weight".to_owned(), "model.norm.weight".to_owned()];
    if !config.tied_embeddings {
        names.push("lm_head.weight".to_owned());
    }
    for layer in 0..config.layers {
        let mut add = |module: &str, bias: bool| {
            names.push(format!("model.layers.{layer}.{module}.weight"));
            if bias {
                names.push(format!("model.layers.{layer}.{module}.bias"));
            }
        };
        add("input_layernorm", false);
        add("post_attention_layernorm", false);
        for part in ["q_proj", "k_proj", "v_proj"] {
            add(&format!("self_attn.{part}"), config.qkv_bias);
        }
        add("self_attn.o_proj", config.o_bias);
        for part in ["gate_proj", "up_proj", "down_proj"] {
            add(&format!("mlp.{part}"), config.mlp_bias);
        }
        if config.qk_norm {
            add("self_attn.q_norm", false);
            add("self_attn.k_norm", false);
        }
    }
    names
}

#[test]
fn every_tiny_folder_has_every_tensor() {
    let folders = [
        "llama",
        "llama3",
        "llama_biased",
        "llama_linear",
        "llama_bf16",
        "llama_sharded_f16",
        "mistral",
        "mistral_window",
        "qwen2",
        "qwen3",
    ];
    for folder in folders {
        let mut checkpoint = open(&format!("tiny/{folder}"));
        let mut dummy = Checkpoint::dummy(&fixture(&format!("tiny/{folder}")), 7).unwrap();
        assert_eq!(checkpoint.config.layers, dummy.config.layers);
        for name in names(&checkpoint.config) {
            assert!(checkpoint.has(&name), "{folder} {name}");
            assert!(dummy.has(&name), "{folder} {name}");
            let tensor = checkpoint.tensor(&name).unwrap();
            // The random model has the shapes of the real one.
            dummy.matrix(&name, tensor.rows, tensor.cols).unwrap();
            assert!(checkpoint.matrix(&name, tensor.rows, tensor.cols + 1).is_err());
        }
        for name in ["model.layers.2.mlp.up_proj.weight", "nonsense", "model.layers.x.y.weight"] {
            assert!(!checkpoint.has(name) && !dummy.has(name), "{folder} {name}");
            assert!(checkpoint.tensor(name).unwrap_err().message.contains(name));
            assert!(dummy.tensor(name).is_err());
        }
    }
}

#[test]
fn dtypes_follow_the_files() {
    let name = "model.layers.0.mlp.up_proj.weight";
    let data = |folder: &str| open(folder).tensor(name).unwrap().data;
    assert!(matches!(data("tiny/llama"), HostData::F32(_)));
    assert!(matches!(data("tiny/llama_bf16"), HostData::Bf16(_)));
    assert!(matches!(data("tiny/llama_sharded_f16"), HostData::F16(_)));
    let norm = open("tiny/llama_bf16").vector("model.norm.weight", 64).unwrap();
    assert!(norm.iter().all(|v| v.is_finite()) && norm.iter().any(|v| *v != norm[0]));
}

#[test]
fn gguf_files_hold_what_the_folders_hold() {
    for name in ["llama", "qwen2"] {
        let mut folder = open(&format!("tiny/{name}"));
        for kind in ["f32", "f16"] {
            let mut gguf = open(&format!("gguf/models/{name}-{kind}.gguf"));
            let dtype = if kind == "f32" { DType::F32 } else { DType::F16 };
            assert_eq!(gguf.config.dtype, dtype);
            let mut config = gguf.config.clone();
            config.dtype = folder.config.dtype;
            assert_eq!(config, folder.config);
            for name in names(&config) {
                let (left, right) = (folder.tensor(&name).unwrap(), gguf.tensor(&name).unwrap());
                assert_eq!((left.rows, left.cols), (right.rows, right.cols), "{name}");
                assert_eq!(left.to_f32(), right.to_f32(), "{name}");
            }
        }
    }
}

#[test]
fn linear_layers_are_rounded_where_that_is_asked_for() {
    let name = "model.layers.0.mlp.up_proj.weight";
    let mut checkpoint = open("tiny/llama");
    let HostTensor { rows, cols, .. } = checkpoint.tensor(name).unwrap();
    let before = checkpoint.linear(name, rows, cols).unwrap();
    assert!(matches!(before.data, HostData::F32(_)));
    checkpoint.hold_in_int8(2);
    assert!(matches!(checkpoint.linear(name, rows, cols).unwrap().data, HostData::Int8(_)));
    assert!(matches!(checkpoint.matrix(name, rows, cols).unwrap().data, HostData::F32(_)));
    assert!(checkpoint.linear(name, rows + 1, cols).is_err());
}

#[test]
fn dummy_weights_depend_on_seed_and_name() {
    let path = fixture("gguf/models/llama-f32.gguf");
    let values = |seed: u64, name: &str| {
        Checkpoint::dummy(&path, seed).unwrap().tensor(name).unwrap().to_f32()
    };
    let (gate, up) = ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight");
    assert_eq!(values(1, gate), values(1, gate));
    assert_ne!(values(1, gate), values(2, gate));
    assert_ne!(values(1, gate), values(1, up));
    let found = values(1, gate);
    let mean = found.iter().sum::<f32>() / found.len() as f32;
    let variance = found.iter().map(|v| v * v).sum::<f32>() / found.len() as f32;
    assert!(mean.abs() < 0.01 && (variance * 64.0 - 1.0).abs() < 0.1, "{mean} {variance}");
    let norm = values(1, "model.norm.weight");
    assert!(norm.iter().all(|v| (0.8..1.2).contains(v)));
}

/// A copy of a tiny folder, with files changed.
fn changed(name: &str, files: &[(&str, Option<&[u8]>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    for (name, bytes) in files {
        match bytes {
            Some(bytes) => std::fs::write(folder.path().join(name), bytes).unwrap(),
            None => std::fs::remove_file(folder.path().join(name)).unwrap(),
        }
    }
    folder
}

#[test]
fn broken_folders_are_refused_in_one_line() {
    let check = |name: &str, files: &[(&str, Option<&[u8]>)], expect: &str| {
        let folder = changed(name, files);
        let error = Checkpoint::open(folder.path()).unwrap_err().message;
        assert!(error.contains(expect) && !error.contains('\n'), "{error}");
    };
    let single = "model.safetensors";
    let index = "model.safetensors.index.json";
    check("tiny/llama", &[("config.json", None)], "no config.json");
    check("tiny/llama", &[("config.json", Some(b"{"))], "config.json is not JSON");
    check("tiny/llama", &[(single, None)], "has neither model.safetensors nor");
    check("tiny/llama", &[(single, Some(b""))], "header is missing");
    check("tiny/llama", &[(single, Some(&[255; 64]))], "exceeds the limit of 100000000");
    check("tiny/llama", &[("generation_config.json", Some(b"{\"top_p\": 2}"))], "top_p is 2");
    check(
        "tiny/llama_sharded_f16",
        &[("model-00002-of-00003.safetensors", None)],
        "which is not there",
    );
    check("tiny/llama_sharded_f16", &[(index, Some(b"[]"))], "has no weight_map");
    let bytes = std::fs::read(fixture("tiny/llama/model.safetensors")).unwrap();
    check("tiny/llama", &[(single, Some(&bytes[..bytes.len() - 1]))], "tensors cover");
    let shard =
        std::fs::read(fixture("tiny/llama_sharded_f16/model-00001-of-00003.safetensors")).unwrap();
    let twice = ("model-00002-of-00003.safetensors", Some(&shard[..]));
    check("tiny/llama_sharded_f16", &[twice], "is in two files");
    let error = Checkpoint::open(&fixture("tiny/none")).unwrap_err();
    assert_eq!(error.kind, crate::ErrorKind::NotFound);
    let error = Checkpoint::open(&fixture("tiny/none.gguf")).unwrap_err();
    assert_eq!(error.kind, crate::ErrorKind::NotFound);
}

#[test]
fn text_files_of_a_folder_are_read() {
    let write =
        |name: &'static str, value: serde_json::Value| (name, value.to_string().into_bytes());
    let base = [
        write(
            "generation_config.json",
            json!({"eos_token_id": [5, 6], "temperature": 0.5, "top_p": 0.9, "top_k": -1, "repetition_penalty": 1.1}),
        ),
        write(
            "tokenizer_config.json",
            json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null,
                   "chat_template": [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]}),
        ),
        write("special_tokens_map.json", json!({"eos_token": "no", "unk_token": "<unk>"})),
    ];
    let files: Vec<_> = base.iter().map(|(name, bytes)| (*name, Some(&bytes[..]))).collect();
    let folder = changed("tiny/llama", &files);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.config.eos_token_ids, [5, 6]);
    let expected = GenerationDefaults {
        temperature: Some(0.5),
        top_p: Some(0.9),
        top_k: Some(0),
        min_p: None,
        repetition_penalty: Some(1.1),
    };
    assert_eq!(checkpoint.generation_defaults(), expected);
    let pair = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    assert_eq!(
        checkpoint.special_tokens(),
        [pair("bos_token", "<s>"), pair("eos_token", "</s>"), pair("unk_token", "<unk>")]
    );
    assert_eq!(checkpoint.chat_template().as_deref(), Some("D"));
    let template = json!({"chat_template": "J"}).to_string();
    std::fs::write(folder.path().join("chat_template.json"), template).unwrap();
    assert_eq!(Checkpoint::open(folder.path()).unwrap().chat_template().as_deref(), Some("J"));
    std::fs::write(folder.path().join("chat_template.jinja"), "X").unwrap();
    assert_eq!(Checkpoint::open(folder.path()).unwrap().chat_template().as_deref(), Some("X"));
}

#[test]
fn a_folder_without_a_dtype_has_that_of_its_matrices() {
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("tiny/llama_bf16/config.json")).unwrap())
            .unwrap();
    config.as_object_mut().unwrap().remove("dtype");
    let folder =
        changed("tiny/llama_bf16", &[("config.json", Some(config.to_string().as_bytes()))]);
    assert_eq!(Checkpoint::open(folder.path()).unwrap().config.dtype, DType::Bf16);
}

#[test]
fn the_gguf_file_brings_template_and_tokens() {
    let checkpoint = open("gguf/models/llama-f16.gguf");
    assert!(checkpoint.chat_template().unwrap().contains("<|im_start|>"));
    let names: Vec<_> = checkpoint.special_tokens().into_iter().map(|(_, text)| text).collect();
    assert_eq!(names, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]);
    assert_eq!(checkpoint.config.rope.scaling, RopeScaling::None);
    assert_eq!(checkpoint.config.eos_token_ids, [2]);
}
