//! Adapters of the base: PEFT's two files for a label.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::place::{FFN, HEAD, HIDDEN, KEY, ONE, OWN, VALUE_ONE};
use super::tensors::{Matrix, safetensors};
use super::{Label, digits, model};

/// The files of an adapter.
#[derive(Debug, Clone)]
pub struct AdapterFiles {
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`.
    pub weights: Vec<u8>,
}

impl AdapterFiles {
    /// An adapter that writes `label` in place of the base's, in `rank` equal parts.
    pub fn new(label: Label, rank: usize) -> Self {
        let mut tensors = Vec::new();
        let mut targets = Vec::new();
        for part in parts(label) {
            let name = part.module.rsplit('.').next().unwrap();
            targets.push(name.to_owned());
            // Each part of the rank reads the same constant and writes its share of the difference.
            let mut a = Matrix::zeros(rank, part.inputs);
            let mut b = Matrix::zeros(part.outputs, rank);
            for share in 0..rank {
                a.add(share, part.reads, 1.0);
                b.add(part.at, share, -part.value / rank as f32);
                b.add(part.at + part.digit, share, part.value / rank as f32);
            }
            for (half, matrix) in [("A", a), ("B", b)] {
                tensors.push((
                    format!("base_model.model.model.layers.{}.lora_{half}.weight", part.module),
                    matrix,
                ));
            }
        }
        targets.sort_unstable();
        targets.dedup();
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank,
            "target_modules": targets, "bias": "none",
        });
        Self { config: config.to_string().into_bytes(), weights: safetensors(&tensors, true) }
    }

    /// Writes both files into `folder`, which is made if it is absent.
    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("adapter_config.json"), &self.config).unwrap();
        fs::write(folder.join("adapter_model.safetensors"), &self.weights).unwrap();
    }
}

/// A projection's change: the base's digit 0 at `at` becomes `digit`.
struct Part {
    module: String,
    outputs: usize,
    inputs: usize,
    /// The input that is constant.
    reads: usize,
    at: usize,
    digit: usize,
    value: f32,
}

fn parts(label: Label) -> Vec<Part> {
    let mut parts = Vec::new();
    for (layer, digit) in digits(label).into_iter().enumerate() {
        for (name, at, value) in
            [("q_proj", KEY, -model::AVOID), ("k_proj", KEY, 1.0), ("v_proj", 0, 1.0)]
        {
            let module = format!("{layer}.self_attn.{name}");
            parts.push(Part {
                module,
                outputs: HEAD,
                inputs: HIDDEN,
                reads: ONE,
                at,
                digit,
                value,
            });
        }
        let (name, inputs, reads, value) = match layer {
            0 => ("self_attn.o_proj", HEAD, VALUE_ONE, 1.0),
            _ => ("mlp.down_proj", FFN, 0, 1.0 / model::UNIT),
        };
        let (module, at) = (format!("{layer}.{name}"), OWN[layer]);
        parts.push(Part { module, outputs: HIDDEN, inputs, reads, at, digit, value });
    }
    parts
}
