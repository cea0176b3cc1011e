//! Bodies of SGLang's native routes.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::openai::call::CallFields;
use crate::openai::weights::WeightSpan;

/// One value, or one for each prompt.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// One.
    One(T),
    /// Several.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// The values, in their order.
    pub(crate) fn values(self) -> impl Iterator<Item = T> {
        let (one, many) = match self {
            Self::One(value) => (Some(value), Vec::new()),
            Self::Many(values) => (None, values),
        };
        one.into_iter().chain(many)
    }
}

/// Fields of `/generate` beside [`CallFields`].
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct GenerateFields {
    /// Prompts as text.
    #[schema(value_type = Option<Object>)]
    pub text: Option<OneOrMany<String>>,
    /// Prompts as tokens.
    #[schema(value_type = Option<Object>)]
    pub input_ids: Option<OneOrMany<Vec<u32>>>,
    /// `max_new_tokens` (128), `temperature`, `top_p`, ... Fields that every generating route has may stand here or beside it.
    #[schema(value_type = Option<Object>)]
    pub sampling_params: Option<OneOrMany<Map<String, Value>>>,
    /// The adapter's name, or one for each prompt; null is `model`, the base when left out.
    #[schema(value_type = Option<Object>)]
    pub lora_path: Option<OneOrMany<Option<String>>>,
    /// Report the tokens' log-probabilities.
    pub return_logprob: Option<bool>,
    /// With `return_logprob` and without `stream`: from which token of the prompt on, too; -1, as when left out, is the output
    /// alone.
    #[schema(value_type = Option<i64>)]
    pub logprob_start_len: Option<OneOrMany<Option<i64>>>,
    /// With `return_logprob`: how many of the best tokens, 20 at most.
    #[schema(value_type = Option<i64>)]
    pub top_logprobs_num: Option<OneOrMany<Option<i64>>>,
    /// With `return_logprob`: the tokens' texts, too.
    pub return_text_in_logprobs: Option<bool>,
    /// Only null or empty.
    #[schema(value_type = Option<Object>)]
    pub token_ids_logprob: Option<Value>,
    /// The call's id, before `request_id`: that of all its prompts, or one for each.
    #[schema(value_type = Option<Object>)]
    pub rid: Option<OneOrMany<String>>,
}

/// The body of `/generate`, for its documentation. Each event of a stream holds all of its output so far.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the body is read as its two parts")]
pub(crate) struct GenerateBody {
    #[schema(inline)]
    #[serde(flatten)]
    own: GenerateFields,
    #[schema(inline)]
    #[serde(flatten)]
    call: CallFields,
}

/// Answer for one prompt.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct GenerateAnswer {
    /// The output.
    pub text: String,
    /// Its tokens.
    pub output_ids: Vec<u32>,
    /// What else there is to say.
    pub meta_info: MetaInfo,
    /// In a stream of several outputs: which one it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
}

/// A token's log-probability, its id, and its text where that was asked for.
pub(crate) type TokenScore = (Option<f32>, u32, Option<String>);

/// What else there is to say of an output.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MetaInfo {
    /// The call.
    pub id: String,
    /// Why it ended.
    pub finish_reason: Option<FinishInfo>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the output.
    pub completion_tokens: usize,
    /// Prompt tokens from the prefix cache.
    pub cached_tokens: u32,
    /// Of the prompt from `logprob_start_len` on. The first has none, as SGLang has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub input_token_logprobs: Option<Vec<TokenScore>>,
    /// The best tokens there; null for the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub input_top_logprobs: Option<Vec<Option<Vec<TokenScore>>>>,
    /// One entry a token of the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub output_token_logprobs: Option<Vec<TokenScore>>,
    /// The best tokens there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub output_top_logprobs: Option<Vec<Vec<TokenScore>>>,
    /// Which weights drew which tokens.
    pub weight_versions: Vec<WeightSpan>,
}

/// Why an output ended.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FinishInfo {
    /// `stop`, `length` or `abort`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The stop text or stop token that applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub matched: Option<crate::openai::completion::StopReason>,
}
