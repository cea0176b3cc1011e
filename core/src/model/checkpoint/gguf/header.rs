//! The head of a GGUF file: metadata and the list of tensors.
//!
//! Every length is compared with what is left of the file before memory is reserved for it, and every tensor's place
//! is checked when the file is opened. Reading a tensor later can fail only because the file changed.

use std::collections::HashMap;
use std::ops::Range;

use super::types::BlockType;
use super::value::{Cursor, Metadata};
use crate::error::{Error, Result};
use crate::files::Source;

const MAGIC: &[u8; 4] = b"GGUF";
const MAX_TENSORS: u64 = 1 << 20;
const MAX_METADATA: u64 = 1 << 16;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Metadata and places of tensors.
#[derive(Debug)]
pub(crate) struct Header {
    /// Keys and values.
    pub(crate) metadata: Metadata,
    tensors: HashMap<String, TensorInfo>,
}

/// Where a tensor lies and what it looks like.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorInfo {
    /// Product of all dimensions but the fastest.
    pub(crate) rows: usize,
    /// The fastest dimension.
    pub(crate) cols: usize,
    /// Dimensions that the file gives it.
    pub(crate) dimensions: u32,
    /// How its elements are stored.
    pub(crate) kind: BlockType,
    /// Bytes of the file.
    pub(crate) span: Range<u64>,
}

impl Header {
    /// Reads and checks the head of `source`.
    pub(crate) fn read(source: &Source) -> Result<Self> {
        let mut cursor = Cursor::new(source)?;
        if cursor.bytes(4)? != MAGIC {
            return Err(Error::invalid(format!("{} is not a GGUF file", source.name())));
        }
        let version = cursor.u32()?;
        if !(2..=3).contains(&version) {
            return Err(Error::invalid(format!(
                "GGUF version {version} is not supported, only 2 and 3"
            )));
        }
        let tensors = cursor.count(MAX_TENSORS, 24, "tensors")?;
        let entries = cursor.count(MAX_METADATA, 13, "metadata entries")?;
        let metadata = Metadata::read(&mut cursor, entries)?;
        let mut found = Vec::new();
        for _ in 0..tensors {
            found.push(RawTensor::read(&mut cursor)?);
        }
        let alignment = metadata.count("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
        if alignment == 0 || alignment > MAX_ALIGNMENT {
            return Err(Error::invalid(format!("GGUF alignment {alignment} is out of range")));
        }
        let start = cursor.position().next_multiple_of(alignment);
        let mut tensors = HashMap::with_capacity(found.len());
        for raw in found {
            let info = raw.place(start, source.len())?;
            if tensors.insert(raw.name.clone(), info).is_some() {
                return Err(Error::invalid(format!("tensor {} is there twice", raw.name)));
            }
        }
        Ok(Self { metadata, tensors })
    }

    /// A tensor by its name in the file.
    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }
}

/// A tensor as the file describes it.
struct RawTensor {
    name: String,
    /// Fastest first.
    dimensions: Vec<u64>,
    kind: BlockType,
    offset: u64,
}

impl RawTensor {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        let name = cursor.string()?;
        let count = cursor.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&count) {
            return Err(Error::invalid(format!("tensor {name} has {count} dimensions")));
        }
        let dimensions = (0..count).map(|_| cursor.u64()).collect::<Result<Vec<_>>>()?;
        let kind = BlockType::find(cursor.u32()?).map_err(|e| e.context(&name))?;
        Ok(Self { name, dimensions, kind, offset: cursor.u64()? })
    }

    /// Checks the tensor's extent against a file of `file_len` bytes whose tensors begin at `start`.
    fn place(&self, start: u64, file_len: u64) -> Result<TensorInfo> {
        let refuse = |why: &str| {
            Error::invalid(format!("tensor {} of shape {:?} {why}", self.name, self.dimensions))
        };
        let size = |n: &u64| usize::try_from(*n).ok().filter(|n| *n > 0);
        let cols = self.dimensions.first().and_then(size).ok_or_else(|| refuse("is empty"))?;
        let rows = self
            .dimensions
            .iter()
            .skip(1)
            .try_fold(1usize, |product, n| size(n).and_then(|n| product.checked_mul(n)));
        let rows = rows.ok_or_else(|| refuse("is empty or too large"))?;
        let bytes = self
            .kind
            .bytes(cols)
            .ok_or_else(|| refuse("does not hold whole blocks in a row"))?
            .checked_mul(rows)
            .filter(|_| rows.checked_mul(cols).is_some())
            .ok_or_else(|| refuse("is too large"))?;
        let begin = start.checked_add(self.offset);
        let end = begin.and_then(|begin| begin.checked_add(bytes as u64));
        match (begin, end) {
            (Some(begin), Some(end)) if end <= file_len => Ok(TensorInfo {
                rows,
                cols,
                dimensions: self.dimensions.len() as u32,
                kind: self.kind,
                span: begin..end,
            }),
            _ => Err(refuse("lies beyond the end of the file")),
        }
    }
}
