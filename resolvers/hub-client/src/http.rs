//! One request to the Hub: credentials, redirects, refusals.
//!
//! Redirects are followed by hand. The token goes to the endpoint's own scheme, host and port and nowhere else; an answer
//! never leads from https to http, to another scheme, or from the outside into this machine or its network.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Response, StatusCode, redirect};
use tokio::time::timeout;
use url::{Host, Url};

use crate::error::{HubError, HubErrorKind};
use crate::names::RepoId;
use crate::options::HubOptions;

const MAX_REDIRECTS: usize = 5;

/// What the headers of the Hub's own are called.
pub(crate) const COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
pub(crate) const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
pub(crate) const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");

/// Sends requests to one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: Client,
    pub(crate) options: Arc<HubOptions>,
}

/// What is asked for, for requests and for messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) repo: &'a RepoId,
    pub(crate) revision: &'a str,
    /// `None` when it is the repository itself.
    pub(crate) file: Option<&'a str>,
}

impl std::fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.file {
            Some(file) => write!(f, "{file} of {}", self.repo),
            None => write!(f, "{}", self.repo),
        }
    }
}

impl Http {
    pub(crate) fn new(options: Arc<HubOptions>) -> Result<Self, HubError> {
        // Each dynamic library has its own; one that is there already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(options.limits.connect)
            .user_agent(concat!("loraplex/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| HubError::invalid(format!("no HTTP client: {error}")))?;
        Ok(Self { client, options })
    }

    /// The endpoint with `segments` after it, each escaped.
    pub(crate) fn url<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.options.endpoint.clone();
        url.path_segments_mut().expect("an endpoint has a host").pop_if_empty().extend(segments);
        url
    }

    /// The address of a file's content.
    pub(crate) fn file_url(&self, subject: Subject<'_>) -> Url {
        let repo = subject.repo.as_str().split('/');
        let file = subject.file.unwrap_or_default().split('/');
        self.url(repo.chain(["resolve", subject.revision]).chain(file))
    }

    /// Sends and follows. With `stop_at_metadata`, an answer that says what the file is ends the way, even when the
    /// content is elsewhere.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: Url,
        headers: &HeaderMap,
        subject: Subject<'_>,
    ) -> Result<Response, HubError> {
        let mut url = url;
        // Plain bytes: what is hashed and measured is what is sent.
        let identity = HeaderValue::from_static("identity");
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self
                .client
                .request(method.clone(), url.clone())
                .headers(headers.clone())
                .header(header::ACCEPT_ENCODING, &identity);
            let with_token = url.origin() == self.options.endpoint.origin();
            if with_token && let Some(token) = self.options.current_token() {
                request = request.bearer_auth(token.reveal());
            }
            let limit = self.options.limits.answer;
            let answer = match timeout(limit, request.send()).await {
                Ok(answer) => answer.map_err(|error| unreachable(&url, &error))?,
                Err(_) => {
                    let (host, limit) = (host(&url), limit.as_secs());
                    return Err(HubError::unavailable(format!(
                        "{host} did not answer within {limit} s"
                    )));
                }
            };
            let is_metadata = method == Method::HEAD && answer.headers().contains_key(&LINKED_ETAG);
            if !answer.status().is_redirection() || is_metadata {
                return Ok(answer);
            }
            url = self.next(&url, &answer, subject)?;
        }
        Err(HubError::unavailable(format!(
            "{subject}: more than {MAX_REDIRECTS} redirects, the last to {}",
            host(&url)
        )))
    }

    /// Where a redirect leads, if one may go there.
    fn next(&self, from: &Url, answer: &Response, subject: Subject<'_>) -> Result<Url, HubError> {
        let refused = |why: String| {
            HubError::invalid(format!("{subject}: {} redirects to {why}", host(from)))
        };
        let location = answer.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
        let to = location.ok_or_else(|| refused("nowhere".into()))?;
        let to = from.join(to).map_err(|_| refused("no address".into()))?;
        if !["http", "https"].contains(&to.scheme()) {
            return Err(refused(format!("the scheme {}", to.scheme())));
        }
        if from.scheme() == "https" && to.scheme() == "http" {
            return Err(refused("http, from https".into()));
        }
        if reach(&to) > reach(&self.options.endpoint) {
            return Err(refused(format!("{}, an address of this network", host(&to))));
        }
        Ok(to)
    }

    /// The error that an answer other than success is.
    pub(crate) fn refusal(&self, answer: &Response, subject: Subject<'_>) -> HubError {
        let code = answer.headers().get(ERROR_CODE).and_then(|code| code.to_str().ok());
        let Subject { repo, revision, .. } = subject;
        let has_token = self.options.current_token().is_some();
        let status = answer.status();
        match (status, code) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some("GatedRepo")) => HubError::new(
                HubErrorKind::Gated,
                format!("{repo} is gated: accept its terms on the Hub{}", next_step(has_token)),
            ),
            (StatusCode::UNAUTHORIZED, _) => HubError::new(
                HubErrorKind::Unauthorized,
                if has_token {
                    format!(
                        "the Hub refuses the token for {repo}: set HF_TOKEN to one that is valid"
                    )
                } else {
                    format!("{repo} is private or does not exist: set HF_TOKEN if it is private")
                },
            ),
            (StatusCode::FORBIDDEN, _) => HubError::new(
                HubErrorKind::Unauthorized,
                format!("the token may not read {repo}: set HF_TOKEN to one that may"),
            ),
            (StatusCode::NOT_FOUND, Some("RevisionNotFound")) => {
                HubError::not_found(format!("{repo} has no revision {revision}"))
            }
            (StatusCode::NOT_FOUND, _) => HubError::not_found(match subject.file {
                Some(file) => format!("{repo} has no file {file} at {revision}"),
                None => format!("there is no repository {repo}, or the token may not see it"),
            }),
            _ => {
                let from = host(answer.url());
                let status = status.as_u16();
                let retry_after = answer
                    .headers()
                    .get(header::RETRY_AFTER)
                    .and_then(|value| value.to_str().ok()?.trim().parse().ok())
                    .map(Duration::from_secs);
                HubError {
                    retry_after,
                    ..HubError::unavailable(format!("{from} answered {status} for {subject}"))
                }
            }
        }
    }
}

fn next_step(has_token: bool) -> &'static str {
    if has_token { " with the account of the token" } else { " and set HF_TOKEN" }
}

/// The host, for messages: never a query, which may be signed, and never a password.
pub(crate) fn host(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    }
}

fn unreachable(url: &Url, error: &reqwest::Error) -> HubError {
    // The innermost cause is the one that says something: "connection refused".
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let cause =
        if cause.is::<reqwest::Error>() { "the request failed".into() } else { cause.to_string() };
    HubError {
        is_cut: !error.is_connect(),
        ..HubError::unavailable(format!("cannot reach {}: {cause}", host(url)))
    }
}

/// How far inside an address lies. A redirect goes no further inside than the endpoint that the operator named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// A name, or an address of the internet.
    Public,
    /// An address of a private network.
    Private,
    /// This machine.
    Loopback,
    /// Where cloud providers keep their machines' credentials, and what is no host at all.
    Special,
}

fn reach(url: &Url) -> Reach {
    let address: IpAddr = match url.host() {
        Some(Host::Ipv4(address)) => address.into(),
        Some(Host::Ipv6(address)) => address.into(),
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            let is_local = name == "localhost" || name.ends_with(".localhost");
            return if is_local { Reach::Loopback } else { Reach::Public };
        }
        None => return Reach::Special,
    };
    match address.to_canonical() {
        IpAddr::V4(v4) if v4.is_link_local() || v4.is_unspecified() => Reach::Special,
        IpAddr::V4(v4) if v4.is_multicast() || v4.is_broadcast() => Reach::Special,
        IpAddr::V4(v4) if v4.is_loopback() => Reach::Loopback,
        IpAddr::V4(v4) if v4.is_private() => Reach::Private,
        IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_unspecified() => Reach::Special,
        IpAddr::V6(v6) if v6.is_multicast() => Reach::Special,
        IpAddr::V6(v6) if v6.is_loopback() => Reach::Loopback,
        IpAddr::V6(v6) if v6.is_unique_local() => Reach::Private,
        _ => Reach::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_seen_through_their_disguises() {
        for (text, expected) in [
            ("https://cdn-lfs.hf.co/x", Reach::Public),
            ("https://1.1.1.1/", Reach::Public),
            ("http://10.0.0.5/", Reach::Private),
            ("http://[fd00::1]/", Reach::Private),
            ("http://127.0.0.1:1/", Reach::Loopback),
            ("http://2130706433/", Reach::Loopback),
            ("http://0x7f.1/", Reach::Loopback),
            ("http://[::ffff:127.0.0.1]/", Reach::Loopback),
            ("http://a.localhost./", Reach::Loopback),
            ("http://example.com@127.0.0.1/", Reach::Loopback),
            ("http://127.0.0.1\\@example.com/", Reach::Loopback),
            ("http://169.254.169.254/latest", Reach::Special),
            ("http://[::ffff:169.254.169.254]/", Reach::Special),
            ("http://[fe80::1]/", Reach::Special),
            ("http://0.0.0.0/", Reach::Special),
        ] {
            assert_eq!(reach(&Url::parse(text).unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn names_are_escaped_and_secrets_do_not_print() {
        let mut options = HubOptions::new("/tmp");
        options.endpoint = Url::parse("http://me:secret@mirror:81/hf/").unwrap();
        let http = Http::new(Arc::new(options)).unwrap();
        let repo: RepoId = "o/n".parse().unwrap();
        let subject = Subject { repo: &repo, revision: "refs/pr/1", file: Some("a b/c?#%.json") };
        let url = http.file_url(subject);
        assert_eq!(url.path(), "/hf/o/n/resolve/refs%2Fpr%2F1/a%20b/c%3F%23%25.json");
        assert_eq!(host(&url), "mirror:81");
    }
}
