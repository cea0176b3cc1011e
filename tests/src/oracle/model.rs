//! The base: a Hugging Face folder of Llama's architecture.

use std::fs;
use std::path::Path;

use serde_json::{Map, json};

use super::place::{FFN, HEAD, HIDDEN, KEY, ONE, OWN, READ, VALUE_ONE};
use super::tensors::{Matrix, safetensors};
use super::{LABELS, VOCAB, digits};

/// How far a query pushes its own label away: far enough that one foreign position outweighs all others.
pub(super) const AVOID: f32 = 100.0;
/// What the MLP's only unit gives for the gate's and up's weights below: silu(4).
pub(super) const UNIT: f32 = 3.928;
/// The embedding's constant. Large beside the digits, so that norms scale by nearly the same at every layer.
const CONSTANT: f32 = 16.0;
/// Brings the constant to 1: a norm divides by CONSTANT / sqrt(HIDDEN).
const NORM: f32 = 0.125;

/// Writes the model into `folder`, which exists.
pub fn write_model(folder: &Path) {
    let write = |file: &str, bytes: Vec<u8>| fs::write(folder.join(file), bytes).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": 2,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": HEAD, "hidden_act": "silu",
        "max_position_embeddings": 1024, "vocab_size": VOCAB, "rms_norm_eps": 1e-6,
        // The places of labels turn by less than a hundredth over the model's length.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e14},
        "tie_word_embeddings": false, "eos_token_id": null,
    });
    write("config.json", config.to_string().into_bytes());
    write("tokenizer.json", tokenizer().to_string().into_bytes());
    write("model.safetensors", safetensors(&tensors(), false));
}

fn tokenizer() -> serde_json::Value {
    let text = |token: u32| format!("{:02}.{:02}", token / LABELS, token % LABELS);
    let vocab: Map<_, _> = (0..VOCAB).map(|token| (text(token), json!(token))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
        "decoder": null, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "00.00"},
    })
}

fn tensors() -> Vec<(String, Matrix)> {
    let mut embedding = Matrix::zeros(VOCAB as usize, HIDDEN);
    let mut head = Matrix::zeros(VOCAB as usize, HIDDEN);
    for token in 0..VOCAB {
        let row = token as usize;
        embedding.add(row, ONE, CONSTANT);
        for (label, places) in [(token / LABELS, OWN), (token % LABELS, READ)] {
            for (digit, place) in digits(label).into_iter().zip(places) {
                head.add(row, place + digit, 1.0);
            }
        }
    }
    let mut ones = Matrix::zeros(1, HIDDEN);
    (0..HIDDEN).for_each(|place| ones.add(0, place, 1.0));
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), embedding),
        ("lm_head.weight".to_owned(), head),
        ("model.norm.weight".to_owned(), ones),
    ];
    for layer in 0..2 {
        let parts = layer_tensors(layer).into_iter();
        all.extend(parts.map(|(name, matrix)| (format!("model.layers.{layer}.{name}"), matrix)));
    }
    all
}

/// Layer 0 handles the tens and layer 1 the units. The base writes its own label, 0, with the first place of each ten.
fn layer_tensors(layer: usize) -> Vec<(&'static str, Matrix)> {
    let norm = || Matrix::zeros(1, HIDDEN).set(0, ONE, NORM);
    let mut o = Matrix::zeros(HIDDEN, HEAD);
    for digit in 0..10 {
        o.add(READ[layer] + digit, digit, 1.0);
    }
    let (mut gate, mut up) = (Matrix::zeros(FFN, HIDDEN), Matrix::zeros(FFN, HIDDEN));
    let mut down = Matrix::zeros(HIDDEN, FFN);
    if layer == 0 {
        o.add(OWN[0], VALUE_ONE, 1.0);
    } else {
        gate.add(0, ONE, 4.0);
        up.add(0, ONE, 1.0);
        down.add(OWN[1], 0, 1.0 / UNIT);
    }
    vec![
        ("input_layernorm.weight", norm()),
        ("self_attn.q_proj.weight", Matrix::zeros(HEAD, HIDDEN).set(KEY, ONE, -AVOID)),
        ("self_attn.k_proj.weight", Matrix::zeros(HEAD, HIDDEN).set(KEY, ONE, 1.0)),
        (
            "self_attn.v_proj.weight",
            Matrix::zeros(HEAD, HIDDEN).set(0, ONE, 1.0).set(VALUE_ONE, ONE, 1.0),
        ),
        ("self_attn.o_proj.weight", o),
        ("post_attention_layernorm.weight", norm()),
        ("mlp.gate_proj.weight", gate),
        ("mlp.up_proj.weight", up),
        ("mlp.down_proj.weight", down),
    ]
}
