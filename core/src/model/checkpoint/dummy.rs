//! Random weights by name: for measuring a model whose weights are not at hand.
//!
//! Values depend on the seed and the tensor's name alone, and have the scale of trained ones, so that activations
//! neither vanish nor overflow.

use std::thread;

use half::bf16;
use loraplex_kernels::{HostData, HostTensor};

use crate::error::{Error, Result};
use crate::model::config::ModelConfig;

/// A source of random weights.
#[derive(Debug)]
pub(super) struct Dummy {
    seed: u64,
}

/// What a tensor holds, and its shape.
struct Shape {
    rows: usize,
    cols: usize,
    /// Norm weights are around one, all others around zero.
    norm: bool,
}

impl Dummy {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed }
    }

    pub(super) fn has(&self, config: &ModelConfig, name: &str) -> bool {
        shape(config, name).is_some()
    }

    pub(super) fn tensor(&self, config: &ModelConfig, name: &str) -> Result<HostTensor> {
        let shape = shape(config, name)
            .ok_or_else(|| Error::invalid(format!("the model has no tensor {name}")))?;
        let elements = shape.rows.checked_mul(shape.cols).ok_or_else(|| {
            Error::invalid(format!(
                "tensor {name} of [{}, {}] is too large",
                shape.rows, shape.cols
            ))
        })?;
        let start = start(self.seed, name);
        let (mean, spread) =
            if shape.norm { (1.0, 0.1) } else { (0.0, 1.0 / (shape.cols as f32).sqrt()) };
        // Uniform: three times the variance's root on each side.
        let width = spread * 3f32.sqrt();
        let mut values = vec![bf16::ZERO; elements];
        fill_together(&mut values, shape.cols.max(1), |row, values| {
            let mut random = Random::of_row(start, row);
            values.fill_with(|| bf16::from_f32(mean + width * random.next()));
        });
        Ok(HostTensor::new(shape.rows, shape.cols, HostData::Bf16(values))?)
    }
}

/// Has every row filled, on all cores.
fn fill_together(values: &mut [bf16], cols: usize, fill: impl Fn(usize, &mut [bf16]) + Sync) {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let rows = (values.len() / cols).div_ceil(cores).max(1);
    thread::scope(|scope| {
        for (share, values) in values.chunks_mut(rows * cols).enumerate() {
            let fill = &fill;
            scope.spawn(move || {
                for (row, values) in values.chunks_mut(cols).enumerate() {
                    fill(share * rows + row, values);
                }
            });
        }
    });
}

/// The shape of a tensor of such a model; `None` where it has no such tensor.
fn shape(config: &ModelConfig, name: &str) -> Option<Shape> {
    let hidden = config.hidden_size;
    let matrix = |rows, cols| Some(Shape { rows, cols, norm: false });
    let norm = |cols| Some(Shape { rows: 1, cols, norm: true });
    match name {
        "model.embed_tokens.weight" => return matrix(config.vocab_size, hidden),
        "lm_head.weight" if !config.tied_embeddings => return matrix(config.vocab_size, hidden),
        "model.norm.weight" => return norm(hidden),
        _ => {}
    }
    let (layer, module) = name.strip_prefix("model.layers.")?.split_once('.')?;
    if layer.parse::<usize>().ok()? >= config.layers {
        return None;
    }
    let (module, kind) = module.rsplit_once('.')?;
    let (q, kv, ffn) = (config.q_size(), config.kv_size(), config.ffn_size);
    let (rows, cols, bias) = match module {
        "input_layernorm" | "post_attention_layernorm" if kind == "weight" => return norm(hidden),
        "self_attn.q_norm" | "self_attn.k_norm" if kind == "weight" && config.qk_norm => {
            return norm(config.head_dim);
        }
        "self_attn.q_proj" => (q, hidden, config.qkv_bias),
        "self_attn.k_proj" | "self_attn.v_proj" => (kv, hidden, config.qkv_bias),
        "self_attn.o_proj" => (hidden, q, config.o_bias),
        "mlp.gate_proj" | "mlp.up_proj" => (ffn, hidden, config.mlp_bias),
        "mlp.down_proj" => (hidden, ffn, config.mlp_bias),
        _ => return None,
    };
    match kind {
        "weight" => matrix(rows, cols),
        "bias" if bias => matrix(1, rows),
        _ => None,
    }
}

/// A xorshift generator: 64 bits of state are plenty for weights that nobody trusts.
struct Random(u64);

/// Where the rows of a tensor start from.
fn start(seed: u64, name: &str) -> u64 {
    let digest = blake3::hash(name.as_bytes());
    let mut start = [0; 8];
    start.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(start) ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Random {
    fn of_row(start: u64, row: usize) -> Self {
        let mut state = start.wrapping_add((row as u64).wrapping_mul(0xd134_2543_de82_ef95));
        state = (state ^ (state >> 32)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        // Never zero: zero stays zero.
        Self((state ^ (state >> 29)) | 1)
    }

    /// From -1 to 1.
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
