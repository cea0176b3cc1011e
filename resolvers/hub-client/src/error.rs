//! What failed, in words for an operator and a kind for the code.

use std::io;
use std::time::Duration;

/// Why the Hub, or the cache, did not give what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubErrorKind {
    /// The Hub wants credentials, or better ones.
    Unauthorized,
    /// The repository's terms must be accepted first.
    Gated,
    /// No such repository, revision or file.
    NotFound,
    /// Offline, and the cache does not have it.
    Offline,
    /// The Hub cannot be reached, is overloaded, or sent something damaged; later may work.
    Unavailable,
    /// A name, a setting or a file that stays wrong.
    Invalid,
    /// The cache folder cannot be read or written.
    Storage,
    /// The cache folder's disk is full; later may work.
    StorageFull,
}

/// A failure; its message never holds a secret.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct HubError {
    /// What callers branch on.
    pub kind: HubErrorKind,
    /// Lowercase, no full stop, with the name and the next step.
    pub message: String,
    /// When the Hub said that it may be asked again.
    pub retry_after: Option<Duration>,
    /// A connection that was there broke: asking at once is worth it.
    pub(crate) is_cut: bool,
}

impl HubError {
    /// A failure of `kind`.
    pub fn new(kind: HubErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None, is_cut: false }
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(HubErrorKind::Unavailable, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(HubErrorKind::Invalid, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(HubErrorKind::NotFound, message)
    }

    /// `what` could not be read or written.
    pub(crate) fn storage(what: impl std::fmt::Display, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => HubErrorKind::StorageFull,
            _ => HubErrorKind::Storage,
        };
        Self::new(kind, format!("{what}: {error}"))
    }

    /// The word that machines find in an answer about this failure.
    pub fn code(&self) -> Option<&'static str> {
        match self.kind {
            HubErrorKind::Unauthorized => Some("adapter_source_unauthorized"),
            HubErrorKind::Gated => Some("adapter_source_gated"),
            _ => None,
        }
    }
}
