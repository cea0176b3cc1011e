//! Log-probabilities in the shapes of both routes.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Log-probabilities of a completion: four lists with one entry a token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// Where each token's text starts, in characters.
    pub text_offset: Vec<usize>,
    /// Each token's log-probability; `null` for the first token of a prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The tokens.
    pub tokens: Vec<String>,
    /// The drawn token and the best ones, by text.
    #[schema(value_type = Vec<Option<Object>>)]
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
}

/// Log-probabilities of a chat answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// One entry a token.
    pub content: Vec<ChatTokenLogprob>,
}

/// A drawn token.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatTokenLogprob {
    /// Its text.
    pub token: String,
    /// Its log-probability.
    pub logprob: f32,
    /// Its bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
    /// The best tokens, best first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the best tokens.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Its log-probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// At one position of a prompt: token ids with what is known of them; `null` for the first token.
pub type PromptLogprobs = Vec<Option<Map<String, Value>>>;
