//! Tokens to text as they arrive: whole characters only, at a cost that depends on the new token alone.

use std::sync::Arc;

use super::Tokenizer;
use super::pieces::{Pieces, Scheme};

/// The text of one sequence of tokens, piece by piece.
///
/// The pieces and [`flush`](Self::flush) together are what [`Tokenizer::decode`] makes of all tokens at once.
#[derive(Debug)]
pub struct TokenStream {
    tokenizer: Arc<Tokenizer>,
    decoder: TextDecoder,
    skip_special: bool,
}

impl TokenStream {
    /// A stream whose first token starts a text.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let decoder = TextDecoder::new(&tokenizer.pieces);
        Self { tokenizer, decoder, skip_special }
    }

    /// A stream whose first token goes on with a text: a space at its start is kept.
    pub fn continuing(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let decoder = TextDecoder { started: true, strip: 0, pending: Vec::new() };
        Self { tokenizer, decoder, skip_special }
    }

    /// Takes the next token. `None` when it completes no character.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.skip_special && self.tokenizer.is_special(id) {
            return None;
        }
        let mut text = String::new();
        self.decoder.push(&self.tokenizer.pieces, id, &mut text);
        Some(text).filter(|text| !text.is_empty())
    }

    /// Ends the text: bytes of a character that never came become U+FFFD.
    pub fn flush(&mut self) -> Option<String> {
        let mut text = String::new();
        self.decoder.flush(&self.tokenizer.pieces, &mut text);
        Some(text).filter(|text| !text.is_empty())
    }
}

/// The state between two tokens.
#[derive(Debug)]
pub(super) struct TextDecoder {
    /// A token has come.
    started: bool,
    /// Characters that still go from the start.
    strip: usize,
    /// The first bytes of a character: three at most.
    pending: Vec<u8>,
}

impl TextDecoder {
    pub(super) fn new(pieces: &Pieces) -> Self {
        let strip = match pieces.scheme() {
            Scheme::Fallback { strip, .. } => strip,
            Scheme::Bytes | Scheme::Unspaced | Scheme::Words => 0,
        };
        Self { started: false, strip, pending: Vec::new() }
    }

    /// Appends to `out` what `id` adds to the text.
    pub(super) fn push(&mut self, pieces: &Pieces, id: u32, out: &mut String) {
        if !pieces.is_known(id) {
            return;
        }
        let bytes = pieces.bytes(id);
        let from = out.len();
        match pieces.scheme() {
            Scheme::Bytes => self.take(bytes, false, out),
            Scheme::Fallback { strip_char, .. } => {
                if pieces.is_byte(id) {
                    self.take(bytes, true, out);
                } else {
                    self.give_up(true, out);
                    out.push_str(&String::from_utf8_lossy(bytes));
                }
                self.strip_start(strip_char, from, out);
            }
            Scheme::Unspaced => {
                let text = String::from_utf8_lossy(bytes);
                out.extend(text.chars().filter(|c| self.started || *c != ' '));
            }
            Scheme::Words => {
                if self.started {
                    out.push(' ');
                }
                out.push_str(&String::from_utf8_lossy(bytes));
            }
        }
        self.started = true;
    }

    /// Appends to `out` what is left at the end.
    pub(super) fn flush(&mut self, pieces: &Pieces, out: &mut String) {
        self.give_up(pieces.scheme() != Scheme::Bytes, out);
    }

    /// Appends the characters that `bytes` complete and keeps the start of another. `each` writes a U+FFFD for every
    /// byte that is no text, otherwise one for each run that could have been one character.
    fn take(&mut self, bytes: &[u8], each: bool, out: &mut String) {
        let joined;
        let mut rest = if self.pending.is_empty() {
            bytes
        } else {
            self.pending.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.pending);
            &joined
        };
        while !rest.is_empty() {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => return out.push_str(text),
                Err(error) => error,
            };
            let (good, bad) = rest.split_at(error.valid_up_to());
            out.push_str(&String::from_utf8_lossy(good));
            let Some(len) = error.error_len() else {
                self.pending = bad.to_vec();
                return;
            };
            let marks = if each { len } else { 1 };
            out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, marks));
            rest = &bad[len..];
        }
    }

    /// Appends U+FFFD in place of the bytes that wait for the rest of their character.
    fn give_up(&mut self, each: bool, out: &mut String) {
        let marks = if each { self.pending.len() } else { self.pending.len().min(1) };
        out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, marks));
        self.pending.clear();
    }

    /// Takes the text's first characters out of what `out` holds from `from`.
    fn strip_start(&mut self, strip: char, from: usize, out: &mut String) {
        while self.strip > 0 {
            match out[from..].chars().next() {
                None => return,
                Some(c) if c == strip => {
                    out.remove(from);
                    self.strip -= 1;
                }
                Some(_) => self.strip = 0,
            }
        }
    }
}
