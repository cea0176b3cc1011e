//! SageMaker's names for load and unload.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use loraplex_core::LoraRequest;
use loraplex_core::adapter::LoadRequest;

use super::wire::RegisterBody;
use crate::body::{JsonBody, parse};
use crate::error::{ApiError, ApiResult};
use crate::extract::Path;
use crate::openai::error::ErrorResponse;
use crate::state::App;

/// Load an adapter under a name that is not taken
#[utoipa::path(
    post, path = "/adapters", request_body = RegisterBody,
    responses((status = 200, description = "Plain text"), (status = "4XX", body = ErrorResponse))
)]
pub(crate) async fn register(
    State(app): State<App>,
    JsonBody(body): JsonBody,
) -> ApiResult<Response> {
    let RegisterBody { name, src, pin } = parse(&body)?;
    if name.is_empty() || src.is_empty() {
        return Err(ApiError::user_input("Both 'name' and 'src' must be provided."));
    }
    let path = app.paths.check(&src).await?;
    let ask = LoadRequest { pinned: pin, ..LoadRequest::new(LoraRequest::new(&name, path)) };
    super::load(&app, ask).await?;
    Ok(format!("Adapter {name} registered").into_response())
}

/// Take an adapter out
#[utoipa::path(
    delete, path = "/adapters/{name}", params(("name", description = "Slashes as %2F")),
    responses((status = 200, description = "Plain text"), (status = 404, body = ErrorResponse))
)]
pub(crate) async fn unregister(
    State(app): State<App>,
    Path(name): Path<String>,
) -> ApiResult<Response> {
    app.adapters.unload(&name, false).await?;
    Ok(format!("Adapter {name} unregistered").into_response())
}
