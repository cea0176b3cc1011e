//! Pausing and aborting under SGLang's names.

use axum::Json;
use axum::extract::State;
use loraplex_core::PauseMode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::engine;
use crate::body::{AnyBody, JsonBody, parse};
use crate::error::{ApiError, ApiResult};
use crate::openai::error::ErrorResponse;
use crate::state::App;

/// How to pause.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct PauseBody {
    /// `abort` (default): requests under way end now with the tokens that they have; `retract` and `in_place`: they stay
    /// and go on later. New requests queue.
    mode: Option<String>,
}

/// Which request to end.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct AbortBody {
    /// Its `rid`, which names all outputs of the call.
    rid: Option<String>,
    /// All requests instead.
    #[serde(default)]
    abort_all: bool,
}

/// What has been done.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Done {
    status: &'static str,
    message: &'static str,
}

/// SGLang's name for a pause in which new requests queue
#[utoipa::path(
    post, path = "/pause_generation", request_body = PauseBody,
    responses((status = 200, body = Done), (status = 400, body = ErrorResponse))
)]
pub(crate) async fn pause_generation(
    State(app): State<App>,
    // Without a content type too, and empty: AReaL sends no body.
    AnyBody(body): AnyBody,
) -> ApiResult<Json<Done>> {
    let body: PauseBody = if body.is_empty() { PauseBody::default() } else { parse(&body)? };
    let abort = match body.mode.as_deref() {
        None | Some("abort") => true,
        // The base's weights never change, so that the KV of requests that stay is as good later as now.
        Some("retract" | "in_place") => false,
        Some(_) => {
            let message = "`mode` must be `abort`, `retract` or `in_place`";
            return Err(ApiError::param("mode", message));
        }
    };
    app.engine.pause(PauseMode::Keep, false, None).await?;
    if abort {
        app.engine.abort_requests(None).await?;
    }
    tracing::info!(abort, "paused");
    Ok(Json(Done { status: "ok", message: "generation is paused" }))
}

/// SGLang's name for `/resume`
#[utoipa::path(post, path = "/continue_generation", responses((status = 200, body = Done)))]
pub(crate) async fn continue_generation(State(app): State<App>) -> ApiResult<Json<Done>> {
    app.resume().await?;
    tracing::info!("resumed");
    Ok(Json(Done { status: "ok", message: "generation goes on" }))
}

/// SGLang's name for `/abort_requests`
#[utoipa::path(
    post, path = "/abort_request", request_body = AbortBody,
    responses((status = 200, description = "{\"aborted\"}: how many outputs ended"), (status = 400, body = ErrorResponse))
)]
pub(crate) async fn abort_request(
    State(app): State<App>,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let AbortBody { rid, abort_all } = parse(&body)?;
    let requests = match (abort_all, rid.filter(|rid| !rid.is_empty())) {
        (true, _) => None,
        (false, Some(rid)) => Some(engine::of_any_call(&[rid])),
        (false, None) => {
            return Err(ApiError::param("rid", "name a request by `rid`, or set `abort_all`"));
        }
    };
    let aborted = app.engine.abort_requests(requests).await?;
    Ok(Json(json!({ "aborted": aborted })))
}
