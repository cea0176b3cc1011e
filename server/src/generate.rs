//! From a checked call to running engine requests: what both generating routes share.

use std::sync::Arc;

use axum::http::HeaderMap;
use loraplex_core::{Adapter, GenerateRequest, Output, OutputStream, SamplingParams, UpdatePolicy};

use crate::convert::{Call, request_id};
use crate::error::ApiResult;
use crate::reply::logprobs::Names;
use crate::reply::{Head, now};
use crate::state::AppState;

/// A client's own name for a call.
pub(crate) const REQUEST_ID: &str = "x-request-id";

/// A call whose requests the engine has taken.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) head: Head,
    /// Prompt by prompt, `n` each.
    pub(crate) outputs: Vec<OutputStream>,
}

impl Started {
    /// Gives every output of `call` to the engine, or none of them. `kind` opens the call's id.
    pub(crate) async fn new(
        app: &AppState,
        headers: &HeaderMap,
        kind: &str,
        call: Call,
    ) -> ApiResult<Self> {
        let id = format!("{kind}-{}", id(headers, call.request_id.clone()));
        let adapter = app.adapter_at_least(call.model.as_deref(), call.floor).await?;
        let batch = call.batch_id.iter().map(|batch| format!("{kind}-{batch}"));
        let ids: Vec<String> = [id.clone()].into_iter().chain(batch).collect();
        let mut outputs = Vec::with_capacity(call.prompts.len() * call.n);
        for index in 0..call.prompts.len() * call.n {
            // A failure drops, and so aborts, the ones before it.
            let mut request = request(&call, index, &ids, adapter.as_ref());
            request.update_policy = call.update_policy.unwrap_or(app.update_policy);
            outputs.push(app.engine.submit(request)?);
        }
        let head = Head {
            created: now(),
            model: app.answer_name(adapter.as_deref()),
            names: Names {
                tokenizer: app.converter.tokenizer.clone(),
                as_ids: call.reply.tokens_as_ids,
            },
            reply: call.reply,
            prompts: call.prompts,
            n: call.n,
            id,
        };
        Ok(Self { head, outputs })
    }

    /// Waits for all outputs.
    pub(crate) async fn collect(self) -> ApiResult<(Head, Vec<Output>)> {
        let outputs = self.outputs.into_iter().map(OutputStream::collect);
        Ok((self.head, futures::future::try_join_all(outputs).await?))
    }
}

fn request(
    call: &Call,
    index: usize,
    ids: &[String],
    adapter: Option<&Arc<Adapter>>,
) -> GenerateRequest {
    let prompt = &call.prompts[index / call.n];
    let choice = (index % call.n) as u64;
    GenerateRequest {
        ids: ids.to_vec(),
        prompt: prompt.tokens.clone(),
        adapter: adapter.cloned(),
        params: SamplingParams {
            max_tokens: prompt.max_tokens,
            seed: call.params.seed.map(|seed| seed.wrapping_add(choice)),
            ..call.params.clone()
        },
        text: call.text.clone(),
        cache_salt: call.cache_salt.clone(),
        priority: call.priority,
        prompt_logprobs: call.prompt_logprobs,
        update_policy: UpdatePolicy::default(),
    }
}

/// The header's, the body's, or a new one. What a proxy has put into the header may be no id, of which the client knows
/// nothing.
fn id(headers: &HeaderMap, body: Option<String>) -> String {
    let header = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let header = header.map(|id| id.trim().to_owned()).filter(|id| !id.is_empty());
    let id = request_id(header).unwrap_or_default().or(body);
    id.unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string())
}
