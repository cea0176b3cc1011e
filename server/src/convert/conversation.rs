//! Conversations to tokens, by the model's chat template.

use serde_json::{Map, Value};

use super::Converter;
use crate::chat_template::{ContentForm, Conversation};
use crate::error::{ApiError, ApiResult};
use crate::openai::chat::{ConversationFields, Message};

/// Variables that only the request's own fields set.
const RESERVED: &[&str] = &[
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
];

impl Converter {
    /// The tokens of a conversation.
    pub(super) fn conversation(&self, fields: ConversationFields) -> ApiResult<Vec<u32>> {
        let template = self.template.as_ref().map_err(|reason| {
            ApiError::param(
                "messages",
                format!("{reason}; start the server with --chat-template, or use /v1/completions"),
            )
        })?;
        let add_generation_prompt = fields.add_generation_prompt.unwrap_or(true);
        let continue_final_message = fields.continue_final_message.unwrap_or(false);
        if add_generation_prompt && continue_final_message {
            return Err(ApiError::param(
                "continue_final_message",
                "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            ));
        }
        let variables = fields.chat_template_kwargs.unwrap_or_default();
        if let Some(name) = variables.keys().find(|name| RESERVED.contains(&name.as_str())) {
            return Err(ApiError::param(
                "chat_template_kwargs",
                format!(
                    "`chat_template_kwargs` cannot set {name:?}; it is no variable of a template's own"
                ),
            ));
        }
        let messages = fields.messages.unwrap_or_default();
        if messages.is_empty() {
            return Err(ApiError::param("messages", "`messages` is missing or empty"));
        }
        let most = self.model.max_model_len;
        if messages.len() > most {
            let message = format!(
                "`messages` has {} entries; this model's maximum context length is {most} tokens",
                messages.len()
            );
            return Err(ApiError::param("messages", message));
        }
        let form = template.content_form();
        let messages: ApiResult<Vec<Message>> = messages
            .into_iter()
            .enumerate()
            .map(|(index, message)| normalise(index, message, form))
            .collect();
        let conversation = Conversation {
            messages: messages?,
            tools: fields.tools.filter(|tools| !tools.is_empty()),
            documents: fields.documents,
            variables,
            add_generation_prompt,
            continue_final_message,
        };
        let prompt = template.render(&conversation).map_err(|reason| {
            ApiError::param("messages", format!("the chat template refuses this: {reason}"))
        })?;
        self.encode(&prompt, fields.add_special_tokens.unwrap_or(false), "messages")
    }
}

/// The text of the last message, if the assistant wrote it.
pub(super) fn last_answer(fields: &ConversationFields) -> Option<String> {
    let last = fields.messages.as_ref()?.last()?;
    let text = last.get("content")?.as_str()?;
    (last.get("role")? == "assistant").then(|| text.to_owned())
}

/// A message as the template expects it.
fn normalise(index: usize, mut message: Message, form: ContentForm) -> ApiResult<Message> {
    let wrong = |what: &str| {
        let param = format!("messages[{index}]");
        ApiError::param(param.clone(), format!("`{param}`{what}"))
    };
    let Some(Value::String(role)) = message.get("role") else {
        return Err(wrong(".role must be a string, such as \"user\""));
    };
    let is_assistant = role == "assistant";
    let content = message.remove("content").unwrap_or(Value::Null);
    let texts = match content {
        Value::String(text) => vec![text],
        Value::Array(parts) => parts
            .into_iter()
            .map(|part| part_text(part).map_err(|what| wrong(&what)))
            .collect::<ApiResult<_>>()?,
        Value::Null if is_assistant => Vec::new(),
        Value::Null => return Err(wrong(".content is missing")),
        _ => return Err(wrong(".content must be a string or a list of text parts")),
    };
    let content = match form {
        ContentForm::Text => Value::String(texts.join("\n")),
        ContentForm::Parts => texts.into_iter().map(text_part).collect(),
    };
    message.insert("content".into(), content);
    if let Some(calls) = message.get_mut("tool_calls") {
        parse_arguments(calls);
    }
    Ok(message)
}

/// The text of a part, or what is wrong with it.
fn part_text(part: Value) -> Result<String, String> {
    let mut part = match part {
        Value::String(text) => return Ok(text),
        Value::Object(part) => part,
        _ => return Err(".content has a part that is no object".into()),
    };
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
    if !["text", "input_text", "output_text", "refusal"].contains(&kind) {
        let kind: String = kind.chars().take(40).collect();
        return Err(format!(".content has a part of type {kind:?}; this model reads text only"));
    }
    let field = if kind == "refusal" { "refusal" } else { "text" };
    match part.remove(field) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(format!(".content has a part whose `{field}` is no string")),
    }
}

fn text_part(text: String) -> Value {
    let mut part = Map::new();
    part.insert("type".into(), "text".into());
    part.insert("text".into(), text.into());
    Value::Object(part)
}

/// Templates expect the arguments of earlier calls as objects; OpenAI's clients send them as JSON text.
fn parse_arguments(calls: &mut Value) {
    for call in calls.as_array_mut().into_iter().flatten() {
        let arguments = call.get_mut("function").and_then(|function| function.get_mut("arguments"));
        if let Some(arguments) = arguments
            && let Some(text) = arguments.as_str()
            && let Ok(parsed @ Value::Object(_)) = serde_json::from_str(text)
        {
            *arguments = parsed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn content(message: Value, form: ContentForm) -> Result<Value, String> {
        let Value::Object(message) = message else { unreachable!() };
        normalise(3, message, form)
            .map(|message| message["content"].clone())
            .map_err(|error| error.body().error.message)
    }

    #[test]
    fn content_in_every_form() {
        let parts = json!({"role": "user", "content": [{"type": "text", "text": "a"}, "b"]});
        assert_eq!(content(parts.clone(), ContentForm::Text).unwrap(), "a\nb");
        let both = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        assert_eq!(content(parts, ContentForm::Parts).unwrap(), both);
        let silent = json!({"role": "assistant", "content": null, "tool_calls": []});
        assert_eq!(content(silent, ContentForm::Text).unwrap(), "");
        let one = json!({"role": "user", "content": "a"});
        assert_eq!(
            content(one, ContentForm::Parts).unwrap(),
            json!([{"type": "text", "text": "a"}])
        );
    }

    #[test]
    fn a_bad_message_is_named() {
        for (message, part) in [
            (json!({"content": "a"}), "`messages[3]`.role"),
            (json!({"role": 1, "content": "a"}), ".role"),
            (json!({"role": "user"}), ".content is missing"),
            (json!({"role": "user", "content": 1}), ".content must be"),
            (json!({"role": "user", "content": [1]}), "no object"),
            (
                json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
                "\"image_url\"",
            ),
            (json!({"role": "user", "content": [{"type": "text", "text": 1}]}), "no string"),
        ] {
            let error = content(message, ContentForm::Text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn arguments_of_earlier_calls_become_objects() {
        let mut calls = json!([
            {"function": {"name": "f", "arguments": "{\"x\": 1}"}},
            {"function": {"name": "f", "arguments": "no json"}}
        ]);
        parse_arguments(&mut calls);
        assert_eq!(calls[0]["function"]["arguments"], json!({"x": 1}));
        assert_eq!(calls[1]["function"]["arguments"], "no json");
    }
}
