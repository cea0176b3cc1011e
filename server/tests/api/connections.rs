//! Real sockets: clients that go away, heads that are too long, tiny chunks, and the end.

use std::sync::Arc;
use std::time::Duration;

use loraplex_core::Llm;
use loraplex_server::serve::{Connections, Limits};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::{app, drawn_more, drawn_so_far, load, shared};

struct Server {
    connections: Arc<Connections>,
    address: std::net::SocketAddr,
    accepting: tokio::task::JoinSet<()>,
}

async fn serve(llm: &Llm) -> Server {
    serve_within(llm, Limits::default()).await
}

async fn serve_within(llm: &Llm, limits: Limits) -> Server {
    // The kernel would hold megabytes for a client otherwise; accepted sockets inherit it.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(8 << 10).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1024).unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(Connections::new(limits));
    let mut accepting = tokio::task::JoinSet::new();
    let (own, app) = (connections.clone(), app(llm, &[], &[]));
    accepting.spawn(async move { own.accept(listener, app).await });
    Server { connections, address, accepting }
}

fn request(stream: bool, tokens: u32) -> String {
    let body = json!({"prompt": "a", "max_tokens": tokens, "ignore_eos": true, "stream": stream})
        .to_string();
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn read_until(socket: &mut TcpStream, needle: &str) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&text).contains(needle) {
        match socket.read(&mut buffer).await.unwrap() {
            0 => break,
            n => text.extend_from_slice(&buffer[..n]),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

async fn idle(llm: &Llm) {
    let wait = async {
        while llm.engine().open_requests() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_away_aborts_its_request() {
    let llm = load(|config| config.max_model_len = Some(512));
    let server = serve(&llm).await;
    for stream in [true, false] {
        let before = drawn_so_far(&llm).await;
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(request(stream, 500).as_bytes()).await.unwrap();
        if stream {
            read_until(&mut socket, "data: ").await;
        } else {
            drawn_more(&llm, before).await;
        }
        drop(socket);
        idle(&llm).await;
    }
    let text = llm.metrics().encode();
    assert!(text.contains("finished_reason=\"abort\""), "{text}");
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(request(false, 2).as_bytes()).await.unwrap();
    assert!(read_until(&mut socket, "usage").await.starts_with("HTTP/1.1 200"));
}

/// T-HTTP: a head over the limit, and three megabytes on the wire that are chunks of one byte.
#[tokio::test]
async fn heads_that_are_too_long_and_bodies_in_crumbs() {
    let server = serve(shared()).await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "GET /health HTTP/1.1\r\nhost: localhost\r\nx-long: {}\r\n\r\n",
        "a".repeat(300_000)
    );
    // The server may hang up while this is being written.
    let _ = socket.write_all(head.as_bytes()).await;
    let answer = read_until(&mut socket, "\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");

    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let head = "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    let body = format!("{{\"prompt\":\"a\"{}}}", " ".repeat(500_000));
    let crumbs: String = body.chars().flat_map(|c| ['1', '\r', '\n', c, '\r', '\n']).collect();
    let (mut reader, mut writer) = socket.split();
    let mut answer = [0; 12];
    let (written, read) = tokio::join!(
        async {
            writer.write_all(crumbs.as_bytes()).await?;
            writer.write_all(b"0\r\n\r\n").await
        },
        reader.read_exact(&mut answer)
    );
    written.unwrap();
    read.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn requests_that_are_no_http_do_no_harm() {
    let server = serve(shared()).await;
    for bytes in [
        &b"\x16\x03\x01\x02\x00"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        let _ = socket.write_all(bytes).await;
        let _ = socket.shutdown().await;
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 5"), "{}", String::from_utf8_lossy(&answer));
    }
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let pipelined = "GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(3);
    socket.write_all(pipelined.as_bytes()).await.unwrap();
    let mut text = String::new();
    while text.matches("\"version\"").count() < 3 {
        text += &read_until(&mut socket, "}").await;
    }
}

/// T-HTTP: a head that comes byte by byte is cut off, however many do that, and others are served meanwhile.
#[tokio::test]
async fn two_hundred_slow_heads_are_cut_and_hold_nobody_up() {
    let limits = Limits { head: Duration::from_millis(300), ..Limits::default() };
    let server = serve_within(shared(), limits).await;
    let mut slow = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        slow.spawn(async move {
            let (mut reader, mut writer) = socket.split();
            let mut answer = [0; 64];
            let crumbs = async {
                // Far longer than the limit, and always alive.
                for _ in 0..10_000 {
                    if writer.write_all(b"x").await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::select! {
                () = crumbs => {}
                _ = reader.read(&mut answer) => {}
            }
        });
    }
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(request(false, 2).as_bytes()).await.unwrap();
    assert!(read_until(&mut socket, "usage").await.starts_with("HTTP/1.1 200"));
    drop(socket);
    let cut = async {
        while slow.join_next().await.is_some() {}
        while server.connections.open() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), cut).await.unwrap();
}

/// T-HTTP: a client that stops reading is cut, which aborts its request; the engine serves others all the while.
#[tokio::test]
async fn a_client_that_stops_reading_is_cut() {
    let llm = load(|config| config.max_model_len = Some(512));
    let limits = Limits { write: Duration::from_millis(200), buffer: 8 << 10, ..Limits::default() };
    let server = serve_within(&llm, limits).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut deaf = socket.connect(server.address).await.unwrap();
    let body = json!({
        "prompt": "a", "max_tokens": 500, "ignore_eos": true, "stream": true, "n": 2, "logprobs": 5,
    })
    .to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    deaf.write_all(head.as_bytes()).await.unwrap();
    drawn_more(&llm, 0).await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(request(false, 2).as_bytes()).await.unwrap();
    assert!(read_until(&mut socket, "usage").await.starts_with("HTTP/1.1 200"));
    drop(socket);
    let cut = async {
        while server.connections.open() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), cut).await.unwrap();
    idle(&llm).await;
    // It was the server that hung up: what the kernel still held ends before the answer does.
    let mut rest = Vec::new();
    let _ = deaf.read_to_end(&mut rest).await;
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
}

/// T-HTTP: bodies shorter than they say.
#[tokio::test]
async fn lying_lengths() {
    let server = serve(shared()).await;
    let head = "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let lie = format!("{head}content-length: 5000\r\n\r\n{{\"prompt\":\"a\"}}");
    socket.write_all(lie.as_bytes()).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = String::new();
    let _ = socket.read_to_string(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_turns_newcomers_away() {
    let llm = load(|_| {});
    let mut server = serve(&llm).await;
    let mut idle_socket = TcpStream::connect(server.address).await.unwrap();
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(request(true, 100).as_bytes()).await.unwrap();
    let start = read_until(&mut socket, "data: ").await;
    server.connections.drain();
    server.accepting.join_next().await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err(), "the listener is closed");
    let rest = read_until(&mut socket, "[DONE]").await;
    assert!(
        rest.contains("\"finish_reason\":\"length\"")
            || start.contains("\"finish_reason\":\"length\"")
    );
    server.connections.drained().await;
    assert_eq!(idle_socket.read(&mut [0; 16]).await.unwrap(), 0, "idle connections are closed");
    assert_eq!(server.connections.open(), 0);
}

#[tokio::test]
async fn an_abort_ends_what_runs() {
    let llm = load(|_| {});
    let server = serve(&llm).await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(request(true, 500).as_bytes()).await.unwrap();
    read_until(&mut socket, "data: ").await;
    server.connections.drain();
    server.connections.abort();
    server.connections.drained().await;
    idle(&llm).await;
}
