//! `/v1/completions`.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::call::CallFields;
use super::input::Prompts;
use super::logprobs::{CompletionLogprobs, PromptLogprobs};
use super::sampling::SamplingFields;
use super::usage::Usage;
use super::weights::WeightSpan;

/// Fields of `/v1/completions` beside [`CallFields`] and [`SamplingFields`].
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct CompletionFields {
    /// A text, a list of texts, a list of tokens, or a list of lists of tokens.
    #[schema(value_type = Object)]
    pub prompt: Option<Prompts>,
    /// Begin the output with the prompt; with `max_tokens` 0, output the prompt alone.
    pub echo: Option<bool>,
    /// Report the log-probabilities of the tokens, with this many of the best ones beside, up to 20. `true` is 1.
    #[serde(default, deserialize_with = "count_or_switch")]
    pub logprobs: Option<i64>,
    /// Put the tokens around a text that the model was trained with.
    pub add_special_tokens: Option<bool>,
}

/// The body of `/v1/completions`, for its documentation.
#[derive(Debug, ToSchema)]
#[schema(as = CompletionRequest)]
#[expect(dead_code, reason = "the body is read as its two parts")]
pub(crate) struct CompletionRequest {
    #[schema(inline)]
    #[serde(flatten)]
    own: CompletionFields,
    #[schema(inline)]
    #[serde(flatten)]
    call: CallFields,
    #[schema(inline)]
    #[serde(flatten)]
    sampling: SamplingFields,
}

/// Answer of `/v1/completions`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CompletionResponse {
    /// The call.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The adapter's name, or the first name of the base.
    pub model: String,
    /// Prompt by prompt, `n` each.
    pub choices: Vec<CompletionChoice>,
    /// Tokens. On chunks of a stream only if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// One output, or a piece of it.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// Which output.
    pub index: usize,
    /// Text.
    pub text: String,
    /// If asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop`, `length` or `abort`, on the last piece.
    pub finish_reason: Option<&'static str>,
    /// The stop text or stop token that applied.
    pub stop_reason: Option<StopReason>,
    /// If asked for; on the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// If token ids were asked for; on the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// If token ids were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// If asked for: which weights drew which tokens of the whole output; on the last piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_versions: Option<Vec<WeightSpan>>,
}

/// The stop text or stop token that applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum StopReason {
    /// One of `stop_token_ids`.
    Token(u32),
    /// One of `stop`.
    Text(String),
}

/// A number, or a boolean as some trainers send it.
fn count_or_switch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected an integer or a boolean")]
    enum CountOrSwitch {
        Count(i64),
        Switch(bool),
    }
    Ok(match Option::deserialize(deserializer)? {
        Some(CountOrSwitch::Count(count)) => Some(count),
        Some(CountOrSwitch::Switch(true)) => Some(1),
        Some(CountOrSwitch::Switch(false)) | None => None,
    })
}
