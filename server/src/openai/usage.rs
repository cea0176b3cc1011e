//! Token counts.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Tokens of a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of all prompts, each once.
    pub prompt_tokens: u64,
    /// Both together.
    pub total_tokens: u64,
    /// Tokens of all outputs.
    pub completion_tokens: u64,
    /// More about the prompts.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// More about the prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Tokens that came from the prefix cache.
    pub cached_tokens: u64,
}

impl Usage {
    /// The counts with their sum.
    pub fn new(prompt_tokens: u64, completion_tokens: u64, cached_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

/// What a stream tells beside its text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// End with a chunk that has the usage and no choices.
    pub include_usage: Option<bool>,
    /// With `include_usage`: put the usage so far into every chunk.
    pub continuous_usage_stats: Option<bool>,
}
