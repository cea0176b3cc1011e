//! Wire requests to engine requests: the last place that can say 400. Every number is inside its bound before anything is
//! allocated for it; past here nobody checks again.

mod chat;
mod completion;
mod conversation;
mod inference;
mod merge;
mod numbers;
mod prompt;
mod sampling;
mod sglang;
mod tokenize;

use std::sync::Arc;

use loraplex_core::adapter::Floor;
use loraplex_core::{ModelInfo, SamplingParams, TextOptions, Tokenizer, UpdatePolicy};

use crate::chat_template::ChatTemplate;
use crate::error::{ApiError, ApiResult};
use crate::openai::unsupported::Unsupported;

pub(crate) use prompt::Prompt;
pub(crate) use sampling::request_id;

/// What requests are checked against.
#[derive(Debug)]
pub(crate) struct Converter {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) model: ModelInfo,
    /// Why there is none, for whoever asks for a chat.
    pub(crate) template: Result<ChatTemplate, String>,
    /// Outputs of one call at most.
    pub(crate) max_outputs: usize,
}

/// A call, checked: its prompts become `n` engine requests each.
#[derive(Debug)]
pub(crate) struct Call {
    /// As sent; nobody has looked whether it exists.
    pub(crate) model: Option<String>,
    /// At least one.
    pub(crate) prompts: Vec<Prompt>,
    /// Outputs for each prompt, at least one.
    pub(crate) n: usize,
    /// The same for all, but for `max_tokens`, which is the prompt's, and the seed.
    pub(crate) params: SamplingParams,
    pub(crate) text: TextOptions,
    pub(crate) cache_salt: Option<String>,
    pub(crate) priority: i32,
    /// As the engine takes it.
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) request_id: Option<String>,
    /// Of the calls that came as one.
    pub(crate) batch_id: Option<String>,
    /// `None` leaves it to the server's setting.
    pub(crate) update_policy: Option<UpdatePolicy>,
    /// The oldest weights that will do.
    pub(crate) floor: Floor,
    pub(crate) reply: Reply,
}

/// How a call wants to be answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) stream: Option<Streaming>,
    /// The answer shows log-probabilities of its tokens, with this many of the best ones.
    pub(crate) logprobs: Option<usize>,
    /// The answer shows log-probabilities of the prompt, with this many of the best tokens.
    pub(crate) prompt_logprobs: Option<usize>,
    /// From this token of the prompt on.
    pub(crate) prompt_start: usize,
    pub(crate) token_ids: bool,
    /// The answer says which weights drew which tokens.
    pub(crate) weight_versions: bool,
    /// Tokens of log-probabilities are written as `token_id:123`.
    pub(crate) tokens_as_ids: bool,
    /// SGLang's log-probabilities have their tokens' texts.
    pub(crate) token_texts: bool,
    pub(crate) echo: Echo,
}

/// What comes before the output's text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Echo {
    /// Nothing.
    #[default]
    None,
    /// The prompt.
    Prompt,
    /// The prompt, or what is said of it, and the output is left out: it was drawn only because the engine draws something.
    PromptAlone,
    /// A text.
    Text(String),
}

/// How a stream reports token counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Streaming {
    /// In a last chunk.
    pub(crate) usage: bool,
    /// In every chunk.
    pub(crate) continuous_usage: bool,
}

/// Refuses what would change the output and cannot be had.
fn refuse_unsupported(Unsupported(fields): &Unsupported) -> ApiResult<()> {
    match fields.first() {
        None => Ok(()),
        Some(&"chat_template") => Err(ApiError::param(
            "chat_template",
            "`chat_template`: templates come from the server alone (--chat-template)",
        )),
        Some(&"suffix") => Err(ApiError::param("suffix", "suffix is not currently supported")),
        Some(field) => {
            Err(ApiError::param(*field, format!("`{field}` is not supported yet; leave it out")))
        }
    }
}

#[cfg(test)]
mod tests;
