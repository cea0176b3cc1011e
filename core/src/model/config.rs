//! What a decoder looks like, from `config.json` or from GGUF metadata.
//!
//! What this module must never do: accept a model that the engine would compute in another way than its authors mean.
//! Whatever is not understood (an activation, a kind of rotary scaling, windows that differ by layer) is refused by name.

mod gguf;
mod hf;
mod rope;
#[cfg(test)]
mod tests;

use loraplex_kernels::{DType, Part};

pub(crate) use hf::end_tokens;
pub use rope::{Rope, RopeScaling};

use crate::error::{Error, Result};

/// The families of decoders that the engine computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM2, TinyLlama and everything that took over their layout.
    Llama,
    /// Llama's layout, with a sliding window in some releases.
    Mistral,
    /// Biases on q, k and v.
    Qwen2,
    /// Norms on q and k.
    Qwen3,
}

impl Architecture {
    /// Every family.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// The class name that Hugging Face's `architectures` uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The name that `model_type` and GGUF's `general.architecture` use.
    const fn short_name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The family of a class name or a short name.
    fn find(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|a| a.name() == name || a.short_name() == name);
        found.ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|a| a.name()).collect();
            Error::invalid(format!(
                "architecture {name} is not supported; supported are {}",
                known.join(", ")
            ))
        })
    }
}

/// The shape of a decoder and the constants that it computes with; every number is inside [`limits`].
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even. `heads * head_dim` may differ from `hidden_size`.
    pub head_dim: usize,
    /// Width of the MLP.
    pub ffn_size: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Longest sequence that the model was made for.
    pub max_position: usize,
    /// Epsilon of every norm.
    pub rms_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// The output head is the embedding table.
    pub tied_embeddings: bool,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// The attention's output projection has a bias.
    pub o_bias: bool,
    /// gate, up and down have biases.
    pub mlp_bias: bool,
    /// Each head of q and k is normed before the rotation.
    pub qk_norm: bool,
    /// A token sees this many tokens, itself included; `None` sees all before it.
    pub window: Option<u32>,
    /// Tokens that end an output, without doubles.
    pub eos_token_ids: Vec<u32>,
    /// Starts a text.
    pub bos_token_id: Option<u32>,
    /// What the checkpoint's matrices are stored in; bf16 where they are quantised.
    pub dtype: DType,
}

/// The largest numbers that a configuration may hold: far above any model, far below what overflows a size.
pub mod limits {
    /// Of `hidden_size` and `ffn_size`.
    pub const WIDTH: usize = 1 << 20;
    /// Of `layers`.
    pub const LAYERS: usize = 1 << 10;
    /// Of `heads` and `kv_heads`.
    pub const HEADS: usize = 1 << 12;
    /// Of `head_dim`.
    pub const HEAD_DIM: usize = 1 << 12;
    /// Of `vocab_size`.
    pub const VOCAB: usize = 1 << 24;
    /// Of `max_position`.
    pub const POSITIONS: usize = 1 << 28;
}

impl ModelConfig {
    /// Inputs and outputs of a linear module.
    pub(crate) fn module_shape(&self, part: Part) -> (usize, usize) {
        let (hidden, q, kv, ffn) = (self.hidden_size, self.q_size(), self.kv_size(), self.ffn_size);
        match part {
            Part::Q => (hidden, q),
            Part::K | Part::V => (hidden, kv),
            Part::O => (q, hidden),
            Part::Gate | Part::Up => (hidden, ffn),
            Part::Down => (ffn, hidden),
        }
    }

    /// Outputs of the q projection.
    pub fn q_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Outputs of the k projection, and of the v projection.
    pub fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Takes these end tokens, those that the vocabulary has.
    pub(crate) fn set_end_tokens(&mut self, mut ids: Vec<u32>) {
        ids.retain(|id| (*id as usize) < self.vocab_size);
        self.eos_token_ids = ids;
    }

    /// Relations between numbers that are in bounds each by themselves.
    fn check(mut self) -> Result<Self> {
        let ends = std::mem::take(&mut self.eos_token_ids);
        self.set_end_tokens(ends);
        self.bos_token_id = self.bos_token_id.filter(|id| (*id as usize) < self.vocab_size);
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::invalid(format!(
                "{} attention heads are no multiple of {} key and value heads",
                self.heads, self.kv_heads
            )));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return Err(Error::invalid(format!(
                "head_dim {} is odd or zero: it cannot be rotated in pairs",
                self.head_dim
            )));
        }
        if self.head_dim > limits::HEAD_DIM || self.q_size() > limits::WIDTH {
            return Err(Error::invalid(format!(
                "{} heads of {} are beyond the limit of {} outputs",
                self.heads,
                self.head_dim,
                limits::WIDTH
            )));
        }
        if self.rms_eps >= 1.0 {
            return Err(Error::invalid(format!("norm epsilon {} is not below 1", self.rms_eps)));
        }
        self.rope.check(self.head_dim)?;
        Ok(self)
    }
}

/// `hidden / heads`, which must be a whole number.
fn default_head_dim(hidden_size: usize, heads: usize) -> Result<usize> {
    if hidden_size.is_multiple_of(heads) {
        Ok(hidden_size / heads)
    } else {
        Err(Error::invalid(format!(
            "hidden_size {hidden_size} is no multiple of {heads} attention heads and there is no head_dim"
        )))
    }
}
