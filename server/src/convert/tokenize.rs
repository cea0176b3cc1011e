//! `/tokenize` and `/detokenize`.

use super::Converter;
use crate::body::parse;
use crate::error::{ApiError, ApiResult};
use crate::openai::chat::ConversationFields;
use crate::openai::tokenize::{DetokenizeRequest, TokenizeFields};

/// Tokens of a text or a conversation.
#[derive(Debug)]
pub(crate) struct Tokenized {
    pub(crate) model: Option<String>,
    pub(crate) tokens: Vec<u32>,
    /// As the vocabulary spells them, if asked for.
    pub(crate) spellings: Option<Vec<String>>,
}

impl Converter {
    /// Does what a body of `/tokenize` asks for.
    pub(crate) fn tokenize(&self, body: &[u8]) -> ApiResult<Tokenized> {
        let own: TokenizeFields = parse(body)?;
        let conversation: ConversationFields = parse(body)?;
        let tokens = match (own.prompt, &conversation.messages) {
            (Some(prompt), _) => {
                self.encode(&prompt, conversation.add_special_tokens.unwrap_or(true), "prompt")?
            }
            (None, Some(_)) => self.conversation(conversation)?,
            _ => return Err(ApiError::param("prompt", "give either `prompt` or `messages`")),
        };
        let spelling = |&token: &u32| self.tokenizer.token_text(token).unwrap_or_default();
        let spellings = match own.return_token_strs {
            Some(true) => Some(tokens.iter().map(spelling).collect()),
            _ => None,
        };
        Ok(Tokenized { model: own.model, tokens, spellings })
    }

    /// Does what a body of `/detokenize` asks for: the model's name and the text.
    pub(crate) fn detokenize(&self, body: &[u8]) -> ApiResult<(Option<String>, String)> {
        let own: DetokenizeRequest = parse(body)?;
        let tokens = own.tokens.ok_or_else(|| ApiError::param("tokens", "`tokens` is missing"))?;
        let vocabulary = self.model.vocab_size;
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(ApiError::param(
                "tokens",
                format!("Token id {token} is out of vocabulary: it has {vocabulary} tokens"),
            ));
        }
        Ok((own.model, self.tokenizer.decode(&tokens, false)?))
    }
}
