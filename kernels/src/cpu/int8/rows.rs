//! Activations in 8 bits: rounded from the operands of a product when it begins.

use crate::cpu::fetch::LINE;
use crate::cpu::isa::{Arch, Task};
use crate::cpu::memory::Memory;
use crate::cpu::operands::Operands;
use crate::cpu::pointwise::rows_of;
use crate::cpu::pool::Pool;
use crate::cpu::shared::SharedMut;
use crate::error::Result;
use crate::weights::{INT8_BLOCK, INT8_MOST, largest, nearest};

/// Elements that take less time to round than another thread takes to wake.
const PER_TASK: usize = 16 * 1024;
/// Rows this many bytes apart would all fall into the same few sets of the first-level cache.
const ALIAS: usize = 4096;

/// What a block of a row is multiplied with.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockScale {
    /// An element is `scale * value`.
    pub(super) scale: f32,
    /// 128 times the sum of the values: what sums over weights that are 128 too large have too much.
    pub(super) excess: i32,
}

/// Rounded rows: the values of all blocks, then the [`BlockScale`] of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int8Input {
    start: SharedMut<u8>,
    /// Bytes from one row to the next.
    pub(crate) stride: usize,
    /// Blocks of a row.
    pub(crate) blocks: usize,
}

impl Int8Input {
    /// Address of a row.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> *const u8 {
        self.start.get().wrapping_add(row * self.stride)
    }
}

/// Operands of a product: rows of `X`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    pub(crate) x: SharedMut<u8>,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) width: usize,
}

/// Memory for rounded rows, kept from product to product.
#[derive(Debug, Default)]
pub(crate) struct Int8Rows {
    memory: Option<Memory>,
}

impl Int8Rows {
    /// Rounds rows.
    pub(crate) fn quantize(
        &mut self,
        source: Source,
        (arch, pool): (&Arch, &mut Pool),
    ) -> Result<Int8Input> {
        let blocks = source.width.div_ceil(INT8_BLOCK);
        let mut stride = blocks * (INT8_BLOCK + size_of::<BlockScale>());
        stride = stride.next_multiple_of(LINE);
        if stride.is_multiple_of(ALIAS) {
            stride += LINE;
        }
        let start = self.room(source.rows * stride)?;
        let input = Int8Input { start: SharedMut::new(start), stride, blocks };
        let per_task = (PER_TASK / source.width.max(1)).max(1);
        pool.run(source.rows.div_ceil(per_task), |task, _| {
            let rows = rows_of(task, per_task, source.rows);
            let size = arch.layout().x_size;
            let quantize = Quantize {
                x: source.x.get().wrapping_add(rows.start * source.stride * size),
                x_stride: source.stride,
                rows: rows.len(),
                width: source.width,
                to: start_of(&input, rows.start),
                stride,
            };
            // SAFETY: the rows lie within the operands; what is written is this task's alone.
            unsafe { arch.run(&quantize) }
        })?;
        Ok(input)
    }

    fn room(&mut self, bytes: usize) -> Result<*mut u8> {
        if let Some(memory) = &mut self.memory
            && memory.len() >= bytes
        {
            return Ok(memory.as_mut_ptr());
        }
        let memory = Memory::new(bytes.next_power_of_two(), "activations in 8 bits")?;
        Ok(self.memory.insert(memory).as_mut_ptr())
    }
}

fn start_of(input: &Int8Input, row: usize) -> *mut u8 {
    input.row(row).cast_mut()
}

/// Rounds some rows.
struct Quantize {
    /// Elements of `X`.
    x: *const u8,
    x_stride: usize,
    rows: usize,
    width: usize,
    to: *mut u8,
    /// Bytes.
    stride: usize,
}

impl Task for Quantize {
    #[inline(always)]
    unsafe fn run<O: Operands>(&self) {
        let blocks = self.width.div_ceil(INT8_BLOCK);
        for row in 0..self.rows {
            // SAFETY: a row of `x` has `width` elements, one of `to` its blocks and their scales.
            unsafe {
                let x = self.x.cast::<O::X>().add(row * self.x_stride);
                let to = self.to.add(row * self.stride);
                let scales = to.add(blocks * INT8_BLOCK).cast::<BlockScale>();
                for block in 0..blocks {
                    let first = block * INT8_BLOCK;
                    let mut values = [0.0; INT8_BLOCK];
                    if self.width - first >= INT8_BLOCK {
                        let x = x.add(first).cast::<[O::X; INT8_BLOCK]>().read();
                        values = x.map(O::x_to_f32);
                    } else {
                        for (i, value) in values[..self.width - first].iter_mut().enumerate() {
                            *value = O::x_to_f32(*x.add(first + i));
                        }
                    }
                    let (rounded, scale) = quantize(&values);
                    to.add(first).cast::<[i8; INT8_BLOCK]>().write(rounded);
                    scales.add(block).write(scale);
                }
            }
        }
    }
}

/// Rounds a block. What is not finite makes the scale so.
#[inline(always)]
fn quantize(values: &[f32; INT8_BLOCK]) -> ([i8; INT8_BLOCK], BlockScale) {
    let most = largest(values);
    let inverse = if most > 0.0 { INT8_MOST / most } else { 0.0 };
    let mut rounded = [0; INT8_BLOCK];
    let mut sum = 0;
    for (to, x) in rounded.iter_mut().zip(values) {
        let value = nearest(x * inverse);
        *to = value;
        sum += i32::from(value);
    }
    (rounded, BlockScale { scale: most / INT8_MOST, excess: 128 * sum })
}
