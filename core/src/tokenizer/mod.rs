//! Text to tokens and back, from `tokenizer.json` or from the vocabulary in a GGUF file.
//!
//! What this module must never do: cut or pad a text because the tokenizer's file says so, or decode in a way that
//! depends on how tokens arrive: a [`TokenStream`] and [`Tokenizer::decode`] share one decoder.

mod bound;
mod gguf;
mod pieces;
mod stream;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer as Inner};

pub use self::stream::TokenStream;

use self::bound::Bound;
use self::pieces::Pieces;
use self::stream::TextDecoder;
use crate::error::{Error, Result};
use crate::files;

const MAX_FILE: u64 = 512 << 20;
/// Ids beyond this are not a vocabulary.
const MAX_ID: u32 = 1 << 24;

/// A model's tokenizer. Shared freely: it does not change.
pub struct Tokenizer {
    inner: Inner,
    pieces: Pieces,
    /// What goes around a text, where the model says so itself; otherwise its post-processor knows.
    ends: Option<Ends>,
    /// See [`least_tokens`](Self::least_tokens).
    bound: Option<Bound>,
}

/// Tokens around a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ends {
    first: Option<u32>,
    last: Option<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and `tokenizer_config.json` of a folder.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let bytes = files::read(&folder.join("tokenizer.json"), MAX_FILE)?.ok_or_else(|| {
            Error::invalid(format!(
                "no tokenizer.json in {}: other formats must be converted, by saving the tokenizer with transformers",
                folder.display()
            ))
        })?;
        let inner = Inner::from_bytes(bytes).map_err(|e| refuse("tokenizer.json", &e))?;
        let config = files::read(&folder.join("tokenizer_config.json"), MAX_FILE)?;
        let config = match config {
            None => Value::Null,
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::invalid(format!("tokenizer_config.json is not JSON: {e}")))?,
        };
        Self::from_parts(inner, &config)
    }

    fn from_parts(mut inner: Inner, config: &Value) -> Result<Self> {
        let mut named = Vec::new();
        for key in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            let text = crate::model::checkpoint::token_text(config.get(key));
            let id = text.as_deref().and_then(|text| inner.token_to_id(text));
            named.push(text.zip(id));
        }
        // As transformers does: a token that the configuration names is never split, whatever the file says.
        let added = inner.get_added_tokens_decoder();
        let new = named.iter().flatten().filter(|(_, id)| !added.contains_key(id));
        let new: Vec<_> = new.map(|(text, _)| AddedToken::from(text.clone(), true)).collect();
        inner.add_special_tokens(new).map_err(|e| refuse("tokenizer_config.json", &e))?;
        let id = |at: usize| named.get(at).and_then(Option::as_ref).map(|(_, id)| *id);
        let flag = |key: &str| config.get(key).map(|flag| flag.as_bool().unwrap_or(false));
        let ends = match (flag("add_bos_token"), flag("add_eos_token")) {
            (None, None) => None,
            (bos, eos) => Some(Ends {
                first: id(0).filter(|_| bos.unwrap_or(false)),
                last: id(1).filter(|_| eos.unwrap_or(false)),
            }),
        };
        let size = inner.get_vocab(true).into_values().max().map_or(0, |id| id.saturating_add(1));
        if size == 0 || size > MAX_ID {
            return Err(Error::invalid(format!(
                "tokenizer.json: {size} token ids are out of range"
            )));
        }
        let texts = (0..size).map(|id| inner.id_to_token(id)).collect();
        Self::new(inner, ends, texts)
    }

    /// `texts` holds the tokens by id, where the vocabulary has them.
    fn new(mut inner: Inner, ends: Option<Ends>, texts: Vec<Option<String>>) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| refuse("tokenizer", &e))?;
        let decoder = match inner.get_decoder() {
            None => Value::Null,
            Some(decoder) => serde_json::to_value(decoder)
                .map_err(|e| Error::invalid(format!("tokenizer decoder: {e}")))?,
        };
        let added = inner.get_added_tokens_decoder();
        let special = |id: u32| added.get(&id).is_some_and(|token| token.special);
        let pieces = Pieces::new(&decoder, texts, special)?;
        let bound = Bound::find(&inner, &pieces);
        Ok(Self { inner, pieces, ends, bound })
    }

    /// The tokens of `text`. Special tokens written in it count as such; `add_special` puts those around it that the
    /// model was trained with.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let by_file = add_special && self.ends.is_none();
        let encoding =
            self.inner.encode_fast(text, by_file).map_err(|e| refuse("tokenizer", &e))?;
        let mut ids = encoding.get_ids().to_vec();
        if let (true, Some(ends)) = (add_special, &self.ends) {
            if let Some(first) = ends.first {
                ids.insert(0, first);
            }
            ids.extend(ends.last);
        }
        Ok(ids)
    }

    /// The text of `ids`. Ids that the vocabulary lacks are left out; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let mut decoder = TextDecoder::new(&self.pieces);
        let mut text = String::new();
        for id in ids {
            if !(skip_special && self.is_special(*id)) {
                decoder.push(&self.pieces, *id, &mut text);
            }
        }
        decoder.flush(&self.pieces, &mut text);
        Ok(text)
    }

    /// The token as its vocabulary writes it, such as `Ġhello` or `<0x0A>`.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The bytes of text that a token stands for, wherever it stands.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.pieces.bytes(id).to_vec()
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Whether the token marks structure and is not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// The id of a token as its vocabulary writes it.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// At least this many tokens come of `text`; 0 where no bound is known. A glance at its bytes, so that what cannot
    /// fit is refused before it is tokenised.
    pub fn least_tokens(&self, text: &str) -> usize {
        self.bound.as_ref().map_or(0, |bound| bound.least(text))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("tokens", &self.vocab_size()).finish_non_exhaustive()
    }
}

fn refuse(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::invalid(format!("{what}: {error}"))
}
