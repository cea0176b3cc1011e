//! What is asked of a load, what it answers, and the part of it that runs on a loader's thread.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use loraplex_kernels::{AdapterMemory, AdapterPacker, PackedAdapter, SharedBytes};
use loraplex_plugin_sdk::LoraRequest;

use super::Adapter;
use super::peft::{self, LoadedPeft, PeftLimits};
use crate::error::Result;
use crate::model::ModelConfig;

/// A load that somebody asks for.
#[derive(Debug, Clone)]
pub struct LoadRequest {
    /// Name and, with [`Content::Folder`], place.
    pub request: LoraRequest,
    /// Where the bytes are.
    pub content: Content,
    /// Replace the generation that the name points to now, if there is one.
    pub in_place: bool,
    /// Load only if the name points to this generation.
    pub expected_generation: Option<u64>,
    /// Loads of a name with the same id are done once, until it is unloaded; repetitions get the first one's answer.
    pub operation_id: Option<String>,
    /// Never evict it from host memory; `None` leaves it as it is.
    pub pinned: Option<bool>,
    /// A trainer's own version of the content.
    pub policy_version: Option<u64>,
    /// These weights come back, which had to leave memory. If they are others by now they are no longer the trainer's version.
    pub again: Option<LoadedAdapter>,
}

impl LoadRequest {
    /// A load of the folder that `request` names, under a name that is not taken.
    pub fn new(request: LoraRequest) -> Self {
        Self {
            request,
            content: Content::Folder,
            in_place: false,
            expected_generation: None,
            operation_id: None,
            pinned: None,
            policy_version: None,
            again: None,
        }
    }

    /// Replaces what the name points to.
    pub fn in_place(mut self) -> Self {
        self.in_place = true;
        self
    }
}

impl From<LoraRequest> for LoadRequest {
    fn from(request: LoraRequest) -> Self {
        Self::new(request)
    }
}

/// Where an adapter's bytes are.
#[derive(Debug, Clone)]
pub enum Content {
    /// In the request's folder.
    Folder,
    /// Here.
    Bytes {
        /// `adapter_config.json`
        config: Bytes,
        /// `adapter_model.safetensors`
        weights: Bytes,
    },
}

/// A load that has been done. Answers are remembered for long, so there are no weights in it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The new generation.
    pub adapter: LoadedAdapter,
    /// The generation that it replaced.
    pub replaced: Option<u64>,
    /// Whether the replaced generation had the same bytes.
    pub unchanged: bool,
    /// How long its stages took.
    pub timings: LoadTimings,
    /// Whether an earlier load with the same operation id answered.
    pub repeated: bool,
}

/// What is said of an [`Adapter`] and remembered, without its weights.
#[derive(Debug, Clone)]
pub struct LoadedAdapter {
    /// What requests say.
    pub name: String,
    /// See [`Adapter::generation`].
    pub generation: u64,
    /// See [`Adapter::policy_version`].
    pub policy_version: Option<u64>,
    /// See [`Adapter::digest`].
    pub digest: String,
    /// See [`Adapter::rank`].
    pub rank: usize,
    /// See [`Adapter::modules`].
    pub modules: usize,
    /// See [`Adapter::bytes`].
    pub bytes: usize,
    /// See [`Adapter::loaded_at`].
    pub loaded_at: SystemTime,
}

impl From<&Adapter> for LoadedAdapter {
    fn from(adapter: &Adapter) -> Self {
        Self {
            name: adapter.name().to_owned(),
            generation: adapter.generation,
            policy_version: adapter.policy_version,
            digest: adapter.digest.clone(),
            rank: adapter.rank,
            modules: adapter.modules,
            bytes: adapter.bytes(),
            loaded_at: adapter.loaded_at,
        }
    }
}

/// How long the stages of a load took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadTimings {
    /// Waiting for the name and for a loader's thread.
    pub wait: Duration,
    /// Reading, checking and hashing.
    pub read: Duration,
    /// Packing for the device.
    pub pack: Duration,
    /// From the registry's change to the step boundary at which the engine took it.
    pub flip: Duration,
}

/// What the loader's thread makes.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) peft: LoadedPeft,
    pub(super) packed: PackedAdapter,
    pub(super) read: Duration,
    pub(super) pack: Duration,
}

/// What a build needs beside the content. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Builder {
    pub(super) model: Arc<ModelConfig>,
    pub(super) packer: Arc<dyn AdapterPacker>,
    pub(super) limits: PeftLimits,
    /// Of files while they are read, and of packed generations.
    pub(super) memory: AdapterMemory,
}

impl Builder {
    /// Reads, checks, hashes and packs; changes nothing. Tells when what is left takes no longer than its bytes.
    pub(super) fn build(
        &self,
        path: &Path,
        content: &Content,
        read_all: impl FnOnce(),
    ) -> Result<Built> {
        let start = Instant::now();
        let mut peft = match content {
            Content::Folder => peft::load(path, &self.model, &self.limits, &self.memory)?,
            Content::Bytes { config, weights } => {
                let weights = SharedBytes::new(weights.clone());
                peft::parse(config, &weights, &self.model, &self.limits)?
            }
        };
        let read = start.elapsed();
        read_all();
        let packed = self.packer.pack(self.model.layers, &peft.weights, &self.memory)?;
        // The file's memory goes back before the flip.
        peft.weights.parts = Vec::new();
        Ok(Built { peft, packed, read, pack: start.elapsed() - read })
    }
}
