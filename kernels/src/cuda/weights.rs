//! Weights, constants, activations and the cache as they lie on the device.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use super::error::{check, mismatch};
use super::gpu::Gpu;
use super::kernel_args::Norm;
use super::memory::{Block, padded};
use super::stack::SLOT_RANKS;
use super::staging::Staging;
use crate::args::KvShape;
use crate::backend::BufferKind;
use crate::error::Result;
use crate::weights::{Elements, HostTensor};

/// Fewest columns of a sum of squares.
pub(super) const NORM_COLUMNS: usize = 256;

/// Weight `[outputs, inputs]` in bf16, both rounded up to 8 with zeros, with a bias in f32 or none. Behind its outputs there is
/// room for A of a few adapters.
#[derive(Debug)]
pub struct Linear {
    pub(super) weight: Arc<Block>,
    pub(super) bias: Option<Vector>,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// Lanes of a slot of that room; 0 without any.
    pub(super) slot_lanes: usize,
    /// Outputs of each part.
    pub(super) widths: Vec<usize>,
}

impl Linear {
    /// With `slots` slots for adapters.
    pub(super) fn upload(
        gpu: &Arc<Gpu>,
        staging: &mut Staging,
        parts: &[HostTensor],
        bias: Option<&[f32]>,
        slots: usize,
    ) -> Result<Self> {
        let inputs = parts.first().map_or(0, |part| part.cols);
        let outputs = parts.iter().map(|part| part.rows).sum();
        for part in parts {
            check("columns of a stacked weight", inputs, part.cols)?;
        }
        check("bias", outputs, bias.map_or(outputs, <[f32]>::len))?;
        let widths: Vec<_> = parts.iter().map(|part| part.rows).collect();
        let slot_lanes = slot_lanes(&widths, slots);
        let (rows, stride) = (padded(outputs) + slots * slot_lanes, padded(inputs));
        let weight = Block::new(gpu, rows * stride * size_of::<bf16>(), "weights")?;
        let fill = |range: Range<usize>, out: &mut [u16]| {
            for (row, out) in range.zip(out.chunks_exact_mut(stride)) {
                fill_row(parts, row, out);
            }
        };
        // SAFETY: the block was made just above with that many elements.
        unsafe { staging.upload(weight.address(), (rows, stride), fill)? };
        let bias = bias.map(|bias| Vector::upload(gpu, staging, bias)).transpose()?;
        Ok(Self { weight: Arc::new(weight), bias, outputs, inputs, slot_lanes, widths })
    }

    /// Address of the bias, or 0.
    pub(super) fn bias(&self) -> u64 {
        self.bias.as_ref().map_or(0, |bias| bias.block.address())
    }
}

/// Lanes that each of `slots` slots has below parts of these widths. Kernels that multiply what comes of them take eight
/// columns at once: there are none where a part's are left over.
pub(super) fn slot_lanes(widths: &[usize], slots: usize) -> usize {
    let fits = widths.iter().all(|&width| padded(width) == width);
    if fits && slots > 0 { SLOT_RANKS * widths.len() } else { 0 }
}

/// Row `row` of the stacked parts in bf16, zeros behind it and below the last part.
fn fill_row(parts: &[HostTensor], mut row: usize, out: &mut [u16]) {
    let mut part = parts.iter();
    let found = part.find(|part| {
        let inside = row < part.rows;
        if !inside {
            row -= part.rows;
        }
        inside
    });
    let Some(part) = found else { return out.fill(0) };
    write_row(part, row, out);
}

/// Row `row` of a tensor in bf16, zeros behind it.
pub(super) fn write_row(tensor: &HostTensor, row: usize, out: &mut [u16]) {
    let span = row * tensor.cols..(row + 1) * tensor.cols;
    let (values, rest) = out.split_at_mut(tensor.cols);
    if let Elements::Int8(from) = tensor.data.elements() {
        let bits = |col| bf16::from_f32(from.at((row, col), tensor.cols)).to_bits();
        values.iter_mut().enumerate().for_each(|(col, to)| *to = bits(col));
    } else {
        write_elements(tensor, span, values);
    }
    rest.fill(0);
}

/// A whole tensor in bf16, rows of `stride` elements, zeros behind and below them.
pub(super) fn write_rows(tensor: &HostTensor, stride: usize, out: &mut [u16]) {
    let (rows, rest) = out.split_at_mut(tensor.rows * stride);
    if stride == tensor.cols && !matches!(tensor.data.elements(), Elements::Int8(_)) {
        // Rows may be short, B's have one element a rank: together they are one copy.
        write_elements(tensor, 0..rows.len(), rows);
    } else {
        let rows = rows.chunks_exact_mut(stride).enumerate();
        rows.for_each(|(row, out)| write_row(tensor, row, out));
    }
    rest.fill(0);
}

/// Some elements of a tensor that is not in 8 bits, as many as `out` takes.
fn write_elements(tensor: &HostTensor, span: Range<usize>, out: &mut [u16]) {
    let narrow = |x: f32| bf16::from_f32(x).to_bits();
    match tensor.data.elements() {
        Elements::Bf16(from) => write(&from[span], out, bf16::to_bits),
        Elements::Bf16Bytes(from) => write(&from[span], out, u16::from_le_bytes),
        Elements::F32(from) => write(&from[span], out, narrow),
        Elements::F32Bytes(from) => write(&from[span], out, |x| narrow(f32::from_le_bytes(x))),
        Elements::F16(from) => write(&from[span], out, |x| narrow(x.to_f32())),
        Elements::F16Bytes(from) => {
            write(&from[span], out, |x| narrow(f16::from_le_bytes(x).to_f32()));
        }
        Elements::Int8(_) => unreachable!("written by rows"),
    }
}

fn write<T: Copy>(from: &[T], out: &mut [u16], bits: impl Fn(T) -> u16) {
    out.iter_mut().zip(from).for_each(|(to, &x)| *to = bits(x));
}

/// Constants in f32, rounded up to 8 with zeros.
#[derive(Debug)]
pub struct Vector {
    pub(super) block: Block,
    pub(super) len: usize,
}

impl Vector {
    pub(super) fn upload(gpu: &Arc<Gpu>, staging: &mut Staging, values: &[f32]) -> Result<Self> {
        let len = padded(values.len());
        let block = Block::new(gpu, len * size_of::<f32>(), "constants")?;
        let fill = |range: Range<usize>, out: &mut [f32]| {
            for (i, out) in range.zip(out) {
                *out = values.get(i).copied().unwrap_or(0.0);
            }
        };
        // SAFETY: the block was made just above with that many elements.
        unsafe { staging.upload(block.address(), (len, 1), fill)? };
        Ok(Self { block, len: values.len() })
    }
}

/// Activations `[rows, stride]`: f32 for the residual, bf16 for operands. What lies past the width stays zero.
#[derive(Debug)]
pub struct Buffer {
    pub(super) block: Block,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
    kind: BufferKind,
    /// Where rows are yet to be divided.
    norm: Option<Squares>,
}

impl Buffer {
    pub(super) fn new(gpu: &Arc<Gpu>, kind: BufferKind, rows: usize, width: usize) -> Result<Self> {
        let stride = padded(width);
        let size = match kind {
            BufferKind::Residual => size_of::<f32>(),
            BufferKind::Operand => size_of::<bf16>(),
        };
        // A product may take a few rows more than the step has.
        let bytes = product_rows(rows) * stride * size;
        let block = Block::filled(gpu, bytes, 0, "activations")?;
        Ok(Self { block, rows, width, stride, kind, norm: None })
    }

    /// The address of an operand that is to be written.
    pub(super) fn output(&mut self, rows: usize, width: usize) -> Result<u64> {
        self.norm = None;
        self.of(BufferKind::Operand, rows, width)
    }

    /// The same where an RMS norm writes that leaves its division to whoever reads the operand.
    pub(super) fn norm_output(
        &mut self,
        gpu: &Arc<Gpu>,
        (rows, width): (usize, usize),
        eps: f32,
    ) -> Result<u64> {
        let address = self.of(BufferKind::Operand, rows, width)?;
        let bytes = self.rows * self.stride.div_ceil(NORM_COLUMNS) * size_of::<f32>();
        let block = match self.norm.take() {
            Some(squares) => squares.block,
            None => Block::new(gpu, bytes, "activations")?,
        };
        self.norm = Some(Squares { block, eps });
        Ok(address)
    }

    /// What rows of the operand have yet to be divided by, if blocks of so many columns have summed up squares.
    pub(super) fn norm(&self, columns: usize) -> Norm {
        self.norm.as_ref().map_or_else(Norm::default, |squares| Norm {
            squares: squares.block.address(),
            pieces: self.stride.div_ceil(columns.max(NORM_COLUMNS)) as u32,
            width: self.width as u32,
            eps: squares.eps,
            of_width: 1.0 / self.width as f32,
        })
    }

    /// The address, once it is known that the buffer is of that kind and width and has as many rows as the step.
    pub(super) fn of(&self, kind: BufferKind, rows: usize, width: usize) -> Result<u64> {
        if self.kind != kind {
            return Err(mismatch("kind of a buffer", kind, self.kind));
        }
        check("width of a buffer", width, self.width)?;
        if rows > self.rows {
            let expected = format!("at most {}", self.rows);
            return Err(mismatch("rows of a step", expected, rows));
        }
        Ok(self.block.address())
    }
}

/// Sums of squares of an operand's rows, `[rows, pieces]`, and what an RMS norm adds to their mean.
#[derive(Debug)]
struct Squares {
    block: Block,
    eps: f32,
}

/// Rows that a product runs over: a few more than asked where there are many, so that shapes repeat.
pub(super) const fn product_rows(rows: usize) -> usize {
    if rows <= 256 { rows } else { rows.next_multiple_of(64) }
}

/// K and V of all layers: `[layers, 2, blocks, kv_heads, block_size, d_padded]` in bf16.
#[derive(Debug)]
pub struct KvCache {
    block: Block,
    pub(super) shape: KvShape,
    pub(super) d_padded: usize,
}

impl KvCache {
    /// Filled with NaN, so that whoever reads what nobody wrote finds out.
    pub(super) fn new(gpu: &Arc<Gpu>, shape: KvShape) -> Result<Self> {
        let d_padded = padded(shape.head_dim);
        let tokens = shape.blocks * shape.block_size;
        let bytes = 2 * shape.layers * tokens * shape.kv_heads * d_padded * size_of::<bf16>();
        let block = Block::filled(gpu, bytes, 0xFF, "the KV cache")?;
        Ok(Self { block, shape, d_padded })
    }

    /// Addresses of K and V of a layer.
    pub(super) fn layer(&self, layer: usize) -> Result<(u64, u64)> {
        super::error::check_below("layer", layer, self.shape.layers)?;
        let half = (self.block.bytes() / self.shape.layers / 2) as u64;
        let k = self.block.address() + 2 * layer as u64 * half;
        Ok((k, k + half))
    }
}
