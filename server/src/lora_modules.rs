//! `--lora-modules`: adapters that the operator names at the start.

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use serde::Deserialize;

use crate::config::env::home_dir;

/// An adapter that the operator names at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraModule {
    /// The name that requests use.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// Which of the served names is its parent; the first when `None`.
    pub base_model_name: Option<String>,
}

/// Reads `name=path` or a JSON object, told apart as vLLM does; `None` for an empty item.
pub fn parse(item: &str) -> Result<Option<LoraModule>> {
    if item.is_empty() {
        return Ok(None);
    }
    let module = if item.contains('=') && !item.contains(',') {
        let (name, path) = item.split_once('=').expect("it has one");
        Fields { name: name.into(), path: path.into(), base_model_name: None }
    } else {
        from_json(item)?
    };
    if module.name.is_empty() || module.path.is_empty() {
        bail!("Invalid fields for --lora-modules: {item} - name and path must not be empty");
    }
    Ok(Some(LoraModule {
        name: module.name,
        path: expand_home(&module.path),
        base_model_name: module.base_model_name,
    }))
}

/// `path` with a leading `~` replaced by the user's home.
pub fn expand_home(path: &str) -> PathBuf {
    match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => match home_dir() {
            Some(home) => home.join(rest.trim_start_matches('/')),
            None => path.into(),
        },
        _ => path.into(),
    }
}

#[derive(Deserialize)]
struct Fields {
    name: String,
    path: String,
    base_model_name: Option<String>,
}

fn from_json(item: &str) -> Result<Fields> {
    match serde_json::from_str::<serde_json::Value>(item) {
        Ok(value @ serde_json::Value::Object(_)) => serde_json::from_value(value)
            .map_err(|error| anyhow!("Invalid fields for --lora-modules: {item} - {error}")),
        _ => bail!(
            "Invalid JSON format for --lora-modules: {item} (write NAME=PATH, or a JSON object)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let module = parse("sql=/adapters/sql=v1").unwrap().unwrap();
        assert_eq!(module.name, "sql");
        assert_eq!(module.path, PathBuf::from("/adapters/sql=v1"));
        let json = r#"{"name":"a=b","path":"p","base_model_name":"m","is_3d_lora_weight":false}"#;
        let module = parse(json).unwrap().unwrap();
        assert_eq!((module.name.as_str(), module.base_model_name.as_deref()), ("a=b", Some("m")));
        assert_eq!(parse("").unwrap(), None);
    }

    #[test]
    fn a_bad_item_is_quoted() {
        for (item, text) in [
            ("sql", "Invalid JSON format for --lora-modules: sql"),
            ("[1]", "Invalid JSON format for --lora-modules: [1]"),
            (r#"{"name":"x"}"#, r#"Invalid fields for --lora-modules: {"name":"x"} - "#),
            (r#"{"name":1,"path":"p"}"#, "Invalid fields for --lora-modules: "),
            ("=path", "Invalid fields for --lora-modules: =path - "),
            ("name=", "Invalid fields for --lora-modules: name= - "),
        ] {
            let error = parse(item).unwrap_err().to_string();
            assert!(error.starts_with(text), "{error}");
        }
    }
}
