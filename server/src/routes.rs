//! The whole API on one screen.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;

use crate::auth::{self, Access};
use crate::control::{adapters, engine, load, sagemaker, sglang as sglang_control, sleep};
use crate::error::ApiError;
use crate::state::App;
use crate::{chat, completions, health, inference, limits, models, sglang, tokenize};

/// A path, who may call it, and what answers.
struct Route {
    path: &'static str,
    access: Access,
    handler: fn() -> MethodRouter<App>,
}

const fn route(path: &'static str, access: Access, handler: fn() -> MethodRouter<App>) -> Route {
    Route { path, access, handler }
}

const ROUTES: &[Route] = &[
    route("/health", Access::Public, || get(health::health)),
    route("/ping", Access::Public, || get(health::ping).post(health::ping)),
    route("/version", Access::Public, || get(health::version)),
    route("/metrics", Access::Public, || get(health::metrics)),
    route("/openapi.json", Access::Public, || get(health::openapi)),
    route("/v1/models", Access::User, || get(models::list)),
    route("/v1/models/{*id}", Access::User, || get(models::get)),
    route("/v1/completions", Access::User, || post(completions::create)),
    route("/v1/chat/completions", Access::User, || post(chat::create)),
    route("/inference/v1/generate", Access::User, || post(inference::generate)),
    route("/generate", Access::User, || post(sglang::generate)),
    route("/tokenize", Access::User, || post(tokenize::tokenize)),
    route("/detokenize", Access::User, || post(tokenize::detokenize)),
];

/// Routes that exist where adapters may come and go while the server runs.
const CONTROL: &[Route] = &[
    route("/v1/load_lora_adapter", Access::Admin, || post(load::load)),
    route("/v1/unload_lora_adapter", Access::Admin, || post(load::unload)),
    route("/load_lora_adapter", Access::Admin, || post(load::load_in_place)),
    route("/unload_lora_adapter", Access::Admin, || post(load::unload_alias)),
    route("/skyrl/v1/load_lora_adapter", Access::Admin, || post(load::load_skyrl)),
    route("/v1/lora_adapters", Access::Admin, || get(adapters::list)),
    route("/v1/lora_adapters/{name}", Access::Admin, || {
        let upload = DefaultBodyLimit::disable();
        get(adapters::get).put(adapters::put).delete(adapters::delete).layer(upload)
    }),
    route("/v1/lora_adapters/{name}/pin", Access::Admin, || {
        put(adapters::pin).delete(adapters::unpin)
    }),
    route("/pause", Access::Admin, || post(engine::pause)),
    route("/resume", Access::Admin, || post(engine::resume)),
    route("/is_paused", Access::Admin, || get(engine::is_paused)),
    route("/areal_pause_generation", Access::Admin, || post(engine::areal_pause)),
    route("/areal_continue_generation", Access::Admin, || post(engine::areal_continue)),
    route("/pause_generation", Access::Admin, || post(sglang_control::pause_generation)),
    route("/continue_generation", Access::Admin, || post(sglang_control::continue_generation)),
    route("/abort_request", Access::Admin, || post(sglang_control::abort_request)),
    route("/sleep", Access::Admin, || post(sleep::sleep)),
    route("/wake_up", Access::Admin, || post(sleep::wake_up)),
    route("/is_sleeping", Access::Admin, || get(sleep::is_sleeping)),
    route("/weight_info", Access::Admin, || get(sleep::weight_info)),
    route("/abort_requests", Access::Admin, || post(engine::abort)),
    route("/reset_prefix_cache", Access::Admin, || post(engine::reset_prefix_cache)),
    route("/server_info", Access::Admin, || get(engine::server_info)),
    route("/get_world_size", Access::Admin, || get(engine::world_size)),
    route("/art/capabilities", Access::Admin, || get(engine::art_capabilities)),
    route("/adapters", Access::Admin, || post(sagemaker::register)),
    route("/adapters/{name}", Access::Admin, || delete(sagemaker::unregister)),
];

/// Who may call the route that the router has matched. What no route matches is not for everyone.
pub(crate) fn access(path: Option<&str>) -> Access {
    let route = ROUTES.iter().chain(CONTROL).find(|route| Some(route.path) == path);
    route.map_or(Access::User, |route| route.access)
}

/// The router with its layers.
pub fn router(app: App) -> Router {
    let mut router = Router::new();
    let control = if app.updating { CONTROL } else { &[] };
    for route in ROUTES.iter().chain(control) {
        router = router.route(route.path, (route.handler)());
    }
    router
        .fallback(|| async { bare(StatusCode::NOT_FOUND, "Not Found", "NotFoundError") })
        .method_not_allowed_fallback(|| async {
            bare(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed", "BadRequestError")
        })
        .layer(middleware::from_fn_with_state(app.clone(), auth::layer))
        .layer(middleware::from_fn_with_state(app.clone(), limits::check_host))
        .layer(CatchPanicLayer::custom(|_| {
            ApiError::internal("a fault of the server's own; its log has more").into_response()
        }))
        .layer(middleware::from_fn(limits::log))
        .with_state(app)
}

/// No such route or method, for vLLM's clients, which look for `detail`, and for OpenAI's. Some take the word "adapter" for
/// a sign that the route exists, so the path is not repeated.
fn bare(status: StatusCode, detail: &str, kind: &'static str) -> Response {
    let mut body: Value = json!({ "detail": detail });
    body["error"] = json!(ApiError::new(status, kind, detail).body().error);
    (status, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_classified_and_documented() {
        let document = health::document(true);
        let public = ["/health", "/ping", "/version", "/metrics", "/openapi.json"];
        for route in CONTROL {
            assert_eq!(route.access, Access::Admin, "{}", route.path);
        }
        for route in ROUTES.iter().chain(CONTROL) {
            let documented = route.path.replace("{*", "{");
            assert!(document.paths.paths.contains_key(&documented), "{documented}");
            let open = route.access == Access::Public;
            assert_eq!(open, public.contains(&route.path), "{}", route.path);
            assert_eq!(access(Some(route.path)), route.access);
        }
        assert_eq!(document.paths.paths.len(), ROUTES.len() + CONTROL.len());
        assert!(!document.to_json().unwrap().contains("::"), "names of the code");
        for path in [None, Some("/V1/models"), Some("//health"), Some("/health/")] {
            assert_eq!(access(path), Access::User);
        }
    }
}
