//! What the engine can be told: plain values, checked before anything is allocated for them.

use std::path::PathBuf;
use std::time::Duration;

use loraplex_kernels::DType;

/// Everything an [`Llm`](crate::Llm) is made from.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// A Hugging Face folder or a `.gguf` file.
    pub model: PathBuf,
    /// Labels the metrics; the model's path when `None`.
    pub served_model_name: Option<String>,
    /// `None` follows the checkpoint: bf16 for 16-bit files, f32 for f32 ones.
    pub dtype: Option<DType>,
    /// How the weights of linear layers are held; `None` is in `dtype`.
    pub quantization: Option<Quantization>,
    /// Where to compute.
    pub device: Device,
    /// Threads of the CPU backend; `None` takes one a core.
    pub threads: Option<usize>,
    /// Longest prompt plus output; `None` takes the model's own limit.
    pub max_model_len: Option<usize>,
    /// Steps.
    pub scheduler: SchedulerConfig,
    /// Keys and values.
    pub cache: CacheConfig,
    /// Adapters.
    pub lora: LoraConfig,
    /// Seeds requests that bring none.
    pub seed: u64,
    /// A chat template in place of the model's own.
    pub chat_template: Option<String>,
    /// Folder for kernels that are compiled for this machine's GPU; `None` compiles at every start.
    pub kernel_cache: Option<PathBuf>,
    /// Random weights from `seed` in place of the checkpoint's: shapes alone are read.
    pub dummy_weights: bool,
}

impl EngineConfig {
    /// The defaults for `model`.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            served_model_name: None,
            dtype: None,
            quantization: None,
            device: Device::Auto,
            threads: None,
            max_model_len: None,
            scheduler: SchedulerConfig::default(),
            cache: CacheConfig::default(),
            lora: LoraConfig::default(),
            seed: 0,
            chat_template: None,
            kernel_cache: None,
            dummy_weights: false,
        }
    }
}

/// Weights in fewer bits than they are computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// 8 bits, 32 neighbours to a scale.
    Int8,
}

/// Which backend computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A GPU where there is one, the CPU otherwise.
    Auto,
    /// SIMD on the CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// Plain loops in f32: the definition, for tests.
    Reference,
}

/// Bounds of a step and of the queue before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Rows of a step: a longer prompt is read in chunks of what is left beside the decodes.
    pub max_num_batched_tokens: usize,
    /// Rows of a step that one prompt takes at most, so that others that come meanwhile have some of each step, too.
    pub most_of_a_prompt: usize,
    /// Requests that may wait; one more is refused.
    pub max_waiting: usize,
    /// How long a request waits for room for its adapter on the device before it is refused.
    pub adapter_wait: Duration,
    /// Whether a step is queued before the one under way has ended; `None` does so where the device works beside the host.
    pub run_ahead: Option<bool>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            most_of_a_prompt: usize::MAX,
            max_waiting: 1024,
            adapter_wait: Duration::from_secs(60),
            run_ahead: None,
        }
    }
}

/// The paged cache of keys and values.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheConfig {
    /// Tokens a block.
    pub block_size: usize,
    /// Size of the pool.
    pub size: CacheSize,
    /// Share of a GPU's memory that weights, adapters and the cache take together.
    pub device_share: f32,
    /// Keep blocks of finished prompts for requests that start alike.
    pub prefix_caching: bool,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { block_size: 16, size: CacheSize::Auto, device_share: 0.9, prefix_caching: true }
    }
}

/// How large the pool of KV blocks is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CacheSize {
    /// CPU: room for `max_num_seqs` sequences of the model's length, at most a quarter of the memory that is free. GPU:
    /// what weights and adapters leave of the device's share.
    Auto,
    /// This many blocks.
    Blocks(usize),
    /// This many bytes.
    Bytes(usize),
}

/// The device's room for adapters. Each takes its own size: smaller ranks leave room for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolSize {
    /// Room for this many of the largest rank on all linear modules.
    Adapters(usize),
    /// This many bytes.
    Bytes(usize),
}

/// What adapters may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraConfig {
    /// Off refuses every adapter.
    pub enabled: bool,
    /// Largest rank accepted; others take no more memory than their own rank needs.
    pub max_rank: usize,
    /// Adapters held in host memory at most.
    pub max_host_adapters: usize,
    /// The device's room for adapters.
    pub pool: PoolSize,
    /// Bytes of host memory that adapters take at most.
    pub host_memory: Option<usize>,
    /// The base model's name, as resolvers are told it.
    pub base_model: String,
    /// How long a request waits for a resolver; the fetch itself goes on.
    pub resolver_timeout: Duration,
    /// How long a fetch may take, however much progress it makes.
    pub resolver_limit: Duration,
    /// How long a name that could not be had is not asked for again; zero asks every time.
    pub negative_ttl: Duration,
}

impl LoraConfig {
    /// How many adapters a step has at most, as far as that can be told. Smaller ranks leave room for more, so where the room
    /// is given in bytes the host's limit is what others can rely on.
    pub fn max_loras(&self) -> usize {
        match self.pool {
            PoolSize::Adapters(adapters) => adapters,
            PoolSize::Bytes(_) => self.max_host_adapters,
        }
    }
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            max_rank: 64,
            max_host_adapters: 1024,
            pool: PoolSize::Adapters(8),
            host_memory: None,
            base_model: String::new(),
            resolver_timeout: Duration::from_secs(30),
            resolver_limit: Duration::from_secs(900),
            negative_ttl: Duration::from_secs(5),
        }
    }
}
