//! GGUF's metadata: keys and values, read through a cursor that never leaves the file.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::files::Source;

/// Bytes that the cursor fetches at a time.
const CHUNK: usize = 1 << 20;
/// Longest name or text.
const MAX_STRING: u64 = 1 << 26;
/// Elements of one array: tokens, merges.
const MAX_ARRAY: u64 = 1 << 25;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Any integer.
    Integer(i128),
    /// Any real number.
    Real(f64),
    /// A truth value.
    Flag(bool),
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Integers (truth values count as 0 and 1).
    Integers(Vec<i64>),
    /// Real numbers.
    Reals(Vec<f32>),
}

/// Keys and values of a GGUF file.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    values: HashMap<String, Value>,
}

impl Metadata {
    /// Reads `entries` keys with their values.
    pub(crate) fn read(cursor: &mut Cursor<'_>, entries: u64) -> Result<Self> {
        let mut values = HashMap::new();
        for _ in 0..entries {
            let key = cursor.string()?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind).map_err(|e| e.context(&key))?;
            if values.insert(key.clone(), value).is_some() {
                return Err(Error::invalid(format!("GGUF key {key} is there twice")));
            }
        }
        Ok(Self { values })
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// An integer that is not negative.
    pub(crate) fn count(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Integer(n)) => {
                u64::try_from(*n).map(Some).map_err(|_| refuse(key, "a number of things"))
            }
            Some(_) => Err(refuse(key, "an integer")),
        }
    }

    /// A finite number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Real(n)) if n.is_finite() => Ok(Some(*n)),
            Some(Value::Integer(n)) => Ok(Some(*n as f64)),
            Some(_) => Err(refuse(key, "a number")),
        }
    }

    /// A truth value.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Flag(flag)) => Ok(Some(*flag)),
            Some(_) => Err(refuse(key, "true or false")),
        }
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(refuse(key, "a text")),
        }
    }

    /// A list of texts.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Texts(texts)) => Ok(Some(texts)),
            Some(_) => Err(refuse(key, "a list of texts")),
        }
    }

    /// A list of integers.
    pub(crate) fn integers(&self, key: &str) -> Result<Option<&[i64]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Integers(integers)) => Ok(Some(integers)),
            Some(_) => Err(refuse(key, "a list of integers")),
        }
    }

    /// A list of real numbers.
    pub(crate) fn reals(&self, key: &str) -> Result<Option<&[f32]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Reals(reals)) => Ok(Some(reals)),
            Some(_) => Err(refuse(key, "a list of real numbers")),
        }
    }
}

fn refuse(key: &str, expected: &str) -> Error {
    Error::invalid(format!("GGUF key {key} is not {expected}"))
}

/// Reads a file from its start, forwards.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    source: &'a Source,
    chunk: Vec<u8>,
    /// Of the next byte in `chunk`.
    at: usize,
    /// Of `chunk`'s end in the file.
    end: u64,
}

impl<'a> Cursor<'a> {
    /// A cursor at the start of `source`.
    pub(crate) fn new(source: &'a Source) -> Result<Self> {
        Ok(Self { source, chunk: Vec::new(), at: 0, end: 0 })
    }

    /// Of the next byte in the file.
    pub(crate) fn position(&self) -> u64 {
        self.end - (self.chunk.len() - self.at) as u64
    }

    /// The next `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&[u8]> {
        if self.chunk.len() - self.at < len {
            let position = self.position();
            let left = self.source.len() - position;
            if left < len as u64 {
                return Err(Error::invalid(format!(
                    "{} ends inside its head: {len} bytes wanted at {position}, {left} left",
                    self.source.name()
                )));
            }
            let fetch = usize::try_from(left).unwrap_or(usize::MAX).min(len.max(CHUNK));
            self.chunk = self.source.read(position, fetch)?;
            self.at = 0;
            self.end = position + fetch as u64;
        }
        let from = self.at;
        self.at += len;
        Ok(&self.chunk[from..self.at])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of things of at least `size` bytes each that must still fit into the file.
    pub(crate) fn count(&mut self, limit: u64, size: u64, what: &str) -> Result<u64> {
        let count = self.u64()?;
        let left = self.source.len() - self.position();
        if count > limit || count.saturating_mul(size) > left {
            return Err(Error::invalid(format!(
                "{} claims {count} {what} in {left} bytes",
                self.source.name()
            )));
        }
        Ok(count)
    }

    /// A text; bytes that are not UTF-8 become U+FFFD.
    pub(crate) fn string(&mut self) -> Result<String> {
        let len = self.count(MAX_STRING, 1, "characters")?;
        let len = usize::try_from(len).map_err(|_| Error::invalid("text too long"))?;
        Ok(String::from_utf8_lossy(self.bytes(len)?).into_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            8 => Value::Text(self.string()?),
            7 => Value::Flag(self.array::<1>()? != [0]),
            6 => Value::Real(f64::from(f32::from_le_bytes(self.array()?))),
            12 => Value::Real(f64::from_le_bytes(self.array()?)),
            9 => self.list()?,
            10 => Value::Integer(i128::from(self.u64()?)),
            _ => Value::Integer(i128::from(self.integer(kind)?)),
        })
    }

    /// An integer of a kind that fits an `i64`.
    fn integer(&mut self, kind: u32) -> Result<i64> {
        Ok(match kind {
            0 => i64::from(u8::from_le_bytes(self.array()?)),
            1 => i64::from(i8::from_le_bytes(self.array()?)),
            2 => i64::from(u16::from_le_bytes(self.array()?)),
            3 => i64::from(i16::from_le_bytes(self.array()?)),
            4 => i64::from(self.u32()?),
            5 => i64::from(i32::from_le_bytes(self.array()?)),
            7 => i64::from(self.array::<1>()? != [0]),
            11 => i64::from_le_bytes(self.array()?),
            _ => return Err(Error::invalid(format!("GGUF value type {kind} is not supported"))),
        })
    }

    fn list(&mut self) -> Result<Value> {
        let kind = self.u32()?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 11 | 12 => 8,
            _ => {
                return Err(Error::invalid(format!("GGUF lists of type {kind} are not supported")));
            }
        };
        let count = self.count(MAX_ARRAY, size, "elements")?;
        Ok(match kind {
            8 => Value::Texts((0..count).map(|_| self.string()).collect::<Result<_>>()?),
            6 => Value::Reals(
                (0..count).map(|_| Ok(f32::from_le_bytes(self.array()?))).collect::<Result<_>>()?,
            ),
            12 => Value::Reals(
                (0..count)
                    .map(|_| Ok(f64::from_le_bytes(self.array()?) as f32))
                    .collect::<Result<_>>()?,
            ),
            _ => Value::Integers((0..count).map(|_| self.integer(kind)).collect::<Result<_>>()?),
        })
    }
}
