//! What the operator set for a resolver: one JSON value, read into the author's own type.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::ResolveError;

/// Prefix of the variables that every resolver sees.
const PREFIX: &str = "LORA_RESOLVER_";

/// Settings of one resolver: its table of the host's config file and the host's `LORA_RESOLVER_*` variables.
///
/// As JSON: `{"table": {...}, "environment": {"LORA_RESOLVER_...": "..."}, "base_model_names": [...]}`.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, Deserialize)]
#[non_exhaustive]
#[serde(default)]
pub struct ResolverConfig {
    /// The resolver's own table of the config file.
    pub table: Map<String, Value>,
    /// Variables that start with `LORA_RESOLVER_`, by their full names. They win over the table.
    pub environment: Map<String, Value>,
    /// What the base model is called: its path, its served names and the operator's aliases.
    pub base_model_names: Vec<String>,
}

impl ResolverConfig {
    /// Reads `T` from the table and the environment: `LORA_RESOLVER_CACHE_DIR` fills the field `cache_dir`.
    ///
    /// A key of the table that `T` does not have is an error, since it is a typing mistake; a variable that it does not
    /// have belongs to another resolver. Values of the environment are strings: see [`flag`] and [`list`].
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ResolveError> {
        let mut fields = self.table.clone();
        for (name, value) in &self.environment {
            if let Some(key) = name.strip_prefix(PREFIX) {
                fields.insert(key.to_ascii_lowercase(), value.clone());
            }
        }
        let mut unknown = Vec::new();
        let parsed = serde_ignored::deserialize(Value::Object(fields), |path| {
            unknown.push(path.to_string());
        });
        let parsed = parsed.map_err(|error| {
            ResolveError::invalid(format!("the resolver's configuration: {error}"))
        })?;
        match unknown.iter().find(|key| self.table.contains_key(*key)) {
            Some(key) => Err(ResolveError::invalid(format!(
                "the resolver's configuration: unknown key `{key}`"
            ))),
            None => Ok(parsed),
        }
    }

    /// Whether `name` means the host's base model: one of its names, or the same last path segment, in any case.
    pub fn is_base_model(&self, name: &str) -> bool {
        let last = |name: &str| {
            let segment = name.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            segment.to_lowercase()
        };
        let wanted = last(name);
        !wanted.is_empty()
            && self.base_model_names.iter().any(|known| known == name || last(known) == wanted)
    }

    /// Whether `adapter_config.json` of the adapter `name` is one of a LoRA adapter of the host's base model; the base model
    /// that it names, if it names one. A misfit is [`ResolveError::not_found`] with the reason, which the host logs.
    pub fn fits(&self, name: &str, adapter_config: &Value) -> Result<Option<String>, ResolveError> {
        match &adapter_config["peft_type"] {
            Value::Null => {}
            Value::String(kind) if kind == "LORA" => {}
            other => {
                let reason = format!("adapter {name:?} has the peft_type {other}, not \"LORA\"");
                return Err(ResolveError::not_found(reason));
            }
        }
        // Trainers that start from a model in memory write null, or nothing between the quotes.
        let base = adapter_config["base_model_name_or_path"].as_str();
        let Some(base) = base.filter(|base| !base.is_empty()) else { return Ok(None) };
        if self.is_base_model(base) {
            return Ok(Some(base.to_owned()));
        }
        let ours = self.base_model_names.join(", ");
        let reason = format!(
            "adapter {name:?} is for the base model {base}, this server has {ours} (LORA_RESOLVER_BASE_ALIASES can name others)"
        );
        Err(ResolveError::not_found(reason))
    }
}

/// For `#[serde(deserialize_with = "flag")]`: a boolean, or `1`, `true`, `yes`, `on` and their opposites as text.
pub fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Bool(value) => Ok(value),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(true),
            "" | "0" | "false" | "no" | "off" => Ok(false),
            _ => Err(D::Error::custom(format!("{text:?} is neither true nor false"))),
        },
        other => Err(D::Error::custom(format!("{other} is neither true nor false"))),
    }
}

/// For `#[serde(deserialize_with = "list")]`: a list of texts, or one text with commas.
pub fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        Many(Vec<String>),
        One(String),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::Many(items) => items,
        OneOrMany::One(text) => {
            text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Into::into).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Mine {
        cache_dir: String,
        #[serde(default, deserialize_with = "flag")]
        watch: bool,
        #[serde(default, deserialize_with = "list")]
        aliases: Vec<String>,
    }

    fn config(json: Value) -> ResolverConfig {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_environment_wins_over_the_table() {
        let config = config(json!({
            "table": {"cache_dir": "/a", "aliases": ["x"]},
            "environment": {"LORA_RESOLVER_CACHE_DIR": "/b", "LORA_RESOLVER_WATCH": "1", "LORA_RESOLVER_S3_URI": "s3://"},
        }));
        let mine = config.parse::<Mine>().unwrap();
        assert_eq!(mine, Mine { cache_dir: "/b".into(), watch: true, aliases: vec!["x".into()] });
    }

    #[test]
    fn a_typing_mistake_in_the_table_is_named() {
        let config = config(json!({"table": {"cache_dir": "/a", "wach": true}}));
        let error = config.parse::<Mine>().unwrap_err();
        assert_eq!(error.message, "the resolver's configuration: unknown key `wach`");
    }

    #[test]
    fn a_base_model_goes_by_its_names_and_its_last_segment() {
        let config = config(json!({"base_model_names": ["/models/SmolLM2-135M", "base"]}));
        for (name, expected) in [
            ("base", true),
            ("HuggingFaceTB/smollm2-135m", true),
            ("/models/SmolLM2-135M/", true),
            ("SmolLM2", false),
            ("", false),
            ("/", false),
        ] {
            assert_eq!(config.is_base_model(name), expected, "{name}");
        }
    }

    #[test]
    fn an_adapter_fits_when_it_is_a_lora_of_the_base_model_or_does_not_say() {
        let config = config(json!({"base_model_names": ["/models/SmolLM2-135M", "base"]}));
        for (adapter, expected) in [
            (json!({}), Ok(None)),
            (json!({"peft_type": null, "base_model_name_or_path": null}), Ok(None)),
            (json!({"peft_type": "LORA", "base_model_name_or_path": ""}), Ok(None)),
            (json!({"peft_type": "LORA", "base_model_name_or_path": "base"}), Ok(Some("base"))),
            (json!({"base_model_name_or_path": "x/SMOLLM2-135M"}), Ok(Some("x/SMOLLM2-135M"))),
            (
                json!({"peft_type": "lora"}),
                Err("adapter \"a\" has the peft_type \"lora\", not \"LORA\""),
            ),
            (json!({"peft_type": "IA3", "base_model_name_or_path": "base"}), Err("\"IA3\"")),
            (json!({"peft_type": 3}), Err("the peft_type 3,")),
            (
                json!({"base_model_name_or_path": "x/other"}),
                Err("is for the base model x/other, this server has /models/SmolLM2-135M, base"),
            ),
        ] {
            match (config.fits("a", &adapter), expected) {
                (Ok(base), expected) => assert_eq!(Ok(base.as_deref()), expected, "{adapter}"),
                (Err(error), Err(part)) => {
                    assert_eq!(error.kind, crate::ErrorKind::NotFound, "{adapter}");
                    assert!(error.message.contains(part), "{error}");
                }
                (Err(error), Ok(_)) => panic!("{adapter}: {error}"),
            }
        }
    }
}
