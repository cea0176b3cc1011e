//! What failed, in words that every crate of the project shares.

use std::time::Duration;

/// The closed set of failures. Whoever is closest to the cause picks the kind; only the server turns it into a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request, or the file that it names, is wrong and will stay wrong.
    InvalidRequest,
    /// Nobody knows the name.
    NotFound,
    /// The caller, or the server's own credentials, may not have it.
    PermissionDenied,
    /// The state is not the one that the caller expects.
    Conflict,
    /// A queue or a memory limit is full; later may work.
    Exhausted,
    /// A source or the engine cannot be reached; later may work.
    Unavailable,
    /// The caller went away or the server is stopping.
    Cancelled,
    /// A fault of ours.
    Internal,
}

/// Why a resolver could not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct ResolveError {
    /// The kind decides what the client sees.
    pub kind: ErrorKind,
    /// Lowercase, no full stop, with the names and numbers that an operator needs; never a secret.
    pub message: String,
    /// When to try again, where the source said so.
    pub retry_after: Option<Duration>,
    /// A word for machines that says more than the kind: `adapter_source_gated`.
    pub code: Option<String>,
}

impl ResolveError {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None, code: None }
    }

    /// The source refuses: missing or insufficient credentials.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::PermissionDenied, message)
    }

    /// The source cannot be reached now.
    pub fn unavailable(message: impl Into<String>, retry_after: Option<Duration>) -> Self {
        Self { retry_after, ..Self::new(ErrorKind::Unavailable, message) }
    }

    /// It is not there, for this reason: another base model, a missing file. The next resolver is asked, and the client's
    /// 404 says why.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// The adapter was found and cannot be used.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, message)
    }

    /// Sets the word for machines.
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// A fault of the resolver's own.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }
}
