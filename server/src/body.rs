//! Request bodies: read within bounds, then parsed with the field named that is wrong.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use serde::de::DeserializeOwned;

use crate::error::{ApiError, ApiResult};
use crate::object::Object;

/// Bytes of a body at most, as in vLLM.
const MAX_BODY: usize = 32 << 20;

/// How long a client may take to send one of JSON, and how long it may send nothing of an upload.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);

/// The body of a request that says it is JSON.
#[derive(Debug, Clone)]
pub(crate) struct JsonBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> ApiResult<Self> {
        if !is_json(request.headers()) {
            return Err(ApiError::invalid(
                "Unsupported Media Type: Only 'application/json' is allowed; send the header \
                 `Content-Type: application/json`",
            ));
        }
        read(request.into_body()).await.map(Self)
    }
}

/// The body of a request, of whatever type it says it is; it may be empty.
#[derive(Debug, Clone)]
pub(crate) struct AnyBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for AnyBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> ApiResult<Self> {
        read(request.into_body()).await.map(Self)
    }
}

async fn read(body: Body) -> ApiResult<Bytes> {
    let body = axum::body::to_bytes(body, MAX_BODY);
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_too_large(&error) => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "BadRequestError",
            format!("the body is over {MAX_BODY} bytes"),
        )),
        Ok(Err(error)) => Err(ApiError::invalid(format!("the body cannot be read: {error}"))),
        Err(_) => Err(too_slow(format!("the body took over {} s", BODY_TIMEOUT.as_secs()))),
    }
}

fn too_slow(message: String) -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "BadRequestError", message)
}

/// A body of which nothing came for too long.
#[derive(Debug, thiserror::Error)]
#[error("nothing of the body came for {} s", BODY_TIMEOUT.as_secs())]
pub(crate) struct Stalled;

impl From<&Stalled> for ApiError {
    fn from(stalled: &Stalled) -> Self {
        too_slow(stalled.to_string())
    }
}

/// `body`, which fails as [`Stalled`] when nothing of it comes for a while. All of it may take as long as it takes: half a
/// gigabyte over a slow line is fine.
pub(crate) fn unless_stalled(body: Body) -> Body {
    let chunks = body.into_data_stream();
    Body::from_stream(stream::unfold(Some(chunks), |chunks| async {
        let mut chunks = chunks?;
        match tokio::time::timeout(BODY_TIMEOUT, chunks.next()).await {
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(chunks))),
            Ok(Some(Err(error))) => Some((Err(error), None)),
            Ok(None) => None,
            Err(_) => Some((Err(axum::Error::new(Stalled)), None)),
        }
    }))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.and_then(|value| value.split(';').next()).unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

fn is_too_large(error: &axum::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        // The type behind it belongs to a crate that axum hides.
        if error.to_string() == "length limit exceeded" {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Reads a `T`, which must be an object. What is wrong names its field.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json);
    let Object(value) = value.map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        match error.classify() {
            serde_json::error::Category::Data if path == "." => of_the_whole(&error.to_string()),
            serde_json::error::Category::Data => {
                ApiError::param(path.clone(), format!("`{path}`: {error}"))
            }
            _ => ApiError::invalid(format!("the body is no JSON: {error}")),
        }
    })?;
    json.end().map_err(|error| ApiError::invalid(format!("the body is no JSON: {error}")))?;
    Ok(value)
}

/// What is wrong with a body as a whole. A field that is not there has no path, only its name in serde's words.
fn of_the_whole(error: &str) -> ApiError {
    for (words, ours) in
        [("missing field `", "is missing"), ("duplicate field `", "is there twice")]
    {
        if let Some((field, _)) = error.strip_prefix(words).and_then(|rest| rest.split_once('`')) {
            return ApiError::param(field, format!("`{field}` {ours}"));
        }
    }
    ApiError::invalid(format!("the body must be a JSON object: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::call::CallFields;
    use crate::openai::sampling::SamplingFields;

    #[test]
    fn a_wrong_type_names_its_field() {
        for (json, param) in [
            (r#"{"temperature":"1"}"#, Some("temperature")),
            (r#"{"temperature":true}"#, Some("temperature")),
            (r#"{"n":1.5}"#, Some("n")),
            (r#"{"seed":9223372036854775808}"#, Some("seed")),
            (r#"{"seed":18446744073709551616}"#, Some("seed")),
            (r#"{"stop":[1]}"#, Some("stop")),
            (r#"{"stop_token_ids":[0,"a"]}"#, Some("stop_token_ids[1]")),
            (r#"{"logit_bias":{"x":1}}"#, Some("logit_bias")),
            (r#"{"logit_bias":{"1":"1"}}"#, Some("logit_bias.1")),
            (r#"{"n":1,"n":2}"#, Some("n")),
            ("[]", None),
            ("[1,2]", None),
            ("3", None),
            ("{", None),
            ("", None),
            ("{} x", None),
            (r#"{"temperature":1e999}"#, None),
            (r#"{"temperature":NaN}"#, None),
            ("\u{feff}{}", None),
        ] {
            let error = parse::<SamplingFields>(json.as_bytes()).unwrap_err();
            assert_eq!(error.status(), 400);
            let body = error.body().error;
            assert_eq!(body.param.as_deref(), param, "{json}: {}", body.message);
        }
        let error = parse::<CallFields>(br#"{"stream_options":{"include_usage":3}}"#).unwrap_err();
        assert_eq!(error.body().error.param.as_deref(), Some("stream_options.include_usage"));
        let error = parse::<CallFields>(br#"{"stream_options":[true]}"#).unwrap_err();
        assert_eq!(error.body().error.param.as_deref(), Some("stream_options"));
        assert!(parse::<SamplingFields>(br#"{"n":null,"user":[],"temperature":0}"#).is_ok());
        assert!(parse::<CallFields>(b"{\"model\":\"\xff\"}").is_err());
    }
}
