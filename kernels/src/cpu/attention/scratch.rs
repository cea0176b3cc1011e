//! What a task keeps between chunks, and within one.

use crate::cpu::isa::Layout;
use crate::cpu::kv::Geometry;
use crate::cpu::operands::Operands;
use crate::cpu::simd::Simd;

use super::{CHUNK, MAX_PAIRS};

/// Blocks of a chunk.
pub(super) fn chunk_blocks(geometry: &Geometry) -> usize {
    (CHUNK / (geometry.groups * geometry.lanes)).max(1)
}

/// Lanes of keys in a chunk: whole panels of two vectors.
fn chunk_lanes(geometry: &Geometry) -> usize {
    let lanes = chunk_blocks(geometry) * geometry.groups * geometry.lanes;
    lanes.next_multiple_of(2 * geometry.lanes)
}

/// Columns of sums: whole panels of two vectors.
fn width(geometry: &Geometry) -> usize {
    geometry.v_width.next_multiple_of(2 * geometry.lanes)
}

/// Bytes of scratch that a task needs.
pub(crate) fn scratch_bytes(geometry: &Geometry, layout: Layout) -> usize {
    let (lanes, width) = (chunk_lanes(geometry), width(geometry));
    let k = geometry.steps * geometry.pair;
    let row = k * layout.x_size + lanes * (4 + layout.x_size) + width * 4 + layout.lanes * 4 + 4;
    let tail = geometry.v_width * geometry.pair * layout.w_size;
    MAX_PAIRS * row + tail + lanes * (k + width) * 4 + 10 * 64
}

/// Parts of the scratch. `m` counts pairs of row and head.
pub(super) struct Scratch<O: Operands> {
    /// `[m, d]`
    pub(super) q: *mut O::X,
    /// `[m, lanes]`
    pub(super) scores: *mut f32,
    /// `[m, lanes]`
    pub(super) weights: *mut O::X,
    /// `[m, width]`
    pub(super) sums: *mut f32,
    /// Sum of weights, `[m, LANES]`.
    pub(super) total: *mut f32,
    /// Largest score, `[m]`.
    pub(super) largest: *mut f32,
    /// The last values of a block that ends in the middle of a pair.
    pub(super) tail: *mut O::W,
    /// Of a chunk, widened: panels of `[d, 2 vectors]`.
    pub(super) keys: *mut f32,
    /// Of a chunk, widened: panels of `[lanes, 2 vectors]`.
    pub(super) values: *mut f32,
    /// Lanes of a chunk.
    pub(super) lanes: usize,
    /// Columns of sums.
    pub(super) width: usize,
}

impl<O: Operands> Scratch<O> {
    #[inline(always)]
    pub(super) fn new(mut start: *mut u8, geometry: &Geometry) -> Self {
        let mut take = |bytes: usize| {
            let region = start;
            start = start.wrapping_add(bytes.next_multiple_of(64));
            region
        };
        let (lanes, width) = (chunk_lanes(geometry), width(geometry));
        let k = geometry.steps * geometry.pair;
        let f32s = |n: usize| MAX_PAIRS * n * 4;
        Self {
            q: take(MAX_PAIRS * k * size_of::<O::X>()).cast(),
            scores: take(f32s(lanes)).cast(),
            weights: take(MAX_PAIRS * lanes * size_of::<O::X>()).cast(),
            sums: take(f32s(width)).cast(),
            total: take(f32s(O::S::LANES)).cast(),
            largest: take(f32s(1)).cast(),
            tail: take(geometry.v_width * geometry.pair * size_of::<O::W>()).cast(),
            keys: take(lanes * k * 4).cast(),
            values: take(lanes * width * 4).cast(),
            lanes,
            width,
        }
    }
}
