//! Generates for a list of prompts, each with an adapter of its own or none, in one batch and without a server.
//!
//! `cargo run --release --package loraplex-examples --example offline` uses the demo model. With arguments:
//! `… --example offline -- MODEL [NAME=FOLDER …]`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use loraplex_core::{EngineConfig, Llm, LoraRequest, Quiet, SamplingParams};

#[tokio::main]
async fn main() -> Result<()> {
    let demo = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/demo"));
    let mut arguments = std::env::args().skip(1);
    let (model, adapters) = match arguments.next() {
        Some(model) => (PathBuf::from(model), arguments.collect()),
        None => {
            let folder =
                |name: &str| format!("{name}={}", demo.join("adapters").join(name).display());
            (demo.join("model"), ["pirate", "shout", "poet"].map(folder).to_vec())
        }
    };

    let llm = Llm::load(EngineConfig::new(model), &Quiet)?;
    let mut choices = vec![None];
    for adapter in adapters {
        let (name, folder) = adapter.split_once('=').context("an adapter is NAME=FOLDER")?;
        llm.adapters().load(LoraRequest::new(name, folder)).await?;
        choices.push(Some(llm.adapters().get(name).await?));
    }

    let prompts: Vec<_> =
        choices.into_iter().map(|adapter| ("Once upon a time", adapter)).collect();
    let params = SamplingParams { temperature: 0.0, max_tokens: 48, ..SamplingParams::default() };
    for ((prompt, adapter), output) in prompts.iter().zip(llm.generate(&prompts, &params).await?) {
        let name = adapter.as_ref().map_or("base", |adapter| adapter.name());
        print(name, &format!("{prompt}{}", output.text));
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "an example shows its result")]
fn print(name: &str, text: &str) {
    println!("--- {name}\n{text}\n");
}
