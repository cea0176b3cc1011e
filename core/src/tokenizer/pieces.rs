//! What each token stands for: its bytes, and how bytes become text.
//!
//! The decoders of a `tokenizer.json` are rules over whole lists of tokens. Those of decoder models come down to four
//! schemes over single tokens, which can be applied as tokens arrive; any other decoder is refused by name.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::fields::brief;

/// How the bytes of tokens become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// Every token is bytes; characters may cross tokens.
    Bytes,
    /// Tokens are text, some are single bytes. Up to `strip` characters like `strip_char` go from the start.
    Fallback { strip: usize, strip_char: char },
    /// Tokens are text; the first one loses its spaces.
    Unspaced,
    /// Tokens are words, with a space between two.
    Words,
}

/// The table of all tokens.
#[derive(Debug)]
pub(super) struct Pieces {
    scheme: Scheme,
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<u32>,
    flags: Vec<u8>,
}

const KNOWN: u8 = 1;
const SPECIAL: u8 = 2;
const BYTE: u8 = 4;

impl Pieces {
    /// The table for tokens by id and a decoder as `tokenizer.json` writes it.
    pub(super) fn new(
        decoder: &Value,
        texts: Vec<Option<String>>,
        special: impl Fn(u32) -> bool,
    ) -> Result<Self> {
        let rules = Rules::find(decoder)?;
        let mut pieces = Self {
            scheme: rules.scheme,
            bytes: Vec::new(),
            ends: Vec::with_capacity(texts.len()),
            flags: Vec::with_capacity(texts.len()),
        };
        let byte_of_char = byte_of_char();
        for (text, id) in texts.into_iter().zip(0..) {
            let mut flags = 0;
            if let Some(text) = text {
                flags |= KNOWN;
                flags |= rules.append(&text, &byte_of_char, &mut pieces.bytes);
            }
            if special(id) {
                flags |= SPECIAL;
            }
            let end = u32::try_from(pieces.bytes.len())
                .map_err(|_| Error::invalid("the vocabulary is larger than 4 GiB"))?;
            pieces.ends.push(end);
            pieces.flags.push(flags);
        }
        Ok(pieces)
    }

    pub(super) fn scheme(&self) -> Scheme {
        self.scheme
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Empty for an id that the vocabulary lacks.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends.get(id - 1).copied().unwrap_or(0) };
        self.bytes.get(start as usize..end as usize).unwrap_or_default()
    }

    pub(super) fn is_known(&self, id: u32) -> bool {
        self.has(id, KNOWN)
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.has(id, SPECIAL)
    }

    /// A token that is a single byte of a character.
    pub(super) fn is_byte(&self, id: u32) -> bool {
        self.has(id, BYTE)
    }

    pub(super) fn longest(&self) -> usize {
        (0..self.ends.len() as u32).map(|id| self.bytes(id).len()).max().unwrap_or(0)
    }

    /// The bytes that are tokens by themselves.
    pub(super) fn single_bytes(&self) -> [bool; 256] {
        let mut found = [false; 256];
        for id in 0..self.ends.len() as u32 {
            if let ([byte], false) = (self.bytes(id), self.is_special(id)) {
                found[usize::from(*byte)] = true;
            }
        }
        found
    }

    fn has(&self, id: u32, flag: u8) -> bool {
        self.flags.get(id as usize).is_some_and(|flags| flags & flag != 0)
    }
}

/// A decoder, taken apart.
struct Rules {
    scheme: Scheme,
    replace: Vec<(String, String)>,
    byte_tokens: bool,
}

impl Rules {
    fn find(decoder: &Value) -> Result<Self> {
        let mut steps = Vec::new();
        flatten(decoder, &mut steps);
        let plain = |scheme| Self { scheme, replace: Vec::new(), byte_tokens: false };
        match &steps[..] {
            [] => return Ok(plain(Scheme::Words)),
            [step] if kind(step) == "ByteLevel" => return Ok(plain(Scheme::Bytes)),
            [step] if kind(step) == "Metaspace" => {
                let replacement = step.get("replacement").and_then(Value::as_str).unwrap_or("▁");
                let never = step.get("prepend_scheme").is_some_and(|scheme| scheme == "never");
                let keep = Scheme::Fallback { strip: 0, strip_char: ' ' };
                return Ok(Self {
                    scheme: if never { keep } else { Scheme::Unspaced },
                    replace: vec![(replacement.into(), " ".into())],
                    byte_tokens: false,
                });
            }
            _ => {}
        }
        let mut rules = plain(Scheme::Fallback { strip: 0, strip_char: ' ' });
        let mut fused = false;
        for step in steps {
            let done = match kind(step) {
                "Replace" => !rules.byte_tokens && !fused && rules.add_replace(step).is_some(),
                "ByteFallback" => {
                    rules.byte_tokens = true;
                    !fused
                }
                "Fuse" => {
                    fused = true;
                    true
                }
                "Strip" => fused && rules.add_strip(step).is_some(),
                _ => false,
            };
            if !done {
                return Err(Error::invalid(format!(
                    "tokenizer decoder step {} is not supported here",
                    brief(step)
                )));
            }
        }
        Ok(rules)
    }

    fn add_replace(&mut self, step: &Value) -> Option<()> {
        let from = step.get("pattern")?.get("String")?.as_str().filter(|from| !from.is_empty())?;
        self.replace.push((from.into(), step.get("content")?.as_str()?.into()));
        Some(())
    }

    fn add_strip(&mut self, step: &Value) -> Option<()> {
        let strip = usize::try_from(step.get("start")?.as_u64()?).ok()?;
        let strip_char = step.get("content")?.as_str()?.chars().next()?;
        self.scheme = Scheme::Fallback { strip, strip_char };
        (step.get("stop")?.as_u64()? == 0).then_some(())
    }

    /// Appends a token's bytes and returns its flags.
    fn append(&self, text: &str, byte_of_char: &[Option<u8>], out: &mut Vec<u8>) -> u8 {
        if self.scheme == Scheme::Bytes {
            let byte = |c: char| byte_of_char.get(c as usize).copied().flatten();
            match text.chars().map(byte).collect::<Option<Vec<_>>>() {
                Some(bytes) => out.extend(bytes),
                // A token from outside the byte alphabet is text.
                None => out.extend_from_slice(text.as_bytes()),
            }
            return 0;
        }
        let mut text = text.to_owned();
        for (from, to) in &self.replace {
            text = text.replace(from, to);
        }
        if self.byte_tokens
            && let Some(byte) = byte_token(&text)
        {
            out.push(byte);
            return BYTE;
        }
        out.extend_from_slice(text.as_bytes());
        0
    }
}

/// The byte of a token such as `<0x0A>`.
pub(super) fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|d| d.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

fn kind(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or("unnamed")
}

fn flatten<'a>(decoder: &'a Value, steps: &mut Vec<&'a Value>) {
    match decoder.get("decoders").and_then(Value::as_array) {
        Some(inner) => inner.iter().for_each(|step| flatten(step, steps)),
        None if decoder.is_null() => {}
        None => steps.push(decoder),
    }
}

/// GPT-2's printable stand-ins for bytes, by character: the printable ones stand for themselves, the others for the
/// bytes that are left, in order, from U+0100.
fn byte_of_char() -> Vec<Option<u8>> {
    let mut table = vec![None; 0x200];
    let mut next = 0x100;
    for byte in 0..=u8::MAX {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let at = if printable { usize::from(byte) } else { next };
        if !printable {
            next += 1;
        }
        table[at] = Some(byte);
    }
    table
}
