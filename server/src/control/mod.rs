//! The control routes: adapters that come and go while the server runs. They exist only where the operator has set
//! `ALLOW_RUNTIME_LORA_UPDATING`, and need an admin key where there is one.
//!
//! | module | answers |
//! |---|---|
//! | `load` | vLLM's load and unload, and their aliases |
//! | `adapters` | `/v1/lora_adapters`: listing, weights in the request, pins |
//! | `engine` | pausing, aborting, the prefix cache, what trainers ask |
//! | `sleep` | sleeping, waking, which weights are served |
//! | `sglang` | pausing and aborting under SGLang's names |
//! | `sagemaker` | `/adapters` |
//! | `paths` | which local paths a request may name |
//! | `wire` | their bodies |

pub(crate) mod adapters;
pub(crate) mod engine;
pub(crate) mod load;
pub mod paths;
pub(crate) mod sagemaker;
pub(crate) mod sglang;
pub(crate) mod sleep;
pub mod wire;

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use loraplex_core::adapter::{LoadRequest, Loaded};
use loraplex_core::{Error, ErrorKind};

use crate::error::{ApiError, ApiResult};
use crate::state::AppState;
use wire::LoadAnswer;

/// Which generation a load made.
pub(crate) const GENERATION: HeaderName = HeaderName::from_static("x-lora-generation");

/// Whether the client asks for JSON by name; vLLM's clients read plain text.
fn wants_json(headers: &HeaderMap) -> bool {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accept.flat_map(|value| value.split(',')).any(|media| {
        media.split(';').next().is_some_and(|essence| essence.trim() == "application/json")
    })
}

/// Loads, once the name is known to be free for adapters.
async fn load(app: &AppState, ask: LoadRequest) -> ApiResult<Loaded> {
    let name = ask.request.name.clone();
    if app.served.contains(&name) {
        return Err(ApiError::user_input(format!(
            "The lora adapter '{name}' conflicts with a served base model."
        )));
    }
    let loaded = app.adapters.load(ask).await.map_err(|error| load_error(&name, error))?;
    let adapter = &loaded.adapter;
    tracing::info!(
        name,
        generation = adapter.generation,
        rank = adapter.rank,
        bytes = adapter.bytes,
        replaced = ?loaded.replaced,
        read_ms = loaded.timings.read.as_millis() as u64,
        pack_ms = loaded.timings.pack.as_millis() as u64,
        "adapter loaded"
    );
    Ok(loaded)
}

/// In vLLM's words where clients branch on them; a bad adapter is the client's fault, so that nobody retries it for ever.
fn load_error(name: &str, error: Error) -> ApiError {
    match error.kind {
        ErrorKind::NotFound => {
            ApiError::from(error.context(format_args!("Loading lora {name} failed")))
        }
        ErrorKind::InvalidRequest if error.message.contains("has already been loaded") => {
            ApiError::user_input(error.message)
        }
        ErrorKind::InvalidRequest => {
            ApiError::from(error.context("Call to add_lora method failed"))
        }
        _ => error.into(),
    }
}

/// The answer to a load: `text` as vLLM says it, or JSON for who asks for it.
fn loaded_answer(headers: &HeaderMap, loaded: &Loaded, text: String) -> Response {
    let mut response = match wants_json(headers) {
        true => Json(LoadAnswer::new(loaded)).into_response(),
        false => text.into_response(),
    };
    let generation = HeaderValue::from(loaded.adapter.generation);
    response.headers_mut().insert(GENERATION, generation);
    response
}
