//! `/inference/v1/generate` and SGLang's `/generate`.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::completion::{check_min_tokens, no_tokens};
use super::numbers::count;
use super::prompt::Budget;
use super::sampling::{self, MAX_LOGPROBS};
use super::{Call, Converter, Prompt, Streaming};
use crate::body::parse;
use crate::error::{ApiError, ApiResult};
use crate::openai::inference::InferenceRequest;
use crate::openai::input::PromptInput;
use crate::openai::sampling::SamplingFields;
use crate::sglang::wire::{GenerateBody, OneOrMany};

/// SGLang's default.
const SGLANG_MAX_TOKENS: u32 = 128;

/// What `sampling_params` has beside the fields of every route.
#[derive(Debug, Deserialize)]
struct OwnFields {
    logprobs: Option<i64>,
}

impl Converter {
    /// Checks a body of `/inference/v1/generate`.
    pub(crate) fn inference(&self, body: &[u8]) -> ApiResult<Call> {
        let request: InferenceRequest = parse(body)?;
        if request.stream == Some(true) {
            let message = "`stream` is not supported here; /v1/completions streams token ids";
            return Err(ApiError::param("stream", message));
        }
        let params = json(&request.sampling_params);
        let own: OwnFields = parse(&params)?;
        let mut fields: SamplingFields = parse(&params)?;
        fields.model = request.model;
        fields.cache_salt = request.cache_salt.or(fields.cache_salt);
        fields.priority = request.priority.or(fields.priority);
        fields.request_id = request.request_id.or(fields.request_id);
        let logprobs = count("logprobs", own.logprobs, MAX_LOGPROBS)?;
        let budget = budget(&fields, u32::MAX)?;
        self.token_call(fields, logprobs, PromptInput::Tokens(request.token_ids), budget)
    }

    /// Checks a body of SGLang's `/generate`: one call for each prompt, since each may have an adapter of its own.
    pub(crate) fn sglang(&self, body: &[u8]) -> ApiResult<Vec<Call>> {
        let body: GenerateBody = parse(body)?;
        let prompts: Vec<PromptInput> = match (body.text, body.input_ids) {
            (Some(OneOrMany::One(text)), None) => vec![PromptInput::Text(text)],
            (Some(OneOrMany::Many(texts)), None) => {
                texts.into_iter().map(PromptInput::Text).collect()
            }
            (None, Some(OneOrMany::One(tokens))) => vec![PromptInput::Tokens(tokens)],
            (None, Some(OneOrMany::Many(lists))) => {
                lists.into_iter().map(PromptInput::Tokens).collect()
            }
            _ => return Err(ApiError::param("text", "give either `text` or `input_ids`")),
        };
        if prompts.is_empty() || prompts.len() > self.max_outputs {
            let (found, most) = (prompts.len(), self.max_outputs);
            let message = format!("{found} prompts in a call, which takes from 1 to {most}");
            return Err(ApiError::param("text", message));
        }
        let count = prompts.len();
        let adapters = per_prompt("lora_path", body.lora_path, count)?;
        let params = per_prompt("sampling_params", body.sampling_params, count)?;
        let stream = body.stream.unwrap_or(false).then(Streaming::default);
        let logprobs = body.return_logprob.unwrap_or(false).then_some(0);
        let calls = prompts.into_iter().zip(adapters).zip(params);
        let calls = calls.enumerate().map(|(index, ((prompt, adapter), params))| {
            let params = json(&renamed(params.unwrap_or_default()));
            let mut fields: SamplingFields = parse(&params)?;
            fields.model = adapter.flatten();
            fields.return_weight_versions = Some(true);
            fields.request_id = body.rid.clone().map(|rid| match count {
                1 => rid,
                _ => format!("{rid}-{index}"),
            });
            let budget = budget(&fields, SGLANG_MAX_TOKENS)?;
            let mut call = self.token_call(fields, logprobs, prompt, budget)?;
            call.reply.stream = stream;
            call.batch_id.clone_from(&body.rid);
            Ok(call)
        });
        calls.collect()
    }

    fn token_call(
        &self,
        fields: SamplingFields,
        logprobs: Option<u32>,
        input: PromptInput,
        budget: Budget,
    ) -> ApiResult<Call> {
        let min_tokens = fields.min_tokens;
        let mut call = sampling::call(fields, &self.model)?;
        call.params.logprobs = logprobs;
        call.reply.logprobs = logprobs.map(|top| top as usize);
        call.reply.token_ids = true;
        let Prompt { tokens, text, max_tokens } = self.prompt(input, true, budget)?;
        let call =
            call.with_prompts(vec![Prompt { tokens, text, max_tokens }], self.max_outputs)?;
        check_min_tokens(&call, min_tokens)?;
        Ok(call)
    }
}

fn budget(fields: &SamplingFields, most: u32) -> ApiResult<Budget> {
    match count("max_tokens", fields.max_tokens, u32::MAX)? {
        Some(0) => Err(no_tokens("max_tokens")),
        Some(wanted) => Ok(Budget::Exactly(wanted, "max_tokens")),
        None => Ok(Budget::AtMost(most)),
    }
}

/// One value a prompt: the same for all, or one each.
fn per_prompt<T: Clone>(
    field: &'static str,
    given: Option<OneOrMany<T>>,
    prompts: usize,
) -> ApiResult<Vec<Option<T>>> {
    match given {
        None => Ok(vec![None; prompts]),
        Some(OneOrMany::One(value)) => Ok(vec![Some(value); prompts]),
        Some(OneOrMany::Many(values)) if values.len() == prompts => {
            Ok(values.into_iter().map(Some).collect())
        }
        Some(OneOrMany::Many(values)) => {
            let message = format!("`{field}` has {} entries for {prompts} prompts", values.len());
            Err(ApiError::param(field, message))
        }
    }
}

/// SGLang's names of sampling fields under those of the other routes.
fn renamed(mut params: Map<String, Value>) -> Map<String, Value> {
    for (theirs, ours) in [
        ("max_new_tokens", "max_tokens"),
        ("min_new_tokens", "min_tokens"),
        ("sampling_seed", "seed"),
        ("no_stop_trim", "include_stop_str_in_output"),
    ] {
        if let Some(value) = params.remove(theirs) {
            params.insert(ours.to_owned(), value);
        }
    }
    params
}

fn json(params: &Map<String, Value>) -> Vec<u8> {
    serde_json::to_vec(params).expect("JSON becomes JSON")
}
