//! Architectures over a backend, and the checkpoints that they are read from.

pub mod checkpoint;
pub mod config;

pub use checkpoint::{Checkpoint, GenerationDefaults};
pub use config::{Architecture, ModelConfig, Rope, RopeScaling};
