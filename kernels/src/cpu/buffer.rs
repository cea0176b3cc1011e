//! Activations: rows of f32 (the residual stream) or of operands.

use crate::backend::BufferKind;
use crate::error::Result;

use super::isa::Layout;
use super::memory::Memory;
use super::pack::shape;

/// Elements that a row is rounded up to: a panel of the widest vectors, and a cache line of the narrowest elements.
const ROUND: usize = 32;
/// Rows this many bytes apart would all fall into the same few sets of the first-level cache.
const ALIAS: usize = 4096;

/// Activations `[max rows, width]`. Rows are padded; the padding is zero and stays so.
#[derive(Debug)]
pub struct CpuBuffer {
    memory: Memory,
    kind: BufferKind,
    rows: usize,
    pub(crate) width: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    element: usize,
}

impl CpuBuffer {
    pub(crate) fn new(
        layout: Layout,
        kind: BufferKind,
        (rows, width): (usize, usize),
    ) -> Result<Self> {
        let element = match kind {
            BufferKind::Residual => size_of::<f32>(),
            BufferKind::Operand => layout.x_size,
        };
        let mut stride = width.next_multiple_of(ROUND).max(ROUND);
        if (stride * element).is_multiple_of(ALIAS) {
            stride += ROUND;
        }
        let memory = Memory::new(rows * stride * element, "activations")?;
        Ok(Self { memory, kind, rows, width, stride, element })
    }

    /// Fails unless it is of this kind, holds `rows` rows and is `width` wide.
    pub(crate) fn check(&self, kind: BufferKind, rows: usize, width: usize) -> Result<()> {
        if self.kind != kind {
            return Err(crate::KernelError::Unsupported(format!("{kind:?} in {:?}", self.kind)));
        }
        if self.width != width {
            return Err(shape("width of a buffer", width, self.width));
        }
        if self.rows < rows {
            return Err(shape("rows of a buffer", rows, self.rows));
        }
        Ok(())
    }

    /// Address of a row.
    pub(crate) fn row(&self, row: usize) -> *const u8 {
        self.memory.as_ptr::<u8>().wrapping_add(row * self.stride * self.element)
    }

    /// Address of a row, for writing.
    pub(crate) fn row_mut(&mut self, row: usize) -> *mut u8 {
        self.memory.as_mut_ptr::<u8>().wrapping_add(row * self.stride * self.element)
    }
}
