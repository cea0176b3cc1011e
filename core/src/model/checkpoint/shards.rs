//! The safetensors files of a folder: one, or several that `model.safetensors.index.json` names.

use std::collections::HashMap;
use std::path::{Component, Path};

use loraplex_kernels::HostTensor;
use serde_json::Value;

use super::safetensors::{Entry, Header, HeaderLimits, PREFIX, decode};
use crate::error::{Error, Result};
use crate::files::{self, Source};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX: u64 = 64 << 20;
const MAX_SHARDS: usize = 4096;
const LIMITS: HeaderLimits = HeaderLimits { bytes: 100_000_000, tensors: 1 << 20 };

/// Open files and what they hold.
#[derive(Debug)]
pub(crate) struct Shards {
    files: Vec<(Source, Header)>,
    /// The file of each tensor.
    by_name: HashMap<String, usize>,
}

impl Shards {
    /// Opens every file and reads its header.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let mut shards = Self { files: Vec::new(), by_name: HashMap::new() };
        if let Some(source) = Source::open(&folder.join(SINGLE))? {
            shards.add(source)?;
            return Ok(shards);
        }
        let index = files::read(&folder.join(INDEX), MAX_INDEX)?.ok_or_else(|| {
            let pickle = folder.join("pytorch_model.bin").exists()
                || folder.join("pytorch_model.bin.index.json").exists();
            let hint =
                if pickle { "; pickles are not read: convert them to safetensors" } else { "" };
            Error::invalid(format!("{} has neither {SINGLE} nor {INDEX}{hint}", folder.display()))
        })?;
        for name in shard_names(&index)? {
            let source = Source::open(&folder.join(&name))?.ok_or_else(|| {
                Error::invalid(format!("{INDEX} names {name}, which is not there"))
            })?;
            shards.add(source)?;
        }
        Ok(shards)
    }

    fn add(&mut self, source: Source) -> Result<()> {
        let header = read_header(&source).map_err(|e| e.context(source.name()))?;
        for (name, _) in &header.tensors {
            if self.by_name.insert(name.clone(), self.files.len()).is_some() {
                return Err(Error::invalid(format!("tensor {name} is in two files")));
            }
        }
        self.files.push((source, header));
        Ok(())
    }

    /// Whether there is such a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Type and place of a tensor.
    pub(crate) fn entry(&self, name: &str) -> Option<(&Source, &Entry)> {
        let (source, header) = self.files.get(*self.by_name.get(name)?)?;
        Some((source, header.get(name)?))
    }

    /// Reads a tensor of one or two dimensions.
    pub(crate) fn tensor(&self, name: &str) -> Result<HostTensor> {
        let (source, entry) = self
            .entry(name)
            .ok_or_else(|| Error::invalid(format!("the checkpoint has no tensor {name}")))?;
        let (rows, cols) = match entry.shape[..] {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ => {
                return Err(Error::invalid(format!(
                    "tensor {name} has shape {:?}, expected a matrix or a vector",
                    entry.shape
                )));
            }
        };
        let len = usize::try_from(entry.span.end - entry.span.start)
            .map_err(|_| Error::invalid(format!("tensor {name} is too large")))?;
        let bytes = source.read(entry.span.start, len)?;
        let data = decode(entry.dtype, &bytes).map_err(|e| e.context(name))?;
        Ok(HostTensor::new(rows, cols, data)?)
    }
}

fn read_header(source: &Source) -> Result<Header> {
    let prefix = source.read(0, PREFIX.min(source.len() as usize))?;
    let len = Header::length(&prefix, source.len(), LIMITS)?;
    Header::parse(&source.read(PREFIX as u64, len)?, source.len(), LIMITS)
}

/// The files that an index names, each once. A name that leaves the folder is refused.
fn shard_names(index: &[u8]) -> Result<Vec<String>> {
    let index: Value = serde_json::from_slice(index)
        .map_err(|error| Error::invalid(format!("{INDEX} is not JSON: {error}")))?;
    let Some(Value::Object(map)) = index.get("weight_map") else {
        return Err(Error::invalid(format!("{INDEX} has no weight_map")));
    };
    let mut names = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (tensor, file) in map {
        let Value::String(file) = file else {
            return Err(Error::invalid(format!("{INDEX}: the file of {tensor} is not a string")));
        };
        if !seen.insert(file) {
            continue;
        }
        let mut parts = Path::new(file).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(Error::invalid(format!("{INDEX}: {file} is not a file of the folder")));
        }
        if names.len() == MAX_SHARDS {
            return Err(Error::invalid(format!("{INDEX} names more than {MAX_SHARDS} files")));
        }
        names.push(file.clone());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_cannot_leave_its_folder() {
        for name in ["../x", "/etc/passwd", "a/b", "a/../b", "..", ".", ""] {
            let index = serde_json::json!({"weight_map": {"t": name}}).to_string();
            let error = shard_names(index.as_bytes()).unwrap_err().message;
            assert!(error.contains("not a file of the folder"), "{name}: {error}");
        }
        let index = br#"{"weight_map": {"a": "x.safetensors", "b": "x.safetensors", "c": "y"}}"#;
        assert_eq!(shard_names(index).unwrap(), ["x.safetensors", "y"]);
        assert!(shard_names(br#"{"weight_map": {"a": 1}}"#).is_err());
        assert!(shard_names(b"{}").is_err());
        assert!(shard_names(b"{").is_err());
    }
}
