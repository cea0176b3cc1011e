//! Q1: clients that go away, at every point of a request. Nothing stays behind, and nobody beside them notices.

use futures::future::join_all;
use loraplex_tests::Client;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::answer::Ask;
use crate::world::{Way, World, times};

/// Where a client leaves.
#[derive(Debug, Clone, Copy)]
enum Exit {
    BeforeTheBodyEnds,
    AtOnce,
    AfterTheHead,
    MidStream,
    /// Leaves with what it has been sent unread, which resets the connection.
    Unread,
    /// Closes its half of the connection, which is leaving too: nobody listens to what is drawn without a client.
    HalfClosed,
}

const EXITS: [Exit; 6] = [
    Exit::BeforeTheBodyEnds,
    Exit::AtOnce,
    Exit::AfterTheHead,
    Exit::MidStream,
    Exit::Unread,
    Exit::HalfClosed,
];

#[tokio::test]
async fn clients_that_leave_anywhere_leave_nothing_behind() {
    // Six requests run at once, so that some of those who leave are still in the queue.
    let world = World::start(&["--max-num-seqs", "6", "--max-num-batched-tokens", "64"]).await;
    for name in ["a", "b"] {
        world.operator.load(name, Way::SamePath).await;
    }
    for round in 0..6 * times() as u32 {
        let leavers = (0..36).map(|index| leave(world.client(), EXITS[index % 6], index));
        let neighbours = (0..12).map(|index| {
            let prompt = vec![round; 5 + 20 * index];
            world.ask(Ask::new(["a", "b", "base"][index % 3], &prompt, 30))
        });
        let (_, answers) = futures::join!(join_all(leavers), join_all(neighbours));
        for answer in answers {
            assert_eq!((answer.tokens.len(), world.explain(&answer).mixed), (30, 0));
        }
        world.quiet().await;
        // Nobody has drawn to the end for a client that left.
        let whole = world.metric("vllm:request_success_total{engine=\"0\",model_name=\"base\",finished_reason=\"length\"}").await;
        assert_eq!(whole, 12.0 * f64::from(round + 1));
    }
}

async fn leave(client: &Client, exit: Exit, index: usize) {
    let address = client.base().strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(address).await.unwrap();
    let body = json!({
        "model": (["a", "b", "base"][index % 3]), "prompt": vec![index; 1 + 17 * index],
        "max_tokens": 1000 - 17 * index, "temperature": 0, "stream": true,
    })
    .to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    if matches!(exit, Exit::BeforeTheBodyEnds) {
        return socket.write_all(&body.as_bytes()[..body.len() / 2]).await.unwrap();
    }
    socket.write_all(body.as_bytes()).await.unwrap();
    match exit {
        Exit::BeforeTheBodyEnds | Exit::AtOnce => {}
        Exit::AfterTheHead => read_until(&mut socket, "\r\n\r\n").await,
        Exit::MidStream => read_until(&mut socket, "data: ").await,
        Exit::Unread => {
            socket.readable().await.unwrap();
        }
        Exit::HalfClosed => {
            socket.shutdown().await.unwrap();
            // To the end, whether the server ends it early or not.
            socket.read_to_end(&mut Vec::new()).await.unwrap();
        }
    }
}

async fn read_until(socket: &mut TcpStream, end: &str) {
    let mut text = Vec::new();
    while !text.windows(end.len()).any(|window| window == end.as_bytes()) {
        let mut chunk = [0; 1024];
        let read = socket.read(&mut chunk).await.unwrap();
        assert!(read > 0, "closed before {end:?}: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&chunk[..read]);
    }
}
