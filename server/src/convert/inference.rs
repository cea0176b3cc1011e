//! `/inference/v1/generate`, and what SGLang's `/generate` shares with it.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::completion::{check_min_tokens, no_tokens};
use super::numbers::count;
use super::prompt::Budget;
use super::sampling::{self, MAX_LOGPROBS};
use super::{Call, Converter, Echo, refuse_unsupported};
use crate::body::parse;
use crate::error::{ApiError, ApiResult};
use crate::openai::call::CallFields;
use crate::openai::inference::InferenceFields;
use crate::openai::input::PromptInput;
use crate::openai::sampling::SamplingFields;

/// What `sampling_params` has beside the fields of every route.
#[derive(Debug, Deserialize)]
struct OwnFields {
    logprobs: Option<i64>,
}

/// A call for tokens, as its body and its `sampling_params` say it.
#[derive(Debug)]
pub(super) struct TokenCall {
    pub(super) fields: SamplingFields,
    pub(super) call: CallFields,
    pub(super) input: PromptInput,
    pub(super) logprobs: Option<u32>,
    /// Tokens to draw at most where the client does not say.
    pub(super) max_tokens: u32,
    /// Whether it may ask for no tokens at all.
    pub(super) may_be_empty: bool,
}

impl Converter {
    /// Checks a body of `/inference/v1/generate`.
    pub(crate) fn inference(&self, body: &[u8]) -> ApiResult<Call> {
        let InferenceFields { token_ids, sampling_params } = parse(body)?;
        let params = json(&sampling_params);
        refuse_unsupported(&parse(body)?)?;
        refuse_unsupported(&parse(&params)?)?;
        let own: OwnFields = parse(&params)?;
        let call = parse::<CallFields>(body)?.merge(parse(&params)?)?;
        if call.stream == Some(true) {
            let message = "`stream` is not supported here; /v1/completions streams token ids";
            return Err(ApiError::param("stream", message));
        }
        self.token_call(TokenCall {
            fields: parse(&params)?,
            call,
            input: PromptInput::Tokens(token_ids),
            logprobs: count("logprobs", own.logprobs, MAX_LOGPROBS)?,
            max_tokens: u32::MAX,
            may_be_empty: false,
        })
        .map_err(|error| error.in_words_of("prompt", "token_ids"))
    }

    pub(super) fn token_call(&self, given: TokenCall) -> ApiResult<Call> {
        let TokenCall { fields, call, input, logprobs, max_tokens, may_be_empty } = given;
        let min_tokens = fields.min_tokens;
        let max_wanted = count("max_tokens", fields.max_tokens, u32::MAX)?;
        let is_empty = may_be_empty && max_wanted == Some(0);
        let budget = match max_wanted {
            Some(0) if is_empty => Budget::Exactly(1, "max_tokens"),
            Some(0) => return Err(no_tokens("max_tokens")),
            Some(wanted) => Budget::Exactly(wanted, "max_tokens"),
            None => Budget::AtMost(max_tokens),
        };
        let mut call = sampling::call(fields, call, &self.model)?;
        call.params.logprobs = logprobs;
        call.reply.logprobs = logprobs.map(|top| top as usize);
        call.reply.token_ids = true;
        if is_empty {
            call.reply.echo = Echo::PromptAlone;
        }
        let prompt = self.prompt(input, true, budget)?;
        let call = call.with_prompts(vec![prompt], self.max_outputs)?;
        check_min_tokens(&call, min_tokens)?;
        Ok(call)
    }
}

pub(super) fn json(params: &Map<String, Value>) -> Vec<u8> {
    serde_json::to_vec(params).expect("JSON becomes JSON")
}
