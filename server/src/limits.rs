//! Layers around every route: foreign hosts are turned away from a loopback server, and each request leaves one line.

use std::net::IpAddr;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::state::App;

/// A web page can make a browser send requests here under a name of its own that resolves to 127.0.0.1; the `Host` header
/// gives it away.
pub(crate) async fn check_host(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next().map(|value| value.to_str().unwrap_or("?"));
    if hosts.next().is_some() {
        return ApiError::invalid("the request has more than one Host header").into_response();
    }
    let target = request.uri().authority().map(|authority| authority.as_str());
    let foreign = [host, target].into_iter().flatten().find(|host| !is_local(host));
    if app.loopback && foreign.is_some() {
        return ApiError::forbidden(
            "this server listens on the loopback address and answers to localhost alone; \
             to be called by another name, listen on another --host",
        )
        .into_response();
    }
    next.run(request).await
}

/// Whether `host` is this machine or an address: a name is what an attack needs.
fn is_local(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address, port.strip_prefix(':').unwrap_or(port)),
        None => host.split_once(':').unwrap_or((host, "")),
    };
    if !port.chars().all(|c| c.is_ascii_digit()) {
        return false;
    }
    let name = name.to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok()
}

/// One line for each request, once its headers are answered.
pub(crate) async fn log(request: Request, next: Next) -> Response {
    let start = Instant::now();
    let method = request.method().clone();
    let path: String = request.uri().path().chars().take(128).collect();
    let response = next.run(request).await;
    let (status, ms) = (response.status().as_u16(), start.elapsed().as_millis() as u64);
    if path == "/health" || path == "/metrics" {
        tracing::debug!("{method} {path} {status} {ms} ms");
    } else {
        tracing::info!("{method} {path} {status} {ms} ms");
    }
    response
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn names_are_foreign_and_addresses_are_not() {
        for host in [
            "localhost",
            "LocalHost:8000",
            "127.0.0.1:80",
            "[::1]:8000",
            "[::1]",
            "10.0.0.1",
            "a.localhost",
            "0.0.0.0:1",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "localhost:80.evil",
            "127.0.0.1.evil",
            "localhost/v1?",
            "",
            "?",
            "::1x",
            "[evil]",
            "x/v1?:80",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }
}
