//! What an adapter's configuration says, judged before its weights are asked for.

use loraplex_plugin_sdk::{ResolveError, ResolverConfig};
use serde_json::Value;

pub(crate) const CONFIG: &str = "adapter_config.json";
pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";
/// Bytes of a configuration at most.
pub(crate) const MAX_CONFIG: u64 = 1 << 20;

/// Whether a configuration is one of a LoRA adapter of this base model; the base model that it names.
pub(crate) fn fits(
    name: &str,
    text: &[u8],
    base: &ResolverConfig,
) -> Result<Option<String>, ResolveError> {
    let config: Value = serde_json::from_slice(text)
        .map_err(|error| ResolveError::invalid(format!("{CONFIG} of {name:?}: {error}")))?;
    match &config["peft_type"] {
        Value::Null => {}
        Value::String(kind) if kind == "LORA" => {}
        other => {
            let reason = format!("adapter {name:?} has the peft_type {other}, not \"LORA\"");
            return Err(ResolveError::not_found(reason));
        }
    }
    let Some(found) = config["base_model_name_or_path"].as_str() else { return Ok(None) };
    if base.is_base_model(found) {
        return Ok(Some(found.to_owned()));
    }
    let ours = base.base_model_names.join(", ");
    let reason = format!(
        "adapter {name:?} is for the base model {found}, this server has {ours} (LORA_RESOLVER_BASE_ALIASES can name others)"
    );
    tracing::warn!("{reason}");
    Err(ResolveError::not_found(reason))
}
