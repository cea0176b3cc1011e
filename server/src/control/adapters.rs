//! `/v1/lora_adapters`: what is registered, weights in the request, pins.

use axum::Json;
use axum::extract::State;
use axum::extract::multipart::Field;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use loraplex_core::LoraRequest;
use loraplex_core::adapter::{Content, LoadRequest};
use serde::Deserialize;

use super::load::{unload_name, with_options};
use super::loaded_answer;
use super::wire::{AdapterCard, AdapterList, LoadAnswer, LoadOptions, UnloadAnswer};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Form, Path, Query, bad_form};
use crate::lax::lax_bool;
use crate::openai::error::ErrorResponse;
use crate::state::App;

/// Bytes of `adapter_config.json` at most.
const MAX_CONFIG: usize = 1 << 20;

/// All registered adapters, with what operators want to know
#[utoipa::path(get, path = "/v1/lora_adapters", responses((status = 200, body = AdapterList)))]
pub(crate) async fn list(State(app): State<App>) -> Json<AdapterList> {
    let data = app.adapters.list().iter().map(AdapterCard::new).collect();
    Json(AdapterList { object: "list", data })
}

/// One adapter
#[utoipa::path(
    get, path = "/v1/lora_adapters/{name}", params(("name", description = "Slashes as %2F")),
    responses((status = 200, body = AdapterCard), (status = 404, body = ErrorResponse))
)]
pub(crate) async fn get(
    State(app): State<App>,
    Path(name): Path<String>,
) -> ApiResult<Json<AdapterCard>> {
    let status = app.adapters.status(&name).ok_or_else(|| ApiError::unknown_adapter(&name))?;
    Ok(Json(AdapterCard::new(&status)))
}

/// The parts of an upload, for its documentation.
#[derive(Debug, utoipa::ToSchema)]
#[expect(dead_code, reason = "the parts are read one by one")]
pub(crate) struct UploadForm {
    /// `adapter_config.json`
    config: String,
    /// `adapter_model.safetensors`
    #[schema(format = Binary, content_media_type = "application/octet-stream")]
    weights: Vec<u8>,
}

/// Load an adapter from the request's own bytes, or replace one in place
#[utoipa::path(
    put, path = "/v1/lora_adapters/{name}",
    params(
        ("name", description = "Slashes as %2F"),
        ("expected_generation" = Option<u64>, Query, description = "Load only if the name points to this generation; 0 expects it to be free"),
        ("operation_id" = Option<String>, Query, description = "Loads of one name with the same id are done once"),
        ("pinned" = Option<bool>, Query, description = "Uploads stay in memory with or without it"),
        ("policy_version" = Option<u64>, Query, description = "The trainer's own version of the content")
    ),
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses((status = 200, body = LoadAnswer), (status = "4XX", body = ErrorResponse))
)]
pub(crate) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(options): Query<LoadOptions>,
    headers: HeaderMap,
    Form(mut form): Form,
) -> ApiResult<Response> {
    // Held until the load has ended: an upload is in memory as a whole. One that sends nothing holds none.
    let mut permit = None;
    let (mut config, mut weights) = (None, None);
    while let Some(field) = form.next_field().await.map_err(|error| bad_form(&error))? {
        if permit.is_none() {
            permit = Some(app.uploads.acquire().await.expect("nobody closes it"));
        }
        match field.name() {
            Some("config") if config.is_none() => {
                config = Some(read(field, "config", MAX_CONFIG).await?);
            }
            Some("weights") if weights.is_none() => {
                weights = Some(read(field, "weights", app.adapters.max_upload()).await?);
            }
            Some(name @ ("config" | "weights")) => {
                let message = format!("the form has a second part `{name}`");
                return Err(ApiError::param(name, message));
            }
            Some(name) => {
                let name: String = name.chars().take(40).collect();
                let message =
                    format!("the form has a part `{name}`; it takes `config` and `weights`");
                return Err(ApiError::invalid(message));
            }
            None => {
                let message = "the form has a part without a name; it takes `config` and `weights`";
                return Err(ApiError::invalid(message));
            }
        }
    }
    let part = |part: Option<Bytes>, name: &'static str, file: &str| {
        let message = format!("the form has no part `{name}` with the bytes of {file}");
        part.ok_or_else(|| ApiError::param(name, message))
    };
    let content = Content::Bytes {
        config: part(config, "config", "adapter_config.json")?,
        weights: part(weights, "weights", "adapter_model.safetensors")?,
    };
    let ask = LoadRequest { content, ..LoadRequest::new(LoraRequest::new(&name, "")).in_place() };
    let loaded = super::load(&app, with_options(ask, options)?).await?;
    let text = format!("Success: LoRA adapter '{name}' added successfully.");
    Ok(loaded_answer(&headers, &loaded, text))
}

/// All of a part, unless it is larger than `limit`.
async fn read(mut field: Field<'_>, name: &'static str, limit: usize) -> ApiResult<Bytes> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| bad_form(&error))? {
        if bytes.len() + chunk.len() > limit {
            let message = format!("`{name}` is over {limit} bytes: no adapter of this model is");
            let error = ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "BadRequestError", message);
            return Err(error);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// Whether an unload waits.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Wait {
    #[serde(default, deserialize_with = "lax_bool")]
    wait: Option<bool>,
}

/// Take an adapter out; requests under way finish on it
#[utoipa::path(
    delete, path = "/v1/lora_adapters/{name}",
    params(
        ("name", description = "Slashes as %2F"),
        ("wait" = Option<bool>, Query, description = "Answer when its memory is free")
    ),
    responses((status = 200, body = UnloadAnswer), (status = 404, body = ErrorResponse))
)]
pub(crate) async fn delete(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(Wait { wait }): Query<Wait>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    unload_name(&app, &headers, name, wait.unwrap_or(false)).await
}

/// Keep an adapter in host memory
#[utoipa::path(
    put, path = "/v1/lora_adapters/{name}/pin", params(("name", description = "Slashes as %2F")),
    responses((status = 200, body = AdapterCard), (status = 404, body = ErrorResponse))
)]
pub(crate) async fn pin(app: State<App>, name: Path<String>) -> ApiResult<Json<AdapterCard>> {
    set_pinned(app, name, true).await
}

/// Let an adapter go when host memory is short
#[utoipa::path(
    delete, path = "/v1/lora_adapters/{name}/pin", params(("name", description = "Slashes as %2F")),
    responses((status = 200, body = AdapterCard), (status = 404, body = ErrorResponse))
)]
pub(crate) async fn unpin(app: State<App>, name: Path<String>) -> ApiResult<Json<AdapterCard>> {
    set_pinned(app, name, false).await
}

async fn set_pinned(
    app: State<App>,
    Path(name): Path<String>,
    pinned: bool,
) -> ApiResult<Json<AdapterCard>> {
    app.adapters.set_pinned(&name, pinned).await?;
    get(app, Path(name)).await
}
