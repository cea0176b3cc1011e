//! T-HTTP: bytes that no honest client sends. The server answers or closes, and goes on.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{completion, serve};

/// Sends raw bytes and reads until the server closes or falls silent; the first line of its answer.
async fn raw(base: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(base.trim_start_matches("http://")).await.unwrap();
    // The server may close before it has read all of it.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(Ok(read)) = timeout(Duration::from_secs(5), stream.read(&mut buffer)).await {
        if read == 0 || answer.len() > 1 << 16 {
            break;
        }
        answer.extend_from_slice(&buffer[..read]);
        if answer.windows(4).any(|end| end == b"\r\n\r\n") {
            break;
        }
    }
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn odd_bytes_get_a_4xx_or_nothing() {
    let server = serve(&[]).await;
    let base = server.client().base().to_owned();
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let header =
        format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "a".repeat(1 << 20));
    let chunked =
        format!("{head}transfer-encoding: chunked\r\n\r\n{}", "1\r\n{\r\n".repeat(100_000));
    for (what, bytes) in [
        ("no HTTP", "\u{0}\u{1}\u{2}garbage\r\n\r\n".to_owned()),
        ("a huge header", header),
        ("a million tiny chunks", chunked),
        ("a length that is no number", format!("{head}content-length: many\r\n\r\n{{}}")),
        ("two lengths", format!("{head}content-length: 2\r\ncontent-length: 5\r\n\r\n{{}}")),
        ("a body over the limit", format!("{head}content-length: 99999999999\r\n\r\n{{")),
        ("a foreign host", "GET /health HTTP/1.1\r\nhost: evil.example\r\n\r\n".to_owned()),
    ] {
        let line = raw(&base, bytes.as_bytes()).await;
        let refused = line.is_empty() || line.contains(" 4");
        assert!(refused, "{what}: {line}");
    }
    server.client().ok("/v1/completions", &completion("base", json!({}))).await;
}

#[tokio::test]
async fn bodies_that_are_no_request_say_what_is_wrong() {
    let server = serve(&[]).await;
    for (media, body, status) in [
        ("application/json", "{", 400),
        ("application/json", "[]", 400),
        ("application/json", "", 400),
        ("application/json", "{\"prompt\": \"\u{0}\"", 400),
        ("text/plain", "{\"prompt\": \"x\"}", 400),
    ] {
        let answer = server.client().post_text("/v1/completions", media, body).await;
        assert_eq!(answer.status, status, "{body:?}: {}", answer.text);
        assert!(answer.json()["error"]["message"].is_string());
    }
    let answer = server.client().get("/v1/completions").await;
    assert_eq!(answer.status, 405);
    assert_eq!(server.client().get("/v1/nothing").await.status, 404);
}

#[tokio::test]
async fn clients_that_leave_free_their_place() {
    let server = serve(&["--max-num-seqs", "2"]).await;
    let base = server.client().base().trim_start_matches("http://").to_owned();
    let body = completion("shout", json!({"max_tokens": 400, "stream": true})).to_string();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(&base).await.unwrap();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 32];
        let _ = timeout(Duration::from_millis(200), stream.read(&mut first)).await;
    }
    // All are gone as soon as the engine notices; no request waits for 400 tokens of a client that left.
    let idle = async || {
        let text = server.client().get("/metrics").await.text;
        ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
            .iter()
            .all(|name| {
                text.lines().any(|line| {
                    line.starts_with(name) && line.ends_with(" 0")
                        || line.starts_with(name) && line.ends_with(" 0.0")
                })
            })
    };
    while !idle().await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
