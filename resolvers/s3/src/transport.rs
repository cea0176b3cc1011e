//! One request to the store: no redirects, bounded refusals, a limit for the answer.
//!
//! The address of a store is the operator's, so an answer that leads elsewhere is not followed.

use std::time::Duration;

use futures::StreamExt;
use loraplex_plugin_sdk::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use reqwest::StatusCode;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use tokio::time::timeout;

use crate::failure::{Cause, Failure};
use crate::settings::Limits;

/// Bytes of a refusal that are read.
const MAX_REFUSAL: usize = 16 << 10;

/// Sends requests.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    client: reqwest::Client,
    answer: Duration,
}

/// The headers of an answer, which the store's client hands on.
#[derive(Debug, Clone)]
pub(crate) struct Headers(pub(crate) HeaderMap);

impl Transport {
    pub(crate) fn new(limits: &Limits) -> Result<Self, reqwest::Error> {
        // Each dynamic library has its own; one that is there already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .redirect(Policy::none())
            .connect_timeout(limits.connect)
            .user_agent(concat!("loraplex/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, answer: limits.answer })
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // Plain bytes: what is hashed and measured is what is sent.
        let identity = HeaderValue::from_static("identity");
        request.headers_mut().insert(header::ACCEPT_ENCODING, identity);
        let Ok(answer) = timeout(self.answer, HttpService::call(&self.client, request)).await
        else {
            let limit = self.answer.as_secs_f32();
            let message = format!("the store did not answer within {limit} s");
            return Err(failed(Failure::new(Cause::Unreachable, message)));
        };
        let mut answer = answer?;
        if answer.status().is_success() {
            let headers = Headers(answer.headers().clone());
            answer.extensions_mut().insert(headers);
            return Ok(answer);
        }
        let (parts, body) = answer.into_parts();
        let text = timeout(self.answer, beginning(body)).await.unwrap_or_default();
        Err(failed(refusal(parts.status, &parts.headers, &text)))
    }
}

fn failed(failure: Failure) -> HttpError {
    // Of a kind that nobody but us tries again.
    HttpError::new(HttpErrorKind::Unknown, failure)
}

/// The first bytes of a refusal.
async fn beginning(body: HttpResponseBody) -> String {
    let (mut body, mut bytes) = (body.bytes_stream(), Vec::new());
    while bytes.len() < MAX_REFUSAL
        && let Some(Ok(data)) = body.next().await
    {
        bytes.extend_from_slice(&data[..data.len().min(MAX_REFUSAL - bytes.len())]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What an answer other than success says.
fn refusal(status: StatusCode, headers: &HeaderMap, text: &str) -> Failure {
    let code = code(text);
    let shown = match code {
        Some(code) => format!("{} {code}", status.as_u16()),
        None => status.as_u16().to_string(),
    };
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let with = |cause, message: String| Failure::new(cause, message);
    match (status, code) {
        (StatusCode::NOT_FOUND, Some("NoSuchBucket")) => {
            with(Cause::NoBucket, format!("there is no such bucket ({shown})"))
        }
        (StatusCode::NOT_FOUND, _) => with(Cause::Missing, format!("there is none ({shown})")),
        (StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE, _) => {
            with(Cause::Changed, format!("it has changed ({shown})"))
        }
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _)
        | (StatusCode::BAD_REQUEST, Some("ExpiredToken" | "InvalidToken")) => with(
            Cause::Denied,
            format!(
                "the store refuses access ({shown}): check the credentials, and that they may get objects and list the bucket"
            ),
        ),
        (StatusCode::CONFLICT | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS, _) => {
            Failure {
                retry_after: retry_after(headers),
                ..with(Cause::Overloaded, format!("the store says {shown}"))
            }
        }
        _ if status.is_server_error() => Failure {
            retry_after: retry_after(headers),
            ..with(Cause::Overloaded, format!("the store says {shown}"))
        },
        _ if status.is_redirection() => {
            let region = header("x-amz-bucket-region");
            let next = match region {
                Some(region) => format!("the bucket is in {region}: set AWS_REGION to it"),
                None => "set AWS_ENDPOINT_URL and AWS_REGION to where the bucket is".to_owned(),
            };
            with(
                Cause::Invalid,
                format!("the store redirects ({shown}), which is not followed; {next}"),
            )
        }
        _ => with(Cause::Invalid, format!("the store refuses the request ({shown})")),
    }
}

/// The code in a refusal's XML: a word.
fn code(text: &str) -> Option<&str> {
    let code = text.split_once("<Code>")?.1.split_once("</Code>")?.0;
    let fits = code.len() <= 64 && code.chars().all(|c| c.is_ascii_alphanumeric());
    fits.then_some(code)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
