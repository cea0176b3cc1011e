//! `/inference/v1/generate`: tokens in, tokens out, as trainers want it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::logprobs::PromptLogprobs;
use super::usage::Usage;
use super::weights::WeightSpan;

/// Body of `/inference/v1/generate`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct InferenceRequest {
    /// A served name of the base, or an adapter's name; the base when left out.
    pub model: Option<String>,
    /// The prompt.
    pub token_ids: Vec<u32>,
    /// The sampling fields of `/v1/completions`, and `logprobs`. Without `max_tokens` the output may fill the model's length.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub sampling_params: serde_json::Map<String, serde_json::Value>,
    /// Cached prefixes are shared only under the same salt.
    pub cache_salt: Option<String>,
    /// Lower runs earlier.
    pub priority: Option<i64>,
    /// The call's id.
    pub request_id: Option<String>,
    /// Not supported here.
    pub stream: Option<bool>,
}

/// Answer of `/inference/v1/generate`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InferenceResponse {
    /// The call.
    pub request_id: String,
    /// `n` outputs.
    pub choices: Vec<InferenceChoice>,
    /// If asked for: position by position.
    #[schema(value_type = Option<Vec<Object>>)]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Tokens.
    pub usage: Usage,
}

/// One output.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InferenceChoice {
    /// Which output.
    pub index: usize,
    /// `stop`, `length` or `abort`.
    pub finish_reason: Option<&'static str>,
    /// The tokens.
    pub token_ids: Vec<u32>,
    /// One entry a token, if asked for.
    pub logprobs: Option<InferenceLogprobs>,
    /// If asked for: which weights drew which tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_versions: Option<Vec<WeightSpan>>,
}

/// Log-probabilities of an output.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InferenceLogprobs {
    /// One entry a token.
    pub content: Vec<InferenceLogprob>,
}

/// A drawn token, under the keys of older and of newer clients.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InferenceLogprob {
    /// `token_id:123`
    pub token: String,
    /// 123
    pub token_id: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// Best tokens, as many as `logprobs` asked for.
    pub top_logprobs: Vec<InferenceTop>,
}

/// One of the best tokens.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InferenceTop {
    /// `token_id:123`
    pub token: String,
    /// 123
    pub token_id: u32,
    /// Its log-probability.
    pub logprob: f32,
}
