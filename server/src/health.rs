//! What operators and their machines ask: alive, which version, how much, what routes.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::OpenApi;

use crate::extract::Query;
use crate::state::App;

/// Whether requests can be served
#[utoipa::path(
    get, path = "/health",
    params(("details" = Option<String>, Query, description = "With any value: how the resolvers fare")),
    responses((status = 200, description = "Yes"), (status = 503, description = "The engine is gone"))
)]
pub(crate) async fn health(State(app): State<App>, Query(asked): Query<Asked>) -> Response {
    let alive = app.engine.is_alive();
    let status = if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if asked.details.is_none() {
        return status.into_response();
    }
    let resolvers = app.adapters.resolvers_status();
    let resolvers: Vec<Value> = resolvers
        .iter()
        .map(|resolver| {
            json!({
                "name": resolver.name,
                "degraded": resolver.degraded,
                "answered": resolver.answered,
                "failed": resolver.failed,
            })
        })
        .collect();
    (status, Json(json!({ "engine": alive, "resolvers": resolvers }))).into_response()
}

/// What a probe may ask for.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Asked {
    details: Option<String>,
}

/// As `/health`, under SageMaker's name
#[utoipa::path(
    get, path = "/ping",
    responses((status = 200, description = "Yes"), (status = 503, description = "The engine is gone"))
)]
pub(crate) async fn ping(State(app): State<App>) -> StatusCode {
    if app.engine.is_alive() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// The server's version
#[utoipa::path(get, path = "/version", responses((status = 200, description = "{\"version\"}")))]
pub(crate) async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// Metrics for Prometheus
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "OpenMetrics text")))]
pub(crate) async fn metrics(State(app): State<App>, headers: HeaderMap) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    // Scrapers that do not ask for OpenMetrics read it as the older format, which differs in its header alone.
    let kind = match accepts {
        Some(accepts) if accepts.contains("application/openmetrics-text") => {
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        }
        _ => "text/plain; version=0.0.4; charset=utf-8",
    };
    ([(header::CONTENT_TYPE, kind)], app.metrics.encode()).into_response()
}

/// This document
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
pub(crate) async fn openapi(State(app): State<App>) -> Json<utoipa::openapi::OpenApi> {
    Json(document(app.updating))
}

/// The routes that there are.
pub(crate) fn document(updating: bool) -> utoipa::openapi::OpenApi {
    let mut document = ApiDoc::openapi();
    if updating {
        document.merge(ControlDoc::openapi());
    }
    // Groups are named after modules; where in the code those lie is nobody's business.
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
        for tag in
            operations.into_iter().flatten().flat_map(|operation| &mut operation.tags).flatten()
        {
            if let Some((_, module)) = tag.rsplit_once("::") {
                *tag = module.to_owned();
            }
        }
    }
    document
}

#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "loraplex",
        description = "One base model and many LoRA adapters behind the OpenAI API"
    ),
    paths(
        health,
        version,
        metrics,
        openapi,
        crate::models::list,
        crate::models::get,
        crate::completions::create,
        crate::chat::create,
        crate::inference::generate,
        crate::sglang::generate,
        ping,
        crate::tokenize::tokenize,
        crate::tokenize::detokenize
    )
)]
struct ApiDoc;

#[derive(Debug, OpenApi)]
#[openapi(paths(
    crate::control::load::load,
    crate::control::load::load_in_place,
    crate::control::load::load_skyrl,
    crate::control::load::unload,
    crate::control::load::unload_alias,
    crate::control::adapters::list,
    crate::control::adapters::get,
    crate::control::adapters::put,
    crate::control::adapters::delete,
    crate::control::adapters::pin,
    crate::control::adapters::unpin,
    crate::control::engine::pause,
    crate::control::engine::resume,
    crate::control::engine::is_paused,
    crate::control::engine::areal_pause,
    crate::control::engine::areal_continue,
    crate::control::sglang::pause_generation,
    crate::control::sglang::continue_generation,
    crate::control::sglang::abort_request,
    crate::control::sleep::sleep,
    crate::control::sleep::wake_up,
    crate::control::sleep::is_sleeping,
    crate::control::sleep::weight_info,
    crate::control::engine::abort,
    crate::control::engine::reset_prefix_cache,
    crate::control::engine::server_info,
    crate::control::engine::world_size,
    crate::control::engine::art_capabilities,
    crate::control::sagemaker::register,
    crate::control::sagemaker::unregister
))]
struct ControlDoc;
