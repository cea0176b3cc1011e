//! The fields that every generating route has: how its tokens are drawn, and how it is served.

use loraplex_core::adapter::Floor;
use loraplex_core::{ModelInfo, SamplingParams, TextOptions, UpdatePolicy};

use super::numbers::{count, integer, positive, real};
use super::{Call, Echo, Prompt, Reply, Streaming};
use crate::error::{ApiError, ApiResult};
use crate::openai::call::CallFields;
use crate::openai::sampling::{SamplingFields, Stop};

/// Outputs for one prompt at most.
const MAX_N: u32 = 128;
/// Best tokens reported at a position at most.
pub(super) const MAX_LOGPROBS: u32 = 20;
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
const MAX_STOP_TOKENS: usize = 256;
const MAX_ID_BYTES: usize = 256;
const MAX_SALT_BYTES: usize = 1024;
/// Below this, dividing logits would overflow.
const LEAST_TEMPERATURE: f32 = 0.01;

/// A call without prompts. `params.max_tokens` is each prompt's own matter.
pub(super) fn call(fields: SamplingFields, call: CallFields, model: &ModelInfo) -> ApiResult<Call> {
    let n = outputs(&fields)?;
    let prompt_logprobs = match fields.prompt_logprobs {
        Some(_) if call.stream == Some(true) => {
            return Err(ApiError::param(
                "prompt_logprobs",
                "`prompt_logprobs` are not available when `stream=True`.",
            ));
        }
        wanted => count("prompt_logprobs", wanted, MAX_LOGPROBS)?,
    };
    let priority = integer("priority", call.priority, i32::MIN.into()..=i32::MAX.into())?;
    Ok(Call {
        n,
        params: params(&fields, model)?,
        text: TextOptions {
            stop: stops(fields.stop)?,
            include_stop: fields.include_stop_str_in_output.unwrap_or(false),
            skip_special_tokens: fields.skip_special_tokens.unwrap_or(true),
        },
        cache_salt: bounded_text("cache_salt", call.cache_salt, MAX_SALT_BYTES)?,
        priority: priority.unwrap_or(0) as i32,
        prompt_logprobs,
        request_id: request_id(call.request_id)?,
        batch_id: None,
        update_policy: call.lora_update_policy.as_deref().map(update_policy).transpose()?,
        floor: Floor {
            generation: version("min_generation", call.min_generation)?,
            policy_version: version("min_policy_version", call.min_policy_version)?,
        },
        reply: Reply {
            weight_versions: call.return_weight_versions.unwrap_or(false),
            stream: match (call.stream, call.stream_options) {
                (Some(true), options) => {
                    let options = options.unwrap_or_default();
                    let usage = options.include_usage.unwrap_or(false);
                    let continuous = options.continuous_usage_stats.unwrap_or(false);
                    Some(Streaming { usage, continuous_usage: usage && continuous })
                }
                (_, None) => None,
                _ => {
                    let message = "Stream options can only be defined when `stream=True`.";
                    return Err(ApiError::param("stream_options", message));
                }
            },
            logprobs: None,
            prompt_logprobs: prompt_logprobs.map(|top| top as usize),
            prompt_start: 0,
            token_ids: fields.return_token_ids.unwrap_or(false),
            tokens_as_ids: fields.return_tokens_as_token_ids.unwrap_or(false),
            token_texts: false,
            echo: Echo::None,
        },
        model: call.model,
        prompts: Vec::new(),
    })
}

impl Call {
    /// Gives the call its prompts, unless they ask for more outputs than `most`.
    pub(super) fn with_prompts(self, prompts: Vec<Prompt>, most: usize) -> ApiResult<Self> {
        let outputs = prompts.len() * self.n;
        if outputs > most {
            return Err(ApiError::param(
                "n",
                format!(
                    "{} prompts with `n` {} are {outputs} outputs; {most} is the limit of a call",
                    prompts.len(),
                    self.n
                ),
            ));
        }
        Ok(Self { prompts, ..self })
    }
}

fn outputs(fields: &SamplingFields) -> ApiResult<usize> {
    let n = integer("n", fields.n, 1..=MAX_N.into())?.unwrap_or(1);
    if let Some(best_of) = fields.best_of
        && best_of != n
    {
        return Err(ApiError::param(
            "best_of",
            format!(
                "`best_of` {best_of} with `n` {n}: choosing among more outputs is not supported"
            ),
        ));
    }
    Ok(n as usize)
}

fn params(fields: &SamplingFields, model: &ModelInfo) -> ApiResult<SamplingParams> {
    let defaults = &model.generation_defaults;
    let temperature = real("temperature", fields.temperature, 0.0..=2.0)?;
    let temperature = temperature.or(defaults.temperature).unwrap_or(1.0);
    let top_k = integer("top_k", fields.top_k, -1..=i64::MAX)?.map(|k| k.max(0));
    let vocabulary = model.vocab_size as u32;
    let min_tokens = count("min_tokens", fields.min_tokens, u32::MAX)?.unwrap_or(0);
    Ok(SamplingParams {
        temperature: if temperature > 0.0 { temperature.max(LEAST_TEMPERATURE) } else { 0.0 },
        top_p: positive("top_p", fields.top_p, 1.0)?.or(defaults.top_p).unwrap_or(1.0),
        // More than the vocabulary is all of it.
        top_k: match top_k {
            Some(k) => u32::try_from(k).unwrap_or(u32::MAX).min(vocabulary),
            None => defaults.top_k.unwrap_or(0),
        },
        min_p: real("min_p", fields.min_p, 0.0..=1.0)?.or(defaults.min_p).unwrap_or(0.0),
        seed: fields.seed.map(|seed| seed as u64),
        presence_penalty: real("presence_penalty", fields.presence_penalty, -2.0..=2.0)?
            .unwrap_or(0.0),
        frequency_penalty: real("frequency_penalty", fields.frequency_penalty, -2.0..=2.0)?
            .unwrap_or(0.0),
        repetition_penalty: real("repetition_penalty", fields.repetition_penalty, 0.01..=100.0)?
            .or(defaults.repetition_penalty)
            .unwrap_or(1.0),
        logit_bias: logit_bias(fields, model.vocab_size)?,
        logprobs: None,
        max_tokens: 0,
        min_tokens,
        ignore_eos: fields.ignore_eos.unwrap_or(false),
        stop_token_ids: stop_tokens(fields, model.vocab_size)?,
    })
}

fn update_policy(word: &str) -> ApiResult<UpdatePolicy> {
    match word {
        "pin" => Ok(UpdatePolicy::Pin),
        "follow" => Ok(UpdatePolicy::Follow),
        _ => Err(ApiError::param(
            "lora_update_policy",
            "`lora_update_policy` must be \"pin\" or \"follow\"",
        )),
    }
}

fn version(field: &'static str, version: Option<i64>) -> ApiResult<Option<u64>> {
    Ok(integer(field, version, 0..=i64::MAX)?.map(|version| version as u64))
}

fn stops(stop: Option<Stop>) -> ApiResult<Vec<String>> {
    let stops = match stop {
        None => return Ok(Vec::new()),
        Some(Stop::One(text)) => vec![text],
        Some(Stop::Many(texts)) => texts,
    };
    if stops.len() > MAX_STOPS {
        let message = format!("`stop` has {} texts, {MAX_STOPS} is the limit", stops.len());
        return Err(ApiError::param("stop", message));
    }
    for stop in &stops {
        if stop.is_empty() {
            return Err(ApiError::param("stop", "`stop` cannot contain an empty string."));
        }
        if stop.len() > MAX_STOP_BYTES {
            let message =
                format!("`stop` has a text of {} bytes, {MAX_STOP_BYTES} is the limit", stop.len());
            return Err(ApiError::param("stop", message));
        }
    }
    Ok(stops)
}

fn stop_tokens(fields: &SamplingFields, vocabulary: usize) -> ApiResult<Vec<u32>> {
    let ids = fields.stop_token_ids.as_deref().unwrap_or_default();
    if ids.len() > MAX_STOP_TOKENS {
        let message =
            format!("`stop_token_ids` has {} tokens, {MAX_STOP_TOKENS} is the limit", ids.len());
        return Err(ApiError::param("stop_token_ids", message));
    }
    let token = |&id: &i64| match u32::try_from(id) {
        Ok(token) if (token as usize) < vocabulary => Ok(token),
        _ => Err(ApiError::param(
            "stop_token_ids",
            format!("`stop_token_ids`: {id} is not in the vocabulary of {vocabulary} tokens"),
        )),
    };
    ids.iter().map(token).collect()
}

fn logit_bias(fields: &SamplingFields, vocabulary: usize) -> ApiResult<Vec<(u32, f32)>> {
    let Some(bias) = &fields.logit_bias else { return Ok(Vec::new()) };
    let entry = |&(token, bias): &(u32, f64)| {
        if token as usize >= vocabulary {
            return Err(ApiError::param(
                "logit_bias",
                format!("`logit_bias`: {token} is not in the vocabulary of {vocabulary} tokens"),
            ));
        }
        let bias = real("logit_bias", Some(bias), -100.0..=100.0)?;
        Ok((token, bias.expect("it was given")))
    };
    bias.0.iter().map(entry).collect()
}

/// A client's own id of a call. It comes back in a header, so it is visible ASCII.
pub(crate) fn request_id(id: Option<String>) -> ApiResult<Option<String>> {
    let id = bounded_text("request_id", id, MAX_ID_BYTES)?;
    match &id {
        Some(text) if !text.bytes().all(|byte| byte.is_ascii_graphic()) => Err(ApiError::param(
            "request_id",
            "`request_id` must be of visible ASCII characters, without spaces",
        )),
        _ => Ok(id),
    }
}

fn bounded_text(
    field: &'static str,
    text: Option<String>,
    most: usize,
) -> ApiResult<Option<String>> {
    match text {
        Some(text) if text.is_empty() => Err(ApiError::param(
            field,
            format!("Parameter '{field}' must be a non-empty string if provided."),
        )),
        Some(text) if text.len() > most => Err(ApiError::param(
            field,
            format!("`{field}` has {} bytes, {most} is the limit", text.len()),
        )),
        text => Ok(text),
    }
}
