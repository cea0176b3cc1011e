//! Adapters without weights, for tests of who holds them.

use std::sync::Arc;
use std::time::SystemTime;

use loraplex_kernels::{AlignedBytes, PackedAdapter};
use loraplex_plugin_sdk::LoraRequest;

use super::{Adapter, store::HostStore};

/// Generation `generation` of `name`, of this size.
pub(crate) fn adapter(name: &str, generation: u64, bytes: usize) -> Arc<Adapter> {
    let packed =
        PackedAdapter { bytes: AlignedBytes::zeroed(bytes), sites: Vec::new(), max_rank: 1 };
    Arc::new(Adapter {
        request: LoraRequest::new(name, "/nowhere"),
        generation,
        digest: String::new(),
        rank: 1,
        modules: 1,
        policy_version: Some(generation),
        loaded_at: SystemTime::UNIX_EPOCH,
        packed: Arc::new(packed),
        _room: HostStore::new(usize::MAX, None).take(bytes),
    })
}
