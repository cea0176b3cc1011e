//! Prompts as tokens that fit the model, with the room that they leave.

use super::Converter;
use crate::error::{ApiError, ApiResult};
use crate::openai::input::PromptInput;

/// A prompt that fits.
#[derive(Debug, Clone)]
pub(crate) struct Prompt {
    /// At least one.
    pub(crate) tokens: Vec<u32>,
    /// What the client sent, if that was text.
    pub(crate) text: Option<String>,
    /// Tokens to draw at most, at least one.
    pub(crate) max_tokens: u32,
}

/// How many tokens a client wants.
#[derive(Debug, Clone, Copy)]
pub(super) enum Budget {
    /// So many, or the call is refused.
    Exactly(u32, &'static str),
    /// So many, or what there is room for.
    AtMost(u32),
}

impl Converter {
    /// The prompt with its tokens, `special` ones around a text.
    pub(super) fn prompt(
        &self,
        input: PromptInput,
        special: bool,
        budget: Budget,
    ) -> ApiResult<Prompt> {
        let (tokens, text) = match input {
            PromptInput::Text(text) => (self.encode(&text, special, "prompt")?, Some(text)),
            PromptInput::Tokens(tokens) => (tokens, None),
        };
        let max_tokens = self.room(&tokens, budget, "prompt")?;
        Ok(Prompt { tokens, text, max_tokens })
    }

    /// The tokens of `text`, unless it is plainly too long: then its tokens are not even counted.
    pub(super) fn encode(
        &self,
        text: &str,
        special: bool,
        param: &'static str,
    ) -> ApiResult<Vec<u32>> {
        let least = self.tokenizer.least_tokens(text);
        if least > self.model.max_model_len {
            return Err(self.too_long(format_args!("at least {least}"), param));
        }
        Ok(self.tokenizer.encode(text, special)?)
    }

    /// Tokens that may be drawn after `tokens`.
    pub(super) fn room(
        &self,
        tokens: &[u32],
        budget: Budget,
        param: &'static str,
    ) -> ApiResult<u32> {
        let (length, most) = (tokens.len(), self.model.max_model_len);
        if tokens.is_empty() {
            return Err(ApiError::param(param, format!("`{param}` has no tokens")));
        }
        let vocabulary = self.model.vocab_size;
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(ApiError::param(
                param,
                format!("Token id {token} is out of vocabulary: it has {vocabulary} tokens"),
            ));
        }
        if length >= most {
            return Err(self.too_long(format_args!("{length}"), param));
        }
        let room = u32::try_from(most - length).unwrap_or(u32::MAX);
        match budget {
            Budget::AtMost(wanted) => Ok(wanted.min(room)),
            Budget::Exactly(wanted, _) if wanted <= room => Ok(wanted),
            Budget::Exactly(wanted, field) => Err(ApiError::param(
                field,
                format!(
                    "'{field}' is too large: {wanted}. This model's maximum context length is {most} tokens \
                     and your request has {length} input tokens ({wanted} > {most} - {length})."
                ),
            )),
        }
    }

    fn too_long(&self, tokens: std::fmt::Arguments<'_>, param: &'static str) -> ApiError {
        let most = self.model.max_model_len;
        ApiError::param(
            param,
            format!(
                "This model's maximum context length is {most} tokens. However, your request has {tokens} \
                 input tokens, and an output needs room for one more. Please reduce the length of the \
                 input messages."
            ),
        )
    }
}
