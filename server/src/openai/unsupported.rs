//! Fields of OpenAI's, vLLM's and SGLang's requests that would change the output, or that ask for a report which answers do
//! not have.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

/// Fields that are refused unless they say nothing: null, false, or empty.
const FIELDS: &[&str] = &[
    "allowed_token_ids",
    "audio",
    "audio_data",
    "bad_words",
    "chat_template",
    "custom_logit_processor",
    "ebnf",
    "features",
    "function_call",
    "functions",
    "guided_choice",
    "guided_decoding_backend",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "image_data",
    "input_embeds",
    "json_schema",
    "length_penalty",
    "logits_processors",
    "mm_processor_kwargs",
    "modalities",
    "prediction",
    "prompt_embeds",
    "regex",
    "repetition_detection",
    "response_format",
    "return_entropy",
    "return_hidden_states",
    "return_routed_experts",
    "session_params",
    "stop_regex",
    "structural_tag",
    "structured_outputs",
    "suffix",
    "thinking_token_budget",
    "tool_choice",
    "tools",
    "truncate_prompt_tokens",
    "use_beam_search",
    "video_data",
    "web_search_options",
];

/// The fields of a body that must be refused.
#[derive(Debug, Default)]
pub struct Unsupported(pub Vec<&'static str>);

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Body;

        impl<'de> Visitor<'de> for Body {
            type Value = Unsupported;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unsupported, A::Error> {
                let mut found = Vec::new();
                let mut tools_are_free = false;
                while let Some(key) = map.next_key::<Key<'_>>()? {
                    let Some(&field) = FIELDS.iter().find(|field| **field == key.0) else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    let value = map.next_value::<Value>()?;
                    tools_are_free |= field == "tool_choice" && value == "none";
                    if !is_harmless(field, &value) {
                        found.push(field);
                    }
                }
                // Tools that cannot be called only reach the template.
                if tools_are_free {
                    found.retain(|field| *field != "tools");
                }
                Ok(Unsupported(found))
            }
        }

        deserializer.deserialize_map(Body)
    }
}

/// A key, borrowed where the body spells it plainly.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

fn is_harmless(field: &str, value: &Value) -> bool {
    match (field, value) {
        (_, Value::Null | Value::Bool(false)) => true,
        // What must be called cannot be; what may be is refused as `tools`.
        ("tool_choice", Value::String(choice)) => matches!(&**choice, "" | "none" | "auto"),
        (_, Value::String(text)) => text.is_empty(),
        ("modalities", Value::Array(list)) => list.iter().all(|kind| kind == "text"),
        (_, Value::Array(list)) => list.iter().all(is_empty),
        ("response_format", Value::Object(fields)) => {
            fields.get("type").is_some_and(|kind| kind == "text")
        }
        (_, Value::Object(fields)) => fields.is_empty(),
        ("length_penalty", Value::Number(number)) => number.as_f64() == Some(1.0),
        _ => false,
    }
}

/// Whether a value is there for its place alone: SGLang's clients send `[null]` for a prompt without images.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.iter().all(is_empty),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_the_output_is_found() {
        for (json, found) in [
            (r#"{"tools":[],"response_format":{"type":"text"},"guided_json":null}"#, vec![]),
            (r#"{"suffix":"","use_beam_search":false,"length_penalty":1.0}"#, vec![]),
            (r#"{"tools":[{}],"tool_choice":"none"}"#, vec![]),
            (r#"{"tools":[{}],"tool_choice":"auto"}"#, vec!["tools"]),
            (r#"{"tool_choice":"auto","user":"x"}"#, vec![]),
            (r#"{"tool_choice":"required"}"#, vec!["tool_choice"]),
            (r#"{"tool_choice":{"type":"function","function":{"name":"f"}}}"#, vec!["tool_choice"]),
            (r#"{"modalities":["text"]}"#, vec![]),
            (r#"{"modalities":["text","audio"]}"#, vec!["modalities"]),
            (r#"{"response_format":{"type":"json_object"}}"#, vec!["response_format"]),
            (r#"{"suffix":"x","functions":[{}]}"#, vec!["suffix", "functions"]),
            (
                r#"{"image_data":[null,[],[null]],"regex":null,"return_hidden_states":false}"#,
                vec![],
            ),
            (r#"{"image_data":[null,["x"]],"ebnf":"root ::= a"}"#, vec!["image_data", "ebnf"]),
            (r#"{"guided_regex":"a+","x":[[[1]]]}"#, vec!["guided_regex"]),
        ] {
            let Unsupported(fields) = serde_json::from_str(json).unwrap();
            assert_eq!(fields, found, "{json}");
        }
    }
}
