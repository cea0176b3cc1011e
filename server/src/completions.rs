//! `/v1/completions`.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::body::JsonBody;
use crate::error::ApiResult;
use crate::generate::{REQUEST_ID, Started};
use crate::openai::completion::{CompletionRequest, CompletionResponse};
use crate::openai::error::ErrorResponse;
use crate::reply::completion::{CompletionWriter, whole};
use crate::sse;
use crate::state::App;

/// Continues prompts
#[utoipa::path(
    post, path = "/v1/completions", request_body = CompletionRequest,
    responses(
        (status = 200, description = "The outputs; with `stream`, server-sent events", body = CompletionResponse),
        (status = "4XX", body = ErrorResponse), (status = "5XX", body = ErrorResponse)
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> ApiResult<Response> {
    let call = app.work(move |converter| converter.completion(&body)).await?;
    let started = Started::new(&app, &headers, "cmpl", call).await?;
    let id = [(REQUEST_ID, started.head.id.clone())];
    if started.head.reply.stream.is_some() {
        let answer = sse::answer(started.outputs, CompletionWriter::new(started.head)).await?;
        return Ok((id, answer).into_response());
    }
    let (head, outputs) = started.collect().await?;
    Ok((id, Json(whole(head, outputs))).into_response())
}
