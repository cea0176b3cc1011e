//! The real server with the demo model: answers, streams, refusals, overload, shutdown.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod adapters;
mod batching;
mod bench;
mod hostile;
mod hub;
mod lifecycle;
mod misbehaving;
mod numbers;
mod resolving;
mod s3;
mod starts;
mod state;

use loraplex_tests::{ServerProcess, root};
use serde_json::{Value, json};

/// Adapters of the demo model.
const ADAPTERS: [&str; 3] = ["pirate", "shout", "poet"];

fn demo(path: &str) -> String {
    root().join("examples/demo").join(path).display().to_string()
}

/// The demo model as `base` with its adapters.
async fn serve(flags: &[&str]) -> ServerProcess {
    let mut args = vec![demo("model")];
    args.extend(["--served-model-name", "base", "--lora-modules"].map(str::to_owned));
    args.extend(ADAPTERS.map(|name| format!("{name}={}", demo(&format!("adapters/{name}")))));
    args.extend(flags.iter().map(|&flag| flag.to_owned()));
    ServerProcess::start(&args).await
}

/// A completion request for one short text.
fn completion(model: &str, change: Value) -> Value {
    let mut body = json!({
        "model": model,
        "prompt": "Once upon a time",
        "max_tokens": 16,
        "temperature": 0,
        "ignore_eos": true,
    });
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// The ids of the first choice's tokens.
fn tokens(answer: &Value) -> Vec<u64> {
    let ids = answer["choices"][0]["token_ids"].as_array();
    ids.unwrap_or_else(|| panic!("{answer}")).iter().map(|id| id.as_u64().unwrap()).collect()
}
