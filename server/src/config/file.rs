//! The config file: the flags' names with `_`, in YAML or TOML.

use std::path::Path;

use anyhow::{Context, Result, bail};
use config::{Config, File, FileFormat};
use serde::de::{DeserializeOwned, Deserializer, Error};
use serde::{Deserialize, Serialize};

use crate::args::Settings;

/// Reads `path`. A key that is no setting is refused by its name.
pub fn read(path: &Path) -> Result<Settings> {
    let format = match path.extension().and_then(|extension| extension.to_str()) {
        Some("yaml" | "yml") => FileFormat::Yaml,
        Some("toml") => FileFormat::Toml,
        _ => bail!("--config {}: the file's name must end in .yaml, .yml or .toml", path.display()),
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("--config {}: cannot be read", path.display()))?;
    Config::builder()
        .add_source(File::from_str(&text, format))
        .build()
        .and_then(Config::try_deserialize)
        .with_context(|| format!("--config {}", path.display()))
}

/// A list, or its only element. A table becomes its JSON text, so that an adapter can be written either way.
pub fn one_or_many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned + Serialize,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        Many(Vec<serde_json::Value>),
        One(serde_json::Value),
    }
    let items = match OneOrMany::deserialize(deserializer)? {
        OneOrMany::Many(items) => items,
        OneOrMany::One(item) => vec![item],
    };
    let text = |item| match item {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    items
        .into_iter()
        .map(|item| serde_json::from_value(text(item).into()).map_err(D::Error::custom))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(name: &str, text: &str) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn yaml_and_toml_say_the_same() {
        let yaml = "model: m\nport: 81\nlora_modules:\n  - a=b\n  - {name: c, path: d}\n\
                    api_key: k\nplugins:\n  s3: {uri: u}\n";
        let toml = "model = 'm'\nport = 81\nlora_modules = ['a=b', {name='c', path='d'}]\n\
                    api_key = ['k']\n[plugins.s3]\nuri = 'u'\n";
        for settings in [read_text("a.yaml", yaml), read_text("a.toml", toml)] {
            let settings = settings.unwrap();
            assert_eq!(settings.model.as_deref(), Some("m"));
            assert_eq!(settings.port, Some(81));
            assert_eq!(settings.lora_modules[0], "a=b");
            let module = crate::lora_modules::parse(&settings.lora_modules[1]).unwrap().unwrap();
            assert_eq!((module.name.as_str(), module.path.to_str()), ("c", Some("d")));
            assert_eq!(settings.api_key[0].expose(), "k");
            assert_eq!(settings.plugins["s3"]["uri"], "u");
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = read_text("a.yaml", "max_lorras: 3\n").unwrap_err();
        assert!(format!("{error:#}").contains("max_lorras"), "{error:#}");
        let error = read_text("a.yaml", "port: many\n").unwrap_err();
        assert!(format!("{error:#}").contains("port"), "{error:#}");
        assert!(read_text("a.json", "{}").is_err());
        assert!(read_text("a.toml", "port = ").is_err());
    }

    #[test]
    fn names_of_other_servers_are_accepted() {
        let settings = read_text("a.yaml", "model_path: m\nlora_paths: [a=b]\n").unwrap();
        assert_eq!(settings.model.as_deref(), Some("m"));
        assert_eq!(settings.lora_modules, ["a=b"]);
    }
}
