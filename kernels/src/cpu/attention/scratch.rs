//! What a task keeps between chunks, and within one.

use crate::cpu::isa::Layout;
use crate::cpu::kv::Geometry;
use crate::cpu::operands::Operands;
use crate::cpu::simd::Simd;

use super::{CHUNK, MAX_ROWS};

/// Blocks of a chunk.
pub(super) fn chunk_blocks(geometry: &Geometry) -> usize {
    (CHUNK / (geometry.groups * geometry.lanes)).max(1)
}

/// Bytes of scratch that a task needs.
pub(crate) fn scratch_bytes(geometry: &Geometry, layout: Layout) -> usize {
    let lanes = chunk_blocks(geometry) * geometry.groups * geometry.lanes;
    let q = geometry.steps * geometry.pair * layout.x_size;
    let row = q + lanes * (4 + layout.x_size) + geometry.v_width * 4 + layout.lanes * 4 + 4;
    MAX_ROWS * row + geometry.v_width * geometry.pair * layout.w_size + 8 * 64
}

/// Parts of the scratch. `m` counts pairs of row and head.
pub(super) struct Scratch<O: Operands> {
    /// `[m, d]`
    pub(super) q: *mut O::X,
    /// `[m, lanes]`
    pub(super) scores: *mut f32,
    /// `[m, lanes]`
    pub(super) weights: *mut O::X,
    /// `[m, v_width]`
    pub(super) sums: *mut f32,
    /// Sum of weights, `[m, LANES]`.
    pub(super) total: *mut f32,
    /// Largest score, `[m]`.
    pub(super) largest: *mut f32,
    /// The last values of a block that ends in the middle of a pair.
    pub(super) tail: *mut O::W,
    /// Lanes of a chunk.
    pub(super) lanes: usize,
}

impl<O: Operands> Scratch<O> {
    #[inline(always)]
    pub(super) fn new(mut start: *mut u8, geometry: &Geometry) -> Self {
        let mut take = |bytes: usize| {
            let region = start;
            start = start.wrapping_add(bytes.next_multiple_of(64));
            region
        };
        let lanes = chunk_blocks(geometry) * geometry.groups * geometry.lanes;
        let f32s = |n: usize| MAX_ROWS * n * 4;
        Self {
            q: take(MAX_ROWS * geometry.steps * geometry.pair * size_of::<O::X>()).cast(),
            scores: take(f32s(lanes)).cast(),
            weights: take(MAX_ROWS * lanes * size_of::<O::X>()).cast(),
            sums: take(f32s(geometry.v_width)).cast(),
            total: take(f32s(O::S::LANES)).cast(),
            largest: take(f32s(1)).cast(),
            tail: take(geometry.v_width * geometry.pair * size_of::<O::W>()).cast(),
            lanes,
        }
    }
}
