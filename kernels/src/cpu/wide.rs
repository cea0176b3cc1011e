//! The register tile of many rows: weights are widened to f32 before it, once for all rows, in parts that stay in the
//! first-level cache.
//!
//! It needs no registers to widen in, and so has more accumulators than [`tile`](super::tile) where registers are few.
//! An output's sum runs over k as there, from the same products in the same order: both give the same bits.

use super::operands::Operands;
use super::simd::Simd;
use super::tile::{MAX_ROWS, ROWS_PER_POINTER};

/// k's of a part.
pub(crate) const DEPTH: usize = 256;
/// Rows from which on widening first takes less time than it saves.
pub(crate) const LEAST_ROWS: usize = 24;
/// k's between two looks at the loop's end.
const UNROLL: usize = 4;
/// Lanes of the widest panel.
const MAX_PANEL: usize = 32;

/// `c (+)= x w`, for some rows of `x` and a panel of two vectors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WideTile {
    /// First row.
    pub(crate) x: *const f32,
    /// Elements from one row to the next.
    pub(crate) x_stride: usize,
    /// `[depth, 2 vectors]`
    pub(crate) w: *const f32,
    pub(crate) depth: usize,
    /// First row.
    pub(crate) c: *mut f32,
    /// Elements from one row to the next.
    pub(crate) c_stride: usize,
    /// Go on from what `c` holds.
    pub(crate) accumulate: bool,
}

/// A part of a panel, widened.
#[repr(align(64))]
pub(crate) struct WidePanel(std::mem::MaybeUninit<[f32; DEPTH * MAX_PANEL]>);

impl WidePanel {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self(std::mem::MaybeUninit::uninit())
    }

    /// Widens `steps` steps, of [`DEPTH`] k's at most, of a panel that starts at `from`.
    ///
    /// # Safety
    /// The instructions of `O` are there, and the steps are readable.
    #[inline(always)]
    pub(crate) unsafe fn fill<O: Operands>(
        &mut self,
        from: *const O::W,
        steps: usize,
    ) -> *const f32 {
        let to = self.0.as_mut_ptr().cast::<f32>();
        // SAFETY: the caller's promise; a part has room for its k's.
        unsafe {
            for vector in 0..2 {
                let from = from.wrapping_add(vector * O::S::LANES * O::PAIR);
                widen::<O>(from, 2 * O::S::LANES * O::PAIR, to.add(vector * O::S::LANES), steps);
            }
        }
        to
    }
}

/// Widens `steps` steps of a vector, `stride` elements apart, to one of the two of a panel.
///
/// # Safety
/// The instructions of `O` are there, the steps readable, and `to` has room for a panel.
#[inline(always)]
pub(crate) unsafe fn widen<O: Operands>(
    from: *const O::W,
    stride: usize,
    to: *mut f32,
    steps: usize,
) {
    for step in 0..steps {
        for part in 0..O::PAIR {
            // SAFETY: the caller's promise.
            unsafe {
                let to = to.add((step * O::PAIR + part) * 2 * O::S::LANES);
                O::S::store(to, O::widened(from.add(step * stride), part));
            }
        }
    }
}

/// Runs a tile of at most `WIDE_ROWS` rows.
///
/// # Safety
/// The instructions of `S` are there; `t`'s pointers hold what it says; nobody else touches `c`.
#[inline(always)]
pub(crate) unsafe fn run<S: Simd>(t: &WideTile, rows: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => tile::<S, 1>(t),
            2 => tile::<S, 2>(t),
            3 => tile::<S, 3>(t),
            4 => tile::<S, 4>(t),
            5 => tile::<S, 5>(t),
            6 => tile::<S, 6>(t),
            7 => tile::<S, 7>(t),
            8 => tile::<S, 8>(t),
            9 => tile::<S, 9>(t),
            10 => tile::<S, 10>(t),
            11 => tile::<S, 11>(t),
            12 => tile::<S, 12>(t),
            _ => unreachable!("a tile of {rows} rows"),
        }
    }
}

/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize>(t: &WideTile) {
    if R > S::WIDE_ROWS {
        unreachable!("{R} rows do not fit the registers");
    }
    // SAFETY: the caller's promise; loops stay within R rows and `depth`.
    unsafe {
        let mut acc = [[S::splat(0.0); 2]; R];
        if t.accumulate {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (p, acc) in acc.iter_mut().enumerate() {
                    *acc = S::load(t.c.add(r * t.c_stride + p * S::LANES));
                }
            }
        }
        let mut x = [t.x; MAX_ROWS / ROWS_PER_POINTER];
        for (i, x) in x.iter_mut().enumerate() {
            *x = t.x.wrapping_add(i * ROWS_PER_POINTER * t.x_stride);
        }
        let mut w = t.w;
        for _ in 0..t.depth / UNROLL {
            let mut k = 0;
            while k < UNROLL {
                step::<S, R>(
                    &mut acc,
                    w.add(k * 2 * S::LANES),
                    x.map(|x| x.wrapping_add(k)),
                    t.x_stride,
                );
                k += 1;
            }
            w = w.add(UNROLL * 2 * S::LANES);
            x = x.map(|x| x.wrapping_add(UNROLL));
        }
        for _ in 0..t.depth % UNROLL {
            step::<S, R>(&mut acc, w, x, t.x_stride);
            w = w.add(2 * S::LANES);
            x = x.map(|x| x.wrapping_add(1));
        }
        for (r, acc) in acc.iter().enumerate() {
            for (p, acc) in acc.iter().enumerate() {
                S::store(t.c.add(r * t.c_stride + p * S::LANES), *acc);
            }
        }
    }
}

/// One k of all rows.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn step<S: Simd, const R: usize>(
    acc: &mut [[S::F; 2]; R],
    w: *const f32,
    x: [*const f32; MAX_ROWS / ROWS_PER_POINTER],
    x_stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let w = [S::load(w), S::load(w.add(S::LANES))];
        let mut r = 0;
        while r < R {
            let x = S::splat(*x[r / ROWS_PER_POINTER].add(r % ROWS_PER_POINTER * x_stride));
            acc[r][0] = S::fma(w[0], x, acc[r][0]);
            acc[r][1] = S::fma(w[1], x, acc[r][1]);
            r += 1;
        }
    }
}
