//! `/inference/v1/generate`: tokens in, tokens out, as trainers want it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::call::CallFields;
use super::logprobs::PromptLogprobs;
use super::usage::Usage;
use super::weights::WeightSpan;

/// Fields of `/inference/v1/generate` beside [`CallFields`].
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct InferenceFields {
    /// The prompt.
    pub token_ids: Vec<u32>,
    /// The sampling fields of `/v1/completions`, and `logprobs`. Without `max_tokens` the output may fill the model's length.
    /// Fields of the body beside it may stand here instead.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub sampling_params: serde_json::Map<String, serde_json::Value>,
}

/// The body of `/inference/v1/generate`, for its documentation. `stream` is refused.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the body is read as its two parts")]
pub(crate) struct InferenceRequest {
    #[schema(inline)]
    #[serde(flatten)]
    own: InferenceFields,
    #[schema(inline)]
    #[serde(flatten)]
    call: CallFields,
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
