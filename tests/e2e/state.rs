//! `--state-dir`: a server that is killed comes back with every load that it acknowledged.

use std::process::Command;

use loraplex_tests::ServerProcess;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::demo;

const KILLS: usize = 12;

async fn start(state: &str) -> ServerProcess {
    let env = [("ALLOW_RUNTIME_LORA_UPDATING", "1")];
    ServerProcess::start_with(&[&*demo("model"), "--state-dir", state], &env).await
}

/// Digest of each adapter by name.
async fn digests(server: &ServerProcess) -> Vec<(String, String)> {
    let list = server.client().get("/v1/lora_adapters").await.json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let adapters = list["data"].as_array().unwrap();
    let mut found: Vec<_> =
        adapters.iter().map(|card| (text(&card["name"]), text(&card["digest"]))).collect();
    found.sort();
    found
}

/// An adapter's files as a form.
fn form(adapter: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (part, file) in
        [("config", "adapter_config.json"), ("weights", "adapter_model.safetensors")]
    {
        body.extend(
            format!("--edge\r\ncontent-disposition: form-data; name=\"{part}\"\r\n\r\n").bytes(),
        );
        body.extend(std::fs::read(demo(&format!("adapters/{adapter}/{file}"))).unwrap());
        body.extend(b"\r\n");
    }
    body.extend(b"--edge--\r\n");
    body
}

#[tokio::test]
async fn a_kill_at_any_moment_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state").display().to_string();
    let mut acknowledged: Vec<(String, String)> = Vec::new();
    for kill in 0..KILLS {
        let server = start(&state).await;
        let found = digests(&server).await;
        for known in &acknowledged {
            assert!(found.contains(known), "after {kill} kills {known:?} is not in {found:?}");
        }
        acknowledged = found;
        let client = server.client();
        // Every other kill comes while a first load is under way, the others a moment after some were acknowledged.
        let (done, enough) = (Notify::new(), kill % 2 * 3);
        // Loads until the kill; the one that it meets may or may not have happened.
        let loads = async {
            for turn in 0.. {
                let name = format!("n{}", (kill + turn) % 5);
                let adapter = ["poet", "shout", "pirate"][turn % 3];
                acknowledged.retain(|(known, _)| *known != name);
                let answer = if turn % 2 == 0 {
                    let put = client.request(Method::PUT, &format!("/v1/lora_adapters/{name}"));
                    let put = put.header("accept", "application/json");
                    let put = put.header("content-type", "multipart/form-data; boundary=edge");
                    put.body(form(adapter)).send().await
                } else {
                    let body = json!({"lora_name": name, "lora_path": demo(&format!("adapters/{adapter}")), "load_inplace": true});
                    let post = client.request(Method::POST, "/v1/load_lora_adapter");
                    post.header("accept", "application/json").json(&body).send().await
                };
                let Ok(Ok(answer)) = answer.map(reqwest::Response::error_for_status) else { break };
                let Ok(answer) = answer.json::<Value>().await else { break };
                let digest = answer["digest"].as_str().unwrap().to_owned();
                acknowledged.push((name, digest));
                if turn + 1 == enough {
                    done.notify_one();
                }
            }
        };
        let moment = std::time::Duration::from_micros(1700 * (kill as u64 * 7919 % 31 + 1));
        let killer = async {
            if enough > 0 {
                done.notified().await;
            }
            tokio::time::sleep(moment).await;
            let id = server.id().to_string();
            assert!(Command::new("kill").args(["-9", &id]).status().unwrap().success());
        };
        tokio::join!(loads, killer);
    }
    let server = start(&state).await;
    let found = digests(&server).await;
    assert!(!found.is_empty(), "the kills came before anything was loaded");
    for known in &acknowledged {
        assert!(found.contains(known), "{known:?} is not in {found:?}");
    }
    for (name, _) in &found {
        server.client().ok("/v1/completions", &super::completion(name, json!({}))).await;
    }
}
