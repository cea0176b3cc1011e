//! `/tokenize` and `/detokenize`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::chat::ConversationFields;

/// Fields of `/tokenize` beside [`ConversationFields`].
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct TokenizeFields {
    /// Any name that exists; adapters have the base's tokenizer.
    pub model: Option<String>,
    /// The text; goes before `messages`.
    pub prompt: Option<String>,
    /// Answer with the tokens' spellings too.
    pub return_token_strs: Option<bool>,
}

/// The body of `/tokenize`, for its documentation.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the body is read as its parts")]
pub(crate) struct TokenizeRequest {
    #[schema(inline)]
    #[serde(flatten)]
    own: TokenizeFields,
    #[schema(inline)]
    #[serde(flatten)]
    conversation: ConversationFields,
}

/// Answer of `/tokenize`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenizeResponse {
    /// How many tokens.
    pub count: usize,
    /// Longest prompt plus output, in tokens.
    pub max_model_len: usize,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// As the vocabulary spells them, if asked for.
    pub token_strs: Option<Vec<String>>,
}

/// Body of `/detokenize`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    /// Any name that exists.
    pub model: Option<String>,
    /// The tokens.
    pub tokens: Option<Vec<u32>>,
}

/// Answer of `/detokenize`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DetokenizeResponse {
    /// The text.
    pub prompt: String,
}
