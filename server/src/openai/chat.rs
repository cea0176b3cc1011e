//! `/v1/chat/completions`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::call::CallFields;
use super::completion::StopReason;
use super::logprobs::{ChatLogprobs, PromptLogprobs};
use super::sampling::SamplingFields;
use super::usage::Usage;
use super::weights::WeightSpan;

/// A message as sent: `role`, `content` and whatever else the template may look at.
pub type Message = Map<String, Value>;

/// Fields of a conversation, on every route that takes one.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct ConversationFields {
    /// The conversation. `content` is a text or a list of text parts.
    #[schema(value_type = Vec<Object>)]
    pub messages: Option<Vec<Message>>,
    /// End the prompt with the start of an answer.
    pub add_generation_prompt: Option<bool>,
    /// Leave the last message open, so that the output goes on with it.
    pub continue_final_message: Option<bool>,
    /// Put special tokens around the rendered template; it usually has them already.
    pub add_special_tokens: Option<bool>,
    /// Further variables for the template.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Documents for templates that know them.
    #[schema(value_type = Option<Vec<Object>>)]
    pub documents: Option<Vec<Value>>,
    /// Tools for the template; only with `tool_choice` `none` for now.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
}

/// Fields of `/v1/chat/completions` beside [`CallFields`], [`SamplingFields`] and
/// [`ConversationFields`].
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct ChatFields {
    /// Tokens to draw at most; goes before `max_tokens`.
    pub max_completion_tokens: Option<i64>,
    /// Report the log-probabilities of the tokens.
    pub logprobs: Option<bool>,
    /// With `logprobs`: how many of the best tokens, up to 20.
    pub top_logprobs: Option<i64>,
    /// Begin the answer with the last message, if that is the assistant's.
    pub echo: Option<bool>,
}

/// The body of `/v1/chat/completions`, for its documentation.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the body is read as its parts")]
pub(crate) struct ChatRequest {
    #[schema(inline)]
    #[serde(flatten)]
    conversation: ConversationFields,
    #[schema(inline)]
    #[serde(flatten)]
    own: ChatFields,
    #[schema(inline)]
    #[serde(flatten)]
    call: CallFields,
    #[schema(inline)]
    #[serde(flatten)]
    sampling: SamplingFields,
}

/// Answer of `/v1/chat/completions`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatResponse {
    /// The call.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The adapter's name, or the first name of the base.
    pub model: String,
    /// `n` answers.
    pub choices: Vec<ChatChoice>,
    /// Tokens.
    pub usage: Usage,
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// If token ids were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// One answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Which answer.
    pub index: usize,
    /// What the model says.
    pub message: ChatMessage,
    /// If asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `abort`.
    pub finish_reason: Option<&'static str>,
    /// The stop text or stop token that applied.
    pub stop_reason: Option<StopReason>,
    /// If token ids were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// If asked for: which weights drew which tokens of the whole answer; on the last piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_versions: Option<Vec<WeightSpan>>,
}

/// What the model says.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatMessage {
    /// `assistant`.
    pub role: &'static str,
    /// Text.
    pub content: String,
    /// Never set: the field that OpenAI's clients look for.
    pub refusal: Option<String>,
}

/// A piece of a streamed answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatChunk {
    /// The call.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The adapter's name, or the first name of the base.
    pub model: String,
    /// One answer's piece; none on the chunk that has the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// If token ids were asked for; on an answer's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// A piece of one answer.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct ChatChunkChoice {
    /// Which answer.
    pub index: usize,
    /// What is new.
    pub delta: ChatDelta,
    /// If asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// On the last piece.
    pub finish_reason: Option<&'static str>,
    /// The stop text or stop token that applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// If token ids were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// If asked for: which weights drew which tokens of the whole answer; on the last piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_versions: Option<Vec<WeightSpan>>,
}

/// What is new.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct ChatDelta {
    /// On the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
