//! Bodies of the control routes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use loraplex_core::adapter::{AdapterStatus, Loaded, Origin};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::lax::lax_bool;

/// Body of a load. Other keys are ignored, as vLLM ignores them.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct LoadBody {
    /// The name that requests will use.
    pub lora_name: String,
    /// A folder of this machine with PEFT's files, or an adapter of the Hub: `org/name[/folder][@revision]`.
    pub lora_path: String,
    /// Replace what the name points to now. Off where absent; the aliases at the root take it for on.
    #[serde(default, deserialize_with = "lax_bool")]
    pub load_inplace: Option<bool>,
    /// Load only if the name points to this generation; 0 expects the name to be free. 409 otherwise.
    pub expected_generation: Option<u64>,
    /// Loads of one name with the same id are done once, until it is unloaded; repetitions get the first one's answer. 409
    /// where the id was used for other content.
    pub operation_id: Option<String>,
    /// Keep the weights in host memory however long nobody uses them.
    pub pinned: Option<bool>,
    /// The trainer's own version of the content; higher is newer.
    pub policy_version: Option<u64>,
}

/// What an upload may say beside the name and the content; see [`LoadBody`].
#[derive(Debug, Clone, Default, Deserialize)]
#[expect(missing_docs, reason = "documented at `LoadBody`")]
pub struct LoadOptions {
    pub expected_generation: Option<u64>,
    pub operation_id: Option<String>,
    #[serde(default, deserialize_with = "lax_bool")]
    pub pinned: Option<bool>,
    pub policy_version: Option<u64>,
}

/// Body of an unload.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct UnloadBody {
    /// The name.
    pub lora_name: String,
    /// Answer when the last request on it has ended and its memory is free.
    #[serde(default)]
    pub wait: bool,
}

/// SageMaker's load.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct RegisterBody {
    /// The name that requests will use.
    pub name: String,
    /// A folder of this machine with PEFT's files.
    pub src: String,
    /// Keep the weights in host memory however long nobody uses them.
    pub pin: Option<bool>,
}

/// Answer to a load, where the client accepts JSON.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LoadAnswer {
    /// `true`: failures have another body.
    pub success: bool,
    /// The name.
    pub lora_name: String,
    /// The new generation.
    pub generation: u64,
    /// As the load named it.
    pub policy_version: Option<u64>,
    /// The generation that it replaced.
    pub replaced: Option<u64>,
    /// Whether the replaced generation had the same bytes.
    pub unchanged: bool,
    /// Whether an earlier load with the same `operation_id` answers.
    pub repeated: bool,
    /// BLAKE3 of the adapter's files.
    pub digest: String,
    /// Adapted modules; each has two tensors, and none was left over.
    pub matched_modules: usize,
    /// Largest rank.
    pub rank: usize,
    /// Bytes in memory.
    pub bytes: usize,
    /// How long the stages took.
    pub timings_ms: Timings,
}

/// Milliseconds.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[expect(missing_docs, reason = "the stages are documented at `LoadTimings`")]
pub struct Timings {
    pub wait: f64,
    pub read: f64,
    pub pack: f64,
    pub flip: f64,
}

/// Answer to an unload, where the client accepts JSON.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UnloadAnswer {
    /// `true`: failures have another body.
    pub success: bool,
    /// The name.
    pub lora_name: String,
    /// The generation that it pointed to.
    pub generation: u64,
}

/// What `/v1/lora_adapters` lists.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AdapterList {
    /// `list`.
    pub object: &'static str,
    /// In order of registration.
    pub data: Vec<AdapterCard>,
}

/// An adapter as operators see it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AdapterCard {
    /// The name that requests use.
    pub name: String,
    /// The newest generation, whether its weights are in memory or not.
    pub generation: u64,
    /// As the load named it.
    pub policy_version: Option<u64>,
    /// BLAKE3 of the adapter's files.
    pub digest: String,
    /// Largest rank.
    pub rank: usize,
    /// Bytes that its weights take in memory.
    pub bytes: usize,
    /// Where the weights are: `host`, or `source` if they must be read again.
    pub tier: &'static str,
    /// Kept in host memory.
    pub pinned: bool,
    /// Who holds the newest generation now.
    pub leases: usize,
    /// Older generations that requests still finish on.
    pub old_generations: usize,
    /// Requests that have named it.
    pub requests: u64,
    /// Who brought it: `operator`, `upload`, or a resolver's name.
    pub source: String,
    /// Its folder; empty for an upload.
    pub path: String,
    /// The source's own version.
    pub revision: Option<String>,
    /// When the newest generation was loaded, in Unix seconds.
    pub loaded_at: u64,
}

impl LoadBody {
    pub(super) fn options(&self) -> LoadOptions {
        LoadOptions {
            expected_generation: self.expected_generation,
            operation_id: self.operation_id.clone(),
            pinned: self.pinned,
            policy_version: self.policy_version,
        }
    }
}

impl LoadAnswer {
    pub(super) fn new(loaded: &Loaded) -> Self {
        let (adapter, timings) = (&loaded.adapter, &loaded.timings);
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        Self {
            success: true,
            lora_name: adapter.name.clone(),
            generation: adapter.generation,
            policy_version: adapter.policy_version,
            replaced: loaded.replaced,
            unchanged: loaded.unchanged,
            repeated: loaded.repeated,
            digest: adapter.digest.clone(),
            matched_modules: adapter.modules,
            rank: adapter.rank,
            bytes: adapter.bytes,
            timings_ms: Timings {
                wait: ms(timings.wait),
                read: ms(timings.read),
                pack: ms(timings.pack),
                flip: ms(timings.flip),
            },
        }
    }
}

impl AdapterCard {
    pub(super) fn new(status: &AdapterStatus) -> Self {
        let newest = &status.newest;
        let seconds =
            |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            name: status.request.name.clone(),
            generation: newest.generation,
            policy_version: newest.policy_version,
            digest: newest.digest.clone(),
            rank: newest.rank,
            bytes: newest.bytes,
            tier: if status.adapter.is_some() { "host" } else { "source" },
            pinned: status.pinned,
            leases: status.leases,
            old_generations: status.old_generations,
            requests: status.requests,
            source: match &status.origin {
                Origin::Operator => "operator".into(),
                Origin::Upload => "upload".into(),
                Origin::Resolver(name) => name.to_string(),
            },
            path: status.request.path.display().to_string(),
            revision: status.request.revision.clone(),
            loaded_at: seconds(newest.loaded_at),
        }
    }
}
