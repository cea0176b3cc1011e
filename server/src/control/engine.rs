//! Pausing, aborting, the prefix cache, and what trainers ask before they start.

use axum::Json;
use axum::extract::State;
use loraplex_core::{DType, PauseMode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::body::{JsonBody, parse};
use crate::error::{ApiError, ApiResult};
use crate::extract::Query;
use crate::lax::lax_bool;
use crate::openai::error::ErrorResponse;
use crate::seconds;
use crate::state::App;

/// Requests that one call aborts at most.
const MAX_IDS: usize = 4096;

/// How to pause.
#[derive(Debug, Deserialize)]
pub(crate) struct PauseQuery {
    mode: Option<String>,
    #[serde(default, deserialize_with = "lax_bool")]
    clear_cache: Option<bool>,
    lease_seconds: Option<f64>,
}

/// What the engine has done.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Status {
    pub(super) status: &'static str,
}

/// Stop the flow of tokens
#[utoipa::path(
    post, path = "/pause",
    params(
        ("mode" = Option<String>, Query, description = "`abort` (default): requests end now with the tokens that they have; `wait`: they finish; `keep`: they stay where they are and new ones queue"),
        ("clear_cache" = Option<bool>, Query, description = "Forget cached prefixes (default: true, and false with `keep`)"),
        ("lease_seconds" = Option<f64>, Query, description = "Resume by itself after so long")
    ),
    responses((status = 200, body = Status), (status = 400, body = ErrorResponse))
)]
pub(crate) async fn pause(
    State(app): State<App>,
    Query(query): Query<PauseQuery>,
) -> ApiResult<Json<Status>> {
    let mode = pause_mode(query.mode.as_deref())?;
    let lease = query.lease_seconds.map(|lease| seconds::duration(lease).ok_or(lease)).transpose();
    let lease = lease.map_err(|_| {
        ApiError::param(
            "lease_seconds",
            "`lease_seconds` must be a number of seconds, a year at most",
        )
    })?;
    let clear_cache = query.clear_cache.unwrap_or(mode != PauseMode::Keep);
    app.engine.pause(mode, clear_cache, lease).await?;
    tracing::info!(?mode, ?lease, "paused");
    Ok(Json(Status { status: "paused" }))
}

/// As vLLM names them.
pub(super) fn pause_mode(mode: Option<&str>) -> ApiResult<PauseMode> {
    match mode {
        None | Some("abort") => Ok(PauseMode::Abort),
        Some("wait") => Ok(PauseMode::Wait),
        Some("keep") => Ok(PauseMode::Keep),
        Some(_) => Err(ApiError::param("mode", "`mode` must be `abort`, `wait` or `keep`")),
    }
}

/// Go on; nothing happens where nothing is paused
#[utoipa::path(post, path = "/resume", responses((status = 200, body = Status)))]
pub(crate) async fn resume(State(app): State<App>) -> ApiResult<Json<Status>> {
    app.resume().await?;
    tracing::info!("resumed");
    Ok(Json(Status { status: "resumed" }))
}

/// Whether the engine is paused
#[utoipa::path(get, path = "/is_paused", responses((status = 200, description = "{\"is_paused\"}")))]
pub(crate) async fn is_paused(State(app): State<App>) -> Json<Value> {
    Json(json!({ "is_paused": app.engine.is_paused() }))
}

/// AReaL's name for `/pause?mode=abort`
#[utoipa::path(post, path = "/areal_pause_generation", responses((status = 200, body = Status)))]
pub(crate) async fn areal_pause(State(app): State<App>) -> ApiResult<Json<Value>> {
    app.engine.pause(PauseMode::Abort, false, None).await?;
    Ok(Json(json!({ "success": true, "message": "paused" })))
}

/// AReaL's name for `/resume`
#[utoipa::path(post, path = "/areal_continue_generation", responses((status = 200, body = Status)))]
pub(crate) async fn areal_continue(State(app): State<App>) -> ApiResult<Json<Value>> {
    app.resume().await?;
    Ok(Json(json!({ "success": true, "message": "resumed" })))
}

/// Which requests to abort.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct AbortBody {
    /// Their ids; all requests when left out.
    request_ids: Option<Vec<String>>,
}

/// End requests now; they answer with the tokens that they have
#[utoipa::path(
    post, path = "/abort_requests", request_body = AbortBody,
    responses((status = 200, description = "{\"aborted\"}: how many outputs ended"), (status = 400, body = ErrorResponse))
)]
pub(crate) async fn abort(
    State(app): State<App>,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let AbortBody { request_ids } = parse(&body)?;
    if request_ids.as_ref().is_some_and(|ids| ids.len() > MAX_IDS) {
        let message = format!("`request_ids` has over {MAX_IDS} entries");
        return Err(ApiError::param("request_ids", message));
    }
    let ids = request_ids.map(|ids| of_any_call(&ids));
    let aborted = app.engine.abort_requests(ids).await?;
    Ok(Json(json!({ "aborted": aborted })))
}

/// The engine's names of requests: a client's own id, or the one in answers, which opens with the kind of the call.
pub(super) fn of_any_call(ids: &[String]) -> Vec<String> {
    let kinds = ["", "cmpl-", "chatcmpl-", "generate-", "sgl-"];
    ids.iter().flat_map(|id| kinds.map(|kind| format!("{kind}{id}"))).collect()
}

/// Forget cached prefixes that no request uses
#[utoipa::path(
    post, path = "/reset_prefix_cache", request_body(content = String, description = "Ignored"),
    responses((status = 200, description = "{\"success\"}: whether none remains"))
)]
pub(crate) async fn reset_prefix_cache(
    State(app): State<App>,
    // Some clients send a body, none of which means anything here.
    _body: axum::body::Body,
) -> ApiResult<Json<Value>> {
    let success = app.engine.reset_prefix_cache().await?;
    Ok(Json(json!({ "success": success })))
}

/// What trainers check before they start, in vLLM's shape
#[utoipa::path(get, path = "/server_info", responses((status = 200, description = "{\"vllm_config\"}")))]
pub(crate) async fn server_info(State(app): State<App>) -> Json<Value> {
    let lora = app.lora_limits.map(|(max_lora_rank, max_loras)| {
        json!({ "max_lora_rank": max_lora_rank, "max_loras": max_loras })
    });
    let dtype = match app.converter.model.dtype {
        DType::F32 => "torch.float32",
        DType::Bf16 => "torch.bfloat16",
        DType::F16 => "torch.float16",
    };
    Json(json!({
        "vllm_config": {
            "lora_config": lora,
            "parallel_config": { "data_parallel_size": 1, "tensor_parallel_size": 1 },
            "model_config": {
                "model": app.root,
                "dtype": dtype,
                "max_model_len": app.converter.model.max_model_len,
            },
            "weight_transfer_config": null,
        },
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

/// How many processes share the model
#[utoipa::path(get, path = "/get_world_size", responses((status = 200, description = "{\"world_size\"}")))]
pub(crate) async fn world_size() -> Json<Value> {
    Json(json!({ "world_size": 1 }))
}

/// What ART's client asks
#[utoipa::path(get, path = "/art/capabilities", responses((status = 200, description = "Protocol and abilities")))]
pub(crate) async fn art_capabilities() -> Json<Value> {
    Json(json!({ "runtime": "art_vllm", "protocol_version": 5 }))
}
