//! SGLang's `/generate`.

use serde_json::{Map, Value};

use super::inference::{TokenCall, json};
use super::sampling::MAX_LOGPROBS;
use super::{Call, Converter, numbers, refuse_unsupported};
use crate::body::parse;
use crate::error::{ApiError, ApiResult};
use crate::openai::call::CallFields;
use crate::openai::input::PromptInput;
use crate::openai::sampling::SamplingFields;
use crate::openai::unsupported::is_empty;
use crate::sglang::wire::{GenerateFields, OneOrMany};

/// SGLang's default.
const MAX_TOKENS: u32 = 128;

impl Converter {
    /// Checks a body of SGLang's `/generate`: one call for each prompt, since each may have an adapter of its own. `served`
    /// are the base's names.
    pub(crate) fn sglang(&self, body: &[u8], served: &[String]) -> ApiResult<Vec<Call>> {
        let call: CallFields = parse(body)?;
        let own: GenerateFields = parse(body)?;
        refuse_unsupported(&parse(body)?)?;
        // Without log-probabilities the fields about them say nothing.
        let scored = own.return_logprob == Some(true);
        if scored && own.token_ids_logprob.as_ref().is_some_and(|ids| !is_empty(ids)) {
            return Err(not_reported("token_ids_logprob"));
        }
        let (prompts, field) = prompts(own.text, own.input_ids)?;
        let count = prompts.len();
        if count == 0 || count > self.max_outputs {
            let most = self.max_outputs;
            let message = format!("{count} prompts in a call, which takes from 1 to {most}");
            return Err(ApiError::param(field, message));
        }
        let adapters = per_prompt("lora_path", own.lora_path, count)?;
        let params = per_prompt("sampling_params", own.sampling_params, count)?;
        let starts =
            per_prompt("logprob_start_len", own.logprob_start_len.filter(|_| scored), count)?;
        let tops = per_prompt("top_logprobs_num", own.top_logprobs_num.filter(|_| scored), count)?;
        let asked = starts.into_iter().zip(tops);
        let ids = ids(own.rid.or(call.request_id.clone().map(OneOrMany::One)), count)?;
        let calls = prompts.into_iter().zip(adapters).zip(params).zip(asked).zip(ids);
        let calls = calls.map(|((((input, adapter), params), (start, top)), (id, batch_id))| {
            let (params, names) = renamed(params.unwrap_or_default());
            let params = json(&params);
            let check = || {
                refuse_unsupported(&parse(&params)?)?;
                let mut call = call.clone().merge(parse(&params)?)?;
                call.model = model(adapter.flatten(), call.model, served)?;
                call.return_weight_versions = Some(true);
                call.request_id = id;
                let fields: SamplingFields = parse(&params)?;
                if fields.prompt_logprobs.is_some() {
                    return Err(not_reported("prompt_logprobs"));
                }
                let top = numbers::count("top_logprobs_num", top.flatten(), MAX_LOGPROBS)?;
                let top = scored.then_some(top.unwrap_or(0));
                let mut call = self.token_call(TokenCall {
                    fields,
                    call,
                    input,
                    logprobs: top,
                    max_tokens: MAX_TOKENS,
                    may_be_empty: true,
                })?;
                // Below zero: of the output alone.
                let start = start.flatten().and_then(|start| usize::try_from(start).ok());
                if let (Some(top), Some(start)) = (top, start) {
                    if call.reply.stream.is_some() {
                        // Each event has all of its output so far, and would have all of them.
                        let message = "`logprob_start_len` is not available when `stream=True`.";
                        return Err(ApiError::param("logprob_start_len", message));
                    }
                    call.prompt_logprobs = Some(top);
                    call.reply.prompt_logprobs = Some(top as usize);
                    call.reply.prompt_start = start;
                }
                call.reply.token_texts = own.return_text_in_logprobs.unwrap_or(false);
                Ok(Call { batch_id, ..call })
            };
            check().map_err(|error| {
                let names = names.into_iter().chain([("prompt", field)]);
                names.fold(error, |error, (ours, theirs)| error.in_words_of(ours, theirs))
            })
        });
        calls.collect()
    }
}

fn not_reported(field: &'static str) -> ApiError {
    let message = format!(
        "`{field}` asks for log-probabilities that /generate does not report; it has `logprob_start_len` \
         and `top_logprobs_num`"
    );
    ApiError::param(field, message)
}

/// The adapter of a prompt. SGLang has `lora_path` alone; routers and OpenAI's clients add a `model`, mostly the base's name.
fn model(
    path: Option<String>,
    model: Option<String>,
    served: &[String],
) -> ApiResult<Option<String>> {
    let path = path.filter(|path| !path.is_empty());
    match (path, model) {
        (Some(path), Some(model)) if path != model && !served.contains(&model) => {
            let message = "`model` is neither the base nor the adapter that `lora_path` names";
            Err(ApiError::param("model", message))
        }
        (path, model) => Ok(path.or(model)),
    }
}

/// The prompts, and the field that has them.
fn prompts(
    text: Option<OneOrMany<String>>,
    input_ids: Option<OneOrMany<Vec<u32>>>,
) -> ApiResult<(Vec<PromptInput>, &'static str)> {
    match (text, input_ids) {
        (Some(texts), None) => Ok((texts.values().map(PromptInput::Text).collect(), "text")),
        (None, Some(lists)) => Ok((lists.values().map(PromptInput::Tokens).collect(), "input_ids")),
        _ => Err(ApiError::param("text", "give either `text` or `input_ids`")),
    }
}

/// What each prompt's call is named, and what its batch is.
fn ids(
    given: Option<OneOrMany<String>>,
    prompts: usize,
) -> ApiResult<Vec<(Option<String>, Option<String>)>> {
    if let Some(OneOrMany::One(id)) = &given
        && prompts > 1
    {
        return Ok((0..prompts).map(|at| (Some(format!("{id}-{at}")), Some(id.clone()))).collect());
    }
    let ids = per_prompt("rid", given, prompts)?;
    Ok(ids.into_iter().map(|id| (id.clone(), id)).collect())
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

/// SGLang's names of sampling fields under those of the other routes, and which of them the client has used.
fn renamed(
    mut params: Map<String, Value>,
) -> (Map<String, Value>, Vec<(&'static str, &'static str)>) {
    let mut names = vec![
        ("max_tokens", "max_new_tokens"),
        ("min_tokens", "min_new_tokens"),
        ("seed", "sampling_seed"),
        ("include_stop_str_in_output", "no_stop_trim"),
    ];
    names.retain(|&(ours, theirs)| match params.remove(theirs) {
        Some(value) => {
            params.insert(ours.to_owned(), value);
            true
        }
        None => false,
    });
    (params, names)
}
