//! vLLM's load and unload, and the aliases that trainers use.

use std::path::{Path, PathBuf};

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use loraplex_core::LoraRequest;
use loraplex_core::adapter::LoadRequest;

use super::wire::{LoadAnswer, LoadBody, LoadOptions, UnloadAnswer, UnloadBody};
use super::{loaded_answer, wants_json};
use crate::body::{JsonBody, parse};
use crate::error::{ApiError, ApiResult};
use crate::hub;
use crate::openai::error::ErrorResponse;
use crate::state::{App, AppState};

/// Bytes of an operation id at most.
const MAX_OPERATION_ID: usize = 256;

/// Load an adapter from a folder, or replace one in place
#[utoipa::path(
    post, path = "/v1/load_lora_adapter", request_body = LoadBody,
    responses(
        (status = 200, body = LoadAnswer, description = "Plain text, unless JSON is asked for; X-LoRA-Generation says which load this is"),
        (status = 400, body = ErrorResponse, description = "The adapter cannot be used, or the name is taken"),
        (status = 404, body = ErrorResponse, description = "There are no such files"),
        (status = 409, body = ErrorResponse, description = "Not at the expected generation")
    )
)]
pub(crate) async fn load(
    State(app): State<App>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> ApiResult<Response> {
    load_body(&app, &headers, parse(&body)?, false).await
}

/// As `/v1/load_lora_adapter`; replaces in place unless the body says otherwise
#[utoipa::path(
    post, path = "/load_lora_adapter", request_body = LoadBody,
    responses((status = 200, body = LoadAnswer), (status = "4XX", body = ErrorResponse))
)]
pub(crate) async fn load_in_place(
    State(app): State<App>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> ApiResult<Response> {
    load_body(&app, &headers, parse(&body)?, true).await
}

/// As `/load_lora_adapter`
#[utoipa::path(
    post, path = "/skyrl/v1/load_lora_adapter", request_body = LoadBody,
    responses((status = 200, body = LoadAnswer), (status = "4XX", body = ErrorResponse))
)]
pub(crate) async fn load_skyrl(
    app: State<App>,
    headers: HeaderMap,
    body: JsonBody,
) -> ApiResult<Response> {
    load_in_place(app, headers, body).await
}

async fn load_body(
    app: &AppState,
    headers: &HeaderMap,
    body: LoadBody,
    in_place: bool,
) -> ApiResult<Response> {
    if body.lora_name.is_empty() || body.lora_path.is_empty() {
        return Err(ApiError::user_input("Both 'lora_name' and 'lora_path' must be provided."));
    }
    let path = place(app, &body.lora_path).await?;
    let ask = LoadRequest::new(LoraRequest::new(&body.lora_name, path));
    let in_place = body.load_inplace.unwrap_or(in_place);
    let loaded =
        super::load(app, LoadRequest { in_place, ..with_options(ask, body.options())? }).await?;
    let text = format!("Success: LoRA adapter '{}' added successfully.", body.lora_name);
    Ok(loaded_answer(headers, &loaded, text))
}

/// The folder that a client's `lora_path` names: one of this machine, or an adapter of the Hub, which is fetched. A path
/// that is there goes first, as in vLLM.
async fn place(app: &AppState, path: &str) -> ApiResult<PathBuf> {
    match &app.hub {
        Some(hub) if hub::is_address(path) && !Path::new(path).exists() => {
            let fetched = hub::fetch_adapter(hub, path).await;
            Ok(fetched.map_err(|error| {
                let what = "there is no such folder here, and as an adapter of the Hub";
                error.context(format_args!("No adapter found for {path}: {what}"))
            })?)
        }
        _ => app.paths.check(path).await,
    }
}

/// The load with what the client said beside name and content.
pub(super) fn with_options(ask: LoadRequest, options: LoadOptions) -> ApiResult<LoadRequest> {
    let LoadOptions { expected_generation, operation_id, pinned, policy_version } = options;
    if operation_id.as_ref().is_some_and(|id| id.len() > MAX_OPERATION_ID) {
        let message = format!("`operation_id` is over {MAX_OPERATION_ID} bytes");
        return Err(ApiError::param("operation_id", message));
    }
    Ok(LoadRequest { expected_generation, operation_id, pinned, policy_version, ..ask })
}

/// Take an adapter out; requests under way finish on it
#[utoipa::path(
    post, path = "/v1/unload_lora_adapter", request_body = UnloadBody,
    responses((status = 200, body = UnloadAnswer), (status = "4XX", body = ErrorResponse))
)]
pub(crate) async fn unload(
    State(app): State<App>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> ApiResult<Response> {
    let UnloadBody { lora_name, wait } = parse(&body)?;
    if lora_name.is_empty() {
        return Err(ApiError::user_input(
            "'lora_name' needs to be provided to unload a LoRA adapter.",
        ));
    }
    unload_name(&app, &headers, lora_name, wait).await
}

/// As `/v1/unload_lora_adapter`
#[utoipa::path(
    post, path = "/unload_lora_adapter", request_body = UnloadBody,
    responses((status = 200, body = UnloadAnswer), (status = "4XX", body = ErrorResponse))
)]
pub(crate) async fn unload_alias(
    app: State<App>,
    headers: HeaderMap,
    body: JsonBody,
) -> ApiResult<Response> {
    unload(app, headers, body).await
}

pub(super) async fn unload_name(
    app: &AppState,
    headers: &HeaderMap,
    name: String,
    wait: bool,
) -> ApiResult<Response> {
    let generation = app.adapters.unload(&name, wait).await?;
    tracing::info!(name, generation, "adapter unloaded");
    Ok(match wants_json(headers) {
        true => Json(UnloadAnswer { success: true, lora_name: name, generation }).into_response(),
        false => format!("Success: LoRA adapter '{name}' removed successfully.").into_response(),
    })
}
