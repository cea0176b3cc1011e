//! `adapter_config.json`: ranks and scales, and everything that must not be there.
//!
//! Messages follow vLLM's, so that clients which know those understand ours; several reasons are joined by a space.

use serde_json::{Map, Value};

use super::pattern::PatternTable;
use crate::error::{Error, Result};
use crate::fields::brief;

const REQUIRED: [&str; 3] = ["r", "lora_alpha", "target_modules"];
/// Entries of `rank_pattern` and of `alpha_pattern`.
const MAX_PATTERNS: usize = 16_384;
/// Largest rank that any number in the file may name, whatever the operator allows.
const MAX_RANK: u64 = 1 << 20;
/// Ways to initialise that leave the base model as it was.
const HARMLESS_INITS: [&str; 6] = ["gaussian", "eva", "orthogonal", "mica", "lora_ga", "true"];

/// What the configuration says about every module.
#[derive(Debug)]
pub(super) struct Spec {
    rank: usize,
    alpha: f64,
    rank_stabilised: bool,
    ranks: PatternTable<usize>,
    alphas: PatternTable<f64>,
    /// The model that the adapter was trained on, as its author named it.
    pub(super) base_model: Option<String>,
}

impl Spec {
    /// Parses the file's bytes.
    pub(super) fn parse(json: &[u8], max_rank: usize) -> Result<Self> {
        let config: Value = serde_json::from_slice(json)
            .map_err(|error| Error::invalid(format!("adapter_config.json is not JSON: {error}")))?;
        let Value::Object(config) = &config else {
            return Err(Error::invalid("adapter_config.json is not a JSON object"));
        };
        let missing: Vec<_> = REQUIRED.iter().filter(|key| !config.contains_key(**key)).collect();
        if !missing.is_empty() {
            let names: Vec<_> = missing.iter().map(|key| format!("'{key}'")).collect();
            return Err(Error::invalid(format!(
                "Missing required configuration fields: {{{}}}",
                names.join(", ")
            )));
        }
        let mut reasons = unsupported(config);
        let ranks = ranks(config, max_rank, &mut reasons)?;
        if config.get("bias").is_some_and(|bias| !matches!(bias.as_str(), Some("none"))) {
            reasons.push("Adapter bias is not supported.".into());
        }
        if !reasons.is_empty() {
            return Err(Error::invalid(reasons.join(" ")));
        }
        let (rank, ranks) = ranks;
        Ok(Self {
            rank,
            alpha: alpha("lora_alpha", config.get("lora_alpha").unwrap_or(&Value::Null))?,
            rank_stabilised: truthy(config.get("use_rslora")),
            ranks,
            alphas: alphas(config)?,
            base_model: config
                .get("base_model_name_or_path")
                .and_then(Value::as_str)
                .map(str::to_owned),
        })
    }

    /// The rank of a module, by its name in the model.
    pub(super) fn rank(&self, module: &str) -> usize {
        self.ranks.find(module).unwrap_or(self.rank)
    }

    /// What the product of B and A is multiplied with.
    pub(super) fn scale(&self, module: &str) -> Result<f32> {
        let alpha = self.alphas.find(module).unwrap_or(self.alpha);
        let rank = self.rank(module) as f64;
        let scale = if self.rank_stabilised { alpha / rank.sqrt() } else { alpha / rank } as f32;
        if scale.is_finite() {
            Ok(scale)
        } else {
            Err(Error::invalid(format!("the scale of {module} is not finite: alpha is {alpha}")))
        }
    }
}

/// Features that change what the adapter computes and that nobody here computes.
fn unsupported(config: &Map<String, Value>) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(kind) = config.get("peft_type").filter(|kind| !kind.is_null() && *kind != "LORA") {
        reasons.push(format!("peft_type {} is not supported, only \"LORA\".", brief(kind)));
    }
    if let Some(modules) = config.get("modules_to_save").filter(|modules| truthy(Some(modules))) {
        reasons.push(format!(
            "modules_to_save is not supported: the adapter brings whole modules of its own. Unsupported modules_to_save: {}",
            brief(modules)
        ));
    }
    let on = [
        ("use_dora", "This server does not yet support DoRA."),
        ("lora_bias", "This server does not support LoRA bias (lora_bias)."),
        ("alora_invocation_tokens", "This server does not support Activated LoRA (aLoRA)."),
        ("layer_replication", "This server does not support layer_replication."),
        ("use_bdlora", "This server does not support block-diagonal LoRA (BD-LoRA)."),
        ("use_qalora", "This server does not support QALoRA."),
        (
            "fan_in_fan_out",
            "This server does not support fan_in_fan_out: no module here is stored transposed.",
        ),
        (
            "trainable_token_indices",
            "This server does not support trainable_token_indices: the adapter changes embeddings.",
        ),
        ("target_parameters", "This server does not support target_parameters."),
    ];
    let active = on.iter().filter(|(key, _)| {
        let value = config.get(*key);
        // An object is a configuration of the feature, which is on even when it is empty.
        truthy(value) || matches!(value, Some(Value::Object(_)))
    });
    reasons.extend(active.map(|(_, reason)| (*reason).to_owned()));
    // Variants of LoRA that compute something else (PEFT marks these), switched on by a configuration of their own.
    for key in ["arrow_config", "kasa_config", "monteclora_config", "velora_config"] {
        if config.get(key).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false))) {
            reasons.push(format!("This server does not support {key}: a variant of LoRA."));
        }
    }
    reasons.extend(unsupported_init(config.get("init_lora_weights")));
    reasons
}

fn unsupported_init(init: Option<&Value>) -> Option<String> {
    let name = match init? {
        Value::Null | Value::Bool(_) => return None,
        Value::String(name) => name.clone(),
        other => brief(other),
    };
    let lower = name.to_lowercase();
    if HARMLESS_INITS.contains(&lower.as_str()) || lower == "false" {
        return None;
    }
    Some(format!(
        "This server does not support init_lora_weights='{}'. Inits such as PiSSA, OLoRA, CorDA and LoftQ modify the base model weights when PEFT loads the adapter. Convert it to a regular LoRA adapter with PEFT's path_initial_model_for_weight_conversion, or set init_lora_weights to true if the served base model already contains the modified weights.",
        name.chars().take(80).collect::<String>()
    ))
}

/// `r` and `rank_pattern`. Bad numbers join `reasons`.
fn ranks(
    config: &Map<String, Value>,
    max_rank: usize,
    reasons: &mut Vec<String>,
) -> Result<(usize, PatternTable<usize>)> {
    let integer = |value: &Value| {
        let rank = value.as_u64().filter(|rank| (1..=MAX_RANK).contains(rank))?;
        usize::try_from(rank).ok()
    };
    let found = config.get("r").unwrap_or(&Value::Null);
    let rank = integer(found);
    if rank.is_none() {
        reasons.push(format!("LoRA rank `r` must be a positive integer, got {}.", brief(found)));
    }
    let mut table = PatternTable::default();
    for (key, value) in pattern(config, "rank_pattern")? {
        match integer(value) {
            Some(rank) => table.add(key, rank).map_err(|e| e.context("rank_pattern"))?,
            None => reasons.push(format!(
                "LoRA rank for `{}` in `rank_pattern` must be a positive integer, got {}.",
                key.chars().take(80).collect::<String>(),
                brief(value)
            )),
        }
    }
    let rank = rank.unwrap_or(0);
    let largest = table.values().fold(rank, usize::max);
    if largest > max_rank {
        reasons.push(format!("LoRA rank {largest} is greater than max_lora_rank {max_rank}."));
    }
    // A file full of bad numbers needs no answer of its own size.
    reasons.truncate(16);
    Ok((rank, table))
}

fn alphas(config: &Map<String, Value>) -> Result<PatternTable<f64>> {
    let mut table = PatternTable::default();
    for (key, value) in pattern(config, "alpha_pattern")? {
        let value = alpha("alpha_pattern", value)?;
        table.add(key, value).map_err(|e| e.context("alpha_pattern"))?;
    }
    Ok(table)
}

fn alpha(key: &str, value: &Value) -> Result<f64> {
    value.as_f64().filter(|alpha| alpha.is_finite()).ok_or_else(|| {
        Error::invalid(format!("LoRA alpha in `{key}` must be a number, got {}.", brief(value)))
    })
}

fn pattern<'a>(
    config: &'a Map<String, Value>,
    key: &str,
) -> Result<impl Iterator<Item = (&'a String, &'a Value)>> {
    let rows = match config.get(key) {
        None | Some(Value::Null) => None,
        Some(Value::Object(rows)) if rows.len() <= MAX_PATTERNS => Some(rows),
        Some(Value::Object(rows)) => {
            return Err(Error::invalid(format!(
                "{key} has {} entries, the limit is {MAX_PATTERNS}",
                rows.len()
            )));
        }
        Some(other) => {
            return Err(Error::invalid(format!("{key} is {}, expected an object", brief(other))));
        }
    };
    Ok(rows.into_iter().flatten())
}

/// What Python takes for true.
fn truthy(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Bool(flag)) => *flag,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
    }
}
