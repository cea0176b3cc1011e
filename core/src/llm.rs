//! A loaded model with its engine: the way in for a server, an example or a test.

mod load;
mod memory;

use std::sync::Arc;

use crate::adapter::{Adapter, AdapterManager, ResolverRegistry};
use crate::config::EngineConfig;
use crate::engine::EngineHandle;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::model::GenerationDefaults;
use crate::request::{GenerateRequest, Output, SamplingParams, TextOptions, UpdatePolicy};
use crate::tokenizer::Tokenizer;
use loraplex_kernels::DType;

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
    /// Type of its weights there.
    pub dtype: DType,
    /// Blocks of the KV cache.
    pub kv_blocks: usize,
    /// Tokens a block.
    pub block_size: usize,
    /// Sampling defaults that the checkpoint's `generation_config.json` brings.
    pub generation_defaults: GenerationDefaults,
}

/// Told how far a load is. Called from the loading thread.
pub trait Progress {
    /// `done` of `total` steps of `stage` are done.
    fn stage(&self, stage: &str, done: u64, total: u64);
}

/// Says nothing.
#[derive(Debug, Clone, Copy)]
pub struct Quiet;

impl Progress for Quiet {
    fn stage(&self, _: &str, _: u64, _: u64) {}
}

/// A loaded model with its engine. Dropping it aborts what runs and stops the engine.
#[derive(Debug)]
pub struct Llm {
    engine: EngineHandle,
    adapters: Arc<AdapterManager>,
    tokenizer: Arc<Tokenizer>,
    info: ModelInfo,
    metrics: Arc<Metrics>,
}

impl Llm {
    /// Reads the model and starts its engine. Blocks for as long as that takes.
    pub fn load(config: EngineConfig, progress: &dyn Progress) -> Result<Self> {
        load::load(config, progress)
    }

    /// Where requests go.
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// Names and generations of adapters.
    pub fn adapters(&self) -> &Arc<AdapterManager> {
        &self.adapters
    }

    /// The base model's tokenizer; adapters use it too.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// What was loaded.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Sets who is asked for adapters that nobody loaded, once.
    pub fn install_resolvers(&self, resolvers: ResolverRegistry) {
        self.metrics.watch_resolvers(resolvers.clone());
        self.adapters.install_resolvers(resolvers);
    }

    /// Generates for prompts, each with its adapter or none, in one batch; outputs are in the order of the prompts.
    /// `params.max_tokens` is cut to what the model's length leaves.
    pub async fn generate(
        &self,
        prompts: &[(&str, Option<Arc<Adapter>>)],
        params: &SamplingParams,
    ) -> Result<Vec<Output>> {
        let mut streams = Vec::with_capacity(prompts.len());
        for (prompt, adapter) in prompts {
            let prompt = self.tokenizer.encode(prompt, true)?;
            let room = self.info.max_model_len.saturating_sub(prompt.len());
            let max_tokens = params.max_tokens.min(room as u32);
            streams.push(self.engine.submit(GenerateRequest {
                ids: Vec::new(),
                prompt,
                adapter: adapter.clone(),
                params: SamplingParams { max_tokens, ..params.clone() },
                text: TextOptions::default(),
                cache_salt: None,
                priority: 0,
                prompt_logprobs: None,
                update_policy: UpdatePolicy::Pin,
            })?);
        }
        let mut outputs = Vec::with_capacity(streams.len());
        for stream in streams {
            outputs.push(stream.collect().await?);
        }
        Ok(outputs)
    }

    /// Takes no more requests and waits until those under way have finished (`finish`) or were aborted. Blocks.
    pub fn shutdown(&self, finish: bool) {
        self.engine.stop(finish);
        self.engine.join();
    }
}

impl Drop for Llm {
    fn drop(&mut self) {
        self.shutdown(false);
    }
}
