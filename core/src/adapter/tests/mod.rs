//! The registry over real files and scripted resolvers: what names point to, and what memory holds.

mod journal;
mod loads;
mod memory;
mod resolving;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use loraplex_kernels::Backend;
use loraplex_kernels::reference::ReferenceBackend;
use loraplex_plugin_sdk::LoraRequest;

use super::*;
use crate::config::LoraConfig;
use crate::model::Checkpoint;

/// The demo model's folder below `path`.
fn demo(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/demo")).join(path)
}

/// A registry for the demo model, without an engine.
fn manager(change: impl FnOnce(&mut LoraConfig)) -> Arc<AdapterManager> {
    let mut config = LoraConfig { base_model: "demo".into(), ..LoraConfig::default() };
    change(&mut config);
    let model = Checkpoint::open(&demo("model")).unwrap().config;
    let packer = ReferenceBackend::new().packer();
    Arc::new(AdapterManager::new(config, model, packer, None).unwrap())
}

/// One of the demo's adapters under another name.
fn named(name: &str, demo_adapter: &str) -> LoraRequest {
    LoraRequest::new(name, demo("adapters").join(demo_adapter))
}
