//! What a watching resolver tells its host.

/// An adapter whose files are not what they were.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdapterChange {
    /// The name that requests use.
    pub name: String,
}

impl AdapterChange {
    /// A change of the adapter `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }
}
