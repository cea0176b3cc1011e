//! Both spellings of every tiny checkpoint, and what must be refused.

use serde_json::{Value, json};

use super::*;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny");

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "eos_token_id": 2, "bos_token_id": 1, "torch_dtype": "bfloat16",
    })
}

fn qwen(fields: Value) -> Result<ModelConfig> {
    let mut config = llama();
    config["architectures"] = json!(["Qwen2ForCausalLM"]);
    merge(&mut config, fields);
    ModelConfig::from_hf(&config)
}

fn merge(config: &mut Value, fields: Value) {
    for (key, value) in fields.as_object().unwrap() {
        config[key] = value.clone();
    }
}

fn with(fields: Value) -> Result<ModelConfig> {
    let mut config = llama();
    merge(&mut config, fields);
    ModelConfig::from_hf(&config)
}

#[test]
fn both_spellings_of_the_fixtures_mean_the_same() {
    let read = |path: String| {
        let text = std::fs::read_to_string(&path).unwrap();
        ModelConfig::from_hf(&serde_json::from_str(&text).unwrap()).unwrap()
    };
    let mut seen = 0;
    for entry in std::fs::read_dir(TINY).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("config.json").exists() {
            continue;
        }
        let new = read(format!("{}/config.json", folder.display()));
        let old = read(format!("{}/config_old.json", folder.display()));
        assert_eq!(new, old, "{}", folder.display());
        seen += 1;
    }
    assert!(seen >= 10, "{seen}");
    let tiny = |name: &str| read(format!("{TINY}/{name}/config.json"));
    let llama = tiny("llama");
    assert_eq!(llama.architecture, Architecture::Llama);
    assert_eq!((llama.hidden_size, llama.layers, llama.ffn_size), (64, 2, 48));
    assert_eq!((llama.heads, llama.kv_heads, llama.head_dim), (4, 2, 16));
    assert_eq!((llama.vocab_size, llama.max_position, llama.rms_eps), (128, 256, 1e-5));
    assert_eq!((&llama.eos_token_ids[..], llama.bos_token_id), (&[2][..], Some(1)));
    assert_eq!(llama.dtype, DType::F32);
    assert_eq!(llama.rope, Rope { theta: 10_000.0, scaling: RopeScaling::None });
    assert_eq!(tiny("llama_sharded_f16").dtype, DType::F16);
    let biased = tiny("llama_biased");
    assert!(biased.qkv_bias && biased.o_bias && biased.mlp_bias && !biased.qk_norm);
    assert_eq!(tiny("llama_linear").rope.scaling, RopeScaling::Linear { factor: 4.0 });
    assert_eq!(
        tiny("llama3").rope.scaling,
        RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 32.0 }
    );
    assert_eq!(tiny("mistral_window").window, Some(8));
    let mistral = tiny("mistral");
    assert_eq!((mistral.window, mistral.head_dim, mistral.q_size()), (None, 32, 128));
    let qwen2 = tiny("qwen2");
    assert!(qwen2.qkv_bias && !qwen2.o_bias && qwen2.tied_embeddings && qwen2.window.is_none());
    let qwen3 = tiny("qwen3");
    assert!(qwen3.qk_norm && !qwen3.qkv_bias);
    assert_eq!((qwen3.heads, qwen3.kv_heads, qwen3.head_dim), (3, 1, 32));
}

#[test]
fn every_number_is_bounded() {
    let keys = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "sliding_window",
        "rms_norm_eps",
        "rope_theta",
    ];
    let bad = [
        json!(0),
        json!(-1),
        json!("1"),
        json!(true),
        json!([]),
        json!({}),
        json!(1e308),
        json!(-0.5),
    ];
    for key in keys {
        for value in &bad {
            let error = with(json!({ key: value })).unwrap_err().message;
            assert!(error.contains(key), "{key} {value}: {error}");
        }
        if !key.starts_with("r") {
            for value in [1u64 << 31, 1 << 40, u64::MAX] {
                assert!(with(json!({ key: value })).unwrap_err().message.contains(key), "{key}");
            }
        }
    }
    // Each in bounds, their product not.
    assert!(
        with(json!({"num_attention_heads": 4096, "num_key_value_heads": 4096, "head_dim": 4096}))
            .is_err()
    );
}

#[test]
fn relations_are_checked() {
    let check = |fields: Value, expect: &str| {
        let error = with(fields).unwrap_err().message;
        assert!(error.contains(expect), "{error}");
    };
    check(json!({"num_key_value_heads": 3}), "4 attention heads are no multiple of 3");
    check(
        json!({"num_attention_heads": 5, "num_key_value_heads": 5}),
        "hidden_size 64 is no multiple of 5",
    );
    check(json!({"head_dim": 15}), "head_dim 15 is odd");
    check(json!({"rms_norm_eps": 1.0}), "norm epsilon 1");
    assert_eq!(with(json!({"num_key_value_heads": null})).unwrap().kv_heads, 4);
    let mut missing = llama();
    missing.as_object_mut().unwrap().remove("vocab_size");
    let error = ModelConfig::from_hf(&missing).unwrap_err().message;
    assert_eq!(error, "config.json: vocab_size is missing, expected an integer from 1 to 16777216");
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let check = |fields: Value, expect: &str| {
        let error = with(fields).unwrap_err().message;
        assert!(error.contains(expect), "{error}");
        assert!(!error.contains('\n'), "{error}");
    };
    check(
        json!({"architectures": ["GemmaForCausalLM"]}),
        "architecture GemmaForCausalLM is not supported; supported are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
    );
    check(json!({"architectures": []}), "architectures");
    check(json!({"architectures": null, "model_type": "bert"}), "bert");
    check(json!({"hidden_act": "gelu"}), "hidden_act gelu");
    check(json!({"quantization_config": {"quant_method": "gptq"}}), "\"gptq\"");
    check(json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor 0.5");
    check(json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "partial_rotary_factor 0.5");
    for kind in ["yarn", "dynamic", "longrope"] {
        check(json!({"rope_scaling": {"type": kind, "factor": 2.0}}), kind);
        check(json!({"rope_parameters": {"rope_type": kind, "factor": 2.0}}), kind);
    }
    check(json!({"rope_scaling": {"rope_type": "linear"}}), "factor is missing");
    check(json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}), "low_freq_factor");
    check(json!({"rope_parameters": {"full_attention": {}}}), "full_attention");
    check(json!({"torch_dtype": "float8_e4m3fn"}), "torch_dtype");
    check(json!({"layer_types": ["full_attention", "linear_attention"]}), "linear_attention");
    check(json!({"eos_token_id": "2"}), "eos_token_id");
    check(json!({"eos_token_id": [1, -1]}), "eos_token_id");
    assert!(ModelConfig::from_hf(&json!([])).is_err());
}

#[test]
fn a_window_is_the_same_in_all_layers() {
    let window = |fields| qwen(fields).map(|config| config.window);
    assert_eq!(window(json!({"sliding_window": 8})).unwrap(), None);
    assert_eq!(window(json!({"sliding_window": 8, "use_sliding_window": true})).unwrap(), None);
    let all = json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 0});
    assert_eq!(window(all).unwrap(), Some(8));
    let mixed = json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1});
    let error = window(mixed).unwrap_err().message;
    assert!(error.contains("1 of 2 layers"), "{error}");
    let types = |types: Value, size: Value| {
        window(json!({"layer_types": types, "use_sliding_window": true, "sliding_window": size}))
    };
    let (full, sliding) = ("full_attention", "sliding_attention");
    assert_eq!(types(json!([full, full]), json!(8)).unwrap(), None);
    assert_eq!(types(json!([sliding, sliding]), json!(8)).unwrap(), Some(8));
    assert!(types(json!([sliding, full]), json!(8)).is_err());
    assert!(types(json!([sliding, sliding]), Value::Null).is_err());
    assert!(types(json!([full]), json!(8)).is_err());
    let mistral = |fields: Value| {
        let mut config = llama();
        config["architectures"] = json!(["MistralForCausalLM"]);
        merge(&mut config, fields);
        ModelConfig::from_hf(&config).unwrap().window
    };
    // What transformers assumes where the file is silent.
    assert_eq!(mistral(json!({})), Some(4096));
    assert_eq!(mistral(json!({"sliding_window": null})), None);
}

#[test]
fn end_tokens_come_once_and_inside_the_vocabulary() {
    let config = with(json!({"eos_token_id": [2, 5, 2, 500], "bos_token_id": 128})).unwrap();
    assert_eq!((&config.eos_token_ids[..], config.bos_token_id), (&[2, 5][..], None));
    assert_eq!(with(json!({"eos_token_id": null})).unwrap().eos_token_ids, [] as [u32; 0]);
}
