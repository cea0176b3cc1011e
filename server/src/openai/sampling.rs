//! Fields of every generating route that say how tokens are drawn.

use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Fields that every generating route has. All are optional; fields that nobody knows are ignored.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct SamplingFields {
    /// From 0 (greedy) to 2; what lies between 0 and 0.01 counts as 0.01.
    pub temperature: Option<f64>,
    /// Over 0, at most 1.
    pub top_p: Option<f64>,
    /// 0 or -1 keeps all tokens.
    pub top_k: Option<i64>,
    /// From 0 to 1.
    pub min_p: Option<f64>,
    /// The same seed gives the same tokens; choice `i` uses `seed + i`.
    pub seed: Option<i64>,
    /// Outputs for each prompt, up to 128.
    pub n: Option<i64>,
    /// Same as `n`, or the call is refused.
    pub best_of: Option<i64>,
    /// Up to 16 texts that end the output.
    pub stop: Option<Stop>,
    /// Up to 256 tokens that end the output.
    pub stop_token_ids: Option<Vec<i64>>,
    /// Tokens to draw at most.
    pub max_tokens: Option<i64>,
    /// Tokens to draw before a stop can end the output.
    pub min_tokens: Option<i64>,
    /// Go on after the model's end token.
    pub ignore_eos: Option<bool>,
    /// From -2 to 2.
    pub presence_penalty: Option<f64>,
    /// From -2 to 2.
    pub frequency_penalty: Option<f64>,
    /// Over 0, at most 100; 1 is none.
    pub repetition_penalty: Option<f64>,
    /// Up to 1024 token ids with what is added to their logits, from -100 to 100.
    #[schema(value_type = Option<std::collections::HashMap<String, f64>>)]
    pub logit_bias: Option<LogitBias>,
    /// Report the prompt's log-probabilities, with this many of the best tokens at each position, up to 20.
    pub prompt_logprobs: Option<i64>,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: Option<bool>,
    /// Keep the stop text in the output.
    pub include_stop_str_in_output: Option<bool>,
    /// Report the token ids of prompt and outputs.
    pub return_token_ids: Option<bool>,
    /// Write tokens of log-probabilities as `token_id:123`.
    pub return_tokens_as_token_ids: Option<bool>,
}

/// One text or several.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// Token ids with what is added to their logits, as sent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogitBias(pub Vec<(u32, f64)>);

/// Entries of a [`LogitBias`] at most.
pub const MAX_LOGIT_BIAS: usize = 1024;

impl<'de> Deserialize<'de> for LogitBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = LogitBias;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with token ids as keys and numbers as values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LogitBias, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if entries.len() == MAX_LOGIT_BIAS {
                        let message = format!("it has more than {MAX_LOGIT_BIAS} entries");
                        return Err(A::Error::custom(message));
                    }
                    let token = key.parse().map_err(|_| {
                        let key: String = key.chars().take(40).collect();
                        A::Error::custom(format!("{key:?} is no token id"))
                    })?;
                    entries.push((token, map.next_value()?));
                }
                Ok(LogitBias(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}
