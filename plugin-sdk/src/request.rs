//! Where an adapter lives: the answer of a resolver or of an operator.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// An adapter's name and the folder that holds its files.
///
/// Built with [`LoraRequest::new`] and the `with_` methods, so that fields can be added without breaking anyone.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct LoraRequest {
    /// The name that requests use, exactly.
    pub name: String,
    /// Folder with `adapter_config.json` and `adapter_model.safetensors`.
    pub path: PathBuf,
    /// An identifier of the source's own; shown to operators, never interpreted.
    #[serde(default)]
    pub id: Option<u64>,
    /// The base model that the adapter was trained for, as its author wrote it.
    #[serde(default)]
    pub base_model: Option<String>,
    /// The source's own version: a commit, an ETag.
    #[serde(default)]
    pub revision: Option<String>,
    /// Digest of the content, where the source knows it.
    #[serde(default)]
    pub digest: Option<String>,
    /// Anything else that the source says; shown to operators, never interpreted.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl LoraRequest {
    /// An adapter `name` whose files lie in `path`.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            id: None,
            base_model: None,
            revision: None,
            digest: None,
            metadata: BTreeMap::new(),
        }
    }

    /// Sets the base model that the adapter was trained for.
    pub fn with_base_model(mut self, base_model: impl Into<String>) -> Self {
        self.base_model = Some(base_model.into());
        self
    }

    /// Sets the source's own identifier.
    pub fn with_id(mut self, id: u64) -> Self {
        self.id = Some(id);
        self
    }

    /// Sets the source's own version: a commit, an ETag.
    pub fn with_revision(mut self, revision: impl Into<String>) -> Self {
        self.revision = Some(revision.into());
        self
    }

    /// Sets the digest of the content.
    pub fn with_digest(mut self, digest: impl Into<String>) -> Self {
        self.digest = Some(digest.into());
        self
    }

    /// Adds something that operators may want to see.
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }
}
