//! A name that nobody loaded finds its adapter through a plugin, in the real server.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use loraplex_tests::{ServerProcess, plugin_dir, run_to_end};
use reqwest::Method;
use serde_json::{Value, json};

use super::{completion, demo, tokens};

/// Copies a demo adapter to `root/name`, trained for `base`.
pub(super) fn place(root: &Path, name: &str, adapter: &str, base: &str) -> PathBuf {
    let folder = root.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let from = PathBuf::from(demo("adapters")).join(adapter);
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    config["base_model_name_or_path"] = json!(base);
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let weights = "adapter_model.safetensors";
    std::fs::copy(from.join(weights), folder.join(weights)).unwrap();
    folder
}

async fn resolving(root: &Path, env: &[(&str, &str)]) -> ServerProcess {
    let (dir, root) = (plugin_dir().display().to_string(), root.display().to_string());
    let mut all = vec![
        ("ALLOW_RUNTIME_LORA_UPDATING", "1"),
        ("PLUGINS", "lora_filesystem_resolver"),
        ("PLUGIN_DIR", dir.as_str()),
        ("LORA_RESOLVER_CACHE_DIR", root.as_str()),
    ];
    all.extend_from_slice(env);
    let model = demo("model");
    let args = [&*model, "--served-model-name", "base", "--resolver-negative-ttl", "0"];
    let poet = demo("adapters/poet");
    let module = format!("loaded={poet}");
    ServerProcess::start_with(&[&args[..], &["--lora-modules", &module]].concat(), &all).await
}

#[tokio::test]
async fn an_unknown_name_finds_its_adapter_and_stays() {
    let root = tempfile::tempdir().unwrap();
    place(root.path(), "org/poet", "poet", "somebody/base");
    place(root.path(), "other", "poet", "somebody/other-model");
    let server = resolving(root.path(), &[("LORA_RESOLVER_BASE_ALIASES", "somebody/alias")]).await;
    let client = server.client();
    let body = |model: &str| completion(model, json!({"return_token_ids": true}));
    let found = client.ok("/v1/completions", &body("org/poet")).await;
    assert_eq!(found["model"], "org/poet");
    let loaded = client.ok("/v1/completions", &body("loaded")).await;
    assert_eq!(tokens(&found), tokens(&loaded));
    let listed = client.get("/v1/models/org/poet").await.json();
    assert!(listed["root"].as_str().unwrap().ends_with("org/poet"));
    let card = client.get("/v1/lora_adapters/org%2Fpoet").await.json();
    assert_eq!(card["source"], "lora_filesystem_resolver");
    let calls = async || {
        let text = client.get("/health?details=1").await.json();
        text["resolvers"][0]["answered"].as_u64().unwrap()
    };
    let before = calls().await;
    client.ok("/v1/completions", &body("org/poet")).await;
    assert_eq!(calls().await, before, "a registered name is not resolved");

    let unknown = client.post("/v1/completions", &body("nobody")).await;
    assert_eq!(unknown.status, 404);
    let wrong = client.post("/v1/completions", &body("other")).await;
    assert_eq!(wrong.status, 404);
    let message = wrong.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("somebody/other-model") && message.contains("base"), "{message}");
    for name in ["../poet", "/etc/passwd", "org/../org/poet", "org//poet"] {
        let answer = client.post("/v1/completions", &body(name)).await;
        assert_eq!(answer.status, 404, "{name}");
    }
}

#[tokio::test]
async fn what_is_found_and_broken_is_400_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let folder = place(root.path(), "broken", "poet", "base");
    std::fs::write(folder.join("adapter_model.safetensors"), "not this").unwrap();
    let server = resolving(root.path(), &[]).await;
    let answer = server.client().post("/v1/completions", &completion("broken", json!({}))).await;
    assert_eq!(answer.status, 400);
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("was found but could not be loaded"), "{message}");
}

#[tokio::test]
async fn files_that_change_replace_the_adapter_in_place() {
    let root = tempfile::tempdir().unwrap();
    let folder = place(root.path(), "live", "poet", "base");
    let server = resolving(root.path(), &[("LORA_RESOLVER_WATCH", "1")]).await;
    let client = server.client();
    let body = completion("live", json!({"return_token_ids": true}));
    let old = tokens(&client.ok("/v1/completions", &body).await);
    let generation = async || {
        let card = client.get("/v1/lora_adapters/live").await.json();
        card["generation"].as_u64().unwrap()
    };
    let before = generation().await;
    let new = place(root.path(), "spare", "shout", "base");
    std::fs::rename(&folder, root.path().join("gone")).unwrap();
    std::fs::rename(new, &folder).unwrap();
    let mut turns = 0;
    while generation().await == before {
        assert!(turns < 1200, "the change is not seen:\n{}", server.logged());
        tokio::time::sleep(Duration::from_millis(100)).await;
        turns += 1;
    }
    // The prompt is in the prefix cache under the old generation, which must not serve the new one.
    let fresh = tokens(&client.ok("/v1/completions", &body).await);
    assert_ne!(fresh, old);
    let push = json!({"lora_name": "s", "lora_path": demo("adapters/shout")});
    assert_eq!(client.post("/v1/load_lora_adapter", &push).await.status, 200);
    let body = completion("s", json!({"return_token_ids": true}));
    assert_eq!(tokens(&client.ok("/v1/completions", &body).await), fresh);
}

/// Seconds between the tokens of one stream of the base.
async fn gaps(server: &ServerProcess) -> Vec<f64> {
    let body = completion("base", json!({"max_tokens": 200, "stream": true}));
    let request = server.client().request(Method::POST, "/v1/completions").json(&body);
    let mut answer = request.send().await.unwrap();
    let (mut last, mut gaps) = (Instant::now(), Vec::new());
    while answer.chunk().await.unwrap().is_some() {
        gaps.push(last.elapsed().as_secs_f64());
        last = Instant::now();
    }
    gaps.sort_by(f64::total_cmp);
    gaps
}

#[tokio::test]
async fn a_crowd_that_asks_for_one_cold_name_waits_for_one_load() {
    let root = tempfile::tempdir().unwrap();
    place(root.path(), "poet", "poet", "base");
    let server = resolving(root.path(), &[]).await;
    let quiet = gaps(&server).await;
    let body = completion("poet", json!({"max_tokens": 1}));
    let crowd = (0..2000).map(|_| server.client().post("/v1/completions", &body));
    let (answers, busy) = tokio::join!(futures::future::join_all(crowd), gaps(&server));
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    let (served, refused) = (count(200), count(429));
    assert!(served > 0 && served + refused == 2000, "{served} served, {refused} refused");
    let resolvers = server.client().get("/health?details=1").await.json();
    assert_eq!(resolvers["resolvers"][0]["answered"], 1);
    let card = server.client().get("/v1/lora_adapters/poet").await.json();
    assert_eq!(card["requests"], 2000);
    let at = |gaps: &[f64], share: f64| gaps[((gaps.len() - 1) as f64 * share) as usize];
    let ratio = |share| at(&busy, share) / at(&quiet, share);
    println!(
        "{served} served, {refused} refused; the base's inter-token time: p50 {:.1} times, p99 {:.1} times that without the crowd",
        ratio(0.5),
        ratio(0.99)
    );
}

#[test]
fn a_plugin_that_does_not_fit_stops_the_start_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libtext.so"), "no library").unwrap();
    let whole = plugin_dir().join("liblora_filesystem_resolver.so");
    let bytes = std::fs::read(&whole).unwrap();
    std::fs::write(folder.path().join("libcut.so"), &bytes[..1 << 16]).unwrap();
    std::fs::copy(&whole, folder.path().join("libother_name.so")).unwrap();
    let dir = folder.path().display().to_string();
    for (plugins, part) in [
        ("absent", "there is no such file"),
        ("text", "it is cut off at 10 bytes"),
        ("cut", "it is cut off: 65536 bytes"),
        ("../../etc/x", "a plugin's name has letters"),
        ("other_name", "it calls itself \"lora_filesystem_resolver\""),
    ] {
        let (code, output) = run_to_end(
            &[&demo("model"), "--port", "0"],
            &[
                ("ALLOW_RUNTIME_LORA_UPDATING", "1"),
                ("PLUGINS", plugins),
                ("PLUGIN_DIR", &dir),
                ("LORA_RESOLVER_CACHE_DIR", &dir),
            ],
        );
        assert_eq!(code, Some(1), "{plugins}: {output}");
        let error = output.lines().find(|line| line.contains("error")).unwrap_or(&output);
        assert!(error.contains(plugins) && error.contains(part), "{plugins}: {output}");
    }
}
