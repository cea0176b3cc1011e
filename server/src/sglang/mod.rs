//! SGLang's native `/generate`: prompts in one call may each have an adapter of their own.

pub mod wire;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;

use crate::body::JsonBody;
use crate::error::ApiResult;
use crate::generate::Started;
use crate::openai::error::ErrorResponse;
use crate::reply::sglang::{GenerateWriter, answers};
use crate::sse;
use crate::state::App;
use wire::{GenerateAnswer, GenerateBody};

/// Continues prompts, each with its own adapter or none
#[utoipa::path(
    post, path = "/generate", request_body = GenerateBody,
    responses(
        (status = 200, description = "One answer, or a list for several prompts or outputs; with `stream`, server-sent events", body = GenerateAnswer),
        (status = "4XX", body = ErrorResponse), (status = "5XX", body = ErrorResponse)
    )
)]
pub(crate) async fn generate(
    State(app): State<App>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> ApiResult<Response> {
    let state = app.clone();
    let calls = app.work(move |converter| converter.sglang(&body, &state.served)).await?;
    let started = calls.into_iter().map(|call| Started::new(&app, &headers, "sgl", call));
    // All are taken before any is waited for, so that they share steps.
    let started = try_join_all(started).await?;
    if started.first().is_some_and(|call| call.head.reply.stream.is_some()) {
        let (heads, outputs): (Vec<_>, Vec<_>) =
            started.into_iter().map(|call| (call.head, call.outputs)).unzip();
        let outputs = outputs.into_iter().flatten().collect();
        return sse::answer(outputs, GenerateWriter::new(heads)).await;
    }
    let collected = try_join_all(started.into_iter().map(Started::collect)).await?;
    let mut answers: Vec<GenerateAnswer> =
        collected.into_iter().flat_map(|(head, outputs)| answers(&head, outputs)).collect();
    Ok(match answers.len() {
        1 => Json(answers.remove(0)).into_response(),
        _ => Json(answers).into_response(),
    })
}
