//! Booleans as pydantic reads them: Python's clients write `True` into a query, trainers send `"true"` and `1` in bodies.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// A boolean in any of the spellings that FastAPI takes, in a body or a query.
pub(crate) fn lax_bool<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<bool>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Lax {
        Bool(bool),
        Number(i64),
        Text(String),
    }
    match Option::<Lax>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Lax::Bool(value)) => Ok(Some(value)),
        Some(Lax::Number(0)) => Ok(Some(false)),
        Some(Lax::Number(1)) => Ok(Some(true)),
        Some(Lax::Text(text)) => match text.trim().to_ascii_lowercase().as_str() {
            "1" | "true" | "t" | "yes" | "y" | "on" => Ok(Some(true)),
            "0" | "false" | "f" | "no" | "n" | "off" => Ok(Some(false)),
            _ => Err(D::Error::custom("expected a boolean")),
        },
        Some(Lax::Number(_)) => Err(D::Error::custom("expected a boolean")),
    }
}
