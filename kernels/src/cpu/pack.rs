//! Weights in panels: vectors over outputs, with the k's of one step side by side in each 32-bit lane.
//!
//! A panel of `n` outputs is `[steps][n][pair]`, so a sum over k reads it from front to back. Outputs that fill up the
//! last panel, and the k that fills up the last step, are zero.

use std::ops::Range;

use half::{bf16, f16};

use crate::error::{KernelError, Result};
use crate::weights::{Elements, HostData, HostTensor, Int8Blocks};

use super::int8::{PackInt8, panel_bytes};
use super::isa::{Arch, Layout, Task};
use super::memory::{Arena, Memory};
use super::operands::Operands;
use super::pool::Pool;
use super::shared::SharedMut;

/// Outputs of the widest panel.
const MAX_PANEL: usize = 32;

/// A linear layer's weight, packed, with its bias.
#[derive(Debug)]
pub struct CpuLinear {
    memory: Memory,
    layout: Layout,
    panel_bytes: usize,
    /// Whether it is in 8 bits; otherwise in operands.
    pub(crate) int8: bool,
    /// Rows of the weight.
    pub(crate) out: usize,
    /// Columns of the weight.
    pub(crate) inputs: usize,
    /// One an output, filled up with zeros to whole panels; `None` is no bias.
    pub(crate) bias: Option<Vec<f32>>,
}

impl CpuLinear {
    /// Packs `parts`, stacked by rows.
    pub(crate) fn new(
        parts: &[HostTensor],
        bias: Option<&[f32]>,
        (arch, arena, pool): (&Arch, &mut Arena, &mut Pool),
    ) -> Result<Self> {
        let layout = arch.layout();
        let inputs = parts.first().map_or(0, |part| part.cols);
        let out = parts.iter().map(|part| part.rows).sum::<usize>();
        if let Some(part) = parts.iter().find(|part| part.cols != inputs) {
            return Err(shape("columns of stacked weights", inputs, part.cols));
        }
        if inputs == 0 || out == 0 {
            return Err(shape("elements of a weight", 1, 0));
        }
        if let Some(bias) = bias
            && bias.len() != out
        {
            return Err(shape("bias", out, bias.len()));
        }
        let panels = out.div_ceil(layout.panel());
        let in_int8 = |part: &HostTensor| matches!(part.data, HostData::Int8(_));
        let int8 = in_int8(&parts[0]);
        if parts.iter().any(|part| in_int8(part) != int8) {
            let what = "a stacked weight with some parts in int8".into();
            return Err(KernelError::Unsupported(what));
        }
        let bytes = if int8 {
            panel_bytes(layout.panel(), inputs)
        } else {
            layout.panel_elements(inputs) * layout.w_size
        };
        let mut memory = arena.take(panels * bytes, "weights")?;
        let start = SharedMut::new(memory.as_mut_ptr::<u8>());
        pool.run(panels, |panel, _| {
            if int8 {
                let mut rows = [None; MAX_PANEL];
                for (lane, row) in rows[..layout.panel()].iter_mut().enumerate() {
                    *row = source(parts, panel * layout.panel() + lane).and_then(|row| row.int8());
                }
                // SAFETY: each task writes a panel of its own, inside the zeroed memory taken.
                let to = unsafe {
                    std::slice::from_raw_parts_mut(start.get().add(panel * bytes), bytes)
                };
                PackInt8 { rows: &rows[..layout.panel()], k: inputs }.run(to);
                return;
            }
            let mut rows = [None; MAX_PANEL];
            for (lane, row) in rows[..layout.panel()].iter_mut().enumerate() {
                *row = source(parts, panel * layout.panel() + lane);
            }
            // SAFETY: each task writes a panel of its own, inside the memory taken.
            unsafe {
                let to = start.get().add(panel * bytes);
                arch.run(&PackPanel { rows: &rows[..layout.panel()], k: inputs, to });
            }
        })?;
        let bias = bias.map(|bias| {
            let mut padded = bias.to_vec();
            padded.resize(panels * layout.panel(), 0.0);
            padded
        });
        Ok(Self { memory, layout, panel_bytes: bytes, int8, out, inputs, bias })
    }

    /// Panels.
    pub(crate) fn panels(&self) -> usize {
        self.out.div_ceil(self.layout.panel())
    }

    /// Address of a panel.
    pub(crate) fn panel<W>(&self, panel: usize) -> *const W {
        debug_assert!(panel < self.panels(), "panel {panel} of {}", self.panels());
        self.memory.as_ptr::<u8>().wrapping_add(panel * self.panel_bytes).cast()
    }
}

/// A row of a host tensor, to become a lane of a panel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SourceRow<'a> {
    elements: Elements<'a>,
    cols: usize,
    row: usize,
}

impl<'a> SourceRow<'a> {
    /// Row `row` of `tensor`, which has it.
    pub(crate) fn new(tensor: &'a HostTensor, row: usize) -> Self {
        Self { elements: tensor.data.elements(), cols: tensor.cols, row }
    }

    /// Another row of the same tensor, which has it.
    pub(crate) fn at(self, row: usize) -> Self {
        Self { row, ..self }
    }

    fn int8(self) -> Option<(&'a Int8Blocks, usize)> {
        match self.elements {
            Elements::Int8(blocks) => Some((blocks, self.row)),
            _ => None,
        }
    }
}

/// Row `row` of the stacked parts; `None` past the last one.
fn source(parts: &[HostTensor], mut row: usize) -> Option<SourceRow<'_>> {
    for tensor in parts {
        if row < tensor.rows {
            return Some(SourceRow::new(tensor, row));
        }
        row -= tensor.rows;
    }
    None
}

/// Packs one panel.
#[derive(Debug)]
pub(crate) struct PackPanel<'a> {
    /// One a lane; `None` becomes zeros.
    pub(crate) rows: &'a [Option<SourceRow<'a>>],
    /// Columns of every row.
    pub(crate) k: usize,
    /// Takes `steps * lanes * pair` elements of `W`.
    pub(crate) to: *mut u8,
}

impl Task for PackPanel<'_> {
    #[inline(always)]
    unsafe fn run<O: Operands>(&self) {
        // Rows are read a few cache lines at a time, so that what they write stays in the first-level cache.
        const BLOCK: usize = 64;
        for first in (0..self.k).step_by(BLOCK) {
            let block = first..self.k.min(first + BLOCK);
            for (lane, row) in self.rows.iter().enumerate() {
                let at = (first / O::PAIR * self.rows.len() + lane) * O::PAIR;
                let to = self.to.cast::<O::W>().wrapping_add(at);
                let stride = self.rows.len() * O::PAIR;
                // SAFETY: within the panel, which the caller has for this task alone.
                unsafe {
                    match row {
                        Some(row) => row.pack::<O>(block.clone(), to, stride),
                        None => pack::<O, f32>(&[0.0; BLOCK][..block.len()], to, stride, O::to_w),
                    }
                }
            }
        }
    }
}

impl SourceRow<'_> {
    /// Packs some columns, a step every `stride` elements.
    ///
    /// # Safety
    /// `to` takes as many steps as the columns make.
    #[inline(always)]
    unsafe fn pack<O: Operands>(&self, columns: Range<usize>, to: *mut O::W, stride: usize) {
        let start = self.row * self.cols;
        let span = start + columns.start..start + columns.end;
        // SAFETY: the caller's promise.
        unsafe {
            match self.elements {
                Elements::F32(values) => pack::<O, _>(&values[span], to, stride, O::to_w),
                Elements::Bf16(values) => pack::<O, _>(&values[span], to, stride, O::bf16_to_w),
                Elements::F16(values) => {
                    pack::<O, _>(&values[span], to, stride, |value: f16| O::to_w(value.to_f32()));
                }
                Elements::F32Bytes(values) => {
                    let to_w = |value| O::to_w(f32::from_le_bytes(value));
                    pack::<O, _>(&values[span], to, stride, to_w);
                }
                Elements::Bf16Bytes(values) => {
                    let to_w = |value| O::bf16_to_w(bf16::from_le_bytes(value));
                    pack::<O, _>(&values[span], to, stride, to_w);
                }
                Elements::F16Bytes(values) => {
                    let to_w = |value| O::to_w(f16::from_le_bytes(value).to_f32());
                    pack::<O, _>(&values[span], to, stride, to_w);
                }
                Elements::Int8(_) => unreachable!("packed as bytes"),
            }
        }
    }
}

/// Packs neighbouring values of a lane, filling the last step up with zeros.
///
/// # Safety
/// As for [`SourceRow::pack`].
#[inline(always)]
unsafe fn pack<O: Operands, T: Copy>(
    values: &[T],
    to: *mut O::W,
    stride: usize,
    to_w: impl Fn(T) -> O::W,
) {
    let steps = values.chunks_exact(O::PAIR);
    let rest = steps.remainder();
    let whole = steps.len();
    for (step, values) in steps.enumerate() {
        // SAFETY: the caller's promise.
        let to = unsafe { to.add(step * stride) };
        if let &[first, second] = values {
            // Both are read before one is written, so that a pair is one load and one store.
            let (first, second) = (to_w(first), to_w(second));
            // SAFETY: the caller's promise.
            unsafe {
                to.write(first);
                to.add(1).write(second);
            }
            continue;
        }
        for (k, &value) in values.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { to.add(k).write(to_w(value)) };
        }
    }
    if !rest.is_empty() {
        for k in 0..O::PAIR {
            let value = rest.get(k).map_or(O::to_w(0.0), |&value| to_w(value));
            // SAFETY: the caller's promise.
            unsafe { to.add(whole * stride + k).write(value) };
        }
    }
}

/// A mismatch of lengths.
pub(crate) fn shape(what: &str, expected: usize, found: usize) -> KernelError {
    KernelError::Shape {
        what: what.into(),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}
