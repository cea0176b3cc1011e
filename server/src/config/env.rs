//! The environment, read once, here and nowhere else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use loraplex_hub_client::{HubError, HubOptions};

use crate::args::Settings;

/// The variables that the server knows.
#[derive(Debug)]
pub struct Environment {
    /// Filter of the log, as `RUST_LOG` has it.
    pub log: Option<String>,
    /// `ALLOW_RUNTIME_LORA_UPDATING`.
    pub allow_runtime_lora_updating: bool,
    /// What it says where that switches nothing, on or off.
    pub updating_not_understood: Option<String>,
    /// `PLUGINS`, in order.
    pub plugins: Vec<String>,
    /// `LORA_ALLOWED_PATHS`: folders below which adapters may be loaded by path.
    pub allowed_paths: Option<Vec<PathBuf>>,
    /// Every `LORA_RESOLVER_*`, without the prefix `VLLM_`; for the plugins.
    pub resolver: BTreeMap<String, String>,
    /// `HF_*` and what stands beside them.
    pub hub: Result<HubOptions, HubError>,
    settings: Settings,
}

impl Environment {
    /// The process's own.
    pub fn from_process() -> Self {
        // A value that is not UTF-8 is none of ours.
        Self::read(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }))
    }

    /// For tests.
    pub fn from_pairs(pairs: &[(&str, &str)]) -> Self {
        Self::read(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    /// What the environment has to say about settings that are flags too.
    pub fn settings(&self) -> Settings {
        self.settings.clone()
    }

    fn read(variables: impl Iterator<Item = (String, String)>) -> Self {
        let variables: BTreeMap<String, String> = variables.collect();
        // vLLM's spelling counts where ours is not set.
        let get = |name: &str| {
            variables.get(name).or_else(|| variables.get(&format!("VLLM_{name}"))).cloned()
        };
        let mut resolver = BTreeMap::new();
        for prefix in ["VLLM_LORA_RESOLVER_", "LORA_RESOLVER_"] {
            for (name, value) in variables.iter().filter(|(name, _)| name.starts_with(prefix)) {
                resolver.insert(name.trim_start_matches("VLLM_").to_owned(), value.clone());
            }
        }
        let keys = |name: &str| {
            let key = variables.get(name).filter(|key| !key.is_empty());
            key.map(|key| key.parse().expect("any text is a key")).into_iter().collect()
        };
        let updating = get("ALLOW_RUNTIME_LORA_UPDATING").unwrap_or_default();
        let is = |values: &[&str]| values.contains(&updating.trim().to_ascii_lowercase().as_str());
        Self {
            log: variables.get("RUST_LOG").cloned(),
            allow_runtime_lora_updating: is(&["1", "true"]),
            updating_not_understood: (!is(&["1", "true", "", "0", "false"]))
                .then(|| updating.clone()),
            plugins: get("PLUGINS").map(|list| names(&list)).unwrap_or_default(),
            allowed_paths: get("LORA_ALLOWED_PATHS")
                .or_else(|| variables.get("VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES").cloned())
                .map(|list| std::env::split_paths(&list).collect()),
            resolver,
            hub: HubOptions::from_vars(|name| variables.get(name).cloned()),
            settings: Settings {
                plugin_dir: get("PLUGIN_DIR").filter(|dir| !dir.is_empty()).map(Into::into),
                api_key: keys("VLLM_API_KEY"),
                admin_api_key: keys("LORA_ADMIN_API_KEY"),
                ..Settings::default()
            },
        }
    }
}

/// The user's home, for paths that begin with `~`.
pub(crate) fn home_dir() -> Option<PathBuf> {
    std::env::home_dir()
}

/// Where programs keep what they can make again.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    let set = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    set.filter(|folder| folder.is_absolute()).or_else(|| Some(home_dir()?.join(".cache")))
}

/// The items of a list with commas.
pub(super) fn names(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_spelling_beats_that_of_vllm() {
        let environment = Environment::from_pairs(&[
            ("PLUGINS", "b, a ,"),
            ("VLLM_PLUGINS", "c"),
            ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "yes"),
            ("VLLM_LORA_RESOLVER_CACHE_DIR", "/vllm"),
            ("LORA_RESOLVER_CACHE_DIR", "/ours"),
            ("VLLM_LORA_RESOLVER_HF_REPO_LIST", "x"),
            ("LORA_ADMIN_API_KEY", "hunter2"),
        ]);
        assert_eq!(environment.plugins, ["b", "a"]);
        assert!(!environment.allow_runtime_lora_updating, "only 1 and true switch it on");
        assert_eq!(environment.updating_not_understood.as_deref(), Some("yes"));
        assert_eq!(environment.resolver["LORA_RESOLVER_CACHE_DIR"], "/ours");
        assert_eq!(environment.resolver["LORA_RESOLVER_HF_REPO_LIST"], "x");
        let settings = environment.settings();
        assert_eq!(settings.admin_api_key[0].expose(), "hunter2");
        assert!(settings.api_key.is_empty());
    }
}
