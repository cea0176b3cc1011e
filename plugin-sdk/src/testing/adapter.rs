//! Adapters that the suite puts into a source.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The file that says what an adapter is.
pub const CONFIG: &str = "adapter_config.json";
/// The file that holds its numbers.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// A small adapter, as files.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Adapter {
    /// The name that a client types.
    pub name: String,
    /// What its configuration says that it was trained for.
    pub base_model: String,
    /// Contents by file name.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Adapter {
    /// An adapter for `base_model`; each `version` has other weights, and a configuration of another length.
    pub fn new(name: impl Into<String>, base_model: impl Into<String>, version: u8) -> Self {
        let (name, base_model) = (name.into(), base_model.into());
        let config = serde_json::json!({
            "peft_type": "LORA",
            "base_model_name_or_path": base_model,
            "r": 1,
            "lora_alpha": u64::from(version) + 1,
            "target_modules": ["q_proj"],
            "inference_mode": true,
            "note": "x".repeat(usize::from(version)),
        });
        let files = BTreeMap::from([
            (CONFIG.to_owned(), config.to_string().into_bytes()),
            (WEIGHTS.to_owned(), weights(&name, version)),
        ]);
        Self { name, base_model, files }
    }

    /// Writes the files into `folder`, which is made when it is missing.
    pub fn write_to(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        self.files.iter().try_for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes))
    }

    /// Puts the files into `root/<name>` as a careful writer does: beside it first, then by renaming. Another version
    /// that is there gives way.
    pub fn install(&self, root: &Path) -> io::Result<()> {
        let fresh = tempfile::Builder::new().prefix(".fresh-").tempdir_in(root)?;
        self.write_to(&fresh.path().join("new"))?;
        let place = root.join(&self.name);
        if let Some(parent) = place.parent() {
            std::fs::create_dir_all(parent)?;
        }
        if place.exists() {
            std::fs::rename(&place, fresh.path().join("old"))?;
        }
        std::fs::rename(fresh.path().join("new"), place)
    }
}

/// A valid safetensors file whose one tensor holds bytes of `name` and `version`.
fn weights(name: &str, version: u8) -> Vec<u8> {
    const VALUES: usize = 64;
    let mut header = serde_json::json!({
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": {
            "dtype": "U8", "shape": [1, VALUES], "data_offsets": [0, VALUES],
        },
    })
    .to_string();
    // Data starts at a multiple of eight.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(name.bytes().chain(std::iter::once(version)).cycle().take(VALUES - 1));
    bytes.push(version);
    bytes
}
