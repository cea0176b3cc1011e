//! Adapters that must be refused, with the reason and the name of what is at fault (test R13).

use super::*;
use crate::error::ErrorKind;

/// Loads from a folder, as a server does.
fn refused(draft: &Draft) -> String {
    let error = load(draft.folder().path(), &model(), &limits()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidRequest, "{error}");
    assert!(!error.message.contains('\n'), "{error}");
    error.message
}

#[test]
fn configurations_that_are_refused() {
    let cases = [
        (json!({"use_dora": true}), "does not yet support DoRA."),
        (json!({"bias": "all"}), "Adapter bias is not supported."),
        (json!({"bias": "lora_only"}), "Adapter bias is not supported."),
        (json!({"bias": null}), "Adapter bias is not supported."),
        (json!({"lora_bias": true}), "LoRA bias (lora_bias)."),
        (json!({"modules_to_save": ["lm_head"]}), "Unsupported modules_to_save: [\"lm_head\"]"),
        (json!({"init_lora_weights": "pissa"}), "init_lora_weights='pissa'. Inits such as PiSSA"),
        (json!({"init_lora_weights": "PiSSA_niter_16"}), "init_lora_weights='PiSSA_niter_16'"),
        (json!({"init_lora_weights": "olora"}), "'olora'"),
        (json!({"init_lora_weights": "corda"}), "'corda'"),
        (json!({"init_lora_weights": "loftq"}), "'loftq'"),
        (json!({"init_lora_weights": 7}), "'7'"),
        (json!({"alora_invocation_tokens": [1, 2]}), "Activated LoRA (aLoRA)."),
        (json!({"layer_replication": [[0, 2]]}), "layer_replication."),
        (json!({"use_qalora": true}), "QALoRA."),
        (json!({"use_bdlora": {}}), "block-diagonal LoRA (BD-LoRA)."),
        (json!({"fan_in_fan_out": true}), "fan_in_fan_out"),
        (json!({"trainable_token_indices": [5]}), "trainable_token_indices"),
        (json!({"trainable_token_indices": {"embed_tokens": [5]}}), "trainable_token_indices"),
        (json!({"target_parameters": ["experts.gate"]}), "target_parameters"),
        (json!({"arrow_config": {"top_k": 3}}), "arrow_config"),
        (json!({"kasa_config": {}}), "kasa_config"),
        (json!({"velora_config": {}}), "velora_config"),
        (json!({"monteclora_config": {}}), "monteclora_config"),
        (json!({"peft_type": "ADALORA"}), "peft_type \"ADALORA\""),
        (json!({"r": 17}), "LoRA rank 17 is greater than max_lora_rank 16."),
        (json!({"rank_pattern": {"x": 99}}), "LoRA rank 99 is greater than max_lora_rank 16."),
        (json!({"r": 0}), "LoRA rank `r` must be a positive integer, got 0."),
        (json!({"r": -2}), "got -2."),
        (json!({"r": "2"}), "got \"2\"."),
        (json!({"r": 2.0}), "got 2.0."),
        (json!({"r": true}), "got true."),
        (json!({"r": null}), "got null."),
        (json!({"r": 1u64 << 63}), "got 9223372036854775808."),
        (json!({"rank_pattern": {"q_proj": 0}}), "LoRA rank for `q_proj` in `rank_pattern`"),
        (json!({"rank_pattern": {"q_proj": 1.5}}), "must be a positive integer, got 1.5."),
        (json!({"rank_pattern": [1]}), "rank_pattern is [1], expected an object"),
        (json!({"rank_pattern": {"(": 1}}), "not a regular expression"),
        (json!({"alpha_pattern": {"(?=q)": 1}}), "not a regular expression"),
        (json!({"alpha_pattern": {"q_proj": "1"}}), "must be a number, got \"1\"."),
        (json!({"alpha_pattern": {"q_proj": 1e308}}), "is not finite"),
        (json!({"lora_alpha": null}), "must be a number, got null."),
        (json!({"lora_alpha": 1e300}), "is not finite"),
    ];
    for (fields, expect) in cases {
        let message = refused(&Draft::new().with(fields.clone()));
        assert!(message.contains(expect), "{fields}: {message}");
    }
    let both = refused(&Draft::new().with(json!({"use_dora": true, "bias": "all", "r": 99})));
    assert_eq!(
        both,
        "This server does not yet support DoRA. LoRA rank 99 is greater than max_lora_rank 16. Adapter bias is not supported."
    );
    for key in ["r", "lora_alpha", "target_modules"] {
        let mut draft = Draft::new();
        draft.config.as_object_mut().unwrap().remove(key);
        assert_eq!(refused(&draft), format!("Missing required configuration fields: {{'{key}'}}"));
    }
    for text in ["", "{", "[]", "null", "{\"r\": NaN}", "{} {}", "\u{feff}{}"] {
        let error = parse(text.as_bytes(), &Draft::new().safetensors(), &model(), &limits());
        assert!(error.unwrap_err().message.contains("adapter_config.json"), "{text}");
    }
    let deep = "[".repeat(100_000);
    assert!(parse(deep.as_bytes(), &[], &model(), &limits()).is_err());
    let large = format!("{{\"a\": \"{}\"}}", "x".repeat(1 << 20));
    let error = parse(large.as_bytes(), &[], &model(), &limits()).unwrap_err().message;
    assert!(error.contains("the limit is 1048576"), "{error}");
}

#[test]
fn tensors_that_have_no_place_are_named() {
    let layer = "base_model.model.model.layers.0";
    let names = [
        (
            "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight",
            "has no module model.layers.2.",
        ),
        ("base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight", "has no module"),
        ("base_model.model.model.layers.+1.self_attn.q_proj.lora_A.weight", "has no module"),
        ("base_model.model.model.layers.-1.self_attn.q_proj.lora_A.weight", "has no module"),
        (
            "base_model.model.model.layers.99999999999999999999.mlp.up_proj.lora_A.weight",
            "has no module",
        ),
        ("base_model.model.model.layers.0.mlp.q_proj.lora_A.weight", "has no module"),
        ("base_model.model.layers.0.self_attn.q_proj.lora_A.weight", "has no module"),
        (
            "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "has no module",
        ),
        ("model.layers.0.self_attn.xq_proj.lora_A.weight", "['model.layers.0.self_attn.xq_proj']"),
        ("model.layers.0.mlp.experts.0.w1.lora_A.weight", "expected target modules in {'q_proj', "),
        ("base_model.model.lm_head.lora_A.weight", "adapters of lm_head are not supported"),
        (
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "adapters of embeddings are not supported",
        ),
        ("base_model.model.model.embed_tokens.lora_A.weight", "adapters of embed_tokens"),
        ("base_model.model.lm_head.weight", "is unsupported LoRA weight"),
        ("base_model.model.lm_head.base_layer.weight", "is unsupported LoRA weight"),
        ("x", "x is unsupported LoRA weight"),
        ("", " is unsupported LoRA weight"),
    ];
    for (name, expect) in names {
        let mut draft = Draft::new();
        draft.floats(name, &[2, 8]);
        let message = refused(&draft);
        let module =
            name.trim_start_matches("base_model.model.").trim_end_matches(".lora_A.weight");
        assert!(message.contains(expect) && message.contains(module), "{name}: {message}");
    }
    for end in
        ["lora_A.default.weight", "lora_magnitude_vector", "lora_A.bias", "lora_B.bias", "bias"]
    {
        let mut draft = Draft::new();
        draft.floats(&format!("{layer}.self_attn.q_proj.{end}"), &[2, 8]);
        let message = refused(&draft);
        assert!(
            message.contains(end) && message.contains("is unsupported LoRA weight"),
            "{message}"
        );
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let check = |change: &dyn Fn(&mut Draft), expect: &[&str]| {
        let mut draft = Draft::new();
        change(&mut draft);
        let message = refused(&draft);
        for expect in expect {
            assert!(message.contains(expect), "{message}");
        }
    };
    let reshape = |at: usize, shape: &[usize]| {
        let shape = shape.to_vec();
        move |draft: &mut Draft| {
            let name = draft.tensors[at].0.clone();
            draft.tensors.remove(at);
            draft.floats(&name, &shape);
        }
    };
    check(
        &reshape(0, &[3, 8]),
        &["q_proj.lora_A.weight has shape [3, 8], expected [2, 8] for rank 2"],
    );
    check(&reshape(0, &[2, 7]), &["q_proj.lora_A.weight has shape [2, 7]"]);
    check(&reshape(0, &[8, 2]), &["q_proj.lora_A.weight has shape [8, 2]"]);
    check(&reshape(1, &[8, 3]), &["q_proj.lora_B.weight has shape [8, 3], expected [8, 2]"]);
    check(&reshape(3, &[8, 2]), &["v_proj.lora_B.weight has shape [8, 2], expected [4, 2]"]);
    check(&reshape(0, &[16]), &["shape [16]"]);
    check(&reshape(0, &[2, 8, 1]), &["shape [2, 8, 1]"]);
    check(&reshape(0, &[2, 0]), &["shape [2, 0]"]);
    check(&|d| drop(d.tensors.remove(1)), &["q_proj.lora_A.weight has no lora_B beside it"]);
    check(&|d| drop(d.tensors.remove(2)), &["v_proj.lora_B.weight has no lora_A beside it"]);
    check(&|d| d.tensors.clear(), &["the adapter has no LoRA tensors"]);
    check(
        &|d| d.config["rank_pattern"] = json!({"v_proj": 4}),
        &["v_proj.lora_A.weight", "rank 4"],
    );
    check(
        &|d| d.floats("model.layers.0.self_attn.q_proj.lora_A.weight", &[2, 8]),
        &[
            "model.layers.0.self_attn.q_proj.lora_A.weight and base_model.model.model",
            "are the same tensor",
        ],
    );
    let twice = |d: &mut Draft| d.tensors.push(d.tensors[0].clone());
    check(&twice, &["q_proj.lora_A.weight is there twice"]);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let change = |d: &mut Draft| d.tensors[3].3[4..8].copy_from_slice(&value.to_le_bytes());
        check(&change, &["v_proj.lora_B.weight holds NaN or infinite values (in bf16)"]);
    }
    for (dtype, bytes) in
        [("BF16", [0x80, 0x7f]), ("BF16", [0xc0, 0xff]), ("F16", [0x00, 0x7c]), ("F16", [1, 0xfc])]
    {
        let change = |d: &mut Draft| {
            (d.tensors[0].1, d.tensors[0].3) = (dtype, [bytes].repeat(16).concat());
        };
        check(&change, &["q_proj.lora_A.weight holds NaN"]);
    }
    for (dtype, size) in [("F64", 8), ("I8", 1), ("I64", 8), ("F8_E4M3", 1), ("BOOL", 1)] {
        let change = |d: &mut Draft| (d.tensors[0].1, d.tensors[0].3) = (dtype, vec![0; 16 * size]);
        check(&change, &["q_proj.lora_A.weight: dtype", dtype, "is not supported"]);
    }
}
