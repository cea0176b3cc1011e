//! Sleeping and waking under vLLM's names, and which weights are served.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::engine::{Status, pause_mode};
use crate::error::{ApiError, ApiResult};
use crate::extract::Query;
use crate::openai::error::ErrorResponse;
use crate::state::App;

/// How deep to sleep.
#[derive(Debug, Deserialize)]
pub(crate) struct SleepQuery {
    level: Option<u32>,
    mode: Option<String>,
}

/// What has gone to sleep.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Asleep {
    status: &'static str,
    /// Bytes that adapters have given back on the device.
    lora_pool_bytes_freed: usize,
}

/// Stop the flow of tokens, forget cached prefixes, and take adapters that no request holds off the device. They stay in
/// host memory and come back with the first request after `/wake_up`; the base's weights and the pool of KV blocks stay
/// where they are
#[utoipa::path(
    post, path = "/sleep",
    params(
        ("level" = Option<u32>, Query, description = "0: a pause; 1 (default): cached prefixes are forgotten and adapters leave the device too; 2, which drops the base's weights, is refused"),
        ("mode" = Option<String>, Query, description = "What happens to requests under way: `abort` (default), `wait` or `keep`, as of `/pause`")
    ),
    responses(
        (status = 200, body = Asleep), (status = 400, body = ErrorResponse),
        (status = 501, description = "Level 2", body = ErrorResponse)
    )
)]
pub(crate) async fn sleep(
    State(app): State<App>,
    Query(query): Query<SleepQuery>,
) -> ApiResult<Json<Asleep>> {
    let mode = pause_mode(query.mode.as_deref())?;
    let deep = match query.level {
        Some(0) => false,
        None | Some(1) => true,
        Some(2) => return Err(no_level_2()),
        Some(level) => {
            return Err(ApiError::param("level", format!("`level` is {level}; it is 0 or 1")));
        }
    };
    app.engine.pause(mode, deep, None).await?;
    app.asleep.store(true, Ordering::Relaxed);
    let freed = if deep { app.engine.evict_adapters().await? } else { 0 };
    tracing::info!(?mode, deep, lora_pool_bytes_freed = freed, "asleep");
    Ok(Json(Asleep { status: "sleeping", lora_pool_bytes_freed: freed }))
}

fn no_level_2() -> ApiError {
    let message = "`level` 2 drops the base's weights, and this server has no route that brings others; \
                   sleep at level 1, or replace adapters in place (/v1/load_lora_adapter)";
    ApiError::new(StatusCode::NOT_IMPLEMENTED, "NotImplementedError", message)
}

/// Go on, once what generation needs is awake. Nothing happens where nothing sleeps
#[utoipa::path(
    post, path = "/wake_up",
    params(("tags" = Option<String>, Query, description = "`weights`, which never sleep here, `kv_cache` or `scheduling`; may be repeated; all when left out")),
    responses((status = 200, body = Status), (status = 400, body = ErrorResponse))
)]
pub(crate) async fn wake_up(
    State(app): State<App>,
    Query(query): Query<Vec<(String, String)>>,
) -> ApiResult<Json<Status>> {
    let mut tags = query.iter().filter(|(key, _)| key == "tags").map(|(_, tag)| tag.as_str());
    let known = ["weights", "kv_cache", "scheduling"];
    if tags.clone().any(|tag| !known.contains(&tag)) {
        let message = "`tags` are `weights`, `kv_cache` and `scheduling`";
        return Err(ApiError::param("tags", message));
    }
    // Trainers wake the weights, push others, and wake the rest: tokens must not flow in between.
    if tags.clone().next().is_some() && tags.all(|tag| tag == "weights") {
        return Ok(Json(Status { status: if is_asleep(&app) { "sleeping" } else { "awake" } }));
    }
    app.resume().await?;
    tracing::info!("awake");
    Ok(Json(Status { status: "awake" }))
}

/// Whether the server sleeps
#[utoipa::path(get, path = "/is_sleeping", responses((status = 200, description = "{\"is_sleeping\"}")))]
pub(crate) async fn is_sleeping(State(app): State<App>) -> Json<Value> {
    Json(json!({ "is_sleeping": is_asleep(&app) }))
}

/// A lease of a later pause may have ended the sleep.
fn is_asleep(app: &App) -> bool {
    app.asleep.load(Ordering::Relaxed) && app.engine.is_paused()
}

/// Which weights are served. The base's never change, so that their version is null; an adapter has that of its newest
/// generation
#[utoipa::path(get, path = "/weight_info", responses((status = 200, description = "{\"weight_version\", \"adapters\"}")))]
pub(crate) async fn weight_info(State(app): State<App>) -> Json<Value> {
    let version = |status: &loraplex_core::adapter::AdapterStatus| {
        let newest = &status.newest;
        let versions =
            json!({ "generation": newest.generation, "policy_version": newest.policy_version });
        (newest.name.clone(), versions)
    };
    let adapters: Map<_, _> = app.adapters.list().iter().map(version).collect();
    Json(json!({ "weight_version": null, "adapters": adapters }))
}
