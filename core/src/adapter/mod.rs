//! Adapters from their files to the step: read, checked, packed, named.
//!
//! A loaded adapter is an immutable *generation*. The name points to the newest one; sequences hold the one they
//! started with until they end, and its memory goes when the last of them drops it.

mod manager;
pub mod peft;

use std::sync::Arc;
use std::time::SystemTime;

use loraplex_kernels::PackedAdapter;
use loraplex_plugin_sdk::LoraRequest;

pub use manager::AdapterManager;

/// One generation of an adapter, ready to be made resident. Never changes.
#[derive(Debug)]
pub struct Adapter {
    /// Where it came from; its `name` is what requests say.
    pub request: LoraRequest,
    /// Server-wide, rising: no two loads share it, over restarts neither.
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
