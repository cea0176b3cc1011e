//! One error for the crate: what failed, in which kind. The server alone turns kinds into statuses.

use std::time::Duration;

pub use loraplex_plugin_sdk::ErrorKind;

/// Result of the engine's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure with its kind and a message for whoever must act on it: lowercase, no full stop, with the numbers.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Decides the status.
    pub kind: ErrorKind,
    /// Names the thing, the number and the next step.
    pub message: String,
    /// The request's field at fault, where there is one.
    pub param: Option<&'static str>,
    /// When trying again makes sense.
    pub retry_after: Option<Duration>,
    /// A word for machines that says more than the kind: `adapter_source_gated`.
    pub code: Option<String>,
}

impl Error {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, retry_after: None, code: None }
    }

    /// The request or a file is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, message)
    }

    /// Nobody knows it.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// A limit is reached; later may work.
    pub fn exhausted(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(ErrorKind::Exhausted, message)
        }
    }

    /// Later may work.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(ErrorKind::Unavailable, message)
        }
    }

    /// A fault of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Names the request's field at fault.
    pub fn with_param(mut self, param: &'static str) -> Self {
        self.param = Some(param);
        self
    }

    /// Puts `context: ` before the message.
    pub fn context(mut self, context: impl std::fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

impl From<loraplex_plugin_sdk::ResolveError> for Error {
    fn from(error: loraplex_plugin_sdk::ResolveError) -> Self {
        let retry_after = error.retry_after;
        Self { retry_after, code: error.code, ..Self::new(error.kind, error.message) }
    }
}

impl From<loraplex_kernels::KernelError> for Error {
    fn from(error: loraplex_kernels::KernelError) -> Self {
        use loraplex_kernels::KernelError as K;
        let kind = match &error {
            K::OutOfMemory { .. } => ErrorKind::Exhausted,
            K::Shape { .. } | K::Unsupported(_) | K::Unavailable(_) => ErrorKind::InvalidRequest,
            K::Device(_) => ErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}
