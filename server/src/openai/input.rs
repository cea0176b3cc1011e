//! Prompts in the four forms that OpenAI allows.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Unexpected, Visitor};

/// Prompts of one call at most.
pub const MAX_PROMPTS: usize = 1024;

/// A text, a list of texts, a list of tokens, or a list of lists of tokens; kept as a list, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts(pub Vec<PromptInput>);

/// One prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptInput {
    /// Text to be tokenised.
    Text(String),
    /// Tokens as they are.
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptsVisitor)
    }
}

struct PromptsVisitor;

impl<'de> Visitor<'de> for PromptsVisitor {
    type Value = Prompts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a string, a list of strings, a list of token ids or a list of lists of token ids",
        )
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Prompts, E> {
        Ok(Prompts(vec![PromptInput::Text(text.to_owned())]))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Prompts, E> {
        Ok(Prompts(vec![PromptInput::Text(text)]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompts, A::Error> {
        let mut prompts = Vec::new();
        let mut tokens = Vec::new();
        while let Some(element) = list.next_element()? {
            match element {
                Element::Token(token) if prompts.is_empty() => tokens.push(token),
                Element::Prompt(prompt) if tokens.is_empty() => prompts.push(prompt),
                _ => return Err(A::Error::custom("it mixes token ids with other forms")),
            }
            if prompts.len() > MAX_PROMPTS {
                let message = format!("it has more than {MAX_PROMPTS} prompts");
                return Err(A::Error::custom(message));
            }
        }
        if !tokens.is_empty() {
            prompts.push(PromptInput::Tokens(tokens));
        }
        if prompts.is_empty() {
            return Err(A::Error::custom("it is empty"));
        }
        Ok(Prompts(prompts))
    }
}

/// What a list of prompts can hold.
enum Element {
    Token(u32),
    Prompt(PromptInput),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id or a list of token ids")
    }

    fn visit_u64<E: Error>(self, token: u64) -> Result<Element, E> {
        let token = u32::try_from(token)
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(token), &"a token id"))?;
        Ok(Element::Token(token))
    }

    fn visit_i64<E: Error>(self, token: i64) -> Result<Element, E> {
        Err(E::invalid_value(Unexpected::Signed(token), &"a token id"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Prompt(PromptInput::Text(text.to_owned())))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Element, E> {
        Ok(Element::Prompt(PromptInput::Text(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
        let mut tokens = Vec::new();
        while let Some(token) = list.next_element()? {
            tokens.push(token);
        }
        Ok(Element::Prompt(PromptInput::Tokens(tokens)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<PromptInput>, String> {
        serde_json::from_str(json).map(|Prompts(list)| list).map_err(|error| error.to_string())
    }

    #[test]
    fn four_forms() {
        let text = |text: &str| PromptInput::Text(text.into());
        assert_eq!(read(r#""a""#).unwrap(), [text("a")]);
        assert_eq!(read(r#"["a","b"]"#).unwrap(), [text("a"), text("b")]);
        assert_eq!(read("[1,2]").unwrap(), [PromptInput::Tokens(vec![1, 2])]);
        let two = [PromptInput::Tokens(vec![1]), PromptInput::Tokens(vec![])];
        assert_eq!(read("[[1],[]]").unwrap(), two);
    }

    #[test]
    fn everything_else_is_refused() {
        for json in [
            "1",
            "null",
            "true",
            "{}",
            "[]",
            "[1,\"a\"]",
            "[\"a\",1]",
            "[[1],2]",
            "[1.5]",
            "[-1]",
            "[4294967296]",
            "[18446744073709551616]",
            "[true]",
            "[null]",
            "[[\"a\"]]",
            "[[-1]]",
        ] {
            assert!(read(json).is_err(), "{json}");
        }
        let many = serde_json::to_string(&vec!["a"; MAX_PROMPTS + 1]).unwrap();
        assert!(read(&many).unwrap_err().contains("1024 prompts"));
    }
}
