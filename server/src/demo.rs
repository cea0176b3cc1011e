//! `server demo`: the model that comes with the server, from the binary itself, with three adapters.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::args::Settings;

/// Files below a folder of the repository, with their bytes.
macro_rules! embed {
    ($folder:literal: $($file:literal),* $(,)?) => {
        &[$(($file, include_bytes!(concat!($folder, $file)))),*]
    };
}

const FILES: &[(&str, &[u8])] = embed!("../../examples/demo/":
    "model/config.json",
    "model/generation_config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
    "adapters/pirate/adapter_config.json",
    "adapters/pirate/adapter_model.safetensors",
    "adapters/poet/adapter_config.json",
    "adapters/poet/adapter_model.safetensors",
    "adapters/shout/adapter_config.json",
    "adapters/shout/adapter_model.safetensors",
);

/// The demo's base.
pub const NAME: &str = "demo";
const ADAPTERS: [&str; 3] = ["pirate", "poet", "shout"];

/// Writes the demo's files to a folder that lasts as long as the guard, and points `settings` there.
pub fn unpack(settings: &mut Settings) -> Result<TempDir> {
    ensure!(
        settings.model.is_none() && settings.model_argument.is_none(),
        "`server demo` brings its own model; to serve yours, leave out the word demo"
    );
    let folder = TempDir::with_prefix("loraplex-demo-").context("no place for the demo's files")?;
    for (file, bytes) in FILES {
        let path = folder.path().join(file);
        let parent = path.parent().expect("every file lies in a folder");
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, bytes))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let path = |below: &str| folder.path().join(below).display().to_string();
    settings.model = Some(path("model"));
    if settings.served_model_name.is_empty() {
        settings.served_model_name.push(NAME.into());
    }
    let modules = ADAPTERS.map(|name| format!("{name}={}", path(&format!("adapters/{name}"))));
    settings.lora_modules.splice(0..0, modules);
    Ok(folder)
}

/// What to do next, in a few friendly lines. `name` is the base's.
pub fn welcome(address: SocketAddr, name: &str, with_key: bool) -> String {
    let key = if with_key { " -H 'Authorization: Bearer YOUR-KEY'" } else { "" };
    let chat = |model: &str| {
        format!(
            "  curl -s http://{address}/v1/chat/completions -H 'Content-Type: application/json'{key} \\\n    \
             -d '{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Tell me a story about a \
             mouse.\"}}]}}'\n"
        )
    };
    format!(
        "\nThe demo is ready: a tiny model and three LoRA adapters, on http://{address}\n\n\
         Ask the model, in another terminal:\n\n{}\n\
         Ask the same model with an adapter: pirate, poet or shout.\n\n{}\n\
         See what is served:\n\n  curl -s http://{address}/v1/models{key}\n\n\
         Ctrl-C stops it.\n",
        chat(name),
        chat(ADAPTERS[0]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_unpacked_and_goes_with_its_guard() {
        let mut settings = Settings::default();
        let folder = unpack(&mut settings).unwrap();
        let path = folder.path().to_owned();
        assert!(path.join("model/config.json").is_file());
        assert_eq!(settings.lora_modules.len(), ADAPTERS.len());
        for module in &settings.lora_modules {
            let module = crate::lora_modules::parse(module).unwrap().unwrap();
            assert!(module.path.join("adapter_config.json").is_file());
        }
        drop(folder);
        assert!(!path.exists());
        assert!(unpack(&mut settings).is_err(), "a model is named already");
    }

    #[test]
    fn the_welcome_can_be_pasted() {
        let text = welcome(([127, 0, 0, 1], 8000).into(), NAME, false);
        let body = text.split("-d '").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["model"], "demo");
        assert!(!text.contains("Bearer"));
    }
}
