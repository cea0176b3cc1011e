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
    base.fits(name, &config)
}
