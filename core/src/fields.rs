//! Reads fields of JSON files that somebody else wrote, so that each refusal names the file, the field and the value.
//!
//! `null` counts as absent, as it does for the Python classes that write these files.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The fields of one JSON object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    file: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The fields of `value`, which stands in `file`.
    pub(crate) fn new(file: &'a str, value: &'a Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { file, map }),
            _ => Err(Error::invalid(format!("{file} is not a JSON object"))),
        }
    }

    /// A field that is there and not `null`.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the field is there, `null` or not.
    pub(crate) fn mentions(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A refusal of `key`, with its value.
    pub(crate) fn refuse(&self, key: &str, expected: impl std::fmt::Display) -> Error {
        let found = self.map.get(key).map_or_else(|| "missing".into(), brief);
        Error::invalid(format!("{}: {key} is {found}, expected {expected}", self.file))
    }

    /// An integer from 1 to `max`.
    pub(crate) fn count(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        match number.filter(|n| (1..=max).contains(n)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.refuse(key, format!("an integer from 1 to {max}"))),
        }
    }

    /// An integer from 1 to `max` that must be there.
    pub(crate) fn required_count(&self, key: &str, max: usize) -> Result<usize> {
        match self.count(key, max)? {
            Some(number) => Ok(number),
            None => Err(self.refuse(key, format!("an integer from 1 to {max}"))),
        }
    }

    /// A finite number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|n| n.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.refuse(key, "a number")),
        }
    }

    /// A finite number above 0 that fits an `f32`.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f32>> {
        let Some(number) = self.number(key)? else { return Ok(None) };
        let number = number as f32;
        if number > 0.0 && number.is_finite() {
            Ok(Some(number))
        } else {
            Err(self.refuse(key, "a number above 0"))
        }
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.refuse(key, "true or false")),
        }
    }

    /// A string.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.refuse(key, "a string")),
        }
    }

    /// The fields of an object in this one.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { file: self.file, map })),
            Some(_) => Err(self.refuse(key, "an object")),
        }
    }
}

/// A value for a message: what a person needs to find it, however long it is.
pub(crate) fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 {
        return text;
    }
    let start: String = text.chars().take(77).collect();
    format!("{start}...")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_bounded_and_named() {
        let value = serde_json::json!({
            "zero": 0, "minus": -1, "big": 1u64 << 40, "real": 2.5, "text": "7", "none": null, "huge": 1e300,
        });
        let fields = Fields::new("x.json", &value).unwrap();
        for key in ["zero", "minus", "big", "real", "text"] {
            let error = fields.count(key, 1000).unwrap_err().message;
            assert!(error.starts_with(&format!("x.json: {key} is ")), "{error}");
        }
        assert_eq!(fields.count("none", 10).unwrap(), None);
        assert_eq!(fields.number("real").unwrap(), Some(2.5));
        assert!(fields.positive("huge").is_err());
        assert!(fields.positive("minus").is_err());
        assert!(fields.required_count("none", 10).is_err());
        assert!(Fields::new("x.json", &serde_json::json!([])).is_err());
    }

    #[test]
    fn long_values_are_cut() {
        assert_eq!(brief(&Value::String("ß".repeat(500))).chars().count(), 80);
    }
}
