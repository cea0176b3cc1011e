//! Names to generations: every change of a name, and every way to one. One owner of the state, a file for each thing that is
//! done with it.
//!
//! | module | what is done |
//! |---|---|
//! | `lookup` | a request's name to its newest generation |
//! | `resolving` | the resolvers are asked for a name that nobody loaded |
//! | `watching` | a resolver's source has changed |
//! | `loading` | a name gets a new generation |
//! | `unloading` | a name goes |
//! | `restoring` | what was loaded before a restart comes back |
//! | `memory` | room in host memory |

mod loading;
mod lookup;
mod memory;
mod resolving;
mod restoring;
mod unloading;
mod watching;

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use loraplex_kernels::{AdapterMemory, AdapterPacker};
use moka::sync::Cache;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::flights::Flights;
use super::journal::Journal;
use super::load::Builder;
use super::loader::Loader;
use super::names::NameLocks;
use super::peft::PeftLimits;
use super::registry::Registry;
use super::store::HostStore;
use super::{AdapterStatus, Loaded, ResolverRegistry, ResolverStatus};
use crate::config::LoraConfig;
use crate::engine::EngineHandle;
use crate::error::{Error, Result};
use crate::model::ModelConfig;

pub use lookup::Floor;

/// Operation ids that are remembered.
const OPERATIONS: u64 = 1024;

/// A load with an id that was done.
#[derive(Debug, Clone)]
struct Operation {
    /// Where from; empty for an upload.
    path: PathBuf,
    loaded: Loaded,
}

/// Finds adapters by name and changes what names point to.
///
/// Invariants: a failed load changes nothing; after an acknowledged load no later request sees an older generation;
/// changes of one name follow each other. Loads run on threads of their own and go on when their caller leaves.
#[derive(Debug)]
pub struct AdapterManager {
    config: LoraConfig,
    builder: Builder,
    loader: Loader,
    engine: Option<EngineHandle>,
    next_generation: AtomicU64,
    registry: Registry,
    locks: NameLocks,
    store: HostStore,
    flights: Flights,
    resolvers: OnceLock<ResolverRegistry>,
    journal: OnceLock<Arc<Journal>>,
    /// By name and id.
    operations: Cache<(String, String), Operation>,
    /// Changes with every flip.
    flips: watch::Sender<u64>,
    tasks: TaskTracker,
}

impl AdapterManager {
    /// An empty registry for adapters of `model`, packed by `packer`; `engine` is told of replacements.
    pub fn new(
        config: LoraConfig,
        model: ModelConfig,
        packer: Arc<dyn AdapterPacker>,
        engine: Option<EngineHandle>,
    ) -> Result<Self> {
        // Above every generation of an earlier run, as long as that made fewer than a million a second.
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let limits = PeftLimits::new(config.max_rank);
        Ok(Self {
            builder: Builder {
                model: Arc::new(model),
                packer,
                limits,
                memory: AdapterMemory::keeping()?,
            },
            loader: Loader::start()?,
            engine,
            next_generation: AtomicU64::new(started << 20),
            registry: Registry::default(),
            locks: NameLocks::default(),
            store: HostStore::new(config.max_host_adapters, config.host_memory),
            flights: Flights::new(config.negative_ttl),
            resolvers: OnceLock::new(),
            journal: OnceLock::new(),
            operations: Cache::new(OPERATIONS),
            flips: watch::Sender::new(0),
            tasks: TaskTracker::new(),
            config,
        })
    }

    /// All adapters, in order of registration.
    pub fn list(&self) -> Vec<AdapterStatus> {
        self.registry.entries().iter().map(|entry| entry.status()).collect()
    }

    /// One adapter.
    pub fn status(&self, name: &str) -> Option<AdapterStatus> {
        self.registry.peek(name).map(|entry| entry.status())
    }

    /// How the resolvers fare, in the order in which they are asked.
    pub fn resolvers_status(&self) -> Vec<ResolverStatus> {
        self.resolvers.get().map(ResolverRegistry::status).unwrap_or_default()
    }

    /// Waits for loads and fetches under way; new ones may still come.
    pub async fn drain(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }

    #[cfg(test)]
    pub(super) fn locks_in_use(&self) -> usize {
        self.locks.len()
    }
}

fn unknown(name: &str) -> Error {
    Error::not_found(format!("The lora adapter '{name}' cannot be found."))
}
