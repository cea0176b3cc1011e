//! The one mapping from a failure to a status and a body in OpenAI's shape.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use loraplex_core::ErrorKind;

use crate::openai::error::{ErrorBody, ErrorCode, ErrorResponse};
use crate::sanitize::sanitize;

/// A failure as a client sees it.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    retry_after: Option<Duration>,
    /// Takes the place of the status in the body.
    code: Option<String>,
}

/// Result of a handler.
pub type ApiResult<T> = Result<T, ApiError>;

/// What clients are told when nobody said when to try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl ApiError {
    /// An error of `status`; clients branch on `kind`.
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, retry_after: None, code: None }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequestError", message)
    }

    /// The request's `param` is wrong.
    pub fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(message).of(param)
    }

    /// The same, for a client that calls our field `ours` by the name `theirs`.
    pub(crate) fn in_words_of(self, ours: &str, theirs: &str) -> Self {
        match self.param.as_deref() {
            Some(param) if param == ours => {
                Self { message: self.message.replace(ours, theirs), ..self }.of(theirs)
            }
            _ => self,
        }
    }

    fn of(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// No model or adapter has this name. `served` are the names of the base, the only ones worth guessing; `reason` is
    /// what resolvers said, if anything.
    pub fn unknown_model(name: &str, served: &[String], reason: &str) -> Self {
        let served = served.join(", ");
        let mut message = format!("The model `{name}` does not exist. Valid aliases: {served}.");
        if !reason.is_empty() {
            message = format!("{message} {reason}");
        }
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", message).of("model")
    }

    /// What vLLM calls a user's mistake on the control routes.
    pub fn user_input(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidUserInput", message)
    }

    /// No adapter has this name.
    pub fn unknown_adapter(name: &str) -> Self {
        let message = format!("The lora adapter '{name}' cannot be found.");
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", message)
    }

    /// The caller has shown no key that we know.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "AuthenticationError", message)
    }

    /// The caller may not do this.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "PermissionDeniedError", message)
    }

    /// A fault of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message)
    }

    /// The status that it becomes.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The body that it becomes.
    pub fn body(&self) -> ErrorResponse {
        ErrorResponse {
            error: ErrorBody {
                message: sanitize(&self.message),
                kind: self.kind.to_owned(),
                param: self.param.clone(),
                code: match &self.code {
                    Some(word) => ErrorCode::Word(word.clone()),
                    None => ErrorCode::Status(self.status.as_u16()),
                },
            },
        }
    }
}

impl From<loraplex_core::Error> for ApiError {
    fn from(error: loraplex_core::Error) -> Self {
        let (status, kind) = match error.kind {
            ErrorKind::InvalidRequest => (StatusCode::BAD_REQUEST, "BadRequestError"),
            ErrorKind::NotFound => (StatusCode::NOT_FOUND, "NotFoundError"),
            ErrorKind::Conflict => (StatusCode::CONFLICT, "ConflictError"),
            ErrorKind::PermissionDenied => (StatusCode::FORBIDDEN, "PermissionDeniedError"),
            ErrorKind::Exhausted => (StatusCode::TOO_MANY_REQUESTS, "RateLimitError"),
            ErrorKind::Unavailable | ErrorKind::Cancelled => {
                (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableError")
            }
            ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError"),
        };
        if status.is_server_error() {
            tracing::error!(error = %error.message, "a request failed");
        }
        Self {
            status,
            kind,
            param: error.param.map(Into::into),
            retry_after: error.retry_after,
            code: error.code,
            message: error.message,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let later = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if later.contains(&self.status) {
            let seconds = self.retry_after.unwrap_or(RETRY_AFTER).as_secs_f64().ceil().max(1.0);
            let seconds = HeaderValue::from(seconds as u64);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loraplex_core::Error;

    #[test]
    fn kinds_become_statuses() {
        for (kind, status) in [
            (ErrorKind::InvalidRequest, 400),
            (ErrorKind::NotFound, 404),
            (ErrorKind::PermissionDenied, 403),
            (ErrorKind::Conflict, 409),
            (ErrorKind::Exhausted, 429),
            (ErrorKind::Unavailable, 503),
            (ErrorKind::Cancelled, 503),
            (ErrorKind::Internal, 500),
        ] {
            let response = ApiError::from(Error::new(kind, "x")).into_response();
            assert_eq!(response.status(), status);
            let retried = response.headers().contains_key(header::RETRY_AFTER);
            assert_eq!(retried, [429, 503].contains(&status), "{kind:?}");
        }
    }

    #[test]
    fn the_body_is_that_of_the_contract() {
        let error = ApiError::unknown_model("x", &["base".into(), "alias".into()], "");
        let body = serde_json::to_string(&error.body()).unwrap();
        let expected = r#"{"error":{"message":"The model `x` does not exist. Valid aliases: base, alias.","type":"NotFoundError","param":"model","code":404}}"#;
        assert_eq!(body, expected);
    }
}
