//! Failures of NVIDIA's libraries as ours.

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::{DriverError, sys::CUresult};

use crate::error::{KernelError, Result};

/// Says what a call was for.
pub(super) trait Context<T> {
    fn during(self, what: &str) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, DriverError> {
    fn during(self, what: &str) -> Result<T> {
        self.map_err(|error| KernelError::Device(format!("{what}: {}", describe(error))))
    }
}

impl<T> Context<T> for std::result::Result<T, CublasError> {
    fn during(self, what: &str) -> Result<T> {
        self.map_err(|error| KernelError::Device(format!("{what}: cuBLAS says {:?}", error.0)))
    }
}

/// The driver's own words.
pub(super) fn describe(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => format!("{} ({:?})", text.to_string_lossy(), error.0),
        Err(_) => format!("{:?}", error.0),
    }
}

/// Whether memory was short.
pub(super) fn is_out_of_memory(error: DriverError) -> bool {
    error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
}

/// A shape that does not fit.
pub(super) fn mismatch(
    what: &str,
    expected: impl std::fmt::Debug,
    found: impl std::fmt::Debug,
) -> KernelError {
    KernelError::Shape {
        what: what.into(),
        expected: format!("{expected:?}"),
        found: format!("{found:?}"),
    }
}

/// Fails unless the two are equal.
pub(super) fn check<T: PartialEq + std::fmt::Debug>(
    what: &str,
    expected: T,
    found: T,
) -> Result<()> {
    if expected == found { Ok(()) } else { Err(mismatch(what, expected, found)) }
}

/// Fails unless `index` is below `count`.
pub(super) fn check_below(what: &str, index: usize, count: usize) -> Result<()> {
    if index < count {
        return Ok(());
    }
    Err(KernelError::Shape {
        what: what.into(),
        expected: format!("below {count}"),
        found: format!("{index}"),
    })
}
