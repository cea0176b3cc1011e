//! `/v1/completions`.

use super::numbers::count;
use super::prompt::Budget;
use super::sampling::{self, MAX_LOGPROBS};
use super::{Call, Converter, Echo, refuse_unsupported};
use crate::body::parse;
use crate::error::{ApiError, ApiResult};
use crate::openai::completion::CompletionFields;
use crate::openai::sampling::SamplingFields;

/// OpenAI's default.
const MAX_TOKENS: u32 = 16;

impl Converter {
    /// Checks a body of `/v1/completions`.
    pub(crate) fn completion(&self, body: &[u8]) -> ApiResult<Call> {
        let fields: SamplingFields = parse(body)?;
        let own: CompletionFields = parse(body)?;
        refuse_unsupported(&parse(body)?)?;
        let max_tokens = count("max_tokens", fields.max_tokens, u32::MAX)?;
        let min_tokens = fields.min_tokens;
        let mut call = sampling::call(fields, parse(body)?, &self.model)?;
        call.params.logprobs = count("logprobs", own.logprobs, MAX_LOGPROBS)?;
        call.reply.logprobs = call.params.logprobs.map(|top| top as usize);
        let budget = match max_tokens {
            Some(0) if own.echo == Some(true) => {
                call.reply.echo = Echo::PromptAlone;
                Budget::Exactly(1, "max_tokens")
            }
            Some(0) => return Err(no_tokens("max_tokens")),
            Some(wanted) => Budget::Exactly(wanted, "max_tokens"),
            None => Budget::AtMost(MAX_TOKENS.max(call.params.min_tokens)),
        };
        if own.echo == Some(true) {
            if call.reply.echo == Echo::None {
                call.reply.echo = Echo::Prompt;
            }
            // The prompt's tokens are part of the answer, so their log-probabilities are too.
            call.prompt_logprobs = call.prompt_logprobs.max(call.params.logprobs);
        }
        let inputs = own.prompt.ok_or_else(|| ApiError::param("prompt", "`prompt` is missing"))?;
        let special = own.add_special_tokens.unwrap_or(true);
        let prompts: ApiResult<Vec<_>> =
            inputs.0.into_iter().map(|input| self.prompt(input, special, budget)).collect();
        let call = call.with_prompts(prompts?, self.max_outputs)?;
        check_min_tokens(&call, min_tokens)?;
        Ok(call)
    }
}

/// Nothing can be drawn before an end that comes earlier.
pub(super) fn check_min_tokens(call: &Call, min_tokens: Option<i64>) -> ApiResult<()> {
    let most = call.prompts.iter().map(|prompt| prompt.max_tokens).min().unwrap_or(0);
    if call.params.min_tokens > most {
        return Err(ApiError::param(
            "min_tokens",
            format!(
                "`min_tokens` must be at most the tokens that can be drawn, {most}, got {}",
                min_tokens.unwrap_or(0)
            ),
        ));
    }
    Ok(())
}

pub(super) fn no_tokens(field: &'static str) -> ApiError {
    ApiError::param(field, format!("{field} must be at least 1, got 0."))
}
