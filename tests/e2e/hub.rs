//! `server ORG/MODEL`: a model of the Hub is fetched once, served under its name, and served again offline. And adapters
//! of the Hub, by the plugin.

use std::fs;
use std::path::Path;

use loraplex_tests::{ServerProcess, plugin_dir, run_to_end};
use serde_json::{Value, json};

use super::{completion, demo, tokens};
use stub::{Access, Stub};

#[allow(dead_code, reason = "the client's own tests use the rest")]
#[path = "../../resolvers/hub-client/tests/hub/stub.rs"]
mod stub;

/// The demo model as `org/model`, in one file or, as large models are, in one that an index names.
fn push(stub: &Stub, sharded: bool) {
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(demo("model"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    if sharded {
        let single = files.iter_mut().find(|(name, _)| name == "model.safetensors").unwrap();
        single.0 = "part-1-of-1.safetensors".to_owned();
        let index = json!({"weight_map": {"any": single.0}}).to_string();
        files.push(("model.safetensors.index.json".to_owned(), index.into_bytes()));
    }
    files.push(("pytorch_model.bin".to_owned(), b"never asked for".to_vec()));
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    stub.push("org/model", Access::Public, &files);
}

fn environment<'a>(url: &'a str, home: &'a Path) -> Vec<(&'a str, &'a str)> {
    vec![("HF_ENDPOINT", url), ("HF_HOME", home.to_str().unwrap()), ("HF_HUB_CACHE", "")]
}

async fn text(server: &ServerProcess) -> String {
    let body = completion("org/model", json!({}));
    let answer = server.client().post("/v1/completions", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["choices"][0]["text"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_model_of_the_hub_is_fetched_once_and_served_offline() {
    let expected = {
        let args = [&demo("model"), "--served-model-name", "org/model"].map(str::to_owned);
        text(&ServerProcess::start(&args).await).await
    };
    for sharded in [false, true] {
        let (stub, home) = (Stub::start().await, tempfile::tempdir().unwrap());
        push(&stub, sharded);
        let url = stub.url();
        let mut env = environment(&url, home.path());
        let server = ServerProcess::start_with(&["org/model"], &env).await;
        assert_eq!(text(&server).await, expected);
        let models = server.client().get("/v1/models").await.json();
        assert_eq!(models["data"][0]["id"], "org/model");
        drop(server);
        let seen = stub.seen();
        assert!(seen.iter().all(|request| !request.path.contains("pytorch")), "{seen:?}");
        drop(stub);
        // The Hub does not answer: the cache is enough; offline it is not even asked.
        assert_eq!(text(&ServerProcess::start_with(&["org/model"], &env).await).await, expected);
        env.push(("HF_HUB_OFFLINE", "1"));
        assert_eq!(text(&ServerProcess::start_with(&["org/model"], &env).await).await, expected);
    }
}

#[tokio::test]
async fn an_adapter_of_the_hub_is_found_by_its_name() {
    let (stub, home) = (Stub::start().await, tempfile::tempdir().unwrap());
    let read = |name: &str| fs::read(Path::new(&demo("adapters/poet")).join(name)).unwrap();
    let mut config: Value = serde_json::from_slice(&read("adapter_config.json")).unwrap();
    config["base_model_name_or_path"] = json!("somebody/BASE");
    let config = config.to_string();
    let weights = read("adapter_model.safetensors");
    let files: [(&str, &[u8]); 2] = [
        ("poet/adapter_config.json", config.as_bytes()),
        ("poet/adapter_model.safetensors", &weights),
    ];
    let commit = stub.push("org/adapters", Access::Public, &files);
    stub.push("org/gated", Access::Gated, &files);
    stub.push("org/private", Access::Private("hf_right"), &files);
    stub.push("org/unlisted", Access::Public, &files);
    let url = stub.url();
    let dir = plugin_dir().display().to_string();
    let mut env = environment(&url, home.path());
    env.extend([
        ("ALLOW_RUNTIME_LORA_UPDATING", "1"),
        ("PLUGINS", "lora_hf_hub_resolver"),
        ("PLUGIN_DIR", dir.as_str()),
        ("LORA_RESOLVER_HF_REPO_LIST", "org/adapters,org/gated,org/private"),
    ]);
    let module = format!("loaded={}", demo("adapters/poet"));
    let args = [&demo("model"), "--served-model-name", "base", "--lora-modules", &module];
    let server = ServerProcess::start_with(&args, &env).await;
    let client = server.client();
    let body = |model: &str| completion(model, json!({"return_token_ids": true}));
    for name in ["org/adapters/poet".to_owned(), format!("org/adapters/poet@{commit}")] {
        let found = client.ok("/v1/completions", &body(&name)).await;
        assert_eq!(found["model"], name);
        let loaded = client.ok("/v1/completions", &body("loaded")).await;
        assert_eq!(tokens(&found), tokens(&loaded));
    }
    for (name, status, code) in [
        ("org/gated/poet", 403, json!("adapter_source_gated")),
        ("org/private/poet", 403, json!("adapter_source_unauthorized")),
        ("org/unlisted/poet", 404, json!(404)),
        ("org/adapters/none", 404, json!(404)),
        ("org/adapters/../adapters/poet", 404, json!(404)),
    ] {
        let answer = client.post("/v1/completions", &body(name)).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (status, &code), "{name}");
    }
    assert!(stub.seen().iter().all(|request| !request.path.contains("unlisted")));
}

#[tokio::test]
async fn a_start_from_the_hub_that_cannot_work_says_what_to_do() {
    let (stub, home) = (Stub::start().await, tempfile::tempdir().unwrap());
    stub.push("org/gated", Access::Gated, &[]);
    stub.push("org/private", Access::Private("hf_right"), &[]);
    stub.push("org/quants", Access::Public, &[("a.Q4_0.gguf", b"x"), ("README.md", b"x")]);
    stub.push("org/pickle", Access::Public, &[("config.json", b"{}"), ("pytorch_model.bin", b"x")]);
    let url = stub.url();
    let token = ("HF_TOKEN", "hf_wrong");
    for (model, more, told) in [
        ("org/gated", None, "org/gated is gated: accept its terms on the Hub and set HF_TOKEN"),
        ("org/private", None, "private or does not exist: set HF_TOKEN if it is private"),
        ("org/private", Some(token), "the Hub refuses the token for org/private"),
        ("org/none", Some(token), "there is no repository org/none"),
        ("org/quants", None, "name one of them as org/quants:FILE, of a.Q4_0.gguf"),
        ("org/quants:b.gguf", None, "org/quants has no b.gguf; it has a.Q4_0.gguf"),
        ("org/quants@v9", None, "org/quants has no revision v9"),
        ("org/pickle", None, "only safetensors and GGUF can be read"),
        ("org/quants", Some(("HF_HUB_OFFLINE", "1")), "HF_HUB_OFFLINE is set"),
        ("org/quants", Some(("HF_ENDPOINT", "file:///")), "HF_ENDPOINT is no http(s) address"),
        ("org/quants", Some(("HF_ENDPOINT", "http://127.0.0.1:1")), "cannot reach 127.0.0.1:1"),
    ] {
        let mut env = environment(&url, home.path());
        env.extend(more);
        let args = [model.to_owned(), "--port".into(), "0".into()];
        let env: Vec<(String, String)> =
            env.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let run = move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let env: Vec<_> = env.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            run_to_end(&args, &env)
        };
        // The stub answers on this thread.
        let (code, text) = tokio::task::spawn_blocking(run).await.unwrap();
        assert_eq!(code, Some(1), "{text}");
        let last = text.lines().last().unwrap_or_default();
        assert!(
            last.contains(told) && !last.contains("hf_"),
            "{told:?} in the last line of\n{text}"
        );
    }
}
