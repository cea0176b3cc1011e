//! The one check of all settings together: what cannot work is refused here, in one line.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use loraplex_core::{
    CacheConfig, CacheSize, DType, Device, EngineConfig, LoraConfig, PoolSize, Quantization,
    ResolverConfig, SchedulerConfig, UpdatePolicy,
};

use super::env::{self, Environment, names};
use super::{HttpConfig, RuntimeConfig, ServerConfig, size};
use crate::args::{self, DeviceName, LoadFormat, ModelDtype, QuantizationName, Settings};
use crate::auth::Guard;
use crate::control::paths::PathPolicy;
use crate::hub::HubModel;
use crate::lora_modules::{self, LoraModule};
use crate::seconds;

/// More are a mistake, and each is a thread of the system.
const MOST_THREADS: usize = 1024;

pub(super) fn validate(settings: Settings, environment: &Environment) -> Result<ServerConfig> {
    let model = settings.model.as_deref().context(
        "no model: name a Hugging Face folder, a .gguf file or a repository of the Hub, or start with \
         `server demo`",
    )?;
    let (model_path, hub_model) = find_model(model)?;
    let hub = environment.hub.clone()?;
    let devices = settings.tensor_parallel_size.unwrap_or(1);
    ensure!(devices == 1, "--tensor-parallel-size {devices}: one device is all there is for now");
    let http = HttpConfig {
        host: settings.host.clone().unwrap_or_else(|| "127.0.0.1".into()),
        port: settings.port.unwrap_or(8000),
        guard: Guard::new(&settings.api_key, &settings.admin_api_key),
        shutdown_timeout: Duration::from_secs(settings.shutdown_timeout.unwrap_or(30)),
    };
    ensure!(http.guard.keys_are_usable(), "--api-key and --admin-api-key must not be empty");
    let mut served_model_names = settings.served_model_name.clone();
    if served_model_names.is_empty() {
        let repo = hub_model.as_ref().map(|model| model.repo.as_str());
        served_model_names.push(repo.unwrap_or(model).to_owned());
    }
    ensure!(
        served_model_names.iter().all(|name| !name.is_empty()),
        "--served-model-name must not be empty"
    );
    let base_names = [vec![model.to_owned()], served_model_names.clone()].concat();
    let runtime = runtime(&settings, environment, &http, base_names)?;
    let mut engine = EngineConfig {
        served_model_name: served_model_names.first().cloned(),
        ..engine(&settings, model_path)?
    };
    engine.lora.base_model.clone_from(&served_model_names[0]);
    let lora_modules = modules(&settings, &served_model_names, engine.lora.enabled)?;
    let mut notes = notes(&settings);
    if let Some(value) = &environment.updating_not_understood {
        notes.push(format!(
            "ALLOW_RUNTIME_LORA_UPDATING={value}: 1 or true opens the control routes, which stay closed"
        ));
    }
    Ok(ServerConfig {
        http,
        served_model_names,
        engine,
        hub_model,
        hub,
        lora_modules,
        runtime,
        notes,
    })
}

/// Where the model is: a path, or where there is none, a repository of the Hub.
fn find_model(model: &str) -> Result<(PathBuf, Option<HubModel>)> {
    let path = lora_modules::expand_home(model);
    let gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if path.is_dir() {
        let config = path.join("config.json");
        ensure!(config.is_file(), "{model} has no config.json: it is no Hugging Face model folder");
    } else if path.is_file() {
        ensure!(gguf, "{model} is a file but no .gguf: name a .gguf file or a model folder");
    } else {
        let on_hub = HubModel::parse(model).with_context(|| {
            format!(
                "there is no {model}: name a Hugging Face folder, a .gguf file, or a repository of \
                 the Hub (org/name)"
            )
        })?;
        return Ok((path, Some(on_hub)));
    }
    Ok((path, None))
}

fn engine(settings: &Settings, model: PathBuf) -> Result<EngineConfig> {
    let scheduler = SchedulerConfig::default();
    let cache = CacheConfig::default();
    let scheduler = SchedulerConfig {
        max_num_seqs: settings.max_num_seqs.unwrap_or(scheduler.max_num_seqs),
        max_num_batched_tokens: settings
            .max_num_batched_tokens
            .unwrap_or(scheduler.max_num_batched_tokens),
        most_of_a_prompt: settings
            .long_prefill_token_threshold
            .filter(|&tokens| tokens > 0)
            .unwrap_or(scheduler.most_of_a_prompt),
        max_waiting: settings.max_queued_requests.unwrap_or(scheduler.max_waiting),
        adapter_wait: duration("--lora-wait-timeout", settings.lora_wait_timeout)?
            .unwrap_or(scheduler.adapter_wait),
        run_ahead: settings.async_scheduling,
    };
    let size = match bytes("--kv-cache-memory-bytes", &settings.kv_cache_memory_bytes)? {
        Some(bytes) => CacheSize::Bytes(bytes),
        None => cache.size,
    };
    for (name, value) in [
        ("--max-model-len", settings.max_model_len),
        ("--max-num-seqs", settings.max_num_seqs),
        ("--max-num-batched-tokens", settings.max_num_batched_tokens),
        ("--max-queued-requests", settings.max_queued_requests),
        ("--block-size", settings.block_size),
        ("--max-lora-rank", settings.max_lora_rank),
        ("--max-loras", settings.max_loras),
        ("--max-cpu-loras", settings.max_cpu_loras),
        ("--threads", settings.threads),
    ] {
        ensure!(value != Some(0), "{name} must be at least 1");
    }
    if let Some(threads) = settings.threads {
        ensure!(threads <= MOST_THREADS, "--threads {threads}: {MOST_THREADS} at most");
    }
    if let Some(share) = settings.gpu_memory_utilization {
        let fits = share > 0.0 && share <= 1.0;
        ensure!(fits, "--gpu-memory-utilization {share} must be over 0 and at most 1");
    }
    Ok(EngineConfig {
        dtype: match settings.dtype {
            None | Some(ModelDtype::Auto) => None,
            Some(ModelDtype::Bfloat16) => Some(DType::Bf16),
            Some(ModelDtype::Float16) => Some(DType::F16),
            Some(ModelDtype::Float32) => Some(DType::F32),
        },
        quantization: settings.quantization.map(|QuantizationName::Int8| Quantization::Int8),
        device: match settings.device {
            None | Some(DeviceName::Auto) => Device::Auto,
            Some(DeviceName::Cpu) => Device::Cpu,
            Some(DeviceName::Cuda) => Device::Cuda,
            Some(DeviceName::Reference) => Device::Reference,
        },
        threads: settings.threads,
        max_model_len: settings.max_model_len,
        scheduler,
        cache: CacheConfig {
            block_size: settings.block_size.unwrap_or(cache.block_size),
            size,
            device_share: settings.gpu_memory_utilization.unwrap_or(cache.device_share),
            prefix_caching: settings.enable_prefix_caching.unwrap_or(cache.prefix_caching),
        },
        lora: lora(settings)?,
        seed: settings.seed.unwrap_or(0),
        chat_template: settings.chat_template.as_deref().map(chat_template).transpose()?,
        kernel_cache: env::cache_dir().map(|cache| cache.join("loraplex/kernels")),
        dummy_weights: settings.load_format == Some(LoadFormat::Dummy),
        ..EngineConfig::new(model)
    })
}

fn lora(settings: &Settings) -> Result<LoraConfig> {
    let default = LoraConfig::default();
    let pool = bytes("--lora-pool-memory", &settings.lora_pool_memory)?;
    Ok(LoraConfig {
        pool: match (pool, settings.max_loras) {
            (Some(bytes), _) => PoolSize::Bytes(bytes),
            (None, Some(adapters)) => PoolSize::Adapters(adapters),
            (None, None) => default.pool,
        },
        enabled: settings.enable_lora.unwrap_or(default.enabled),
        max_rank: settings.max_lora_rank.unwrap_or(default.max_rank),
        max_host_adapters: settings.max_cpu_loras.unwrap_or(default.max_host_adapters),
        host_memory: bytes("--lora-host-memory", &settings.lora_host_memory)?,
        resolver_timeout: duration("--resolver-timeout", settings.resolver_timeout)?
            .unwrap_or(default.resolver_timeout),
        negative_ttl: duration("--resolver-negative-ttl", settings.resolver_negative_ttl)?
            .unwrap_or(default.negative_ttl),
        ..default
    })
}

fn bytes(name: &'static str, text: &Option<String>) -> Result<Option<usize>> {
    text.as_deref().map(|text| size::bytes(text).context(name)).transpose()
}

fn duration(name: &str, value: Option<f64>) -> Result<Option<Duration>> {
    let Some(value) = value else { return Ok(None) };
    let duration = seconds::duration(value);
    duration
        .map(Some)
        .with_context(|| format!("{name} {value} is no number of seconds up to a year"))
}

/// The template itself: `text` is a file's path, or Jinja.
fn chat_template(text: &str) -> Result<String> {
    let path = Path::new(text);
    if path.is_file() {
        return std::fs::read_to_string(path)
            .with_context(|| format!("--chat-template {text}: cannot be read"));
    }
    let jinja = text.contains("{{") || text.contains("{%");
    ensure!(jinja, "--chat-template {text}: there is no such file, and it is no template either");
    Ok(text.to_owned())
}

fn runtime(
    settings: &Settings,
    environment: &Environment,
    http: &HttpConfig,
    base_names: Vec<String>,
) -> Result<RuntimeConfig> {
    let updating = environment.allow_runtime_lora_updating;
    let plugins = environment.plugins.clone();
    if !plugins.is_empty() {
        let list = plugins.join(", ");
        ensure!(
            updating,
            "PLUGINS names {list}, but resolvers load adapters at run time and \
             ALLOW_RUNTIME_LORA_UPDATING is not 1: set it, or unset PLUGINS"
        );
    }
    ensure!(
        !updating || http.is_loopback() || http.guard.has_admin_key(),
        "ALLOW_RUNTIME_LORA_UPDATING=1 on {}: whoever reaches this address could load adapters; \
         set --admin-api-key, or listen on 127.0.0.1",
        http.host
    );
    let paths = match &environment.allowed_paths {
        Some(folders) => PathPolicy::Below(allowed_folders(folders)?),
        None if http.is_loopback() => PathPolicy::Any,
        None => PathPolicy::Below(Vec::new()),
    };
    let state_dir = settings.state_dir.clone();
    ensure!(
        updating || state_dir.is_none(),
        "--state-dir keeps adapters that are loaded at run time, which only \
         ALLOW_RUNTIME_LORA_UPDATING=1 allows: set it, or leave --state-dir out"
    );
    let plugin_configs = plugin_configs(settings, environment, &plugins, base_names)?;
    let plugin_dir = settings.plugin_dir.clone();
    let update_policy = match settings.lora_update_policy {
        Some(args::UpdatePolicy::Follow) => UpdatePolicy::Follow,
        None | Some(args::UpdatePolicy::Pin) => UpdatePolicy::Pin,
    };
    Ok(RuntimeConfig {
        updating,
        plugins,
        update_policy,
        paths,
        plugin_dir,
        state_dir,
        plugin_configs,
    })
}

/// What each plugin is told: its own table, every `LORA_RESOLVER_*`, and what the base model is called.
fn plugin_configs(
    settings: &Settings,
    environment: &Environment,
    plugins: &[String],
    mut base_names: Vec<String>,
) -> Result<Vec<ResolverConfig>> {
    if let Some(name) = settings.plugins.keys().find(|name| !plugins.contains(name)) {
        bail!("the config file has a table plugins.{name}, but PLUGINS does not name {name}");
    }
    let aliases = environment.resolver.get("LORA_RESOLVER_BASE_ALIASES").map(String::as_str);
    base_names.extend(names(aliases.unwrap_or_default()));
    // Without --served-model-name the model is served as its path. Messages list the names.
    let mut seen = HashSet::new();
    base_names.retain(|name| seen.insert(name.clone()));
    let variables = environment.resolver.iter();
    let variables: serde_json::Map<_, _> =
        variables.map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let tables = plugins.iter().map(|name| match settings.plugins.get(name) {
        None => Ok(serde_json::Map::new()),
        Some(serde_json::Value::Object(table)) => Ok(table.clone()),
        Some(_) => bail!("plugins.{name} in the config file is no table"),
    });
    tables
        .map(|table| {
            let mut config = ResolverConfig::default();
            config.table = table?;
            config.environment = variables.clone();
            config.base_model_names = base_names.clone();
            Ok(config)
        })
        .collect()
}

/// The folders with their links resolved, as the paths are compared.
fn allowed_folders(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let folders = folders.iter().filter(|folder| !folder.as_os_str().is_empty()).map(|folder| {
        let shown = folder.display();
        ensure!(folder.is_absolute(), "LORA_ALLOWED_PATHS: {shown} is no absolute path");
        folder.canonicalize().with_context(|| format!("LORA_ALLOWED_PATHS: {shown}"))
    });
    folders.collect()
}

fn modules(settings: &Settings, served: &[String], enabled: bool) -> Result<Vec<LoraModule>> {
    let mut modules: Vec<LoraModule> = Vec::new();
    for item in &settings.lora_modules {
        let Some(module) = lora_modules::parse(item)? else { continue };
        let name = &module.name;
        ensure!(
            !served.contains(name),
            "The lora adapter '{name}' conflicts with a served base model."
        );
        ensure!(
            modules.iter().all(|other| other.name != *name),
            "The lora adapter '{name}' has already been loaded: --lora-modules names it twice"
        );
        modules.push(module);
    }
    // Known before a large model is read.
    if let Some(LoraModule { name, path, .. }) = modules.iter().find(|module| !module.path.exists())
    {
        let path = path.display();
        bail!("--lora-modules {name}={path}: No adapter found for {path}");
    }
    ensure!(
        enabled || modules.is_empty(),
        "--lora-modules names {} adapters, but --no-enable-lora refuses all",
        modules.len()
    );
    Ok(modules)
}

/// What was set and has no effect yet.
fn notes(settings: &Settings) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |set: bool, text: &str| {
        if set {
            notes.push(text.to_owned());
        }
    };
    note(settings.lora_dtype.is_some(), "--lora-dtype: adapters take the model's type; no effect");
    note(settings.lora_backend.is_some(), "--lora-backend: there is one implementation; no effect");
    notes
}
