//! Adapters from their files to the step: found, read, checked, packed, named.
//!
//! | module | holds |
//! |---|---|
//! | [`manager`](AdapterManager) | names to generations; loads, replacements and unloads |
//! | [`resolvers`](ResolverRegistry) | who is asked for a name that nobody loaded, and how the calls are guarded |
//! | `flights` | one fetch a name at a time, what is not there remembered for a while |
//! | `registry`, `entry` | the names, and what stands behind each |
//! | `store` | host memory: its limits, what is in use, what gives way |
//! | [`journal`](Journal) | what was loaded at run time, kept over restarts |
//! | `loader` | threads that read and pack |
//! | [`peft`] | PEFT's files to weights |
//!
//! A loaded adapter is an immutable *generation*. The name points to the newest one; sequences hold the one they
//! started with until they end, and its memory goes when the last of them drops it.

mod entry;
mod flights;
mod journal;
mod load;
mod loader;
mod manager;
mod names;
pub mod peft;
mod registry;
mod resolvers;
mod store;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::SystemTime;

use loraplex_kernels::PackedAdapter;
use loraplex_plugin_sdk::LoraRequest;

pub use entry::{AdapterStatus, Origin};
pub use journal::Journal;
pub use load::{Content, LoadRequest, LoadTimings, Loaded, LoadedAdapter};
pub use manager::{AdapterManager, Floor};
pub use resolvers::{ResolverRegistry, ResolverStatus};

/// One generation of an adapter, ready to be made resident. Never changes.
#[derive(Debug)]
pub struct Adapter {
    /// Where it came from; its `name` is what requests say.
    pub request: LoraRequest,
    /// Server-wide, rising: no two loads share it, over restarts neither. Weights that had to leave memory come back with
    /// the generation that they had.
    pub generation: u64,
    /// BLAKE3 over the files' bytes, in hex.
    pub digest: String,
    /// Largest rank of its modules.
    pub rank: usize,
    /// Adapted modules.
    pub modules: usize,
    /// The version that a trainer gave this content; higher is newer.
    pub policy_version: Option<u64>,
    /// When the load ended.
    pub loaded_at: SystemTime,
    /// The weights in the backend's layout.
    pub packed: Arc<PackedAdapter>,
    /// Its place in host memory, given back on drop.
    _room: store::Room,
}

impl Adapter {
    /// The name that requests use.
    pub fn name(&self) -> &str {
        &self.request.name
    }

    /// Bytes that its weights take, in host memory and in a device's pool.
    pub fn bytes(&self) -> usize {
        self.packed.bytes.len()
    }
}
