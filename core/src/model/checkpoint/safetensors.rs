//! The safetensors format: a JSON header with the place of each tensor, then their bytes.
//!
//! The header's length is checked before it is read, its number of tensors while it is parsed, and every place before
//! anything is read from it: the tensors cover the rest of the file without holes or overlaps. A name may appear once.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use half::{bf16, f16};
use loraplex_kernels::{DType, HostData};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::floats;
use crate::error::{Error, Result};

/// Bytes before the header: its length.
pub(crate) const PREFIX: usize = 8;

/// What a header may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeaderLimits {
    /// Bytes of JSON.
    pub(crate) bytes: u64,
    /// Tensors.
    pub(crate) tensors: usize,
}

/// A tensor of the file.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Type of the elements.
    pub(crate) dtype: Dtype,
    /// Slowest dimension first.
    pub(crate) shape: Vec<usize>,
    /// Bytes of the file.
    pub(crate) span: Range<u64>,
}

/// The header of a file.
#[derive(Debug)]
pub(crate) struct Header {
    /// In the order in which the header names them.
    pub(crate) tensors: Vec<(String, Entry)>,
    by_name: HashMap<String, usize>,
}

impl Header {
    /// Length of the header of a file of `file_len` bytes that begins with `prefix`.
    pub(crate) fn length(prefix: &[u8], file_len: u64, limits: HeaderLimits) -> Result<usize> {
        let prefix: [u8; PREFIX] = prefix
            .get(..PREFIX)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| Error::invalid("safetensors header is missing"))?;
        let len = u64::from_le_bytes(prefix);
        if len > limits.bytes {
            return Err(Error::invalid(format!(
                "safetensors header of {len} bytes exceeds the limit of {}",
                limits.bytes
            )));
        }
        if len > file_len.saturating_sub(PREFIX as u64) {
            return Err(Error::invalid(format!(
                "safetensors header of {len} bytes exceeds the file of {file_len}"
            )));
        }
        usize::try_from(len).map_err(|_| Error::invalid("safetensors header too long"))
    }

    /// Parses the header of a file of `file_len` bytes.
    pub(crate) fn parse(json: &[u8], file_len: u64, limits: HeaderLimits) -> Result<Self> {
        let refuse =
            |error: &dyn fmt::Display| Error::invalid(format!("safetensors header: {error}"));
        let mut parser = serde_json::Deserializer::from_slice(json);
        let tensors = parser
            .deserialize_map(Tensors { limit: limits.tensors })
            .and_then(|tensors| parser.end().map(|()| tensors))
            .map_err(|error| refuse(&error))?;
        let mut sorted = tensors.clone();
        sorted.sort_by_key(|(_, tensor)| tensor.data_offsets);
        let covered = Metadata::new(None, sorted).map_err(|error| refuse(&error))?.data_len();
        let start = (PREFIX + json.len()) as u64;
        if start.checked_add(covered as u64) != Some(file_len) {
            return Err(Error::invalid(format!(
                "safetensors header: tensors cover {covered} bytes of {}",
                file_len.saturating_sub(start)
            )));
        }
        let mut found = Vec::with_capacity(tensors.len());
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (name, tensor) in tensors {
            let (from, to) = tensor.data_offsets;
            by_name.insert(name.clone(), found.len());
            let span = start + from as u64..start + to as u64;
            found.push((name, Entry { dtype: tensor.dtype, shape: tensor.shape, span }));
        }
        Ok(Self { tensors: found, by_name })
    }

    /// A tensor by name.
    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).and_then(|at| self.tensors.get(*at)).map(|(_, entry)| entry)
    }
}

/// One of the three types that weights come in.
pub(crate) fn float_type(dtype: Dtype) -> Result<DType> {
    match dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::BF16 => Ok(DType::Bf16),
        Dtype::F16 => Ok(DType::F16),
        other => Err(Error::invalid(format!(
            "dtype {other} is not supported; supported are BF16, F16 and F32"
        ))),
    }
}

/// The elements in `bytes`, of one of these types.
pub(crate) fn decode(dtype: Dtype, bytes: &[u8]) -> Result<HostData> {
    Ok(match float_type(dtype)? {
        DType::F32 => HostData::F32(floats(bytes, f32::from_le_bytes).collect()),
        DType::Bf16 => HostData::Bf16(floats(bytes, bf16::from_le_bytes).collect()),
        DType::F16 => HostData::F16(floats(bytes, f16::from_le_bytes).collect()),
    })
}

/// Collects tensors; a map type would let the last of two equal names win in silence.
struct Tensors {
    limit: usize,
}

impl<'de> Visitor<'de> for Tensors {
    type Value = Vec<(String, TensorInfo)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A>(self, mut map: A) -> std::result::Result<Self::Value, A::Error>
    where
        A: MapAccess<'de>,
    {
        let mut seen = std::collections::HashSet::new();
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("{name} is there twice")));
            }
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if tensors.len() == self.limit {
                return Err(A::Error::custom(format!("more than {} tensors", self.limit)));
            }
            tensors.push((name, map.next_value::<TensorInfo>()?));
        }
        Ok(tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeaderLimits = HeaderLimits { bytes: 4096, tensors: 3 };

    fn parse(json: &str, data: u64) -> Result<Header> {
        Header::parse(json.as_bytes(), (PREFIX + json.len()) as u64 + data, LIMITS)
    }

    fn tensor(name: &str, from: u64, to: u64) -> String {
        let len = (to - from) / 2;
        format!(r#""{name}":{{"dtype":"F16","shape":[{len}],"data_offsets":[{from},{to}]}}"#)
    }

    #[test]
    fn places_tensors_behind_the_header() {
        let json = format!("{{{},{}}}  ", tensor("b", 4, 8), tensor("a", 0, 4));
        let header = parse(&json, 8).unwrap();
        let start = (PREFIX + json.len()) as u64;
        assert_eq!(header.get("b").unwrap().span, start + 4..start + 8);
        assert_eq!(header.tensors[0].0, "b");
        assert!(header.get("c").is_none());
    }

    #[test]
    fn refuses_holes_doubles_and_crowds() {
        let check = |tensors: &[String], data: u64, expect: &str| {
            let error = parse(&format!("{{{}}}", tensors.join(",")), data).unwrap_err().message;
            assert!(error.contains(expect), "{error}");
        };
        check(&[tensor("a", 0, 4), tensor("a", 4, 8)], 8, "a is there twice");
        check(&[tensor("a", 0, 4), tensor("b", 6, 8)], 8, "invalid offset for tensor `b`");
        check(&[tensor("a", 0, 4), tensor("b", 2, 6)], 6, "invalid offset for tensor `b`");
        check(&[tensor("a", 0, 4)], 8, "cover 4 bytes of 8");
        check(&[tensor("a", 0, 8)], 4, "cover 8 bytes of 4");
        let crowd: Vec<_> = (0..4).map(|i| tensor(&format!("t{i}"), i * 4, i * 4 + 4)).collect();
        check(&crowd, 16, "more than 3 tensors");
        check(&[r#""a":{"dtype":"Q9","shape":[],"data_offsets":[0,0]}"#.into()], 0, "Q9");
        let huge = r#""a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}"#;
        check(&[huge.into()], 4, "overflow");
        assert!(parse("{} x", 0).is_err());
        assert!(parse("[]", 0).is_err());
    }

    #[test]
    fn the_length_is_checked_before_anything_is_read() {
        let length = |len: u64, file: u64| Header::length(&len.to_le_bytes(), file, LIMITS);
        assert_eq!(length(10, 18).unwrap(), 10);
        assert!(length(11, 18).unwrap_err().message.contains("exceeds the file"));
        assert!(length(4097, u64::MAX).unwrap_err().message.contains("limit of 4096"));
        assert!(length(u64::MAX, u64::MAX).is_err());
        assert!(Header::length(&[1, 2], 2, LIMITS).is_err());
    }
}
