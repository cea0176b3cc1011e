//! Tokenizers from the vocabulary of a GGUF file.
//!
//! They agree with the Hugging Face tokenizer that the file was converted from, as far as the file says what that was:
//! a kind of vocabulary or a pre-tokenizer that is not known here is refused by name.

mod bpe;
mod spm;

use tokenizers::{AddedToken, Tokenizer as Inner};

use super::{Ends, Tokenizer, refuse};
use crate::error::{Error, Result};
use crate::model::checkpoint::gguf::Metadata;

const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

/// What GGUF calls token types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenType {
    Normal,
    /// Stands for what the vocabulary lacks.
    Unknown,
    /// Marks structure.
    Control,
    /// Text that is never split.
    UserDefined,
    Unused,
    /// A single byte.
    Byte,
}

impl TokenType {
    fn find(number: i64) -> Result<Self> {
        Ok(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return Err(Error::invalid(format!("GGUF token type {number} is not known"))),
        })
    }
}

/// The vocabulary of a file.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: &'a [String],
    types: Vec<TokenType>,
}

impl<'a> Vocabulary<'a> {
    fn new(metadata: &'a Metadata) -> Result<Self> {
        let tokens = metadata
            .texts(TOKENS)?
            .filter(|tokens| !tokens.is_empty() && tokens.len() <= super::MAX_ID as usize)
            .ok_or_else(|| Error::invalid("the GGUF file has no vocabulary"))?;
        let types = match metadata.integers(TYPES)? {
            None => vec![TokenType::Normal; tokens.len()],
            Some(types) if types.len() == tokens.len() => {
                types.iter().map(|number| TokenType::find(*number)).collect::<Result<_>>()?
            }
            Some(types) => {
                return Err(Error::invalid(format!(
                    "GGUF key {TYPES} has {} entries for {} tokens",
                    types.len(),
                    tokens.len()
                )));
            }
        };
        Ok(Self { metadata, tokens, types })
    }

    /// Tokens with their ids and types.
    fn iter(&self) -> impl Iterator<Item = (&'a str, u32, TokenType)> {
        let tokens = self.tokens.iter().zip(0..).zip(&self.types);
        tokens.map(|((text, id), kind)| (text.as_str(), id, *kind))
    }

    /// The id under `tokenizer.ggml.{name}_token_id`, if the vocabulary has it.
    fn id(&self, name: &str) -> Result<Option<u32>> {
        let id = self.metadata.count(&format!("tokenizer.ggml.{name}_token_id"))?;
        Ok(id.and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < self.tokens.len()))
    }

    /// The tokens around a text; `bos` is what the kind of vocabulary does where the file does not say.
    fn ends(&self, bos: bool) -> Result<Ends> {
        let flag = |name: &str, otherwise: bool| -> Result<bool> {
            let flag = self.metadata.flag(&format!("tokenizer.ggml.add_{name}_token"))?;
            Ok(flag.unwrap_or(otherwise))
        };
        Ok(Ends {
            first: if flag("bos", bos)? { self.id("bos")? } else { None },
            last: if flag("eos", false)? { self.id("eos")? } else { None },
        })
    }

    /// Makes tokens that are not made by merging into tokens that are never split.
    fn add_tokens(&self, inner: &mut Inner) -> Result<()> {
        let pick = |wanted: fn(TokenType) -> bool, special: bool| -> Vec<AddedToken> {
            let tokens = self.iter().filter(|(text, _, kind)| wanted(*kind) && !text.is_empty());
            tokens
                .map(|(text, ..)| AddedToken::from(text.to_owned(), special).normalized(false))
                .collect()
        };
        let special = pick(|kind| matches!(kind, TokenType::Control | TokenType::Unknown), true);
        let text = pick(|kind| kind == TokenType::UserDefined, false);
        inner.add_special_tokens(special).map_err(|e| refuse(TOKENS, &e))?;
        inner.add_tokens(text).map_err(|e| refuse(TOKENS, &e))?;
        Ok(())
    }
}

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes.
    pub(crate) fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let vocabulary = Vocabulary::new(metadata)?;
        let (mut inner, bos) = match metadata.text(MODEL)? {
            Some("gpt2") => bpe::build(&vocabulary)?,
            Some("llama") => spm::build(&vocabulary)?,
            other => {
                return Err(Error::invalid(format!(
                    "GGUF tokenizer {} is not supported; supported are gpt2 and llama",
                    other.unwrap_or("without a name")
                )));
            }
        };
        vocabulary.add_tokens(&mut inner)?;
        let ends = vocabulary.ends(bos)?;
        Self::new(inner, Some(ends), vocabulary.tokens.iter().cloned().map(Some).collect())
    }
}
