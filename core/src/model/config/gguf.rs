//! The same numbers from GGUF metadata.

use loraplex_kernels::DType;

use super::{Architecture, ModelConfig, Rope, RopeScaling, default_head_dim, limits};
use crate::error::{Error, Result};
use crate::model::checkpoint::gguf::{BlockType, Header, Metadata};

/// Tokens that end a turn by their text: files of older converters name only the token that ends a document.
const END_OF_TURN: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>"];
/// GGUF's type of a token that is never text.
const CONTROL: i64 = 3;

impl ModelConfig {
    /// Reads the head of a GGUF file. `rope_factors` are the values of its tensor `rope_freqs.weight`, if it has one.
    pub(crate) fn from_gguf(header: &Header, rope_factors: Option<Vec<f32>>) -> Result<Self> {
        let metadata = &header.metadata;
        let name = metadata.text("general.architecture")?.unwrap_or("unnamed");
        let architecture = Architecture::find(name)?;
        let keys = Keys { metadata, name };
        keys.refuse_unknown_features()?;
        let hidden_size = keys.required("embedding_length", limits::WIDTH)?;
        let heads = keys.required("attention.head_count", limits::HEADS)?;
        let head_dim = match keys.count("attention.key_length", limits::HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None => default_head_dim(hidden_size, heads)?,
        };
        keys.same("attention.value_length", head_dim)?;
        keys.same("rope.dimension_count", head_dim)?;
        let has = |name: &str| header.tensor(name).is_some();
        let window = keys.count("attention.sliding_window", limits::POSITIONS)?;
        Self {
            architecture,
            hidden_size,
            layers: keys.required("block_count", limits::LAYERS)?,
            heads,
            kv_heads: keys.count("attention.head_count_kv", limits::HEADS)?.unwrap_or(heads),
            head_dim,
            ffn_size: keys.required("feed_forward_length", limits::WIDTH)?,
            vocab_size: vocab_size(&keys, header)?,
            max_position: keys.required("context_length", limits::POSITIONS)?,
            rms_eps: keys.positive("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6),
            rope: rope(&keys, rope_factors)?,
            tied_embeddings: !has("output.weight"),
            qkv_bias: has("blk.0.attn_q.bias"),
            o_bias: has("blk.0.attn_output.bias"),
            mlp_bias: has("blk.0.ffn_gate.bias"),
            qk_norm: has("blk.0.attn_q_norm.weight"),
            window: window.and_then(|w| u32::try_from(w).ok()),
            eos_token_ids: end_tokens(metadata)?,
            bos_token_id: token(metadata, "tokenizer.ggml.bos_token_id")?,
            dtype: dtype(header),
        }
        .check()
    }
}

/// The keys of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    name: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    /// An integer from 1 to `max`; 0 counts as absent, as it does for the tools that write these files.
    fn count(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let key = self.key(key);
        match self.metadata.count(&key)? {
            None | Some(0) => Ok(None),
            Some(n) => match usize::try_from(n) {
                Ok(n) if n <= max => Ok(Some(n)),
                _ => Err(Error::invalid(format!("GGUF key {key} is {n}, the limit is {max}"))),
            },
        }
    }

    fn required(&self, key: &str, max: usize) -> Result<usize> {
        self.count(key, max)?
            .ok_or_else(|| Error::invalid(format!("GGUF key {} is missing or 0", self.key(key))))
    }

    fn positive(&self, key: &str) -> Result<Option<f32>> {
        let key = self.key(key);
        match self.metadata.number(&key)?.map(|n| n as f32) {
            Some(n) if !(n > 0.0 && n.is_finite()) => {
                Err(Error::invalid(format!("GGUF key {key} is {n}, expected a number above 0")))
            }
            number => Ok(number),
        }
    }

    /// Refuses a value other than `expected`, if there is one.
    fn same(&self, key: &str, expected: usize) -> Result<()> {
        match self.count(key, usize::MAX)? {
            Some(found) if found != expected => Err(Error::invalid(format!(
                "GGUF key {} is {found}, only {expected} is supported",
                self.key(key)
            ))),
            _ => Ok(()),
        }
    }

    fn refuse_unknown_features(&self) -> Result<()> {
        if let Some(experts) = self.count("expert_count", usize::MAX)? {
            return Err(Error::invalid(format!("models of {experts} experts are not supported")));
        }
        for key in ["embedding_scale", "residual_scale", "logit_scale", "attention.scale"] {
            if let Some(scale) = self.positive(key)?
                && scale != 1.0
            {
                return Err(Error::invalid(format!(
                    "GGUF key {} is {scale}, only 1 is supported",
                    self.key(key)
                )));
            }
        }
        Ok(())
    }
}

fn rope(keys: &Keys<'_>, factors: Option<Vec<f32>>) -> Result<Rope> {
    let theta = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
    let linear = match keys.positive("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.positive("rope.scale_linear")?,
    };
    let kind = keys.key("rope.scaling.type");
    let scaling = match (keys.metadata.text(&kind)?, linear, factors) {
        (None | Some("none" | "linear"), None | Some(1.0), None) => RopeScaling::None,
        (None | Some("linear"), Some(factor), None) => RopeScaling::Linear { factor },
        (Some("none"), Some(_), None) => RopeScaling::None,
        (None | Some("none"), None | Some(1.0), Some(factors)) => RopeScaling::Factors(factors),
        (kind, _, Some(_)) => {
            return Err(Error::invalid(format!(
                "rotary scaling {} together with rope_freqs.weight is not supported",
                kind.unwrap_or("linear")
            )));
        }
        (Some(other), _, None) => {
            return Err(Error::invalid(format!(
                "rotary scaling {other} is not supported; supported are none and linear"
            )));
        }
    };
    Ok(Rope { theta, scaling })
}

/// Rows of the embedding table, which the file may also name and which its tokens may not exceed.
fn vocab_size(keys: &Keys<'_>, header: &Header) -> Result<usize> {
    let tokens = keys.metadata.texts("tokenizer.ggml.tokens")?.map(<[String]>::len);
    let named = keys.count("vocab_size", limits::VOCAB)?;
    let rows = header.tensor("token_embd.weight").map(|tensor| tensor.rows);
    let size = rows.or(named).or(tokens).unwrap_or(0);
    if size == 0 || size > limits::VOCAB {
        return Err(Error::invalid(format!("a vocabulary of {size} tokens is out of range")));
    }
    match tokens {
        Some(tokens) if tokens > size => Err(Error::invalid(format!(
            "the tokenizer has {tokens} tokens, the embedding table only {size} rows"
        ))),
        _ => Ok(size),
    }
}

fn end_tokens(metadata: &Metadata) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for key in ["eos", "eot", "eom"] {
        ids.extend(token(metadata, &format!("tokenizer.ggml.{key}_token_id"))?);
    }
    let texts = metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
    let kinds = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
    for (id, (text, kind)) in texts.iter().zip(kinds).enumerate() {
        if *kind == CONTROL && END_OF_TURN.contains(&text.as_str()) {
            ids.extend(u32::try_from(id));
        }
    }
    let mut seen = std::collections::HashSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

fn token(metadata: &Metadata, key: &str) -> Result<Option<u32>> {
    // Older converters write the largest integer where there is no such token.
    Ok(metadata.count(key)?.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX))
}

/// What the matrices are stored in: bf16 once they are dequantised.
fn dtype(header: &Header) -> DType {
    match header.tensor("blk.0.attn_q.weight").map(|tensor| tensor.kind) {
        Some(BlockType::F32) => DType::F32,
        Some(BlockType::F16) => DType::F16,
        Some(BlockType::Bf16 | BlockType::Quantized(_)) | None => DType::Bf16,
    }
}
