//! Adapters that load, adapters that must not, and adapters with changed bytes.

mod files;
mod good;
mod refused;

use serde_json::{Value, json};

use super::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

/// A Llama of two layers: hidden 8, q 8, k and v 4, MLP 6.
fn model() -> ModelConfig {
    ModelConfig::from_hf(&json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 6,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32,
        "max_position_embeddings": 64,
    }))
    .unwrap()
}

fn limits() -> PeftLimits {
    PeftLimits::new(16)
}

fn load(folder: &Path, model: &ModelConfig, limits: &PeftLimits) -> Result<LoadedPeft> {
    super::load(folder, model, limits, &AdapterMemory::default())
}

fn parse(
    config: &[u8],
    weights: &[u8],
    model: &ModelConfig,
    limits: &PeftLimits,
) -> Result<LoadedPeft> {
    super::parse(config, &SharedBytes::new(weights.to_vec()), model, limits)
}

/// A file's tensor: name, dtype, shape, bytes.
#[derive(Clone)]
struct Tensor(String, &'static str, Vec<usize>, Vec<u8>);

/// An adapter in the making: of rank 2, for q and v of layer 0 unless changed.
struct Draft {
    config: Value,
    tensors: Vec<Tensor>,
}

impl Draft {
    fn new() -> Self {
        let mut draft = Self {
            config: json!({
                "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
                "base_model_name_or_path": "some/base",
            }),
            tensors: Vec::new(),
        };
        draft.module("self_attn.q_proj", 2, 8, 8);
        draft.module("self_attn.v_proj", 2, 8, 4);
        draft
    }

    /// Sets fields of the configuration; `null` stays `null`.
    fn with(mut self, fields: Value) -> Self {
        for (key, value) in fields.as_object().unwrap() {
            self.config[key] = value.clone();
        }
        self
    }

    /// Adds both matrices of a module of layer 0.
    fn module(&mut self, module: &str, rank: usize, inputs: usize, outputs: usize) {
        let name =
            |letter| format!("base_model.model.model.layers.0.{module}.lora_{letter}.weight");
        self.floats(&name("A"), &[rank, inputs]);
        self.floats(&name("B"), &[outputs, rank]);
    }

    fn floats(&mut self, name: &str, shape: &[usize]) {
        let len = shape.iter().product::<usize>();
        let bytes = (0..len).flat_map(|i| (i as f32 / 8.0).to_le_bytes()).collect();
        self.tensors.push(Tensor(name.into(), "F32", shape.to_vec(), bytes));
    }

    fn config_bytes(&self) -> Vec<u8> {
        self.config.to_string().into_bytes()
    }

    fn safetensors(&self) -> Vec<u8> {
        let mut data = Vec::new();
        let mut entries = vec![r#""__metadata__":{"format":"pt"}"#.to_owned()];
        for Tensor(name, dtype, shape, bytes) in &self.tensors {
            let from = data.len();
            data.extend_from_slice(bytes);
            entries.push(format!(
                r#"{}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{from},{}]}}"#,
                json!(name),
                data.len()
            ));
        }
        file(&format!("{{{}}}", entries.join(",")), &data)
    }

    fn parse(&self) -> Result<LoadedPeft> {
        parse(&self.config_bytes(), &self.safetensors(), &model(), &limits())
    }

    /// The adapter in a folder.
    fn folder(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(CONFIG), self.config_bytes()).unwrap();
        std::fs::write(folder.path().join(WEIGHTS), self.safetensors()).unwrap();
        folder
    }
}

/// A safetensors file with this header.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out
}
