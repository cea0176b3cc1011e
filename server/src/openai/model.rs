//! Model cards.

use serde::Serialize;
use utoipa::ToSchema;

/// What `/v1/models` answers.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// The base under each of its names, then the adapters in order of registration.
    pub data: Vec<ModelCard>,
}

/// A name that requests can use.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelCard {
    /// The name.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// Time of the call, in Unix seconds.
    pub created: u64,
    /// `vllm`: routers branch on it.
    pub owned_by: &'static str,
    /// Where the weights come from.
    pub root: String,
    /// The base model's name on an adapter's card.
    pub parent: Option<String>,
    /// Longest prompt plus output, in tokens.
    pub max_model_len: usize,
    /// What vLLM says here.
    pub permission: [ModelPermission; 1],
    /// Which load of the adapter this is; rises with every load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Digest of the adapter's files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// What vLLM says of permissions, to the letter.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[expect(missing_docs, reason = "OpenAI's field names, which nobody interprets")]
pub struct ModelPermission {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub allow_create_engine: bool,
    pub allow_sampling: bool,
    pub allow_logprobs: bool,
    pub allow_search_indices: bool,
    pub allow_view: bool,
    pub allow_fine_tuning: bool,
    pub organization: &'static str,
    pub group: Option<String>,
    pub is_blocking: bool,
}

impl ModelPermission {
    /// The one that every card carries.
    pub fn new(created: u64) -> Self {
        Self {
            id: format!("modelperm-{}", uuid::Uuid::new_v4().simple()),
            object: "model_permission",
            created,
            allow_create_engine: false,
            allow_sampling: true,
            allow_logprobs: true,
            allow_search_indices: false,
            allow_view: true,
            allow_fine_tuning: false,
            organization: "*",
            group: None,
            is_blocking: false,
        }
    }
}
