//! Adapters that load, with the numbers that PEFT gives them.

use std::path::PathBuf;

use loraplex_kernels::{DType, HostData};

use super::*;
use crate::model::Checkpoint;

fn fixture(base: &str, adapter: &str) -> (ModelConfig, LoadedPeft) {
    let folder = PathBuf::from(FIXTURES).join(base);
    let model = Checkpoint::dummy(&folder, 0).unwrap().config;
    let adapter = folder.parent().unwrap().join(adapter);
    let loaded = load(&adapter, &model, &PeftLimits::new(64)).unwrap();
    (model, loaded)
}

fn find(loaded: &LoadedPeft, layer: usize, part: Part) -> (usize, f32) {
    let found = loaded.weights.parts.iter().find(|p| (p.layer, p.part) == (layer, part)).unwrap();
    (found.rank(), found.scale)
}

#[test]
fn ranks_and_scales_of_the_tiny_adapters() {
    for base in ["llama", "qwen2", "qwen3"] {
        let adapter =
            |name: &str| fixture(&format!("tiny/{base}"), &format!("{base}/adapters/{name}")).1;
        let all = adapter("all");
        assert_eq!((all.rank, all.modules), (4, 14));
        assert!(all.weights.parts.iter().all(|p| (p.rank(), p.scale) == (4, 1.5)));
        assert_eq!(all.base_model, Some(format!("loraplex-tests/tiny-{base}")));
        let rs = adapter("qv_rs");
        assert_eq!((rs.rank, rs.modules), (3, 4));
        assert!(rs.weights.parts.iter().all(|p| p.scale == (5.0 / 3f64.sqrt()) as f32));
        let pattern = adapter("pattern");
        assert_eq!((pattern.rank, pattern.modules), (6, 14));
        assert_eq!(find(&pattern, 0, Part::Q), (2, 8.0));
        assert_eq!(find(&pattern, 1, Part::Q), (5, 1.6));
        assert_eq!(find(&pattern, 0, Part::Down), (6, 0.5));
        assert_eq!(find(&pattern, 0, Part::Up), (4, 2.0));
        assert_eq!(find(&pattern, 1, Part::Up), (4, 0.25));
    }
}

#[test]
fn adapters_of_a_real_model() {
    let adapter = |name: &str| fixture("smollm2/tokenizer", &format!("adapters/{name}")).1;
    let counts = |name: &str| {
        let loaded = adapter(name);
        (loaded.rank, loaded.modules)
    };
    assert_eq!(counts("upper"), (16, 210));
    assert_eq!(counts("r8_qv"), (8, 60));
    assert_eq!(counts("r7_rs"), (7, 120));
    let pattern = adapter("rankpattern");
    assert_eq!((pattern.rank, pattern.modules), (16, 210));
    assert_eq!(find(&pattern, 29, Part::Down), (16, 2.0));
    assert_eq!(find(&pattern, 29, Part::Q), (4, 2.0));
    assert_eq!(find(&pattern, 29, Part::K), (8, 1.0));
    assert!(matches!(pattern.weights.parts[0].a.data, HostData::Stored(DType::Bf16, _)));
}

#[test]
fn modules_come_by_layer_and_part_with_their_values() {
    let mut draft = Draft::new();
    // Without the prefix, and in an order of its own.
    draft.floats("model.layers.1.mlp.down_proj.lora_B.weight", &[8, 2]);
    draft.floats("model.layers.1.mlp.down_proj.lora_A.weight", &[2, 6]);
    let loaded = draft.parse().unwrap();
    let places: Vec<_> = loaded.weights.parts.iter().map(|p| (p.layer, p.part)).collect();
    assert_eq!(places, [(0, Part::Q), (0, Part::V), (1, Part::Down)]);
    let down = &loaded.weights.parts[2];
    assert_eq!((down.a.rows, down.a.cols, down.b.rows, down.b.cols), (2, 6, 8, 2));
    assert_eq!(down.b.to_f32(), (0..16).map(|i| i as f32 / 8.0).collect::<Vec<_>>());
    assert_eq!((down.scale, loaded.rank, loaded.modules), (2.0, 2, 3));
    assert_eq!(loaded.base_model.as_deref(), Some("some/base"));
}

#[test]
fn every_rank_and_dtype_loads() {
    for rank in 1..=16 {
        let mut draft = Draft::new().with(json!({"r": rank, "lora_alpha": 1.5}));
        draft.tensors.clear();
        draft.module("mlp.gate_proj", rank, 8, 6);
        let loaded = draft.parse().unwrap();
        assert_eq!(
            (loaded.rank, loaded.weights.parts[0].scale),
            (rank, (1.5 / rank as f64) as f32)
        );
    }
    for (dtype, one) in [("BF16", [0x80, 0x3f]), ("F16", [0x00, 0x3c])] {
        let mut draft = Draft::new();
        for tensor in &mut draft.tensors {
            let len = tensor.2.iter().product();
            (tensor.1, tensor.3) = (dtype, [one].repeat(len).concat());
        }
        let loaded = draft.parse().unwrap();
        assert!(loaded.weights.parts[0].a.to_f32().iter().all(|v| *v == 1.0), "{dtype}");
    }
}

#[test]
fn features_that_change_nothing_are_accepted() {
    let harmless = [
        json!({"lora_dropout": 0.5, "exclude_modules": "x", "layers_to_transform": [0], "layers_pattern": "layers"}),
        json!({"megatron_config": {"a": 1}, "megatron_core": "megatron.core", "revision": "main", "some_new_key": {"a": 1}}),
        json!({"modules_to_save": [], "bias": "none", "use_dora": false, "layer_replication": null, "target_parameters": []}),
        json!({"loftq_config": {}, "eva_config": {"rho": 2.0}, "corda_config": null, "kasa_config": null}),
        json!({"target_modules": "all-linear"}),
        json!({"target_modules": null}),
        json!({"rank_pattern": null, "alpha_pattern": null, "init_lora_weights": null}),
        json!({"rank_pattern": {"k_proj": 9}, "alpha_pattern": {"nothing": 1}}),
        json!({"peft_type": null, "use_rslora": null, "task_type": "CAUSAL_LM", "auto_mapping": {"x": "y"}}),
    ];
    for fields in harmless {
        let loaded = Draft::new().with(fields.clone()).parse();
        assert_eq!(loaded.unwrap_or_else(|e| panic!("{fields}: {e}")).modules, 2);
    }
    for init in [
        json!(true),
        json!(false),
        json!("Gaussian"),
        json!("EVA"),
        json!("orthogonal"),
        json!("lora_ga"),
    ] {
        assert!(Draft::new().with(json!({"init_lora_weights": init})).parse().is_ok(), "{init}");
    }
}

#[test]
fn patterns_are_expressions_and_the_first_one_counts() {
    let draft = Draft::new().with(json!({
        "use_rslora": true,
        "rank_pattern": {"[qk]_proj": 4, "q_proj": 9},
        "alpha_pattern": {r"layers\.\d+\.self_attn\.v_proj": 8.0},
    }));
    let mut draft = draft;
    draft.tensors.clear();
    draft.module("self_attn.q_proj", 4, 8, 8);
    draft.module("self_attn.v_proj", 2, 8, 4);
    let loaded = draft.parse().unwrap();
    assert_eq!(find(&loaded, 0, Part::Q), (4, 2.0));
    assert_eq!(find(&loaded, 0, Part::V), (2, (8.0 / 2f64.sqrt()) as f32));
}

#[test]
fn the_digest_covers_both_files() {
    let digest = |draft: &Draft| draft.parse().unwrap().digest;
    let base = digest(&Draft::new());
    assert_eq!(base.len(), 64);
    assert_eq!(base, digest(&Draft::new()));
    assert_ne!(base, digest(&Draft::new().with(json!({"unknown": 1}))));
    let mut draft = Draft::new();
    draft.tensors[0].3[0] ^= 1;
    assert_ne!(base, digest(&draft));
    let folder = Draft::new().folder();
    assert_eq!(base, load(folder.path(), &model(), &limits()).unwrap().digest);
}
