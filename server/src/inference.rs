//! `/inference/v1/generate`.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;

use crate::body::JsonBody;
use crate::error::ApiResult;
use crate::generate::Started;
use crate::openai::error::ErrorResponse;
use crate::openai::inference::{InferenceRequest, InferenceResponse};
use crate::reply::inference::whole;
use crate::state::App;

/// Continues a prompt of tokens
#[utoipa::path(
    post, path = "/inference/v1/generate", request_body = InferenceRequest,
    responses(
        (status = 200, body = InferenceResponse),
        (status = "4XX", body = ErrorResponse), (status = "5XX", body = ErrorResponse)
    )
)]
pub(crate) async fn generate(
    State(app): State<App>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<InferenceResponse>> {
    let call = app.work(move |converter| converter.inference(&body)).await?;
    let (head, outputs) = Started::new(&app, &headers, "generate", call).await?.collect().await?;
    Ok(Json(whole(head, outputs)))
}
