//! PEFT's rule for keys of `rank_pattern` and `alpha_pattern`: a regular expression that matches the end of a module's
//! name, from its start or after a dot. The first key that matches counts.

use regex::{Regex, RegexBuilder};

use crate::error::{Error, Result};

/// Longest key.
const MAX_KEY: usize = 1024;
/// Keys of one table that are more than a name.
const MAX_EXPRESSIONS: usize = 256;
/// Bytes of a compiled expression.
const MAX_COMPILED: usize = 1 << 18;

/// Keys with their values, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct PatternTable<T> {
    rows: Vec<(Key, T)>,
    expressions: usize,
}

#[derive(Debug)]
enum Key {
    /// Letters, digits, `_` and `.`, the dot standing for any character.
    Name(String),
    Expression(Box<Regex>),
}

impl<T: Copy> PatternTable<T> {
    /// Adds a key behind those that are there.
    pub(super) fn add(&mut self, key: &str, value: T) -> Result<()> {
        if key.len() > MAX_KEY {
            return Err(Error::invalid(format!(
                "a pattern key of {} bytes exceeds the limit of {MAX_KEY}",
                key.len()
            )));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
        let key = if key.bytes().all(plain) {
            Key::Name(key.to_owned())
        } else {
            self.expressions += 1;
            if self.expressions > MAX_EXPRESSIONS {
                return Err(Error::invalid(format!(
                    "more than {MAX_EXPRESSIONS} pattern keys are regular expressions"
                )));
            }
            let expression = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{key})$"))
                .size_limit(MAX_COMPILED)
                .dfa_size_limit(MAX_COMPILED)
                .build()
                .map_err(|error| {
                    Error::invalid(format!(
                        "pattern key {key:?} is not a regular expression that can be used here: {}",
                        error.to_string().replace('\n', " ")
                    ))
                })?;
            Key::Expression(Box::new(expression))
        };
        self.rows.push((key, value));
        Ok(())
    }

    /// The value of the first key that matches `module`.
    pub(super) fn find(&self, module: &str) -> Option<T> {
        self.rows.iter().find(|(key, _)| key.matches(module)).map(|(_, value)| *value)
    }

    /// All values.
    pub(super) fn values(&self) -> impl Iterator<Item = T> {
        self.rows.iter().map(|(_, value)| *value)
    }
}

impl Key {
    fn matches(&self, module: &str) -> bool {
        match self {
            Self::Expression(expression) => expression.is_match(module),
            Self::Name(name) => {
                let (name, module) = (name.as_bytes(), module.as_bytes());
                let Some(start) = module.len().checked_sub(name.len()) else { return false };
                let (before, end) = module.split_at(start);
                matches!(before.last(), None | Some(b'.'))
                    && name.iter().zip(end).all(|(key, byte)| *key == b'.' || key == byte)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(keys: &[&str], module: &str) -> Option<usize> {
        let mut table = PatternTable::default();
        for (at, key) in keys.iter().enumerate() {
            table.add(key, at).unwrap();
        }
        table.find(module)
    }

    #[test]
    fn keys_match_as_in_peft() {
        const MODULE: &str = "model.layers.10.self_attn.q_proj";
        let hits = [
            "q_proj",
            "self_attn.q_proj",
            "layers.10.self_attn.q_proj",
            MODULE,
            // A dot is any character, as in any regular expression.
            "self_attn.q.proj",
            r"layers\.\d+\.self_attn\.q_proj",
            ".*q_proj",
            "(q|v)_proj",
            "q_proj|v_proj",
            "^model.layers.10.self_attn.q_proj",
            r"self_attn\.[qk]_proj",
            ".*",
        ];
        for key in hits {
            assert_eq!(find(&[key], MODULE), Some(0), "{key}");
        }
        let misses = [
            "proj",
            "_proj",
            "0.self_attn.q_proj",
            "layers.1.self_attn.q_proj",
            "q_pro",
            "xmodel.layers.10.self_attn.q_proj",
            "k_proj",
            "^q_proj",
            "Q_PROJ",
            "[kv]_proj",
        ];
        for key in misses {
            assert_eq!(find(&[key], MODULE), None, "{key}");
        }
        assert_eq!(find(&["k_proj", "attn.q_proj", ".*", "q_proj"], MODULE), Some(2));
        assert_eq!(find(&["q_proj", ".*"], MODULE), Some(0));
    }

    #[test]
    fn plain_keys_and_expressions_agree() {
        let modules = ["model.layers.1.mlp.up_proj", "up_proj", "x.up_proj", "xup_proj", "a.b"];
        for key in ["up_proj", "mlp.up_proj", "a.b", "layers.1.mlp.up_proj", "b", ".", "..", ""] {
            let expression = Regex::new(&format!(r"^(?:.*\.)?(?:{key})$")).unwrap();
            for module in modules {
                let name = Key::Name(key.into());
                assert_eq!(name.matches(module), expression.is_match(module), "{key} {module}");
            }
        }
    }

    #[test]
    fn costly_keys_are_refused() {
        let mut table = PatternTable::default();
        for key in ["(", "a{100000}", r"(\pL{50}){50}", "(?=x)y", r"(a)\1", &"a".repeat(1025)] {
            assert!(table.add(key, 0).is_err(), "{key}");
        }
        let mut table = PatternTable::default();
        for at in 0..MAX_EXPRESSIONS {
            table.add(&format!("(a|b){at}"), at).unwrap();
        }
        assert!(table.add("(a|b)", 0).is_err());
        table.add("q_proj", 0).unwrap();
    }
}
