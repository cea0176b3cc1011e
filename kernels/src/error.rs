//! What can go wrong on a device. The message carries the numbers; the caller adds the name of what it was doing.

/// Result of a device operation.
pub type Result<T> = std::result::Result<T, KernelError>;

/// A failure of a backend.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Memory for weights, cache or adapters could not be had.
    #[error("out of memory on {device}: {wanted} bytes wanted for {what}")]
    OutOfMemory {
        /// The device as its backend names it.
        device: String,
        /// What the memory was for.
        what: &'static str,
        /// Bytes asked for.
        wanted: usize,
    },
    /// Shapes that do not fit together, found when weights are uploaded.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// The weight or argument.
        what: String,
        /// The shape that the operation needs.
        expected: String,
        /// The shape that it was given.
        found: String,
    },
    /// Something that this backend does not offer.
    #[error("{0} is not supported by this backend")]
    Unsupported(String),
    /// A device that this machine does not have, or cannot use: what is missing, and what to do.
    #[error("{0}")]
    Unavailable(String),
    /// The device itself failed; the engine cannot go on.
    #[error("device failure: {0}")]
    Device(String),
}
