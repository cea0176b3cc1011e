//! A loaded model with its engine: the way in for a server, an example or a test.

use std::sync::Arc;

use crate::adapter::AdapterManager;
use crate::config::EngineConfig;
use crate::engine::{EngineHandle, OutputStream};
use crate::error::Result;
use crate::metrics::Metrics;
use crate::request::GenerateRequest;
use crate::tokenizer::Tokenizer;

/// What a loaded model is, for those who serve it.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// `architectures[0]` of the checkpoint, such as `LlamaForCausalLM`.
    pub architecture: String,
    /// Longest prompt plus output.
    pub max_model_len: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Tokens that end an output.
    pub eos_token_ids: Vec<u32>,
    /// The model's chat template (Jinja), if it has one.
    pub chat_template: Option<String>,
    /// `bos_token`, `eos_token`, ... as the template sees them.
    pub special_tokens: Vec<(String, String)>,
    /// The device, for people: "cpu (avx512bf16, 2 threads)".
    pub device: String,
    /// Bytes of the base weights.
    pub weight_bytes: usize,
    /// Blocks of the KV cache.
    pub kv_blocks: usize,
    /// Tokens a block.
    pub block_size: usize,
    /// Sampling defaults that the checkpoint's `generation_config.json` brings.
    pub generation_defaults: GenerationDefaults,
}

/// Sampling defaults of a checkpoint; `None` where it has none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Temperature.
    pub temperature: Option<f32>,
    /// Nucleus.
    pub top_p: Option<f32>,
    /// Best `k`.
    pub top_k: Option<u32>,
    /// Relative floor.
    pub min_p: Option<f32>,
    /// Penalty for seen tokens.
    pub repetition_penalty: Option<f32>,
}

/// A loaded model with its engine. Dropping it stops the engine.
#[derive(Debug)]
pub struct Llm {
    engine: EngineHandle,
    adapters: Arc<AdapterManager>,
    tokenizer: Arc<Tokenizer>,
    info: ModelInfo,
    metrics: Arc<Metrics>,
}
