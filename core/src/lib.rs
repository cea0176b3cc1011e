//! The engine: continuous batching of many LoRA adapters over one base model.

pub mod error;
pub mod model;

pub use error::{Error, ErrorKind, Result};
pub use loraplex_kernels::DType;
pub use loraplex_plugin_sdk::LoraRequest;
