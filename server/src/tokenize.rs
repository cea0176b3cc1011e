//! `/tokenize` and `/detokenize`.

use axum::Json;
use axum::extract::State;

use crate::body::JsonBody;
use crate::error::ApiResult;
use crate::openai::error::ErrorResponse;
use crate::openai::tokenize::{
    DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse,
};
use crate::state::App;

/// Tokens of a text or a conversation
#[utoipa::path(
    post, path = "/tokenize", request_body = TokenizeRequest,
    responses((status = 200, body = TokenizeResponse), (status = "4XX", body = ErrorResponse))
)]
pub(crate) async fn tokenize(
    State(app): State<App>,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<TokenizeResponse>> {
    let tokenized = app.work(move |converter| converter.tokenize(&body)).await?;
    app.adapter(tokenized.model.as_deref()).await?;
    Ok(Json(TokenizeResponse {
        count: tokenized.tokens.len(),
        max_model_len: app.converter.model.max_model_len,
        tokens: tokenized.tokens,
        token_strs: tokenized.spellings,
    }))
}

/// Text of tokens
#[utoipa::path(
    post, path = "/detokenize", request_body = DetokenizeRequest,
    responses((status = 200, body = DetokenizeResponse), (status = "4XX", body = ErrorResponse))
)]
pub(crate) async fn detokenize(
    State(app): State<App>,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<DetokenizeResponse>> {
    let (model, prompt) = app.work(move |converter| converter.detokenize(&body)).await?;
    app.adapter(model.as_deref()).await?;
    Ok(Json(DetokenizeResponse { prompt }))
}
