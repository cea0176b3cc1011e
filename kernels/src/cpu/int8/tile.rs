//! The register tile: some rows times one panel.

use super::STEP;
use super::dot::ByteDot;
use super::pack::block_bytes;
use super::rows::BlockScale;
use crate::cpu::fetch::LINE;
use crate::cpu::simd::Simd;
use crate::weights::INT8_BLOCK;

/// Steps of a block.
const STEPS: usize = INT8_BLOCK / STEP;
/// Bytes ahead of the stream of weights that are asked for: into the first-level cache, and into the second.
const NEAR: usize = 8 * 64;
const FAR: usize = 64 * 64;

/// `c = x w`, for some rows and one panel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int8Tile {
    /// First row.
    pub(crate) x: *const u8,
    /// Bytes from one row to the next.
    pub(crate) x_stride: usize,
    /// The panel.
    pub(crate) w: *const u8,
    /// Blocks of a row and of the panel.
    pub(crate) blocks: usize,
    /// What is read after the panel; `None` where the panel itself is in the nearest caches already.
    pub(crate) next: Option<*const u8>,
    /// First row.
    pub(crate) c: *mut f32,
    /// Elements from one row to the next.
    pub(crate) c_stride: usize,
}

/// Runs a tile of `rows` rows, at most `D::ROWS`.
///
/// # Safety
/// The instructions of `D` are there; `t`'s pointers hold what it says; nobody else touches `c`.
#[inline(always)]
pub(super) unsafe fn run<D: ByteDot>(t: &Int8Tile, rows: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => tile::<D, 1>(t),
            2 => tile::<D, 2>(t),
            3 => tile::<D, 3>(t),
            4 => tile::<D, 4>(t),
            5 => tile::<D, 5>(t),
            6 => tile::<D, 6>(t),
            7 => tile::<D, 7>(t),
            8 => tile::<D, 8>(t),
            _ => unreachable!("a tile of {rows} rows"),
        }
    }
}

/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn tile<D: ByteDot, const R: usize>(t: &Int8Tile) {
    if R > D::ROWS {
        unreachable!("{R} rows do not fit the registers");
    }
    let lanes = D::S::LANES;
    let size = block_bytes(2 * lanes);
    // SAFETY: the caller's promise; loops stay within R rows, a panel and its blocks. Asking for a line reads nothing.
    unsafe {
        let mut acc = [[D::S::splat(0.0); 2]; R];
        let all = t.blocks * size;
        let scales = t.x.add(t.blocks * INT8_BLOCK).cast::<BlockScale>();
        for block in 0..t.blocks {
            let w = t.w.add(block * size);
            let x = t.x.add(block * INT8_BLOCK);
            let w_scales = [D::halves(w.cast()), D::halves(w.cast::<u16>().add(lanes))];
            let values = w.add(4 * lanes).cast::<i8>();
            let mut sums = [[D::zero(); 2]; R];
            for step in 0..STEPS {
                let at = values.add(step * 2 * lanes * STEP);
                let w = [D::weights(at), D::weights(at.add(lanes * STEP))];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = D::broadcast(x.add(r * t.x_stride + step * STEP).cast());
                    sums[0] = D::dot(sums[0], w[0], x);
                    sums[1] = D::dot(sums[1], w[1], x);
                }
            }
            if let Some(next) = t.next {
                for line in 0..size.div_ceil(LINE) {
                    let offset = block * size + line * LINE;
                    D::S::prefetch(t.w.wrapping_add(offset + NEAR));
                    let far = offset + FAR;
                    let from = if far < all { t.w } else { next.wrapping_sub(all) };
                    D::S::prefetch_far(from.wrapping_add(far));
                }
            }
            for (r, (acc, sums)) in acc.iter_mut().zip(sums).enumerate() {
                let scale = scales.byte_add(r * t.x_stride).add(block).read();
                let x_scale = D::S::splat(scale.scale);
                for ((acc, sum), w_scale) in acc.iter_mut().zip(sums).zip(w_scales) {
                    let sum = D::finish(sum, scale.excess);
                    *acc = D::S::fma(sum, D::S::mul(w_scale, x_scale), *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (p, acc) in acc.iter().enumerate() {
                D::S::store(t.c.add(r * t.c_stride + p * lanes), *acc);
            }
        }
    }
}
