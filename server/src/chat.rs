//! `/v1/chat/completions`.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::body::JsonBody;
use crate::error::ApiResult;
use crate::generate::{REQUEST_ID, Started};
use crate::openai::chat::{ChatRequest, ChatResponse};
use crate::openai::error::ErrorResponse;
use crate::reply::chat::{ChatWriter, whole};
use crate::sse;
use crate::state::App;

/// Answers a conversation
#[utoipa::path(
    post, path = "/v1/chat/completions", request_body = ChatRequest,
    responses(
        (status = 200, description = "The answers; with `stream`, server-sent events", body = ChatResponse),
        (status = "4XX", body = ErrorResponse), (status = "5XX", body = ErrorResponse)
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> ApiResult<Response> {
    let call = app.work(move |converter| converter.chat(&body)).await?;
    let started = Started::new(&app, &headers, "chatcmpl", call).await?;
    let id = [(REQUEST_ID, started.head.id.clone())];
    if started.head.reply.stream.is_some() {
        let answer = sse::answer(started.outputs, ChatWriter::new(started.head)).await?;
        return Ok((id, answer).into_response());
    }
    let (head, outputs) = started.collect().await?;
    Ok((id, Json(whole(head, outputs))).into_response())
}
