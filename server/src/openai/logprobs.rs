//! Log-probabilities in the shapes of both routes.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
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
    pub top_logprobs: Vec<Option<Scores>>,
}

/// Tokens with their log-probabilities: an object in JSON, in this order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores(pub Vec<(String, f32)>);

impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
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

/// Position by position, token ids with what is known of them; `null` for the first token.
pub type PromptLogprobs = Vec<Option<BTreeMap<u32, PromptLogprob>>>;

/// What is known of a token at a position of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PromptLogprob {
    /// Its log-probability.
    pub logprob: f32,
    /// 1 is the most probable.
    pub rank: u64,
    /// Its text.
    pub decoded_token: String,
}
