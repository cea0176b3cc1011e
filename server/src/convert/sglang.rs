//! SGLang's `/generate`.

use serde_json::{Map, Value};

use super::inference::{TokenCall, json};
use super::numbers::count;
use super::sampling::MAX_LOGPROBS;
use super::{Call, Converter, refuse_unsupported};
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
        let reports = Reports::of(&own)?;
        let (prompts, field) = prompts(own.text, own.input_ids)?;
        let prompts_given = prompts.len();
        if prompts_given == 0 || prompts_given > self.max_outputs {
            let most = self.max_outputs;
            let message =
                format!("{prompts_given} prompts in a call, which takes from 1 to {most}");
            return Err(ApiError::param(field, message));
        }
        let adapters = per_prompt("lora_path", own.lora_path, prompts_given)?;
        let params = per_prompt("sampling_params", own.sampling_params, prompts_given)?;
        let starts = per_prompt("logprob_start_len", reports.start, prompts_given)?;
        let tops = per_prompt("top_logprobs_num", reports.top, prompts_given)?;
        let asked = starts.into_iter().zip(tops);
        let calls = prompts.into_iter().zip(adapters).zip(params).zip(asked).enumerate();
        let calls = calls.map(|(index, (((input, adapter), params), (start, top)))| {
            let (params, names) = renamed(params.unwrap_or_default());
            let params = json(&params);
            let check = || {
                refuse_unsupported(&parse(&params)?)?;
                let mut call = call.clone().merge(parse(&params)?)?;
                call.model = model(adapter.flatten(), call.model, served)?;
                call.return_weight_versions = Some(true);
                let batch_id = own.rid.clone().or(call.request_id);
                call.request_id = batch_id.clone().map(|id| match prompts_given {
                    1 => id,
                    _ => format!("{id}-{index}"),
                });
                let fields: SamplingFields = parse(&params)?;
                if fields.prompt_logprobs.is_some() {
                    return Err(not_reported("prompt_logprobs"));
                }
                let top = match reports.wanted {
                    true => Some(count_of("top_logprobs_num", top.flatten(), MAX_LOGPROBS)?),
                    false => None,
                };
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
                call.reply.token_texts = reports.texts;
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

/// What a call wants to be told of its tokens.
#[derive(Debug, Default)]
struct Reports {
    /// Log-probabilities. Without them the rest says nothing.
    wanted: bool,
    start: Option<OneOrMany<Option<i64>>>,
    top: Option<OneOrMany<Option<i64>>>,
    texts: bool,
}

impl Reports {
    fn of(own: &GenerateFields) -> ApiResult<Self> {
        if own.return_logprob != Some(true) {
            return Ok(Self::default());
        }
        if own.token_ids_logprob.as_ref().is_some_and(|ids| !is_empty(ids)) {
            return Err(not_reported("token_ids_logprob"));
        }
        Ok(Self {
            wanted: true,
            start: own.logprob_start_len.clone(),
            top: own.top_logprobs_num.clone(),
            texts: own.return_text_in_logprobs.unwrap_or(false),
        })
    }
}

fn count_of(field: &'static str, given: Option<i64>, most: u32) -> ApiResult<u32> {
    Ok(count(field, given, most)?.unwrap_or(0))
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
