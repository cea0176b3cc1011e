//! Names to generations: the registry, and the loads that change it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use indexmap::IndexMap;
use loraplex_kernels::AdapterPacker;
use loraplex_plugin_sdk::LoraRequest;
use parking_lot::RwLock;

use super::Adapter;
use super::peft::{self, PeftLimits};
use crate::config::LoraConfig;
use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// Finds adapters by name and loads new ones. Loads run on blocking threads; a failed one changes nothing.
#[derive(Debug)]
pub struct AdapterManager {
    config: LoraConfig,
    model: ModelConfig,
    packer: Arc<dyn AdapterPacker>,
    next_generation: AtomicU64,
    /// In order of registration.
    registry: RwLock<IndexMap<String, Arc<Adapter>>>,
}

impl AdapterManager {
    /// An empty registry for adapters of `model`, packed by `packer`.
    pub fn new(config: LoraConfig, model: ModelConfig, packer: Arc<dyn AdapterPacker>) -> Self {
        // Above every generation of an earlier run, as long as that made fewer than a million a second.
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            config,
            model,
            packer,
            next_generation: AtomicU64::new(started << 20),
            registry: RwLock::default(),
        }
    }

    /// The newest generation of `name`.
    pub async fn get(&self, name: &str) -> Result<Arc<Adapter>> {
        self.registry
            .read()
            .get(name)
            .cloned()
            .ok_or_else(|| Error::not_found(format!("no adapter is named {name:?}")))
    }

    /// All adapters, in order of registration.
    pub fn list(&self) -> Vec<Arc<Adapter>> {
        self.registry.read().values().cloned().collect()
    }

    /// Loads a new adapter under a name that is not taken.
    pub async fn load(self: &Arc<Self>, request: LoraRequest) -> Result<Arc<Adapter>> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.load_blocking(request))
            .await
            .map_err(|error| Error::internal(format!("an adapter's load died: {error}")))?
    }

    /// As [`AdapterManager::load`], on the caller's thread.
    pub fn load_blocking(&self, request: LoraRequest) -> Result<Arc<Adapter>> {
        self.check_room(&request.name)?;
        let limits = PeftLimits::new(self.config.max_rank);
        let path: PathBuf = request.path.clone();
        let loaded = peft::load(&path, &self.model, &limits)?;
        let packed = self.packer.pack(self.model.layers, &loaded.weights)?;
        let adapter = Arc::new(Adapter {
            generation: self.next_generation.fetch_add(1, Ordering::Relaxed),
            digest: loaded.digest,
            rank: loaded.rank,
            modules: loaded.modules,
            policy_version: None,
            loaded_at: SystemTime::now(),
            packed: Arc::new(packed),
            request,
        });
        let mut registry = self.registry.write();
        // Somebody may have taken the name in the meantime.
        if registry.contains_key(adapter.name()) {
            return Err(taken(adapter.name()));
        }
        registry.insert(adapter.name().to_owned(), adapter.clone());
        Ok(adapter)
    }

    fn check_room(&self, name: &str) -> Result<()> {
        if !self.config.enabled {
            return Err(Error::invalid("LoRA is not enabled. Use --enable-lora to enable LoRA."));
        }
        let registry = self.registry.read();
        if registry.contains_key(name) {
            return Err(taken(name));
        }
        if registry.len() >= self.config.max_host_adapters {
            return Err(Error::exhausted(format!(
                "{} adapters are loaded, the limit of --max-cpu-loras",
                registry.len()
            )));
        }
        Ok(())
    }
}

fn taken(name: &str) -> Error {
    Error::invalid(format!("The lora adapter '{name}' has already been loaded."))
}
