//! `config.json` as transformers 4 and 5 write it.

use loraplex_kernels::DType;
use serde_json::Value;

use super::{Architecture, ModelConfig, Rope, RopeScaling, default_head_dim, limits};
use crate::error::{Error, Result};
use crate::fields::{Fields, brief};

/// What transformers takes for `sliding_window` where the file does not say it.
const DEFAULT_WINDOW: usize = 4096;
/// What transformers takes for Qwen's `max_window_layers` where the file does not say it.
const DEFAULT_WINDOW_LAYERS: u64 = 28;
/// What transformers takes for Qwen3's `head_dim` where the file does not say it.
const QWEN3_HEAD_DIM: usize = 128;
/// More end tokens than any model has.
const MAX_END_TOKENS: usize = 256;

impl ModelConfig {
    /// Reads a parsed `config.json`.
    pub fn from_hf(config: &Value) -> Result<Self> {
        let fields = Fields::new("config.json", config)?;
        let architecture = architecture(&fields)?;
        refuse_unknown_features(&fields)?;
        let hidden_size = fields.required_count("hidden_size", limits::WIDTH)?;
        let layers = fields.required_count("num_hidden_layers", limits::LAYERS)?;
        let heads = fields.required_count("num_attention_heads", limits::HEADS)?;
        let head_dim = match (fields.count("head_dim", limits::HEAD_DIM)?, architecture) {
            (Some(head_dim), _) => head_dim,
            (None, Architecture::Qwen3) => QWEN3_HEAD_DIM,
            (None, _) => default_head_dim(hidden_size, heads)?,
        };
        let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
        let (qkv_bias, o_bias) = match architecture {
            Architecture::Llama | Architecture::Qwen3 => (attention_bias, attention_bias),
            Architecture::Mistral => (false, false),
            Architecture::Qwen2 => (true, false),
        };
        let mlp_bias = fields.flag("mlp_bias")?.unwrap_or(false);
        Self {
            architecture,
            hidden_size,
            layers,
            heads,
            kv_heads: fields.count("num_key_value_heads", limits::HEADS)?.unwrap_or(heads),
            head_dim,
            ffn_size: fields.required_count("intermediate_size", limits::WIDTH)?,
            vocab_size: fields.required_count("vocab_size", limits::VOCAB)?,
            max_position: fields.required_count("max_position_embeddings", limits::POSITIONS)?,
            rms_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
            rope: rope(&fields)?,
            tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias,
            o_bias,
            mlp_bias: mlp_bias && architecture == Architecture::Llama,
            qk_norm: architecture == Architecture::Qwen3,
            window: window(&fields, architecture, layers)?,
            eos_token_ids: end_tokens(&fields)?,
            bos_token_id: token(&fields, "bos_token_id")?,
            dtype: dtype(&fields)?.unwrap_or(DType::F32),
        }
        .check()
    }
}

/// `eos_token_id`: one id, a list of them, or none.
pub(crate) fn end_tokens(fields: &Fields<'_>) -> Result<Vec<u32>> {
    const KEY: &str = "eos_token_id";
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let refuse = || fields.refuse(KEY, "a token id or a short list of them");
    let mut ids = match fields.get(KEY) {
        None => Vec::new(),
        Some(Value::Array(list)) if list.len() <= MAX_END_TOKENS => {
            list.iter().map(one).collect::<Option<Vec<_>>>().ok_or_else(refuse)?
        }
        Some(value) => vec![one(value).ok_or_else(refuse)?],
    };
    let mut seen = std::collections::HashSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

fn token(fields: &Fields<'_>, key: &str) -> Result<Option<u32>> {
    let Some(value) = fields.get(key) else { return Ok(None) };
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.map(Some).ok_or_else(|| fields.refuse(key, "a token id"))
}

fn architecture(fields: &Fields<'_>) -> Result<Architecture> {
    match fields.get("architectures") {
        Some(Value::Array(names)) => match names.first() {
            Some(Value::String(name)) => Architecture::find(name),
            _ => Err(fields.refuse("architectures", "a list of class names")),
        },
        Some(_) => Err(fields.refuse("architectures", "a list of class names")),
        None => match fields.text("model_type")? {
            Some(name) => Architecture::find(name),
            None => Err(Error::invalid("config.json has neither architectures nor model_type")),
        },
    }
}

/// Features that change what a model computes or how its weights are stored.
fn refuse_unknown_features(fields: &Fields<'_>) -> Result<()> {
    if let Some(activation) = fields.text("hidden_act")?
        && activation != "silu"
    {
        return Err(Error::invalid(format!(
            "config.json: hidden_act {activation} is not supported, only silu"
        )));
    }
    if let Some(quantization) = fields.object("quantization_config")? {
        let method = quantization.get("quant_method").map_or_else(|| "unnamed".into(), brief);
        return Err(Error::invalid(format!(
            "config.json: quantization_config (method {method}) is not supported; use the unquantised folder or a GGUF file"
        )));
    }
    for holder in [Some(*fields), fields.object("rope_parameters")?].into_iter().flatten() {
        if let Some(part) = holder.number("partial_rotary_factor")?
            && part != 1.0
        {
            return Err(Error::invalid(format!(
                "config.json: partial_rotary_factor {part} is not supported, only 1"
            )));
        }
    }
    Ok(())
}

fn dtype(fields: &Fields<'_>) -> Result<Option<DType>> {
    let key = if fields.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    let Some(name) = fields.text(key)? else { return Ok(None) };
    match name.strip_prefix("torch.").unwrap_or(name) {
        "float32" => Ok(Some(DType::F32)),
        "bfloat16" => Ok(Some(DType::Bf16)),
        "float16" => Ok(Some(DType::F16)),
        _ => Err(fields.refuse(key, "float32, bfloat16 or float16")),
    }
}

fn rope(fields: &Fields<'_>) -> Result<Rope> {
    let parameters = match fields.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling")?,
    };
    let mut theta = fields.positive("rope_theta")?;
    let mut scaling = RopeScaling::None;
    if let Some(parameters) = parameters {
        if let Some(kind) = ["full_attention", "sliding_attention"]
            .into_iter()
            .find(|kind| parameters.get(kind).is_some())
        {
            return Err(Error::invalid(format!(
                "config.json: rope_parameters for {kind} layers alone are not supported"
            )));
        }
        theta = parameters.positive("rope_theta")?.or(theta);
        scaling = rope_scaling(&parameters)?;
    }
    Ok(Rope { theta: theta.unwrap_or(10_000.0), scaling })
}

fn rope_scaling(parameters: &Fields<'_>) -> Result<RopeScaling> {
    let key = if parameters.get("rope_type").is_some() { "rope_type" } else { "type" };
    let required = |key: &str| {
        parameters.positive(key)?.ok_or_else(|| parameters.refuse(key, "a number above 0"))
    };
    match parameters.text(key)? {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: required("factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: required("factor")?,
            low: required("low_freq_factor")?,
            high: required("high_freq_factor")?,
            original: required("original_max_position_embeddings")?,
        }),
        Some(other) => Err(Error::invalid(format!(
            "config.json: rope scaling {other} is not supported; supported are default, linear and llama3"
        ))),
    }
}

/// The window that all layers share.
fn window(fields: &Fields<'_>, family: Architecture, layers: usize) -> Result<Option<u32>> {
    let size = match fields.count("sliding_window", limits::POSITIONS)? {
        Some(size) => Some(size),
        None if fields.mentions("sliding_window") => None,
        None => Some(DEFAULT_WINDOW),
    };
    let (size, first_windowed) = match family {
        Architecture::Llama => (None, 0),
        Architecture::Mistral => (size, 0),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            if !fields.flag("use_sliding_window")?.unwrap_or(false) {
                (None, 0)
            } else {
                (size, window_layers(fields)?)
            }
        }
    };
    let windowed = match fields.get("layer_types") {
        None if size.is_none() => 0,
        None => layers.saturating_sub(usize::try_from(first_windowed).unwrap_or(usize::MAX)),
        Some(types) => windowed_layers(fields, types, layers)?,
    };
    match (windowed, size) {
        (0, _) => Ok(None),
        (n, Some(size)) if n == layers => {
            Ok(Some(u32::try_from(size).map_err(|_| fields.refuse("sliding_window", "less"))?))
        }
        (n, Some(_)) => Err(Error::invalid(format!(
            "config.json: {n} of {layers} layers with a sliding window are not supported: all layers must be alike"
        ))),
        (_, None) => Err(Error::invalid(
            "config.json: layer_types names sliding_attention but there is no sliding_window",
        )),
    }
}

/// How many layers come before the first one with a window.
fn window_layers(fields: &Fields<'_>) -> Result<u64> {
    const KEY: &str = "max_window_layers";
    let Some(value) = fields.get(KEY) else { return Ok(DEFAULT_WINDOW_LAYERS) };
    value.as_u64().ok_or_else(|| fields.refuse(KEY, "a number of layers"))
}

fn windowed_layers(fields: &Fields<'_>, types: &Value, layers: usize) -> Result<usize> {
    let types = types.as_array().filter(|types| types.len() == layers).ok_or_else(|| {
        fields.refuse("layer_types", format!("a list with a kind for each of {layers} layers"))
    })?;
    let mut windowed = 0;
    for kind in types {
        match kind.as_str() {
            Some("full_attention") => {}
            Some("sliding_attention") => windowed += 1,
            _ => {
                return Err(Error::invalid(format!(
                    "config.json: layer type {} is not supported",
                    brief(kind)
                )));
            }
        }
    }
    Ok(windowed)
}
