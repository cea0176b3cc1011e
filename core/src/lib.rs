//! The engine: continuous batching of many LoRA adapters over one base model.
//!
//! | module | holds |
//! |---|---|
//! | [`llm`] | [`Llm`]: a loaded model with its engine; the way in for servers and programs |
//! | [`request`] | [`GenerateRequest`] and [`Output`]: what goes in and comes out |
//! | [`engine`] | the thread that steps, [`EngineHandle`], [`OutputStream`] |
//! | [`scheduler`] | what runs in the next step; pure |
//! | [`kv_cache`] | which blocks hold whose keys and values; the prefix index |
//! | [`runner`] | a step's plan into rows, through the model, to tokens |
//! | [`model`] | architectures over a backend; checkpoints |
//! | [`adapter`] | PEFT files to packed weights; names to generations |
//! | [`plugin`] | resolver libraries: opening, comparing |
//! | [`tokenizer`] | text to tokens and back, piece by piece |
//! | [`metrics`] | every metric, once |
//!
//! What this crate must never do: know HTTP, JSON wire types, the environment or arguments.

pub mod adapter;
pub mod config;
pub mod engine;
pub mod error;
mod fields;
mod files;
pub mod kv_cache;
pub mod llm;
pub mod metrics;
pub mod model;
pub mod plugin;
pub mod request;
pub mod runner;
pub mod scheduler;
pub mod tokenizer;

pub use adapter::{Adapter, AdapterManager};
pub use config::{
    CacheConfig, CacheSize, Device, EngineConfig, LoraConfig, PoolSize, Quantization,
    SchedulerConfig,
};
pub use engine::{EngineHandle, OutputStream, PauseMode};
pub use error::{Error, ErrorKind, Result};
pub use llm::{Llm, ModelInfo, Progress, Quiet};
pub use loraplex_kernels::DType;
pub use loraplex_kernels::cpu::probe;
pub use loraplex_plugin_sdk::{LoraRequest, ResolverConfig};
pub use request::{
    Finish, FinishReason, GenerateRequest, Output, OutputToken, SamplingParams, StopReason,
    TextOptions, TokenLogprobs, UpdatePolicy, Version,
};
pub use tokenizer::Tokenizer;
