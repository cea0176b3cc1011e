//! The text files of a Hugging Face folder: configuration, sampling defaults, chat template, special tokens.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::GenerationDefaults;
use super::gguf::Metadata;
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::files;
use crate::model::config::{ModelConfig, end_tokens};

/// Far above any of these files.
const MAX_FILE: u64 = 64 << 20;
/// The special tokens that chat templates ask for.
const SPECIAL: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

/// What a folder says about its model besides the weights.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// `config.json` says what the weights are stored in.
    pub(super) names_dtype: bool,
    pub(super) generation_defaults: GenerationDefaults,
    pub(super) chat_template: Option<String>,
    pub(super) special_tokens: Vec<(String, String)>,
}

impl Folder {
    /// Reads the files of `path`.
    pub(super) fn open(path: &Path) -> Result<(Self, ModelConfig)> {
        let json = json(path, "config.json")?
            .ok_or_else(|| Error::not_found(format!("no config.json in {}", path.display())))?;
        let mut config = ModelConfig::from_hf(&json)?;
        let names_dtype =
            json.get("dtype").or(json.get("torch_dtype")).is_some_and(Value::is_string);
        let mut generation_defaults = GenerationDefaults::default();
        if let Some(generation) = self::json(path, "generation_config.json")? {
            let fields = Fields::new("generation_config.json", &generation)?;
            let ends = end_tokens(&fields)?;
            if !ends.is_empty() {
                config.set_end_tokens(ends);
            }
            generation_defaults = defaults(&fields)?;
        }
        let tokenizer = self::json(path, "tokenizer_config.json")?.unwrap_or(Value::Null);
        let folder = Self {
            path: path.to_owned(),
            names_dtype,
            generation_defaults,
            chat_template: chat_template(path, &tokenizer)?,
            special_tokens: special_tokens(path, &tokenizer)?,
        };
        Ok((folder, config))
    }
}

/// A JSON file of the folder; `None` when there is none.
fn json(folder: &Path, name: &str) -> Result<Option<Value>> {
    let Some(bytes) = files::read(&folder.join(name), MAX_FILE)? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes)
        .map_err(|error| Error::invalid(format!("{name} is not JSON: {error}")))?;
    Ok(Some(value))
}

fn defaults(fields: &Fields<'_>) -> Result<GenerationDefaults> {
    let between = |key: &str, low: f64, high: f64| match fields.number(key)? {
        Some(n) if !(low..=high).contains(&n) => {
            Err(fields.refuse(key, format!("a number from {low} to {high}")))
        }
        number => Ok(number.map(|n| n as f32)),
    };
    let top_k = match fields.get("top_k") {
        None => None,
        // Both mean: keep all.
        Some(value) if matches!(value.as_i64(), Some(-1 | 0)) => Some(0),
        Some(_) => fields.count("top_k", u32::MAX as usize)?.map(|k| k as u32),
    };
    Ok(GenerationDefaults {
        temperature: between("temperature", 0.0, 100.0)?,
        top_p: between("top_p", 1e-6, 1.0)?,
        top_k,
        min_p: between("min_p", 0.0, 1.0)?,
        repetition_penalty: between("repetition_penalty", 1e-6, 100.0)?,
    })
}

/// `chat_template.jinja`, else `chat_template.json`, else the one in `tokenizer_config.json`.
fn chat_template(folder: &Path, tokenizer: &Value) -> Result<Option<String>> {
    const JINJA: &str = "chat_template.jinja";
    if let Some(bytes) = files::read(&folder.join(JINJA), MAX_FILE)? {
        let text = String::from_utf8(bytes)
            .map_err(|_| Error::invalid(format!("{JINJA} is not UTF-8")))?;
        return Ok(Some(text));
    }
    if let Some(file) = json(folder, "chat_template.json")?
        && let Some(template) = pick_template(file.get("chat_template"))
    {
        return Ok(Some(template));
    }
    Ok(pick_template(tokenizer.get("chat_template")))
}

/// A template by itself, or the one named `default` of a list.
fn pick_template(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(template) => Some(template.clone()),
        Value::Array(list) => {
            let default = list.iter().find(|t| t.get("name").is_some_and(|n| n == "default"))?;
            default.get("template")?.as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// Each token from `tokenizer_config.json`, else from `special_tokens_map.json`.
fn special_tokens(folder: &Path, tokenizer: &Value) -> Result<Vec<(String, String)>> {
    let map = json(folder, "special_tokens_map.json")?.unwrap_or(Value::Null);
    let text = |name: &str| token_text(tokenizer.get(name)).or_else(|| token_text(map.get(name)));
    Ok(SPECIAL.iter().filter_map(|name| Some(((*name).to_owned(), text(name)?))).collect())
}

/// A token is a string, or an object with its `content`.
pub(crate) fn token_text(value: Option<&Value>) -> Option<String> {
    let value = value?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// The same tokens from the ids that a GGUF file names.
pub(super) fn gguf_special_tokens(metadata: &Metadata) -> Vec<(String, String)> {
    let texts = metadata.texts("tokenizer.ggml.tokens").ok().flatten().unwrap_or_default();
    let keys = ["bos", "eos", "padding", "unknown"];
    let named = SPECIAL.iter().zip(keys).filter_map(|(name, key)| {
        let id = metadata.count(&format!("tokenizer.ggml.{key}_token_id")).ok()??;
        let text = texts.get(usize::try_from(id).ok()?)?;
        Some(((*name).to_owned(), text.clone()))
    });
    named.collect()
}
