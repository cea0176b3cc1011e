//! Paged causal attention with an online softmax.
//!
//! A task is some rows of a sequence with all q heads of one kv head, so that they share what they read of the cache.
//! Keys are taken in chunks that start at multiples of the chunk's length, from position 0 (or the window's start) up,
//! and what a row does with a chunk does not depend on the other rows: a chunk that a row sees nothing of leaves its
//! sums as they are.

mod pairs;
mod scratch;
mod wide;

use crate::cpu::isa::Task;
use crate::cpu::kv::Geometry;
use crate::cpu::operands::Operands;
use crate::cpu::simd::{Simd, exp};

use pairs::Pairs;
use scratch::{Scratch, chunk_blocks};

pub(crate) use scratch::scratch_bytes;

/// Keys of a chunk, where blocks are no longer: enough that what is done once a chunk does not show.
const CHUNK: usize = 64;
/// Heads of a task.
const MAX_HEADS: usize = 12;
/// Pairs of row and q head in a task.
const MAX_PAIRS: usize = 96;
/// Tasks that every thread should have, so that all end together.
const TASKS: usize = 4;
/// Below every score, and finite, so that the difference of two maxima is a number.
const LEAST: f32 = -1e30;

/// How many q heads of a kv head go into one task, and how many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) heads: usize,
    pub(crate) rows: usize,
}

impl Cut {
    /// For a step of `rows` rows, with `group` q heads for each of `kv_heads` heads.
    pub(crate) fn of((group, kv_heads): (usize, usize), rows: usize, threads: usize) -> Self {
        let cuts = group.div_ceil(MAX_HEADS);
        let heads = group.div_ceil(cuts);
        let most = rows * kv_heads * cuts / (TASKS * threads);
        Self { heads, rows: most.clamp(MAX_HEADS / heads, MAX_PAIRS / heads) }
    }
}

/// Attention of some rows with some q heads of one kv head.
#[derive(Debug)]
pub(crate) struct Attend<'a> {
    pub(crate) geometry: Geometry,
    /// The layer's cache; elements of `W`.
    pub(crate) kv: *const u8,
    pub(crate) kv_head: usize,
    /// The sequence's blocks.
    pub(crate) blocks: &'a [u32],
    /// First of the rows and heads; elements of `X`.
    pub(crate) q: *const u8,
    pub(crate) q_stride: usize,
    /// As `q`.
    pub(crate) out: *mut u8,
    pub(crate) out_stride: usize,
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    /// Position of the first row.
    pub(crate) position: usize,
    pub(crate) scale: f32,
    pub(crate) window: Option<u32>,
    /// [`scratch_bytes`] of them, aligned to a cache line.
    pub(crate) scratch: *mut u8,
}

/// The keys of a chunk that the task's last row sees.
#[derive(Clone, Copy)]
struct Chunk {
    /// Position of the first key.
    start: usize,
    keys: usize,
}

impl Task for Attend<'_> {
    #[inline(always)]
    unsafe fn run<O: Operands>(&self) {
        let scratch = Scratch::<O>::new(self.scratch, &self.geometry);
        let span = chunk_blocks(&self.geometry) * self.geometry.block_size;
        // SAFETY: the scratch has room for this task's rows; the rest is the caller's promise.
        unsafe {
            self.start::<O>(&scratch);
            let end = self.position + self.rows;
            let wide = self.is_wide::<O>();
            for chunk in self.first_seen(self.position) / span..end.div_ceil(span) {
                let start = chunk * span;
                let chunk = Chunk { start, keys: span.min(end - start) };
                if wide {
                    self.wide::<O>(&scratch, chunk);
                    continue;
                }
                self.scores::<O>(&scratch, chunk);
                if start + span < end {
                    self.fetch_keys::<O>(start + span, end);
                }
                for m in 0..self.pairs() {
                    self.soften::<O>(&scratch, (chunk, self.vectors(chunk)), m);
                }
                self.values::<O>(&scratch, chunk);
            }
            self.finish::<O>(&scratch);
        }
    }
}

impl Attend<'_> {
    /// Whether each vector of keys is full, but for a sequence's last one.
    #[inline(always)]
    fn is_dense(&self) -> bool {
        self.geometry.block_size == self.geometry.groups * self.geometry.lanes
    }

    /// Pairs of row and head.
    #[inline(always)]
    fn pairs(&self) -> usize {
        self.rows * self.heads
    }

    /// First position that a row at `position` sees.
    #[inline(always)]
    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window as usize))
    }

    /// Copies q and clears the sums.
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn start<O: Operands>(&self, scratch: &Scratch<O>) {
        let d = self.geometry.head_dim;
        // SAFETY: q holds the rows and heads, the scratch their copies.
        unsafe {
            for row in 0..self.rows {
                let q = self.q.cast::<O::X>().add(row * self.q_stride);
                let to = scratch.q.add(row * self.heads * d);
                std::ptr::copy_nonoverlapping(q, to, self.heads * d);
            }
            scratch.sums.write_bytes(0, self.pairs() * scratch.width);
            scratch.total.write_bytes(0, self.pairs() * O::S::LANES);
            for m in 0..self.pairs() {
                scratch.largest.add(m).write(LEAST);
            }
        }
    }

    /// `q · k` of all pairs with the chunk's keys.
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn scores<O: Operands>(&self, scratch: &Scratch<O>, chunk: Chunk) {
        let g = &self.geometry;
        let first_block = chunk.start / g.block_size;
        let product = Pairs::<O> {
            x: scratch.q,
            x_stride: g.steps * O::PAIR,
            w_stride: g.lanes * O::PAIR,
            // The values of a block lie behind its keys.
            ahead: g.k_len(),
            steps: g.steps,
            c: scratch.scores,
            c_stride: scratch.lanes,
            accumulate: false,
        };
        let panel = |vector: usize| {
            let block = self.blocks[first_block + vector / g.groups] as usize;
            let at = g.k(block, self.kv_head) + vector % g.groups * g.k_panel();
            self.kv.cast::<O::W>().wrapping_add(at)
        };
        // SAFETY: the sequence's blocks hold the chunk's keys.
        unsafe { product.run(self.pairs(), self.vectors(chunk), panel) }
    }

    /// Asks for the keys of the chunk that starts at `start`.
    ///
    /// # Safety
    /// The instructions of `O` are there.
    #[inline(always)]
    unsafe fn fetch_keys<O: Operands>(&self, start: usize, end: usize) {
        let g = &self.geometry;
        let blocks = start / g.block_size..end.div_ceil(g.block_size);
        for &block in self.blocks[blocks].iter().take(chunk_blocks(g)) {
            let k =
                self.kv.cast::<O::W>().wrapping_add(g.k(block as usize, self.kv_head)).cast::<u8>();
            for line in (0..g.k_len() * size_of::<O::W>()).step_by(64) {
                // SAFETY: the caller's promise.
                unsafe { O::S::prefetch(k.wrapping_add(line)) };
            }
        }
    }

    /// Vectors of keys that hold the chunk.
    #[inline(always)]
    fn vectors(&self, chunk: Chunk) -> usize {
        let g = &self.geometry;
        chunk.keys / g.block_size * g.groups + (chunk.keys % g.block_size).div_ceil(g.lanes)
    }

    /// Turns a pair's scores in the chunk's first vectors into weights, relative to the largest score so far, to which its sums are brought.
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn soften<O: Operands>(
        &self,
        scratch: &Scratch<O>,
        (chunk, vectors): (Chunk, usize),
        m: usize,
    ) {
        let lanes = O::S::LANES;
        let position = self.position + m / self.heads;
        // SAFETY: the scratch holds a vector at each place.
        unsafe {
            let scores = scratch.scores.add(m * scratch.lanes);
            let seen = self.sees_all(position, chunk);
            let mut largest = O::S::splat(LEAST);
            for vector in 0..vectors {
                let at = scores.add(vector * lanes);
                let mut score = O::S::mul(O::S::load(at), O::S::splat(self.scale));
                if !seen {
                    score = self.mask::<O::S>(score, position, (chunk, vector));
                }
                O::S::store(at, score);
                largest = O::S::max(largest, score);
            }
            let before = *scratch.largest.add(m);
            let now = before.max(O::S::largest(largest));
            let weights = scratch.weights.add(m * scratch.lanes);
            let mut total = O::S::splat(0.0);
            for vector in 0..vectors {
                let at = scores.add(vector * lanes);
                let weight = exp::<O::S>(O::S::sub(O::S::load(at), O::S::splat(now)));
                total = O::S::add(total, weight);
                O::store_x(weight, weights.add(vector * lanes));
            }
            let total_at = scratch.total.add(m * lanes);
            if now != before {
                scratch.largest.add(m).write(now);
                let factor = exp::<O::S>(O::S::splat(before - now));
                O::S::store(total_at, O::S::mul(O::S::load(total_at), factor));
                let sums = scratch.sums.add(m * scratch.width);
                for i in (0..self.geometry.v_width).step_by(lanes) {
                    O::S::store(sums.add(i), O::S::mul(O::S::load(sums.add(i)), factor));
                }
            }
            O::S::store(total_at, O::S::add(O::S::load(total_at), total));
        }
    }

    /// Whether a row at `position` sees every lane of the chunk.
    #[inline(always)]
    fn sees_all(&self, position: usize, chunk: Chunk) -> bool {
        self.is_dense()
            && chunk.keys.is_multiple_of(self.geometry.lanes)
            && position + 1 >= chunk.start + chunk.keys
            && self.first_seen(position) <= chunk.start
    }

    /// Minus infinity for the keys of a vector that a row at `position` does not see.
    ///
    /// # Safety
    /// The instructions of `S` are there.
    #[inline(always)]
    unsafe fn mask<S: Simd>(
        &self,
        score: S::F,
        position: usize,
        (chunk, vector): (Chunk, usize),
    ) -> S::F {
        let g = &self.geometry;
        let (start, keys) = if self.is_dense() {
            (chunk.start + vector * g.lanes, g.lanes)
        } else {
            let in_block = vector % g.groups * g.lanes;
            let start = chunk.start + vector / g.groups * g.block_size + in_block;
            (start, g.block_size - in_block)
        };
        // Lanes from `low` to `high` are seen.
        let high = (position + 1).saturating_sub(start).min(keys);
        let low = self.first_seen(position).saturating_sub(start);
        if low == 0 && high >= g.lanes {
            return score;
        }
        // SAFETY: the array holds a vector.
        unsafe {
            let lane = S::load(LANE.as_ptr());
            let nothing = S::splat(f32::NEG_INFINITY);
            let score = S::select_less(lane, S::splat(high as f32), score, nothing);
            S::select_less(lane, S::splat(low as f32), nothing, score)
        }
    }

    /// Adds the chunk's values, weighted.
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn values<O: Operands>(&self, scratch: &Scratch<O>, chunk: Chunk) {
        let g = &self.geometry;
        let vectors = g.v_width / O::S::LANES;
        let first_block = chunk.start / g.block_size;
        for index in 0..chunk.keys.div_ceil(g.block_size) {
            let keys = g.block_size.min(chunk.keys - index * g.block_size);
            let block = self.blocks[first_block + index] as usize;
            let v = self.kv.cast::<O::W>().wrapping_add(g.v(block, self.kv_head));
            let whole = keys / O::PAIR;
            let product = Pairs::<O> {
                x: scratch.weights.wrapping_add(index * g.groups * g.lanes),
                x_stride: scratch.lanes,
                w_stride: g.v_width * O::PAIR,
                // The next head's keys lie behind this one's values.
                ahead: g.v_len(),
                steps: whole,
                c: scratch.sums,
                c_stride: scratch.width,
                accumulate: true,
            };
            let column =
                |v: *const O::W, vector: usize| v.wrapping_add(vector * O::S::LANES * O::PAIR);
            // SAFETY: the block holds the keys' values; the scratch a copy of the last pair.
            unsafe {
                product.run(self.pairs(), vectors, |vector| column(v, vector));
                if !keys.is_multiple_of(O::PAIR) {
                    // The other half of the pair belongs to nobody, and zero times anything but a number is not zero.
                    let last = v.add(whole * g.v_width * O::PAIR);
                    for i in 0..g.v_width {
                        scratch.tail.add(i * O::PAIR).write(*last.add(i * O::PAIR));
                        scratch.tail.add(i * O::PAIR + 1).write(O::to_w(0.0));
                    }
                    let x = product.x.add(whole * O::PAIR);
                    Pairs::<O> { x, steps: 1, ..product }
                        .run(self.pairs(), vectors, |vector| column(scratch.tail, vector));
                }
            }
        }
    }

    /// Divides by the sums of weights.
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn finish<O: Operands>(&self, scratch: &Scratch<O>) {
        let d = self.geometry.head_dim;
        for m in 0..self.pairs() {
            let (row, head) = (m / self.heads, m % self.heads);
            // SAFETY: the rows and heads of `out` are this task's.
            unsafe {
                let total = O::S::sum(O::S::load(scratch.total.add(m * O::S::LANES)));
                let factor = 1.0 / total;
                let sums = scratch.sums.add(m * scratch.width);
                let out = self.out.cast::<O::X>().add(row * self.out_stride + head * d);
                for i in 0..d {
                    out.add(i).write(O::to_x(*sums.add(i) * factor));
                }
            }
        }
    }
}

/// 0, 1, 2, …
static LANE: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
