//! The engine: continuous batching of many LoRA adapters over one base model.

pub mod adapter {
    //! Adapters from their files.
    pub mod peft;
}
pub mod error;
mod fields;
mod files;
pub mod model;
pub mod tokenizer;

pub use error::{Error, ErrorKind, Result};
pub use loraplex_kernels::DType;
pub use loraplex_plugin_sdk::LoraRequest;
