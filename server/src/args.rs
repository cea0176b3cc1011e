//! What can be typed, as typed. The same fields, with `_`, are the keys of the config file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::bench::args::BenchArgs;
use crate::config::file::one_or_many;
use crate::config::secret::Secret;
use crate::seconds;

/// What stands below the flags in `--help`: the variables that no flag has.
const AFTER_HELP: &str = "\
Environment:
  ALLOW_RUNTIME_LORA_UPDATING=1
          Open the control routes, which load, replace and unload adapters while the server runs

  PLUGINS=NAME,NAME
          Resolvers that are asked, in this order, for adapters that nobody loaded; needs ALLOW_RUNTIME_LORA_UPDATING

  LORA_RESOLVER_...
          What a resolver is told, such as LORA_RESOLVER_CACHE_DIR: resolvers/README.md lists them

  LORA_ALLOWED_PATHS=DIR:DIR
          Folders below which the control routes may load adapters (default: any on a loopback address, else none)

  VLLM_API_KEY=KEY
          As --api-key, out of sight of the process list

  LORA_ADMIN_API_KEY=KEY
          As --admin-api-key

  HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE
          As for huggingface_hub, where MODEL is a repository of the Hub

  RUST_LOG
          What is logged (default: info)

Start with `server demo`: it needs no files and prints requests to paste.";

/// Serves one base model and many LoRA adapters through the OpenAI API.
#[derive(Debug, Parser)]
#[command(
    name = "server",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Start with `server demo`: it needs no files and prints requests to paste.",
    after_long_help = AFTER_HELP
)]
pub struct Cli {
    /// What to do; `serve` when left out.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings for `serve` without the word.
    #[command(flatten)]
    pub settings: Box<Settings>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model; the word may be left out
    #[command(visible_alias = "run")]
    Serve(Box<Settings>),
    /// Serve the small model that comes with the server, with three adapters
    #[command(
        mut_arg("model_argument", |argument| argument.hide(true)),
        mut_arg("model", |argument| argument.hide(true))
    )]
    Demo(Box<Settings>),
    /// Measure a server: the speed with adapters as a share of the base's
    Bench(Box<BenchArgs>),
}

/// Every setting: `None` or empty where nobody has spoken.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The model: a Hugging Face folder, a .gguf file, or a repository of the Hub (org/name, org/name@revision,
    /// org/name:file.gguf)
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    #[serde(skip)]
    pub model_argument: Option<String>,
    /// Same as MODEL
    #[arg(long, alias = "model-path")]
    #[serde(alias = "model_path", skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// File with these settings in YAML or TOML; keys are the flags' names with `_`
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Address to listen on (default: 127.0.0.1)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Port to listen on; 0 takes a free one (default: 8000)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Keys that clients must show as `Authorization: Bearer KEY`; any of them opens the user routes
    #[arg(long, value_name = "KEY", num_args = 1..)]
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub api_key: Vec<Secret>,
    /// Keys of the control routes; accepted on the user routes too
    #[arg(long, value_name = "KEY", num_args = 1..)]
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub admin_api_key: Vec<Secret>,
    /// Seconds that running requests have to finish after SIGTERM (default: 30)
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown_timeout: Option<u64>,

    /// Names of the base model; the first is the one in answers (default: the model's path)
    #[arg(long, value_name = "NAME", num_args = 1..)]
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub served_model_name: Vec<String>,
    /// Jinja chat template in place of the model's: a file, or the template itself
    #[arg(long, value_name = "FILE|TEMPLATE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Type of weights and activations (default: auto)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<ModelDtype>,
    /// Hold the weights of linear layers in fewer bits: `int8`, for the CPU (default: as --dtype says)
    #[arg(long, short = 'q')]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<QuantizationName>,
    /// Where to compute (default: auto)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceName>,
    /// Threads of the CPU backend (default: one a core)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// How weights are had: `dummy` makes random ones from --seed (default: auto)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_format: Option<LoadFormat>,
    /// Seed of requests that bring none, and of dummy weights (default: 0)
    #[arg(long, alias = "random-seed")]
    #[serde(alias = "random_seed", skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Devices that share the model; 1 for now (default: 1)
    #[arg(long, alias = "tp-size")]
    #[serde(alias = "tp_size", skip_serializing_if = "Option::is_none")]
    pub tensor_parallel_size: Option<usize>,

    /// Longest prompt plus output, in tokens (default: the model's own limit)
    #[arg(long, alias = "context-length")]
    #[serde(alias = "context_length", skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<usize>,
    /// Sequences that run at once (default: 64)
    #[arg(long, alias = "max-running-requests")]
    #[serde(alias = "max_running_requests", skip_serializing_if = "Option::is_none")]
    pub max_num_seqs: Option<usize>,
    /// Tokens of one step: longer prompts are read in chunks (default: 512)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_num_batched_tokens: Option<usize>,
    /// Tokens of a step that one prompt takes at most, so that requests behind a long one begin meanwhile; 0 takes all (default: 0)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long_prefill_token_threshold: Option<usize>,
    /// Queue the next step before the one under way has ended (default: on a GPU)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_scheduling: Option<bool>,
    /// Queue a step when the one before has ended
    #[arg(long, conflicts_with = "async_scheduling")]
    #[serde(skip)]
    pub no_async_scheduling: bool,
    /// Requests that may wait; one more gets 429 (default: 1024)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queued_requests: Option<usize>,
    /// Tokens of a block of the KV cache (default: 16)
    #[arg(long, alias = "page-size")]
    #[serde(alias = "page_size", skip_serializing_if = "Option::is_none")]
    pub block_size: Option<usize>,
    /// Size of the KV cache, such as 2GiB (default: as much as is useful and free)
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_cache_memory_bytes: Option<String>,
    /// Share of a GPU's memory to use (default: 0.9)
    #[arg(long, alias = "mem-fraction-static")]
    #[serde(alias = "mem_fraction_static", skip_serializing_if = "Option::is_none")]
    pub gpu_memory_utilization: Option<f32>,
    /// Reuse the KV cache of prompts that start alike (default: on)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_prefix_caching: Option<bool>,
    /// Compute every prompt anew
    #[arg(long, alias = "disable-radix-cache", conflicts_with = "enable_prefix_caching")]
    #[serde(skip)]
    pub no_enable_prefix_caching: bool,

    /// Serve adapters (default: on; costs nothing while no request names one)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_lora: Option<bool>,
    /// Refuse every adapter
    #[arg(long, conflicts_with = "enable_lora")]
    #[serde(skip)]
    pub no_enable_lora: bool,
    /// Adapters to load before the server listens: NAME=PATH, or JSON {"name","path","base_model_name"}
    #[arg(long, alias = "lora-paths", value_name = "NAME=PATH", num_args = 1..)]
    #[serde(
        alias = "lora_paths",
        deserialize_with = "one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub lora_modules: Vec<String>,
    /// Size of the adapter pool, in adapters of the largest rank (default: 8); a GPU sets as much aside once more below the
    /// base weights, for ranks rounded up to 16, but at most 64 of 16 and a twelfth of what it may use
    #[arg(long, alias = "max-loras-per-batch")]
    #[serde(alias = "max_loras_per_batch", skip_serializing_if = "Option::is_none")]
    pub max_loras: Option<usize>,
    /// Size of the adapter pool in bytes, such as 512MiB
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_pool_memory: Option<String>,
    /// Largest rank accepted; others take no more memory than their own rank needs (default: 64)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_lora_rank: Option<usize>,
    /// Adapters held in host memory at most (default: 1024)
    #[arg(long, alias = "max-loaded-loras")]
    #[serde(alias = "max_loaded_loras", skip_serializing_if = "Option::is_none")]
    pub max_cpu_loras: Option<usize>,
    /// Bytes of host memory for adapters at most, such as 4GiB
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_host_memory: Option<String>,
    /// Type of adapters in memory (default: auto: the model's)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_dtype: Option<LoraDtype>,
    /// Accepted from other servers' command lines; there is one implementation
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_backend: Option<String>,
    /// What running requests do when their adapter is reloaded: finish on the old weights, or take the new ones (default: pin)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_update_policy: Option<UpdatePolicy>,

    /// Seconds that a request waits for room for its adapter on the device, or for a newer generation (default: 60)
    #[arg(long, value_name = "SECONDS", value_parser = seconds::argument)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_wait_timeout: Option<f64>,
    /// Seconds that a request waits for a resolver; the fetch goes on and the next request joins it (default: 30)
    #[arg(long, value_name = "SECONDS", value_parser = seconds::argument)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolver_timeout: Option<f64>,
    /// Seconds for which a name that could not be had is not asked for again; 0 asks every time (default: 5)
    #[arg(long, value_name = "SECONDS", value_parser = seconds::argument)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolver_negative_ttl: Option<f64>,
    /// Where libPLUGIN.so is looked for (default: the server's own folder; also PLUGIN_DIR)
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin_dir: Option<PathBuf>,
    /// Folder in which adapters that were loaded at run time are kept over restarts (default: they are forgotten)
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Tables of the config file, one a plugin, handed to it as they are.
    #[arg(skip)]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub plugins: BTreeMap<String, serde_json::Value>,
}

/// Type of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelDtype {
    /// The checkpoint's.
    Auto,
    /// Brain float.
    #[value(alias = "bf16")]
    #[serde(alias = "bf16")]
    Bfloat16,
    /// Half precision.
    #[value(alias = "half")]
    #[serde(alias = "half")]
    Float16,
    /// Single precision.
    #[value(alias = "float")]
    #[serde(alias = "float")]
    Float32,
}

/// How weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantizationName {
    /// 8 bits, 32 neighbours to a scale.
    Int8,
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceName {
    /// A GPU where there is one, the CPU otherwise.
    Auto,
    /// SIMD on the CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// Plain loops in f32: slow, the definition of every operation.
    Reference,
}

/// How weights are had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadFormat {
    /// From the checkpoint's files.
    Auto,
    /// At random; the checkpoint gives the shapes.
    Dummy,
}

/// Type of adapters in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoraDtype {
    /// The model's.
    Auto,
    /// Brain float.
    Bfloat16,
    /// Half precision.
    Float16,
}

/// What running requests do when their adapter is reloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpdatePolicy {
    /// Finish on the weights that they started with.
    Pin,
    /// Take the new weights at the next token.
    Follow,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_command_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_word_serve_may_be_left_out() {
        let bare = parse("server some/model --port 9000");
        assert_eq!(bare.settings.model_argument.as_deref(), Some("some/model"));
        for word in ["serve", "run"] {
            let Some(Command::Serve(settings)) =
                parse(&format!("server {word} some/model")).command
            else {
                panic!("{word} serves");
            };
            assert_eq!(settings.model_argument.as_deref(), Some("some/model"));
        }
        assert!(matches!(parse("server demo --port 1").command, Some(Command::Demo(_))));
        let mut command = Cli::command();
        let mut help = |name| command.find_subcommand_mut(name).unwrap().render_help().to_string();
        assert!(help("serve").contains("[MODEL]") && !help("demo").contains("[MODEL]"));
    }

    #[test]
    fn names_of_other_servers_are_accepted() {
        let cli = parse(
            "server --model-path m --lora-paths a=b c=d --lora-paths e=f --max-loras-per-batch 3 \
             --tp-size 1 --disable-radix-cache --lora-backend csgmv",
        );
        let settings = cli.settings;
        assert_eq!(settings.model.as_deref(), Some("m"));
        assert_eq!(settings.lora_modules, ["a=b", "c=d", "e=f"]);
        assert_eq!(settings.max_loras, Some(3));
        assert!(settings.no_enable_prefix_caching);
    }
}
