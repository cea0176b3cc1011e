//! Weights on the host: what loaders produce and what backends pack.

mod bytes;
mod int8;
mod memory;
mod shared;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use half::{bf16, f16};

pub use bytes::AlignedBytes;
pub use int8::{INT8_BLOCK, Int8Blocks};
pub(crate) use int8::{INT8_MOST, largest, nearest};
pub use memory::AdapterMemory;
pub use shared::SharedBytes;

use crate::error::{KernelError, Result};

/// Element types of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// Brain float: the upper half of an f32.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// Elements of a host tensor, in row-major order.
#[derive(Debug, Clone)]
pub enum HostData {
    /// Single precision.
    F32(Vec<f32>),
    /// Brain float.
    Bf16(Vec<bf16>),
    /// Half precision.
    F16(Vec<f16>),
    /// As a file has them: little-endian, at any address.
    Stored(DType, SharedBytes),
    /// 8 bits; rows are filled up to whole blocks.
    Int8(Int8Blocks),
}

/// The elements of a [`HostData`], borrowed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Elements<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    F32Bytes(&'a [[u8; 4]]),
    Bf16Bytes(&'a [[u8; 2]]),
    F16Bytes(&'a [[u8; 2]]),
    Int8(&'a Int8Blocks),
}

impl HostData {
    pub(crate) fn elements(&self) -> Elements<'_> {
        match self {
            Self::F32(values) => Elements::F32(values),
            Self::Bf16(values) => Elements::Bf16(values),
            Self::F16(values) => Elements::F16(values),
            Self::Stored(DType::F32, bytes) => Elements::F32Bytes(bytes.as_slice().as_chunks().0),
            Self::Stored(DType::Bf16, bytes) => Elements::Bf16Bytes(bytes.as_slice().as_chunks().0),
            Self::Stored(DType::F16, bytes) => Elements::F16Bytes(bytes.as_slice().as_chunks().0),
            Self::Int8(blocks) => Elements::Int8(blocks),
        }
    }

    /// Whether none is NaN, infinite or so large that it becomes infinite in bf16, as which a device may keep it.
    pub fn is_finite(&self) -> bool {
        match self.elements() {
            Elements::F32(values) => all(values, is_finite_in_bf16),
            Elements::Bf16(values) => all(values, |value| value.is_finite()),
            Elements::F16(values) => all(values, |value| value.is_finite()),
            Elements::F32Bytes(values) => {
                all(values, |value| is_finite_in_bf16(f32::from_le_bytes(value)))
            }
            Elements::Bf16Bytes(values) => {
                all(values, |value| bf16::from_le_bytes(value).is_finite())
            }
            Elements::F16Bytes(values) => {
                all(values, |value| f16::from_le_bytes(value).is_finite())
            }
            Elements::Int8(blocks) => all(&blocks.scales, |value| value.is_finite()),
        }
    }
}

/// Half a step above the largest bf16, it and what lies beyond round to infinity.
fn is_finite_in_bf16(value: f32) -> bool {
    const TOO_LARGE: u32 = 0x7F7F_8000;
    value.abs().to_bits() < TOO_LARGE
}

/// Whether `holds` of all of them; without an early end inside a block, so that a block is a few vector instructions.
fn all<T: Copy>(values: &[T], holds: impl Fn(T) -> bool) -> bool {
    let block = |values: &[T]| values.iter().fold(true, |good, &value| good & holds(value));
    values.chunks(1024).all(block)
}

/// A matrix (or a vector: one row) on the host, as a checkpoint stores it: `[rows, cols]`, row-major.
#[derive(Debug, Clone)]
pub struct HostTensor {
    /// Rows; outputs of a linear layer.
    pub rows: usize,
    /// Columns; inputs of a linear layer.
    pub cols: usize,
    /// `rows * cols` elements.
    pub data: HostData,
}

impl HostTensor {
    /// Wraps single-precision values. Fails when the count is not `rows * cols`.
    pub fn from_f32(rows: usize, cols: usize, values: Vec<f32>) -> Result<Self> {
        Self::new(rows, cols, HostData::F32(values))
    }

    /// Wraps elements of any type. Fails when the count is not `rows * cols`, in whole blocks where they come in blocks.
    pub fn new(rows: usize, cols: usize, data: HostData) -> Result<Self> {
        let (mut expected, mut unit) = (rows * cols, "elements");
        let found = match &data {
            HostData::F32(v) => v.len(),
            HostData::Bf16(v) => v.len(),
            HostData::F16(v) => v.len(),
            HostData::Stored(dtype, bytes) => {
                (expected, unit) = (expected * dtype.size(), "bytes");
                bytes.len()
            }
            HostData::Int8(blocks) => {
                expected = rows * cols.next_multiple_of(INT8_BLOCK);
                blocks.values.len().min(blocks.scales.len() * INT8_BLOCK)
            }
        };
        if found != expected {
            return Err(KernelError::Shape {
                what: "host tensor".into(),
                expected: format!("{expected} {unit} for [{rows}, {cols}]"),
                found: format!("{found}"),
            });
        }
        Ok(Self { rows, cols, data })
    }

    /// The element at `index` in row-major order, widened.
    pub fn at(&self, index: usize) -> f32 {
        match self.data.elements() {
            Elements::F32(v) => v[index],
            Elements::Bf16(v) => v[index].to_f32(),
            Elements::F16(v) => v[index].to_f32(),
            Elements::F32Bytes(v) => f32::from_le_bytes(v[index]),
            Elements::Bf16Bytes(v) => bf16::from_le_bytes(v[index]).to_f32(),
            Elements::F16Bytes(v) => f16::from_le_bytes(v[index]).to_f32(),
            Elements::Int8(v) => v.at((index / self.cols, index % self.cols), self.cols),
        }
    }

    /// Writes row `row`, widened, to `out`, which holds `cols` elements.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) {
        let span = row * self.cols..(row + 1) * self.cols;
        match self.data.elements() {
            Elements::F32(v) => out.copy_from_slice(&v[span]),
            Elements::Bf16(v) => widen(&v[span], out, |x| x.to_f32()),
            Elements::F16(v) => widen(&v[span], out, |x| x.to_f32()),
            Elements::F32Bytes(v) => widen(&v[span], out, f32::from_le_bytes),
            Elements::Bf16Bytes(v) => widen(&v[span], out, |x| bf16::from_le_bytes(x).to_f32()),
            Elements::F16Bytes(v) => widen(&v[span], out, |x| f16::from_le_bytes(x).to_f32()),
            Elements::Int8(v) => {
                out.iter_mut().enumerate().for_each(|(col, to)| *to = v.at((row, col), self.cols));
            }
        }
    }

    /// The same matrix in 8 bits, made by `threads` threads; as it is where it is in 8 bits already.
    pub fn to_int8(&self, threads: usize) -> Self {
        if matches!(self.data, HostData::Int8(_)) {
            return self.clone();
        }
        let read = |row: usize, out: &mut [f32]| self.row_f32(row, out);
        let blocks = Int8Blocks::quantize((self.rows, self.cols), threads, read);
        Self { rows: self.rows, cols: self.cols, data: HostData::Int8(blocks) }
    }

    /// All elements, widened.
    pub fn to_f32(&self) -> Vec<f32> {
        (0..self.rows * self.cols).map(|i| self.at(i)).collect()
    }
}

fn widen<T: Copy>(from: &[T], to: &mut [f32], convert: impl Fn(T) -> f32) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = convert(from);
    }
}

/// A linear module of a decoder layer that an adapter can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// `self_attn.q_proj`
    Q,
    /// `self_attn.k_proj`
    K,
    /// `self_attn.v_proj`
    V,
    /// `self_attn.o_proj`
    O,
    /// `mlp.gate_proj`
    Gate,
    /// `mlp.up_proj`
    Up,
    /// `mlp.down_proj`
    Down,
}

impl Part {
    /// Every part, in the order of [`Site`] and of stacking within a site.
    pub const ALL: [Self; 7] =
        [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The stacked matrix that this part lies in.
    pub const fn site(self) -> Site {
        match self {
            Self::Q | Self::K | Self::V => Site::Qkv,
            Self::O => Site::O,
            Self::Gate | Self::Up => Site::GateUp,
            Self::Down => Site::Down,
        }
    }

    /// The part's place within its site.
    pub const fn index(self) -> usize {
        match self {
            Self::Q | Self::O | Self::Gate | Self::Down => 0,
            Self::K | Self::Up => 1,
            Self::V => 2,
        }
    }
}

/// A stacked matrix of a decoder layer: its parts read the same input, so one shrink serves all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Site {
    /// q, k and v.
    Qkv,
    /// The attention's output projection.
    O,
    /// gate and up.
    GateUp,
    /// The MLP's output projection.
    Down,
}

impl Site {
    /// Every site of a layer.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];

    /// Position of this site of `layer` in a list of all sites of a model.
    pub const fn slot(self, layer: usize) -> usize {
        layer * 4 + self as usize
    }

    /// The parts stacked in this site, in order.
    pub const fn parts(self) -> &'static [Part] {
        match self {
            Self::Qkv => &[Part::Q, Part::K, Part::V],
            Self::O => &[Part::O],
            Self::GateUp => &[Part::Gate, Part::Up],
            Self::Down => &[Part::Down],
        }
    }
}

/// One adapted module: `y += scale * (x Aᵀ) Bᵀ`.
#[derive(Debug, Clone)]
pub struct LoraPart {
    /// Decoder layer.
    pub layer: usize,
    /// Module of that layer.
    pub part: Part,
    /// `alpha / r`, or `alpha / sqrt(r)` for rsLoRA (PEFT's `LoraLayer.scaling`).
    pub scale: f32,
    /// `[r, in]`
    pub a: HostTensor,
    /// `[out, r]`
    pub b: HostTensor,
}

impl LoraPart {
    /// The rank: rows of A.
    pub fn rank(&self) -> usize {
        self.a.rows
    }
}

/// All adapted modules of one adapter; at most one entry for a layer and part.
#[derive(Debug, Clone, Default)]
pub struct LoraWeights {
    /// In any order.
    pub parts: Vec<LoraPart>,
}

/// An adapter in the layout of one backend: a single block of memory, so that making it resident is one copy.
///
/// A backend's [`AdapterPacker`](crate::AdapterPacker) makes it on a loader thread; nobody else reads `bytes`.
#[derive(Debug)]
pub struct PackedAdapter {
    /// Aligned to 64 bytes.
    pub bytes: AlignedBytes,
    /// Indexed by [`Site::slot`]; `None` where the adapter leaves the site alone.
    pub sites: Vec<Option<PackedSite>>,
    /// Largest rank of any part.
    pub max_rank: usize,
}

/// Where the matrices of one site lie in [`PackedAdapter::bytes`].
#[derive(Debug, Clone, Default)]
pub struct PackedSite {
    /// Byte offset of the stacked A matrices.
    pub a: usize,
    /// Lanes of the shrink's result: the parts' ranks, each rounded up as the backend needs it.
    pub lanes: usize,
    /// In the order of [`Site::parts`]; rank 0 where the adapter leaves the part alone.
    pub parts: [PackedPart; 3],
}

/// One part of a [`PackedSite`].
#[derive(Debug, Clone, Copy, Default)]
pub struct PackedPart {
    /// The part's own rank; 0 means untouched.
    pub rank: usize,
    /// First lane of this part in the shrink's result.
    pub lane: usize,
    /// Multiplies the shrink's result, in f32, before it is rounded to the operand type.
    pub scale: f32,
    /// Byte offset of B.
    pub b: usize,
}
