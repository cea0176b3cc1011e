//! Random adapters for a model, as PEFT folders: only their size matters to a benchmark.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use loraplex_core::model::{Checkpoint, ModelConfig};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;

use super::workload::Random;

/// Weights are drawn from a pool of so many.
const POOL: usize = 1 << 14;

/// Writes adapter `index` of `rank` on all seven projections of `model` below `folder`.
pub(super) fn write(
    folder: &Path,
    model: &ModelConfig,
    rank: usize,
    index: usize,
) -> Result<PathBuf> {
    write_some(folder.join(format!("random-{index}")), model, (rank, 7), index as u64)
}

/// Writes an adapter of `rank` on the first `projections` of q, k, v, o, gate, up and down to the folder `path`.
pub(crate) fn write_some(
    path: PathBuf,
    model: &ModelConfig,
    (rank, projections): (usize, usize),
    seed: u64,
) -> Result<PathBuf> {
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let (hidden, ffn, q, kv) = (model.hidden_size, model.ffn_size, model.q_size(), model.kv_size());
    let all = [
        ("self_attn.q_proj", q, hidden),
        ("self_attn.k_proj", kv, hidden),
        ("self_attn.v_proj", kv, hidden),
        ("self_attn.o_proj", hidden, q),
        ("mlp.gate_proj", ffn, hidden),
        ("mlp.up_proj", ffn, hidden),
        ("mlp.down_proj", hidden, ffn),
    ];
    let modules = &all[..projections];
    let largest = hidden.max(ffn).max(q) * rank;
    let mut random = Random::new(seed, 0);
    // Small, so that answers stay finite: the upper half of an f32 is a bf16.
    let pool: Vec<[u8; 2]> = (0..POOL)
        .map(|_| {
            let bits = ((random.unit() as f32 - 0.5) * 0.02).to_bits();
            ((bits >> 16) as u16).to_le_bytes()
        })
        .collect();
    let bytes: Vec<u8> = pool.iter().cycle().take(largest).flatten().copied().collect();
    let mut tensors = Vec::new();
    for layer in 0..model.layers {
        for &(module, outputs, inputs) in modules {
            for (half, shape) in [("A", [rank, inputs]), ("B", [outputs, rank])] {
                let name =
                    format!("base_model.model.model.layers.{layer}.{module}.lora_{half}.weight");
                let size = shape[0] * shape[1] * 2;
                tensors.push((name, TensorView::new(Dtype::BF16, shape.to_vec(), &bytes[..size])?));
            }
        }
    }
    let file = path.join("adapter_model.safetensors");
    serialize_to_file(tensors, None, &file)
        .with_context(|| format!("cannot write {}", file.display()))?;
    let names: Vec<&str> = modules.iter().filter_map(|(name, ..)| name.split('.').nth(1)).collect();
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "random",
        "r": rank, "lora_alpha": rank, "target_modules": names,
    });
    fs::write(path.join("adapter_config.json"), config.to_string())?;
    Ok(path)
}

/// Shapes of the model at `model`, a Hugging Face folder or a GGUF file. Reads no weights.
pub(crate) fn shapes(model: &Path) -> Result<ModelConfig> {
    let checkpoint = Checkpoint::dummy(model, 0).with_context(|| {
        format!(
            "no random adapters can be made for {}; name some with --lora-modules",
            model.display()
        )
    })?;
    Ok(checkpoint.config)
}
