//! 8-bit weights in panels.
//!
//! A panel of `n` outputs is a list of blocks, each `n` scales in f16 and then `[steps][n][4]` values, so a sum over k
//! reads it from front to back. Outputs that fill up the last panel are zero, and so is the k that fills up the last
//! block.

use half::f16;

use crate::weights::{INT8_BLOCK, Int8Blocks};

use super::STEP;

/// Bytes of a panel of `n` outputs whose sums run over `k`.
pub(crate) const fn panel_bytes(n: usize, k: usize) -> usize {
    k.div_ceil(INT8_BLOCK) * block_bytes(n)
}

/// Bytes of a block of a panel of `n` outputs.
pub(super) const fn block_bytes(n: usize) -> usize {
    n * (size_of::<f16>() + INT8_BLOCK)
}

/// Where value `k` of lane `lane` lies in a block.
const fn place(n: usize, lane: usize, k: usize) -> usize {
    n * size_of::<f16>() + (k / STEP * n + lane) * STEP + k % STEP
}

/// Packs one panel.
#[derive(Debug)]
pub(crate) struct PackInt8<'a> {
    /// One a lane: a tensor's blocks, and which of its rows; `None` leaves zeros.
    pub(crate) rows: &'a [Option<(&'a Int8Blocks, usize)>],
    /// Columns of every row.
    pub(crate) k: usize,
}

impl PackInt8<'_> {
    /// Writes to `to`, which holds a panel of zeros.
    pub(crate) fn run(&self, to: &mut [u8]) {
        let (n, blocks) = (self.rows.len(), self.k.div_ceil(INT8_BLOCK));
        for (block, to) in to.chunks_exact_mut(block_bytes(n)).enumerate() {
            for (lane, row) in self.rows.iter().enumerate() {
                let Some((from, row)) = row else { continue };
                let index = row * blocks + block;
                let scale = from.scales[index].to_ne_bytes();
                to[lane * scale.len()..][..scale.len()].copy_from_slice(&scale);
                let values = &from.values[index * INT8_BLOCK..][..INT8_BLOCK];
                for (step, values) in values.chunks_exact(STEP).enumerate() {
                    let at = place(n, lane, step * STEP);
                    for (to, value) in to[at..at + STEP].iter_mut().zip(values) {
                        *to = value.cast_unsigned();
                    }
                }
            }
        }
    }
}

/// The element of a lane of a panel of `n` outputs.
///
/// # Safety
/// `panel` has the lane, and `k` elements after the first.
#[inline(always)]
pub(crate) unsafe fn at(panel: *const u8, n: usize, (lane, k): (usize, usize)) -> f32 {
    // SAFETY: within the block of `k`, which the caller has.
    unsafe {
        let block = panel.add(k / INT8_BLOCK * block_bytes(n));
        let scale = block.add(lane * size_of::<f16>()).cast::<f16>().read_unaligned();
        let value = block.add(place(n, lane, k % INT8_BLOCK)).cast::<i8>().read();
        scale.to_f32() * f32::from(value)
    }
}
