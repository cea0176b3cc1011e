//! Asks an HTTP service where an adapter's files are, so that a resolver can be written in any language.
//!
//! `GET {http_url}/resolve?base_model=…&lora_name=…` is answered with `{"path": "/folder", …}`, or 404.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use loraplex_plugin_sdk::{
    LoraRequest, LoraResolver, ResolveError, ResolverConfig, async_trait, export_resolver,
};
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Response, StatusCode, Url, redirect};
use serde::Deserialize;

/// Set in the server's config file, or as `LORA_RESOLVER_HTTP_URL` and `LORA_RESOLVER_HTTP_TOKEN`.
#[derive(Deserialize)]
struct Settings {
    http_url: String,
    #[serde(default)]
    http_token: Option<String>,
}

/// What the service answers. Fields that are not listed here are ignored.
#[derive(Debug, Deserialize)]
struct Answer {
    path: PathBuf,
    base_model: Option<String>,
    revision: Option<String>,
    digest: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

/// Asks one service.
pub struct HttpResolver {
    client: Client,
    url: Url,
    token: Option<String>,
}

/// Without the token, and without what a URL may hold in front of its host.
impl fmt::Debug for HttpResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpResolver").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

impl HttpResolver {
    /// A resolver over the service that the configuration names.
    pub fn from_config(config: ResolverConfig) -> Result<Self, ResolveError> {
        let settings = config.parse::<Settings>()?;
        let url = format!("{}/resolve", settings.http_url.trim_end_matches('/'));
        let url = Url::parse(&url)
            .map_err(|error| ResolveError::invalid(format!("LORA_RESOLVER_HTTP_URL: {error}")))?;
        // The service that the operator named answers, and no other.
        let client = Client::builder().redirect(redirect::Policy::none()).build();
        let client = client.map_err(|error| ResolveError::internal(error.to_string()))?;
        Ok(Self { client, url, token: settings.http_token })
    }
}

#[async_trait]
impl LoraResolver for HttpResolver {
    async fn resolve_lora(
        &self,
        base_model: &str,
        lora_name: &str,
    ) -> Result<Option<LoraRequest>, ResolveError> {
        let mut url = self.url.clone();
        // Encodes whatever a client typed, so that a name stays one value.
        url.query_pairs_mut()
            .append_pair("base_model", base_model)
            .append_pair("lora_name", lora_name);
        let mut request = self.client.get(url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(unreachable)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                return Err(ResolveError::denied(format!(
                    "the resolver service answered {status}"
                )));
            }
            status => {
                let text = format!("the resolver service answered {status}");
                return Err(ResolveError::unavailable(text, retry_after(&response)));
            }
        }
        let body = response.bytes().await.map_err(unreachable)?;
        let answer = serde_json::from_slice::<Answer>(&body).map_err(|error| {
            ResolveError::internal(format!("the resolver service's answer: {error}"))
        })?;
        if !answer.path.is_absolute() {
            let text = format!("the resolver service's path {:?} is not absolute", answer.path);
            return Err(ResolveError::internal(text));
        }
        let mut found = LoraRequest::new(lora_name, answer.path);
        found.base_model = answer.base_model;
        found.revision = answer.revision;
        found.digest = answer.digest;
        found.metadata = answer.metadata;
        Ok(Some(found))
    }
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The URL stays out of the text, since it may hold a password.
fn unreachable(error: reqwest::Error) -> ResolveError {
    let error = error.without_url();
    ResolveError::unavailable(format!("the resolver service cannot be reached: {error}"), None)
}

export_resolver!("lora_http_resolver", HttpResolver::from_config);
