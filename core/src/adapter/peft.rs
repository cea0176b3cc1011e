//! LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! What this module must never do: apply an adapter in part. Every tensor lands in a module of the model with the rank
//! that the configuration gives it, or the adapter is refused with the tensor's name; every feature that changes what
//! an adapter computes is understood or refused by name. Keys that it does not know are data and nothing more.

mod config;
mod digest;
mod pattern;
#[cfg(test)]
mod tests;
mod weights;

use std::path::Path;

use loraplex_kernels::{AdapterMemory, LoraWeights, Part, SharedBytes};

use self::config::Spec;
use crate::error::{Error, Result};
use crate::files::{self, Source};
use crate::model::ModelConfig;
use crate::model::checkpoint::safetensors::{Header, HeaderLimits, PREFIX};

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const WEIGHTS: &str = "adapter_model.safetensors";
/// Files that run code when they are read.
const PICKLES: [&str; 3] = ["adapter_model.bin", "adapter_model.pt", "adapter_model.pth"];

/// The digest that an adapter of these files has, in hex.
pub(super) fn digest_of(config: &[u8], weights: &[u8]) -> String {
    digest::of(config, weights)
}

/// What an adapter may cost, checked before anything is parsed or reserved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeftLimits {
    /// Largest rank of a module.
    pub max_rank: usize,
    /// Bytes of the safetensors header.
    pub max_header: u64,
    /// Tensors in the file.
    pub max_tensors: usize,
    /// Bytes of `adapter_config.json`.
    pub max_config: u64,
}

impl PeftLimits {
    /// Limits that no real adapter reaches, and this rank.
    pub fn new(max_rank: usize) -> Self {
        Self { max_rank, max_header: 4 << 20, max_tensors: 16_384, max_config: 1 << 20 }
    }
}

/// An adapter that fits the model.
#[derive(Debug, Clone)]
pub struct LoadedPeft {
    /// By layer, then by part.
    pub weights: LoraWeights,
    /// Largest rank of a module.
    pub rank: usize,
    /// Adapted modules.
    pub modules: usize,
    /// BLAKE3 over the bytes of both files, in hex.
    pub digest: String,
    /// `base_model_name_or_path`; nobody has checked it.
    pub base_model: Option<String>,
}

/// Reads the adapter in `folder` for `model`. Its weights lie in `memory`, as the file has them.
pub fn load(
    folder: &Path,
    model: &ModelConfig,
    limits: &PeftLimits,
    memory: &AdapterMemory,
) -> Result<LoadedPeft> {
    let absent = || Error::not_found(format!("No adapter found for {}", folder.display()));
    let config = files::read(&folder.join(CONFIG), limits.max_config)?.ok_or_else(absent)?;
    let Some(source) = Source::open(&folder.join(WEIGHTS))? else {
        return Err(no_weights(folder));
    };
    // A file that no adapter of this model can fill is not read at all.
    let most = largest_file(model, limits);
    if source.len() > most {
        return Err(Error::invalid(format!(
            "{WEIGHTS} has {} bytes, an adapter of rank {} for this model has at most {most}",
            source.len(),
            limits.max_rank
        )));
    }
    let len = usize::try_from(source.len()).map_err(|_| Error::invalid("file too large"))?;
    // The head alone says whether the rest is worth reading.
    let prefix = source.read(0, PREFIX.min(len))?;
    Header::length(&prefix, source.len(), header_limits(limits)).map_err(|e| e.context(WEIGHTS))?;
    let mut bytes = memory.take(len);
    let read = |offset, bytes: &mut [u8]| source.read_to(offset, bytes);
    let digest = digest::of_read(&config, bytes.as_mut_slice(), read)?;
    check(&config, &SharedBytes::new(bytes), model, limits, || digest)
}

/// Reads an adapter from the bytes of its two files; its weights stay where they are.
pub fn parse(
    config_json: &[u8],
    file: &SharedBytes,
    model: &ModelConfig,
    limits: &PeftLimits,
) -> Result<LoadedPeft> {
    check(config_json, file, model, limits, || digest::of(config_json, file.as_slice()))
}

/// Finds every tensor its place, or says why it has none.
fn check(
    config_json: &[u8],
    file: &SharedBytes,
    model: &ModelConfig,
    limits: &PeftLimits,
    digest: impl FnOnce() -> String + Send,
) -> Result<LoadedPeft> {
    let safetensors = file.as_slice();
    if config_json.len() as u64 > limits.max_config {
        return Err(Error::invalid(format!(
            "{CONFIG} has {} bytes, the limit is {}",
            config_json.len(),
            limits.max_config
        )));
    }
    let spec = Spec::parse(config_json, limits.max_rank)?;
    let file_len = safetensors.len() as u64;
    let header = Header::length(safetensors, file_len, header_limits(limits))
        .and_then(|len| {
            let json = safetensors.get(PREFIX..PREFIX + len);
            let json = json.ok_or_else(|| Error::invalid("safetensors header is cut off"))?;
            Header::parse(json, file_len, header_limits(limits))
        })
        .map_err(|e| e.context(WEIGHTS))?;
    let (parts, digest) = rayon::join(|| weights::assemble(&header, file, &spec, model), digest);
    let parts = parts?;
    Ok(LoadedPeft {
        rank: parts.iter().map(|part| part.rank()).max().unwrap_or(0),
        modules: parts.len(),
        weights: LoraWeights { parts },
        digest,
        base_model: spec.base_model,
    })
}

fn header_limits(limits: &PeftLimits) -> HeaderLimits {
    HeaderLimits { bytes: limits.max_header, tensors: limits.max_tensors }
}

/// Why a folder with a configuration has no weights that can be read.
fn no_weights(folder: &Path) -> Error {
    match PICKLES.iter().find(|name| folder.join(name).exists()) {
        Some(name) => Error::invalid(format!(
            "{name} is a pickle, which can run code when it is read; only {WEIGHTS} is supported: load the adapter with PEFT and save it again with save_pretrained(..., safe_serialization=True)"
        )),
        None => Error::invalid(format!("{} doesn't contain tensors", folder.display())),
    }
}

/// Bytes of a file with every module at the largest rank in f32 and the longest header.
pub(super) fn largest_file(model: &ModelConfig, limits: &PeftLimits) -> u64 {
    let widths = Part::ALL.iter().map(|part| {
        let (inputs, outputs) = model.module_shape(*part);
        (inputs + outputs) as u64
    });
    let values = widths.sum::<u64>().saturating_mul((model.layers * limits.max_rank) as u64);
    values.saturating_mul(4).saturating_add(limits.max_header).saturating_add(PREFIX as u64)
}
