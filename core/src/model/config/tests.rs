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

#[test]
fn rope_tables_match_transformers() {
    // From transformers 5.23 (torch 2.15, f32): cosine and sine of the frequencies 1 and 5 of a head of 16, and of
    // Llama 3.1's rule.
    let plain = Rope { theta: 10_000.0, scaling: RopeScaling::None };
    let linear = Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } };
    let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 32.0 };
    let llama3 = Rope { theta: 10_000.0, scaling };
    let factors = Rope { theta: 10_000.0, scaling: RopeScaling::Factors(vec![2.0; 8]) };
    for (rope, expected) in [(&plain, PLAIN), (&linear, LINEAR), (&llama3, LLAMA3)] {
        let frequencies = rope.inverse_frequencies(16);
        for (pair, (found, expected)) in frequencies.iter().zip(expected.0).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{pair}: {found} {expected}");
        }
        let table = rope.rope_table(16, 251);
        for (at, expected) in (250 * 16..).zip(expected.1) {
            assert!((table[at] - expected).abs() < 1e-6, "{at}: {} {expected}", table[at]);
        }
    }
    assert_eq!(factors.inverse_frequencies(16)[0], 0.5);
    assert!(factors.check(16).is_ok());
    assert!(factors.check(32).is_err());
    let zero = Rope { theta: 10_000.0, scaling: RopeScaling::Factors(vec![0.0; 8]) };
    assert!(zero.check(16).is_err());
}
const PLAIN: ([f32; 8], [f32; 16]) = (
    [
        1.000000000,
        3.162277639e-01,
        1.000000015e-01,
        3.162277862e-02,
        9.999999776e-03,
        3.162277862e-03,
        1.000000047e-03,
        3.162277862e-04,
    ],
    [
        2.409882993e-01,
        -8.692457080e-01,
        9.912028313e-01,
        -5.168980360e-02,
        -8.011435866e-01,
        7.034406662e-01,
        9.689124227e-01,
        9.968765974e-01,
        -9.705280066e-01,
        -4.943803549e-01,
        -1.323517561e-01,
        9.986631870e-01,
        5.984721184e-01,
        7.107539773e-01,
        2.474039644e-01,
        7.897461951e-02,
    ],
);
const LINEAR: ([f32; 8], [f32; 16]) = (
    [
        2.500000000e-01,
        7.905694097e-02,
        2.500000037e-02,
        7.905694656e-03,
        2.499999944e-03,
        7.905694656e-04,
        2.500000119e-04,
        7.905694656e-05,
    ],
    [
        9.454402328e-01,
        6.100452542e-01,
        9.994494319e-01,
        -3.945952356e-01,
        8.109630942e-01,
        9.805322289e-01,
        9.980475307e-01,
        9.998046756e-01,
        -3.257955611e-01,
        7.923665643e-01,
        -3.317921609e-02,
        9.188550711e-01,
        5.850972533e-01,
        1.963581443e-01,
        6.245931610e-02,
        1.976295002e-02,
    ],
);
const LLAMA3: ([f32; 8], [f32; 16]) = (
    [
        1.000000000,
        9.583997726e-02,
        1.250000019e-02,
        3.952847328e-03,
        1.249999972e-03,
        3.952847328e-04,
        1.250000059e-04,
        3.952847328e-05,
    ],
    [
        2.409882993e-01,
        3.876218796e-01,
        -9.998623729e-01,
        5.501839519e-01,
        9.515679479e-01,
        9.951211810e-01,
        9.995117784e-01,
        9.999511838e-01,
        -9.705280066e-01,
        -9.218184948e-01,
        1.659189165e-02,
        8.350434899e-01,
        3.074385226e-01,
        9.866042435e-02,
        3.124491312e-02,
        9.881957434e-03,
    ],
);
