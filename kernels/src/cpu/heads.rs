//! What follows the qkv product: bias, norms over heads, rotation, and the way of k and v into the cache.

use super::isa::Task;
use super::kv::Geometry;
use super::operands::Operands;
use super::pointwise::convert;
use super::simd::sum_of_squares;

/// Norm of every head of q or k.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadNorm<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) eps: f32,
}

/// Finishes whole heads of some rows.
#[derive(Debug)]
pub(crate) struct FinishHeads<'a> {
    /// One a row.
    pub(crate) positions: &'a [u32],
    /// One a row.
    pub(crate) slots: &'a [u32],
    /// Heads, counted over q, k and v as they are stacked.
    pub(crate) heads: std::ops::Range<usize>,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    /// In the scratch tile: the first of these heads.
    pub(crate) c: *mut f32,
    pub(crate) c_stride: usize,
    /// One an element of these heads.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) norm: Option<HeadNorm<'a>>,
    /// `[positions, d]`
    pub(crate) rope: &'a [f32],
    /// First of the rows; elements of `X`.
    pub(crate) q: *mut u8,
    pub(crate) q_stride: usize,
    /// The layer's cache; elements of `W`.
    pub(crate) kv: *mut u8,
    pub(crate) geometry: Geometry,
}

impl Task for FinishHeads<'_> {
    #[inline(always)]
    unsafe fn run<O: Operands>(&self) {
        let d = self.geometry.head_dim;
        for (row, &position) in self.positions.iter().enumerate() {
            for (index, head) in self.heads.clone().enumerate() {
                // SAFETY: the scratch tile holds these heads of these rows; the q heads and cache slots that they go
                // to are this task's.
                unsafe {
                    let c = self.c.add(row * self.c_stride + index * d);
                    let c = std::slice::from_raw_parts_mut(c, d);
                    if let Some(bias) = self.bias {
                        c.iter_mut().zip(&bias[index * d..]).for_each(|(c, bias)| *c += bias);
                    }
                    let is_q = head < self.q_heads;
                    let is_v = head >= self.q_heads + self.kv_heads;
                    if !is_v {
                        if let Some(norm) = self.norm {
                            let weight = if is_q { norm.q } else { norm.k };
                            norm_head::<O>(c, weight, norm.eps);
                        }
                        rotate(c, &self.rope[position as usize * d..][..d]);
                    }
                    if is_q {
                        let q = self.q.cast::<O::X>().add(row * self.q_stride + head * d);
                        convert::<O>(c.as_ptr(), d, q);
                    } else if is_v {
                        self.put_value::<O>(c, row, head - self.q_heads - self.kv_heads);
                    } else {
                        self.put_key::<O>(c, row, head - self.q_heads);
                    }
                }
            }
        }
    }
}

impl FinishHeads<'_> {
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn put_key<O: Operands>(&self, k: &[f32], row: usize, head: usize) {
        let (block, offset) = self.place(row);
        let start = self.geometry.k(block, head) + self.geometry.key(offset);
        let to = self.kv.cast::<O::W>().wrapping_add(start);
        // SAFETY: within the slot's K.
        unsafe { scatter::<O>(k, to, O::PAIR, self.geometry.lanes * O::PAIR) }
    }

    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn put_value<O: Operands>(&self, v: &[f32], row: usize, head: usize) {
        let (block, offset) = self.place(row);
        let start = self.geometry.v(block, head) + self.geometry.value(offset);
        let to = self.kv.cast::<O::W>().wrapping_add(start);
        // SAFETY: within the slot's V.
        unsafe { scatter::<O>(v, to, 1, O::PAIR) }
    }

    /// Block and offset of a row's slot.
    #[inline(always)]
    fn place(&self, row: usize) -> (usize, usize) {
        let slot = self.slots[row] as usize;
        (slot / self.geometry.block_size, slot % self.geometry.block_size)
    }
}

/// Rounds values to elements of the cache, `run` of them side by side, each run `stride` elements after the one before.
///
/// # Safety
/// The runs lie within the cache; `run` divides the number of values and 32.
#[inline(always)]
unsafe fn scatter<O: Operands>(values: &[f32], mut to: *mut O::W, run: usize, stride: usize) {
    // Rounded apart from being scattered, so that rounding is done in vectors.
    const AT_ONCE: usize = 32;
    for values in values.chunks(AT_ONCE) {
        let mut rounded = [O::to_w(0.0); AT_ONCE];
        for (rounded, &value) in rounded.iter_mut().zip(values) {
            *rounded = O::to_w(value);
        }
        for values in rounded[..values.len()].chunks_exact(run) {
            // SAFETY: the caller's promise.
            unsafe { to.copy_from_nonoverlapping(values.as_ptr(), run) };
            to = to.wrapping_add(stride);
        }
    }
}

/// # Safety
/// The instructions of `O` are there.
#[inline(always)]
unsafe fn norm_head<O: Operands>(x: &mut [f32], weight: &[f32], eps: f32) {
    // SAFETY: the slice holds its length.
    let sum = unsafe { sum_of_squares::<O::S>(x.as_ptr(), x.len()) };
    let factor = 1.0 / (sum / x.len() as f32 + eps).sqrt();
    x.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * factor * weight);
}

/// Rotates halves: `x[i]` with `x[i + d/2]`, by cosines and then sines.
#[inline(always)]
fn rotate(x: &mut [f32], angles: &[f32]) {
    let half = x.len() / 2;
    let (low, high) = x.split_at_mut(half);
    let (cos, sin) = angles.split_at(half);
    for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
