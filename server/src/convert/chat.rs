//! `/v1/chat/completions`.

use super::completion::{check_min_tokens, no_tokens};
use super::conversation::last_answer;
use super::numbers::count;
use super::prompt::Budget;
use super::sampling::{self, MAX_LOGPROBS};
use super::{Call, Converter, Echo, Prompt, refuse_unsupported};
use crate::body::parse;
use crate::error::{ApiError, ApiResult};
use crate::openai::chat::{ChatFields, ConversationFields};
use crate::openai::sampling::SamplingFields;

impl Converter {
    /// Checks a body of `/v1/chat/completions`.
    pub(crate) fn chat(&self, body: &[u8]) -> ApiResult<Call> {
        let fields: SamplingFields = parse(body)?;
        let own: ChatFields = parse(body)?;
        refuse_unsupported(&parse(body)?)?;
        let budget = match (own.max_completion_tokens, fields.max_tokens) {
            (None, None) => Budget::AtMost(u32::MAX),
            (None, tokens) => exactly("max_tokens", tokens)?,
            (tokens, _) => exactly("max_completion_tokens", tokens)?,
        };
        let min_tokens = fields.min_tokens;
        let mut call = sampling::call(fields, parse(body)?, &self.model)?;
        call.params.logprobs = logprobs(&own)?;
        call.reply.logprobs = call.params.logprobs.map(|top| top as usize);
        let conversation: ConversationFields = parse(body)?;
        if own.echo == Some(true)
            && let Some(text) = last_answer(&conversation)
        {
            call.reply.echo = Echo::Text(text);
        }
        let tokens = self.conversation(conversation)?;
        let max_tokens = self.room(&tokens, budget, "messages")?;
        let prompt = Prompt { tokens, text: None, max_tokens };
        let call = call.with_prompts(vec![prompt], self.max_outputs)?;
        check_min_tokens(&call, min_tokens)?;
        Ok(call)
    }
}

fn exactly(field: &'static str, tokens: Option<i64>) -> ApiResult<Budget> {
    match count(field, tokens, u32::MAX)? {
        Some(0) => Err(no_tokens(field)),
        tokens => Ok(Budget::Exactly(tokens.unwrap_or(u32::MAX), field)),
    }
}

fn logprobs(own: &ChatFields) -> ApiResult<Option<u32>> {
    let top = count("top_logprobs", own.top_logprobs, MAX_LOGPROBS)?;
    match (own.logprobs, top) {
        (Some(true), top) => Ok(Some(top.unwrap_or(0))),
        (_, None | Some(0)) => Ok(None),
        _ => Err(ApiError::param(
            "top_logprobs",
            "when using `top_logprobs`, `logprobs` must be set to true.",
        )),
    }
}
