//! SmolLM2-135M-Instruct through the HTTP API against golden answers of transformers and PEFT in f32.
//!
//! The model is not in the repository: `tests/fetch_smollm2.sh` brings it to `target/models`, and without it this suite
//! fails. `cargo test` leaves it out; `.ci/run` runs it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod case;

use std::path::PathBuf;

use futures::future::join_all;
use loraplex_tests::{ServerProcess, fixture, plugin_dir, root};

use case::{Agreement, Case, Got, Tolerance, cases};

/// Served under the name that the adapters' configurations give their base.
const BASE: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";
const ADAPTERS: [&str; 4] = ["upper", "r8_qv", "rankpattern", "r7_rs"];

fn model() -> PathBuf {
    let path = root().join("target/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run tests/fetch_smollm2.sh", path.display());
    path
}

async fn serve(flags: &[&str]) -> ServerProcess {
    let mut args = vec![model().display().to_string()];
    args.extend(["--served-model-name", BASE, "--max-model-len", "2048"].map(str::to_owned));
    args.push("--lora-modules".into());
    for name in ADAPTERS {
        let path = fixture("smollm2/adapters").join(name);
        args.push(format!("{name}={}", path.display()));
    }
    args.extend(flags.iter().map(|&flag| flag.to_owned()));
    ServerProcess::start(&args).await
}

async fn alone(server: &ServerProcess, cases: &[Case]) -> Vec<Got> {
    let mut got = Vec::new();
    for case in cases {
        got.push(case.ask(server.client()).await);
    }
    got
}

/// All cases at once: base and adapters mixed in one batch.
async fn together(server: &ServerProcess, cases: &[Case]) -> Vec<Got> {
    join_all(cases.iter().map(|case| case.ask(server.client()))).await
}

#[tokio::test]
async fn bf16_answers_hold_alone_together_and_in_chunks() {
    let cases = cases(BASE, &ADAPTERS);
    let tolerance = Tolerance { gap: 0.3, probability: 0.08 };
    let server = serve(&["--max-num-seqs", "32"]).await;
    let first = alone(&server, &cases).await;
    for (case, got) in cases.iter().zip(&first) {
        case.check(got, tolerance);
    }
    let batched = together(&server, &cases).await;
    drop(server);
    let flags = ["--max-num-batched-tokens", "16", "--max-num-seqs", "16"];
    let chunking = [&flags[..], &["--no-enable-prefix-caching"]].concat();
    let server = serve(&chunking).await;
    let chunked = together(&server, &cases).await;
    for (case, ((first, batched), chunked)) in
        cases.iter().zip(first.iter().zip(&batched).zip(&chunked))
    {
        assert_eq!(first, batched, "{} alone and together", case.name());
        assert_eq!(first, chunked, "{} whole and in chunks of 16", case.name());
    }
}

#[tokio::test]
async fn f32_answers_hold() {
    let cases = cases(BASE, &ADAPTERS);
    let tolerance = Tolerance { gap: 0.01, probability: 0.002 };
    let server = serve(&["--dtype", "float32", "--max-num-seqs", "32"]).await;
    for (case, got) in cases.iter().zip(together(&server, &cases).await) {
        case.check(&got, tolerance);
    }
}

/// Weights in 8 bits: the same alone and together, and as near to f32 as their rounding lets them be.
#[tokio::test]
async fn int8_answers_hold() {
    let cases = cases(BASE, &ADAPTERS);
    let server = serve(&["--quantization", "int8", "--max-num-seqs", "32"]).await;
    let batched = together(&server, &cases).await;
    let some = cases.iter().zip(&batched).step_by(7);
    for (case, batched) in some {
        assert_eq!(&case.ask(server.client()).await, batched, "{} alone", case.name());
    }
    let agreement = Agreement::of(&cases, &batched);
    assert!(agreement.texts >= 0.25, "{agreement:?}");
    assert!(agreement.tokens >= 0.45, "{agreement:?}");
    assert!(agreement.difference <= 0.08, "{agreement:?}");
    for (case, got) in cases.iter().zip(&batched) {
        case.check(got, Tolerance { gap: 0.8, probability: 0.15 });
    }
}

/// Nobody has loaded the adapters: the resolver finds them, and the answers are the same.
#[tokio::test]
async fn resolved_adapters_answer_as_loaded_ones() {
    let plugins = plugin_dir().display().to_string();
    let adapters = fixture("smollm2/adapters").display().to_string();
    for (served, alias) in [("x/smollm2-135m-instruct", ""), ("base", BASE)] {
        let model = model().display().to_string();
        let args = [&*model, "--served-model-name", served, "--max-model-len", "2048"];
        let env = [
            ("ALLOW_RUNTIME_LORA_UPDATING", "1"),
            ("PLUGINS", "lora_filesystem_resolver"),
            ("PLUGIN_DIR", &plugins),
            ("LORA_RESOLVER_CACHE_DIR", &adapters),
            ("LORA_RESOLVER_BASE_ALIASES", alias),
        ];
        let server = ServerProcess::start_with(&args, &env).await;
        let cases = cases(served, &ADAPTERS);
        for (case, got) in cases.iter().zip(together(&server, &cases).await) {
            case.check(&got, Tolerance { gap: 0.3, probability: 0.08 });
        }
        let listing = server.client().get("/v1/models").await.json();
        let listed = listing["data"].as_array().unwrap().iter().map(|card| card["id"].clone());
        let listed: Vec<_> = listed.collect();
        for name in ADAPTERS {
            assert!(listed.contains(&name.into()), "{name} in {listed:?}");
        }
        let health = async || server.client().get("/health?details=1").await.json();
        let before = health().await;
        together(&server, &cases).await;
        assert_eq!(health().await, before, "what is registered is not resolved again");
    }
}
