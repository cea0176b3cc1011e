//! From what was typed, the environment and a file to one validated [`ServerConfig`].
//!
//! Precedence: flag, then environment, then file, then default. What this module must never do: start anything.

pub mod env;
pub mod file;
pub mod secret;
mod size;
mod validate;

use std::path::PathBuf;

use anyhow::{Context, Result};
use loraplex_core::{EngineConfig, ResolverConfig, UpdatePolicy};
use loraplex_hub_client::HubOptions;

use crate::args::Settings;
use crate::auth::Guard;
use crate::control::paths::PathPolicy;
use crate::hub::HubModel;
use crate::lora_modules::LoraModule;
use env::Environment;

/// Everything the server is made from, checked.
#[derive(Debug)]
pub struct ServerConfig {
    /// Where to listen and whom to let in.
    pub http: HttpConfig,
    /// Names of the base model, at least one; the first is the one in answers.
    pub served_model_names: Vec<String>,
    /// The engine and its model.
    pub engine: EngineConfig,
    /// The engine's model is this one of the Hub, which must be fetched first; `None` when it lies here.
    pub hub_model: Option<HubModel>,
    /// The Hub and its cache folder.
    pub hub: HubOptions,
    /// Adapters to load before the server listens.
    pub lora_modules: Vec<LoraModule>,
    /// Adapters that come and go while the server runs.
    pub runtime: RuntimeConfig,
    /// What was set and has no effect yet, one line each.
    pub notes: Vec<String>,
}

/// Where to listen and whom to let in.
#[derive(Debug)]
pub struct HttpConfig {
    /// A host name or an address.
    pub host: String,
    /// 0 takes a free one.
    pub port: u16,
    /// The keys.
    pub guard: Guard,
    /// What running requests get after the first signal.
    pub shutdown_timeout: std::time::Duration,
}

impl HttpConfig {
    /// Whether only this machine can connect.
    pub fn is_loopback(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// Adapters that come and go while the server runs.
#[derive(Debug)]
pub struct RuntimeConfig {
    /// Whether clients may load adapters and resolvers are asked.
    pub updating: bool,
    /// Resolver plugins, in the order in which they are asked.
    pub plugins: Vec<String>,
    /// What running requests do that say nothing when their adapter is replaced.
    pub update_policy: UpdatePolicy,
    /// Which local paths the control routes may name.
    pub paths: PathPolicy,
    /// Where their libraries are; the executable's own folder when `None`.
    pub plugin_dir: Option<PathBuf>,
    /// Where run-time loads are kept over restarts.
    pub state_dir: Option<PathBuf>,
    /// What each plugin is told, in the same order.
    pub plugin_configs: Vec<ResolverConfig>,
}

impl ServerConfig {
    /// Reads the config file that `settings` name, if any, and checks everything together.
    pub fn resolve(settings: Settings, environment: &Environment) -> Result<Self> {
        let file = match &settings.config {
            Some(path) => file::read(path)?,
            None => Settings::default(),
        };
        let settings = settings.fold_arguments().over(environment.settings())?.over(file)?;
        validate::validate(settings, environment)
    }
}

impl Settings {
    /// Brings the forms that exist only on the command line into the fields that every layer has.
    fn fold_arguments(mut self) -> Self {
        self.model = self.model_argument.take().or(self.model);
        if self.no_enable_prefix_caching {
            self.enable_prefix_caching = Some(false);
        }
        if self.no_async_scheduling {
            self.async_scheduling = Some(false);
        }
        if self.no_enable_lora {
            self.enable_lora = Some(false);
        }
        self
    }

    /// Takes from `under` what `self` leaves unsaid. A list replaces the whole list below it.
    fn over(self, under: Settings) -> Result<Settings> {
        let map = |settings: &Settings| -> Result<serde_json::Map<_, _>> {
            Ok(serde_json::from_value(serde_json::to_value(settings)?)?)
        };
        let mut merged = map(&under)?;
        merged.extend(map(&self).context("a path on the command line is not UTF-8")?);
        Ok(serde_json::from_value(merged.into())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn resolve(line: &str, env: &[(&str, &str)], file: &str) -> Result<ServerConfig> {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        std::fs::write(model.join("config.json"), "{}").unwrap();
        let path = folder.path().join("server.yaml");
        std::fs::write(&path, file).unwrap();
        let line = format!("server {} --config {} {line}", model.display(), path.display());
        let cli = crate::args::Cli::try_parse_from(line.split_whitespace()).unwrap();
        let environment = Environment::from_pairs(env);
        ServerConfig::resolve(*cli.settings, &environment)
    }

    #[test]
    fn weights_in_8_bits_are_asked_for_by_flag_or_file() {
        let quantization = |line: &str, file: &str| {
            resolve(line, &[], file).map(|config| config.engine.quantization)
        };
        let int8 = Some(loraplex_core::Quantization::Int8);
        assert_eq!(quantization("", "port: 1").unwrap(), None);
        assert_eq!(quantization("--quantization int8", "port: 1").unwrap(), int8);
        assert_eq!(quantization("", "quantization: int8").unwrap(), int8);
        assert!(quantization("", "quantization: int3").is_err());
    }

    #[test]
    fn a_flag_beats_the_environment_which_beats_the_file() {
        let file = "port: 1\nplugin_dir: /file\nmax_num_seqs: 3\n";
        let config = resolve("--port 2", &[("PLUGIN_DIR", "/env")], file).unwrap();
        assert_eq!(config.http.port, 2);
        assert_eq!(config.runtime.plugin_dir, Some("/env".into()));
        assert_eq!(config.engine.scheduler.max_num_seqs, 3);
        let config =
            resolve("--plugin-dir /flag", &[("PLUGIN_DIR", "/env")], "plugin_dir: /file").unwrap();
        assert_eq!(config.runtime.plugin_dir, Some("/flag".into()));
        assert_eq!(config.http.port, 8000);
    }

    #[test]
    fn a_list_replaces_the_list_below() {
        let file = "served_model_name: [a, b]\nenable_prefix_caching: true\n";
        let config = resolve("--no-enable-prefix-caching", &[], file).unwrap();
        assert_eq!(config.served_model_names, ["a", "b"]);
        assert!(!config.engine.cache.prefix_caching);
        let config = resolve("--served-model-name c", &[], file).unwrap();
        assert_eq!(config.served_model_names, ["c"]);
    }

    #[test]
    fn plugins_need_runtime_updating() {
        let error = resolve("", &[("PLUGINS", "lora_filesystem_resolver")], "").unwrap_err();
        assert!(error.to_string().contains("ALLOW_RUNTIME_LORA_UPDATING"), "{error}");
        let both = [("VLLM_PLUGINS", "a,b"), ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", " True ")];
        assert_eq!(resolve("", &both, "").unwrap().runtime.plugins, ["a", "b"]);
        assert!(resolve("", &[("PLUGINS", "")], "").is_ok());
    }

    #[test]
    fn a_plugin_is_told_its_table_the_variables_and_the_base_models_names() {
        let env = [
            ("PLUGINS", "a"),
            ("ALLOW_RUNTIME_LORA_UPDATING", "1"),
            ("LORA_RESOLVER_CACHE_DIR", "/adapters"),
            ("LORA_RESOLVER_BASE_ALIASES", "org/base, other"),
        ];
        let file = "plugins: {a: {depth: 2}}\nserved_model_name: [served]\n";
        let config = resolve("", &env, file).unwrap().runtime.plugin_configs.remove(0);
        assert_eq!(config.table["depth"], 2);
        assert_eq!(config.environment["LORA_RESOLVER_CACHE_DIR"], "/adapters");
        let names = &config.base_model_names;
        assert!(names[0].ends_with("/model") && names[1..] == ["served", "org/base", "other"]);
        let unnamed = resolve("", &env, "").unwrap().runtime.plugin_configs.remove(0);
        assert_eq!(unnamed.base_model_names.len(), 3, "each name once");
        let error = resolve("", &[], "plugins: {b: {depth: 3}}").unwrap_err();
        assert!(error.to_string().contains("plugins.b"), "{error}");
    }

    #[test]
    fn an_open_control_plane_on_the_network_is_refused() {
        let updating = [("ALLOW_RUNTIME_LORA_UPDATING", "1")];
        let error = resolve("--host 0.0.0.0", &updating, "").unwrap_err();
        assert!(error.to_string().contains("--admin-api-key"), "{error}");
        assert!(resolve("--host 0.0.0.0 --admin-api-key k", &updating, "").is_ok());
        assert!(resolve("--host ::1", &updating, "").unwrap().http.is_loopback());
    }

    #[test]
    fn a_bad_number_is_named() {
        for (line, part) in [
            ("--tensor-parallel-size 2", "tensor-parallel-size 2"),
            ("--max-model-len 0", "max-model-len"),
            ("--kv-cache-memory-bytes 2GB?", "2GB?"),
            ("--lora-modules x", "Invalid JSON format for --lora-modules: x"),
            ("--lora-modules a=b a=c", "'a' has already been loaded"),
            ("--served-model-name a --lora-modules a=b", "'a' conflicts with a served base model"),
        ] {
            let error = resolve(line, &[], "").unwrap_err();
            assert!(format!("{error:#}").contains(part), "{line}: {error:#}");
        }
    }

    #[test]
    fn a_secret_does_not_print() {
        let config = resolve("--api-key hunter2", &[("VLLM_API_KEY", "hunter3")], "").unwrap();
        assert!(!format!("{config:?}").contains("hunter"));
    }
}
