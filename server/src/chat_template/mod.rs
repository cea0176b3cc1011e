//! A model's chat template, rendered as transformers renders it, without its dangers: no files, no includes, and an end
//! to every loop.

mod json;
mod time;

use std::collections::BTreeMap;
use std::fmt::Write;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State};
use serde_json::Map;

use crate::openai::chat::Message;

/// Instructions that one rendering may take: a message costs some dozens.
const FUEL: u64 = 20_000_000;

const NAME: &str = "chat_template";

/// A compiled template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(String, String)>,
    content: ContentForm,
}

/// What a template expects in `content`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentForm {
    /// A text.
    Text,
    /// A list of parts.
    Parts,
}

/// What a template is rendered with.
#[derive(Debug, Default)]
pub struct Conversation {
    /// The messages, with `content` in the form that the template expects.
    pub messages: Vec<Message>,
    /// For the template; not called.
    pub tools: Option<Vec<serde_json::Value>>,
    /// For templates that know them.
    pub documents: Option<Vec<serde_json::Value>>,
    /// Further variables; they do not replace the ones above.
    pub variables: Map<String, serde_json::Value>,
    /// End with the start of an answer.
    pub add_generation_prompt: bool,
    /// End inside the last message.
    pub continue_final_message: bool,
}

impl ChatTemplate {
    /// Compiles `source`. `special_tokens` are variables of the template: `bos_token` and its like.
    pub fn new(source: &str, special_tokens: Vec<(String, String)>) -> Result<Self, String> {
        let source = without_generation_tags(source);
        let content = content_form(&source);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| describe(&error))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_formatter(write_as_python);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", |message: String| {
            Err::<Value, _>(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| time::strftime_now(&format));
        environment.add_template_owned(NAME, source).map_err(|error| describe(&error))?;
        Ok(Self { environment, special_tokens, content })
    }

    /// What the template expects in `content`.
    pub fn content_form(&self) -> ContentForm {
        self.content
    }

    /// The prompt of a conversation, or what the template has against it.
    pub fn render(&self, conversation: &Conversation) -> Result<String, String> {
        let template = self.environment.get_template(NAME).expect("it was added");
        // What comes later replaces what came before under the same name.
        let mut context: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, value) in &conversation.variables {
            context.insert(name, Value::from(Serde(value)));
        }
        for (name, token) in &self.special_tokens {
            context.insert(name, Value::from(token.as_str()));
        }
        context.insert("messages", Value::from(Serde(&conversation.messages)));
        context.insert("tools", Value::from(Serde(&conversation.tools)));
        context.insert("documents", Value::from(Serde(&conversation.documents)));
        context.insert("add_generation_prompt", conversation.add_generation_prompt.into());
        let mut prompt = template.render(context).map_err(|error| describe(&error))?;
        if conversation.continue_final_message {
            let end = end_of_last_message(&prompt, conversation)?;
            prompt.truncate(end);
        }
        Ok(prompt)
    }
}

/// Where the last message's text ends in `prompt`.
fn end_of_last_message(prompt: &str, conversation: &Conversation) -> Result<usize, String> {
    let content = conversation.messages.last().and_then(|message| message.get("content"));
    let text = match content {
        Some(serde_json::Value::String(text)) => text.as_str(),
        Some(serde_json::Value::Array(parts)) => {
            let text = parts.last().and_then(|part| part.get("text"));
            text.and_then(|text| text.as_str()).unwrap_or_default()
        }
        _ => "",
    };
    // Templates may trim what they write.
    [text, text.trim()]
        .into_iter()
        .filter(|text| !text.is_empty())
        .find_map(|text| prompt.rfind(text).map(|at| at + text.len()))
        .ok_or_else(|| {
            "continue_final_message: the template does not write the last message as it is".into()
        })
}

/// Prints `None`, `True` and `False`, where Jinja in Rust would print lower case.
fn write_as_python(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let word = match value.kind() {
        minijinja::value::ValueKind::None => "None",
        minijinja::value::ValueKind::Bool if value.is_true() => "True",
        minijinja::value::ValueKind::Bool => "False",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(Error::from)
}

/// `{% generation %}` marks what a trainer learns from and prints nothing; here it becomes a condition that holds, so that
/// the dashes beside it keep their meaning.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (before, from) = rest.split_at(start);
        let (tag, after) = from.split_at(length);
        let inner = tag["{%".len()..].trim_matches(|c| c == '-' || c == '+');
        result.push_str(before);
        match inner.trim() {
            "generation" => result.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => result.push_str(&tag.replace("endgeneration", "endif")),
            _ => result.push_str(tag),
        }
        rest = after;
    }
    result.push_str(rest);
    result
}

/// A template that loops over `content` expects parts.
fn content_form(source: &str) -> ContentForm {
    let loops_over_content = source.split("{%").skip(1).any(|tag| {
        let tag = tag.split("%}").next().unwrap_or_default();
        let words = tag.trim_matches(['-', '+']).trim();
        let mut list = words.strip_prefix("for ").and_then(|rest| rest.split_once(" in "));
        list.take().is_some_and(|(_, list)| {
            let list = list.trim().trim_end_matches(['"', '\'', ']', ' ']);
            list == "content"
                || list.ends_with(".content")
                || list.ends_with("['content")
                || list.ends_with("[\"content")
        })
    });
    if loops_over_content { ContentForm::Parts } else { ContentForm::Text }
}

/// The error with its causes, in one line.
fn describe(error: &Error) -> String {
    let mut text = match (error.kind(), error.detail()) {
        // `raise_exception` speaks to the client.
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        _ => error.to_string(),
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        // Writing to a string does not fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
