//! `/v1/models`: the base under each of its names, then the adapters.

use axum::Json;
use axum::extract::State;
use loraplex_core::adapter::AdapterStatus;

use crate::error::{ApiError, ApiResult};
use crate::extract::Path;
use crate::openai::error::ErrorResponse;
use crate::openai::model::{ModelCard, ModelList, ModelPermission};
use crate::reply::now;
use crate::state::{App, AppState};

/// Names that requests can use
#[utoipa::path(get, path = "/v1/models", responses((status = 200, body = ModelList)))]
pub(crate) async fn list(State(app): State<App>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: cards(&app) })
}

/// One name
#[utoipa::path(
    get, path = "/v1/models/{id}", params(("id", description = "May contain slashes")),
    responses((status = 200, body = ModelCard), (status = 404, body = ErrorResponse))
)]
pub(crate) async fn get(
    State(app): State<App>,
    Path(id): Path<String>,
) -> ApiResult<Json<ModelCard>> {
    let card = cards(&app).into_iter().find(|card| card.id == id);
    card.map(Json).ok_or_else(|| ApiError::unknown_model(&id, &app.served, ""))
}

fn cards(app: &AppState) -> Vec<ModelCard> {
    let base = app.served.iter().map(|name| card(app, name));
    let adapters = app.adapters.list();
    let adapters = adapters.iter().map(|adapter| adapter_card(app, adapter));
    base.chain(adapters).collect()
}

fn card(app: &AppState, name: &str) -> ModelCard {
    let created = now();
    ModelCard {
        id: name.to_owned(),
        object: "model",
        created,
        owned_by: "vllm",
        root: app.root.clone(),
        parent: None,
        max_model_len: app.converter.model.max_model_len,
        permission: [ModelPermission::new(created)],
        generation: None,
        digest: None,
    }
}

fn adapter_card(app: &AppState, status: &AdapterStatus) -> ModelCard {
    let request = &status.request;
    let named = request.base_model.as_ref().filter(|name| app.served.contains(name));
    ModelCard {
        root: request.path.display().to_string(),
        parent: Some(named.unwrap_or(&app.served[0]).clone()),
        generation: Some(status.newest.generation),
        digest: Some(status.newest.digest.clone()),
        ..card(app, &request.name)
    }
}
