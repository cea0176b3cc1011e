//! What failed, in words for an operator and a kind for the code.

use std::io;
use std::path::Path;

/// Why the cache did not do what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheErrorKind {
    /// The disk is full, or the limit is reached by entries that may be in use; later may work.
    Full,
    /// More than the limit by itself: it never fits.
    TooLarge,
    /// The content is not what was announced.
    Damaged,
    /// The folder cannot be read or written.
    Storage,
}

/// A failure.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct CacheError {
    /// What callers branch on.
    pub kind: CacheErrorKind,
    /// Lowercase, no full stop, with the name and the numbers.
    pub message: String,
}

impl CacheError {
    pub(crate) fn new(kind: CacheErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// `path` could not be worked on.
    pub(crate) fn io(action: &str, path: &Path, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CacheErrorKind::Full,
            _ => CacheErrorKind::Storage,
        };
        Self::new(kind, format!("cannot {action} {}: {error}", path.display()))
    }
}
