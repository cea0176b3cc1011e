//! A third party's resolver, built on its own, in a server that was not built with it. See `.ci/run`: `cargo test` leaves
//! this out, since it builds a crate of its own lock file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod sdk;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Command;

use loraplex_tests::{ServerProcess, root};
use serde_json::json;

/// Answers `GET /resolve` for `pirate` and nothing else, until the test ends.
fn service() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let adapter = root().join("examples/demo/adapters/pirate").canonicalize().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                if line.is_empty() {
                    break;
                }
                head.push(line);
            }
            let known = head[0].contains("lora_name=pirate") && head[0].contains("base_model=base");
            let status = if known { "200 OK" } else { "404 Not Found" };
            let body = json!({ "path": adapter, "revision": "r7" }).to_string();
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
            stream.write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes()).unwrap();
        }
    });
    url
}

#[tokio::test]
async fn a_crate_of_its_own_finds_adapters_by_http() {
    let target = root().join("target/third-party");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--manifest-path"])
        .arg(root().join("examples/lora_http_resolver/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .unwrap();
    assert!(built.success());
    let (url, dir) = (service(), target.join("debug").display().to_string());
    let model = root().join("examples/demo/model").display().to_string();
    let server = ServerProcess::start_with(
        &[&*model, "--served-model-name", "base"],
        &[
            ("ALLOW_RUNTIME_LORA_UPDATING", "1"),
            ("PLUGINS", "lora_http_resolver"),
            ("PLUGIN_DIR", &dir),
            ("LORA_RESOLVER_HTTP_URL", &url),
        ],
    )
    .await;
    let ask = |model: &str| json!({"model": model, "prompt": "Once", "max_tokens": 4});
    let found = server.client().ok("/v1/completions", &ask("pirate")).await;
    assert_eq!(found["model"], "pirate");
    let card = server.client().get("/v1/lora_adapters/pirate").await.json();
    assert_eq!((&card["source"], &card["revision"]), (&json!("lora_http_resolver"), &json!("r7")));
    assert_eq!(server.client().post("/v1/completions", &ask("nobody")).await.status, 404);
}
