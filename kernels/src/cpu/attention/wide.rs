//! Many rows of a prompt: the keys and values of a chunk are widened to f32 once for all of them.
//!
//! What a row does with a chunk is the same, bit by bit, as where few rows share it: keys and values are multiplied in
//! the same order, and keys that no row of a register tile sees are left out, where their weights would be zeros.

use crate::cpu::operands::Operands;
use crate::cpu::pool::part_of;
use crate::cpu::simd::Simd;
use crate::cpu::wide::{WideTile, widen};

use super::scratch::Scratch;
use super::{Attend, Chunk};

/// Pairs of row and q head from which on widening first takes less time than it saves.
const LEAST_PAIRS: usize = 24;

impl Attend<'_> {
    /// Whether the task's rows are many enough, and its blocks' keys lie without gaps.
    #[inline(always)]
    pub(super) fn is_wide<O: Operands>(&self) -> bool {
        O::WIDE_ROWS > 0 && self.pairs() >= LEAST_PAIRS && self.is_dense()
    }

    /// All that the task's rows do with a chunk.
    ///
    /// # Safety
    /// As for [`Task::run`](crate::cpu::isa::Task::run).
    #[inline(always)]
    pub(super) unsafe fn wide<O: Operands>(&self, scratch: &Scratch<O>, chunk: Chunk) {
        let lanes = O::S::LANES;
        let d = self.geometry.head_dim;
        let tiles = self.pairs().div_ceil(O::WIDE_ROWS);
        // SAFETY: the sequence's blocks hold the chunk's keys, the scratch what is made of them.
        unsafe {
            self.widen_keys(scratch, chunk);
            self.widen_values(scratch, chunk);
            for index in 0..tiles {
                let pairs = part_of(self.pairs(), tiles, index);
                let last = self.position + (pairs.end - 1) / self.heads;
                let keys = (last + 1).saturating_sub(chunk.start).min(chunk.keys);
                if keys == 0 {
                    continue;
                }
                let vectors = keys.div_ceil(lanes);
                let scores = scratch.scores.add(pairs.start * scratch.lanes);
                for panel in 0..vectors.div_ceil(2) {
                    let tile = WideTile {
                        x: scratch.q.cast::<f32>().add(pairs.start * d),
                        x_stride: d,
                        w: scratch.keys.add(panel * d * 2 * lanes),
                        depth: d,
                        c: scores.add(panel * 2 * lanes),
                        c_stride: scratch.lanes,
                        accumulate: false,
                    };
                    O::S::wide(&tile, pairs.len());
                }
                for pair in pairs.clone() {
                    self.soften(scratch, (chunk, vectors), pair);
                }
                for panel in 0..scratch.width / (2 * lanes) {
                    let tile = WideTile {
                        x: scratch.weights.cast::<f32>().add(pairs.start * scratch.lanes),
                        x_stride: scratch.lanes,
                        w: scratch.values.add(panel * scratch.lanes * 2 * lanes),
                        depth: keys,
                        c: scratch.sums.add(pairs.start * scratch.width + panel * 2 * lanes),
                        c_stride: scratch.width,
                        accumulate: true,
                    };
                    O::S::wide(&tile, pairs.len());
                }
            }
        }
    }

    /// Keys in panels of two vectors, `[d, keys]` each.
    ///
    /// # Safety
    /// As for [`Attend::wide`].
    #[inline(always)]
    unsafe fn widen_keys<O: Operands>(&self, scratch: &Scratch<O>, chunk: Chunk) {
        let g = &self.geometry;
        let panel = g.head_dim * 2 * g.lanes;
        for vector in 0..self.vectors(chunk) {
            let block = self.blocks[chunk.start / g.block_size + vector / g.groups] as usize;
            let at = g.k(block, self.kv_head) + vector % g.groups * g.k_panel();
            let from = self.kv.cast::<O::W>().wrapping_add(at);
            // SAFETY: the caller's promise.
            unsafe {
                let to = scratch.keys.add(vector / 2 * panel + vector % 2 * g.lanes);
                widen::<O>(from, g.lanes * O::PAIR, to, g.steps);
            }
        }
    }

    /// Values in panels of two vectors, `[keys, d]` each.
    ///
    /// # Safety
    /// As for [`Attend::wide`].
    #[inline(always)]
    unsafe fn widen_values<O: Operands>(&self, scratch: &Scratch<O>, chunk: Chunk) {
        let g = &self.geometry;
        for index in 0..chunk.keys.div_ceil(g.block_size) {
            let steps = g.block_size.min(chunk.keys - index * g.block_size).div_ceil(O::PAIR);
            let block = self.blocks[chunk.start / g.block_size + index] as usize;
            let from = self.kv.cast::<O::W>().wrapping_add(g.v(block, self.kv_head));
            for vector in 0..g.v_width / g.lanes {
                let panel = vector / 2 * scratch.lanes + index * g.block_size;
                // SAFETY: the caller's promise.
                unsafe {
                    let to = scratch.values.add(panel * 2 * g.lanes + vector % 2 * g.lanes);
                    let from = from.wrapping_add(vector * g.lanes * O::PAIR);
                    widen::<O>(from, g.v_width * O::PAIR, to, steps);
                }
            }
        }
    }
}
