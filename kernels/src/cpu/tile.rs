//! The register tile: the one place where products are summed.
//!
//! Every product of the backend (linear layers, LoRA, scores and values of attention) goes through [`run`] or, narrow as they
//! are, the shrinks of single rows through [`quarters`]. An output
//! element has one accumulator, and its sum runs over k upwards, one step at a time, whatever the number of rows and
//! vectors of the tile; so it does not depend on them. Storing an accumulator and going on from it later changes
//! nothing.

use super::fetch::LINE;
use super::operands::Operands;
use super::simd::Simd;

/// Rows whose addresses follow from one register.
pub(crate) const ROWS_PER_POINTER: usize = 4;

/// Most vectors in a tile.
pub(crate) const MAX_VECTORS: usize = 8;

/// Most rows in a tile, however many registers there are.
pub(crate) const MAX_ROWS: usize = 12;

/// `c (+)= x w`, for some rows of `x` and some vectors of `w`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile<O: Operands> {
    /// First row.
    pub(crate) x: *const O::X,
    /// Elements from one row to the next.
    pub(crate) x_stride: usize,
    /// Where each vector of weights starts.
    pub(crate) w: [*const O::W; MAX_VECTORS],
    /// Elements from one step to the next.
    pub(crate) w_stride: usize,
    /// Elements from a vector to the cache lines that are asked for when it is read.
    pub(crate) ahead: Ahead,
    /// Cache lines that something else will read soon: one is asked for in each step.
    pub(crate) fetches: *const *const u8,
    /// Their number.
    pub(crate) fetch_count: usize,
    /// Steps of the sum.
    pub(crate) steps: usize,
    /// First row; the vectors lie one after the other.
    pub(crate) c: *mut f32,
    /// Elements from one row to the next.
    pub(crate) c_stride: usize,
    /// Go on from what `c` holds.
    pub(crate) accumulate: bool,
}

/// How far ahead of a stream to ask for its cache lines, in elements. Asking twice is faster than once: the second-level
/// cache takes more requests that wait for memory than the first, and what it holds comes soon enough from near by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead {
    /// Into the first-level cache.
    pub(crate) near: usize,
    /// Into the second.
    pub(crate) far: usize,
}

impl Ahead {
    /// Steps that `near` is ahead of a stream of weights.
    const NEAR: usize = 8;
    /// Steps that `far` is ahead of a stream of weights.
    pub(crate) const FAR: usize = 64;

    /// For a stream of weights.
    #[inline(always)]
    pub(crate) const fn of_stream(w_stride: usize) -> Self {
        Self { near: Self::NEAR * w_stride, far: Self::FAR * w_stride }
    }

    /// Only what lies this many elements ahead.
    #[inline(always)]
    pub(crate) const fn by(elements: usize) -> Self {
        Self { near: elements, far: elements }
    }
}

/// Whether a tile's accumulators have registers, and the weights and activations of a step beside them. One row uses
/// each vector of weights once, so it needs no registers to keep them in.
#[inline(always)]
pub(crate) const fn fits<O: Operands>(rows: usize, vectors: usize) -> bool {
    let kept = if rows == 1 { 1 } else { vectors };
    rows <= MAX_ROWS
        && rows * vectors <= O::S::TILE
        && rows * vectors + kept < O::S::REGISTERS
        // Where a step takes two multiply-adds, the compiler holds weights of both, however the source orders them.
        && (O::PARTS == 1 || vectors <= 2 || (rows + 1) * vectors < 24)
}

/// How many vectors to take at once for `rows` rows, of `left` vectors: few enough that the tile has registers, and a
/// number that [`run`] knows.
#[inline(always)]
pub(crate) fn vectors_at_once<O: Operands>(rows: usize, left: usize) -> usize {
    let usable = |&n: &usize| n <= left && fits::<O>(rows, n);
    [8, 6, 4, 3, 2].into_iter().find(usable).unwrap_or(1)
}

/// Four sums of one row, each over a part of `k`, in step with each other: what is too narrow to hide the latency of an
/// addition behind other lanes hides it behind other k.
///
/// Vector `i` of a part lies at `t.w[i]`, parts are `t.steps` steps apart in `x` and `w`, and the last one goes on for
/// `rest` steps. The sums lie one after the other in `c`, those of a part together. While short ones are made, as much is
/// asked for from `next` on as they read themselves.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
pub(crate) unsafe fn quarters<O: Operands>(
    t: &Tile<O>,
    vectors: usize,
    (rest, next): (usize, *const u8),
) {
    // SAFETY: the caller's promise.
    unsafe {
        match vectors {
            1 => quarters_of::<O, 1>(t, rest, next),
            2 => quarters_of::<O, 2>(t, rest, next),
            3 => quarters_of::<O, 3>(t, rest, next),
            _ => unreachable!("quarters of {vectors} vectors"),
        }
    }
}

/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn quarters_of<O: Operands, const P: usize>(t: &Tile<O>, rest: usize, mut next: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[O::S::splat(0.0); P]; 4];
        let mut x = t.x;
        let mut w = [t.w[0]; P];
        w.copy_from_slice(&t.w[..P]);
        let (x_quarter, w_quarter) = (t.steps * O::PAIR, t.steps * t.w_stride);
        // A short part ends before what is far ahead of it.
        let long = t.steps > 2 * Ahead::FAR;
        let read = 4 * P * O::S::LANES * O::PAIR * size_of::<O::W>();
        for _ in 0..t.steps {
            if !long {
                for line in (0..read).step_by(LINE) {
                    O::S::prefetch_far(next.wrapping_add(line));
                }
                next = next.wrapping_add(read);
            }
            let mut quarter = 0;
            while quarter < 4 {
                let x = x.add(quarter * x_quarter);
                let mut p = 0;
                while p < P {
                    let w = w[p].add(quarter * w_quarter);
                    O::S::prefetch(w.wrapping_add(t.ahead.near));
                    if long {
                        O::S::prefetch_far(w.wrapping_add(t.ahead.far));
                    }
                    acc[quarter][p] = step::<O>(acc[quarter][p], w, x);
                    p += 1;
                }
                quarter += 1;
            }
            x = x.add(O::PAIR);
            let mut p = 0;
            while p < P {
                w[p] = w[p].add(t.w_stride);
                p += 1;
            }
        }
        for index in 4 * t.steps..4 * t.steps + rest {
            let x = t.x.add(index * O::PAIR);
            for (acc, w) in acc[3].iter_mut().zip(t.w) {
                *acc = step::<O>(*acc, w.add(index * t.w_stride), x);
            }
        }
        for (i, acc) in acc.iter().flatten().enumerate() {
            O::S::store(t.c.add(i * O::S::LANES), *acc);
        }
    }
}

/// One step of one accumulator.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn step<O: Operands>(
    mut acc: <O::S as Simd>::F,
    w: *const O::W,
    x: *const O::X,
) -> <O::S as Simd>::F {
    for part in 0..O::PARTS {
        // SAFETY: the caller's promise.
        acc = unsafe { O::mac(acc, O::weights(w, part), O::broadcast(x, part)) };
    }
    acc
}

/// Runs a tile of `rows * vectors` accumulators, at most `TILE` of `O`'s vectors.
///
/// # Safety
/// The instructions of `O` are there; `t`'s pointers hold what it says; nobody else touches `c`.
#[inline(always)]
pub(crate) unsafe fn run<O: Operands>(t: &Tile<O>, rows: usize, vectors: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match vectors {
            1 => by_rows::<O, 1>(t, rows),
            2 => by_rows::<O, 2>(t, rows),
            3 => by_rows::<O, 3>(t, rows),
            4 => by_rows::<O, 4>(t, rows),
            6 => by_rows::<O, 6>(t, rows),
            8 => by_rows::<O, 8>(t, rows),
            _ => unreachable!("a tile of {vectors} vectors"),
        }
    }
}

/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn by_rows<O: Operands, const P: usize>(t: &Tile<O>, rows: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => tile::<O, 1, P>(t),
            2 => tile::<O, 2, P>(t),
            3 => tile::<O, 3, P>(t),
            4 => tile::<O, 4, P>(t),
            5 => tile::<O, 5, P>(t),
            6 => tile::<O, 6, P>(t),
            7 => tile::<O, 7, P>(t),
            8 => tile::<O, 8, P>(t),
            9 => tile::<O, 9, P>(t),
            10 => tile::<O, 10, P>(t),
            11 => tile::<O, 11, P>(t),
            12 => tile::<O, 12, P>(t),
            _ => unreachable!("a tile of {rows} rows"),
        }
    }
}

/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn tile<O: Operands, const R: usize, const P: usize>(t: &Tile<O>) {
    if !fits::<O>(R, P) {
        unreachable!("{R} rows of {P} vectors do not fit the registers");
    }
    // SAFETY: the caller's promise; loops stay within R rows, P vectors and `steps`.
    unsafe {
        let mut acc = [[O::S::splat(0.0); P]; R];
        if t.accumulate {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (p, acc) in acc.iter_mut().enumerate() {
                    *acc = O::S::load(t.c.add(r * t.c_stride + p * O::S::LANES));
                }
            }
        }
        // One address for every four rows: the others follow from it by one or three strides, so that all of them have
        // registers.
        let mut x = [t.x; MAX_ROWS / ROWS_PER_POINTER];
        for (i, x) in x.iter_mut().enumerate() {
            *x = t.x.add(i * ROWS_PER_POINTER * t.x_stride);
        }
        let mut w_at = t.w;
        for step in 0..t.steps {
            // With many rows, both parts of a few weights stay in registers; with many weights, a part at a time does.
            let passes = if P > 2 { O::PARTS } else { 1 };
            let mut pass = 0;
            while pass < passes {
                let parts = pass * O::PARTS / passes..(pass + 1) * O::PARTS / passes;
                let mut w = [[O::weights(w_at[0], 0); P]; 2];
                let mut part = parts.start;
                while part < parts.end {
                    let mut p = 0;
                    while p < P {
                        w[part][p] = O::weights(w_at[p], part);
                        p += 1;
                    }
                    part += 1;
                }
                let mut r = 0;
                while r < R {
                    let at = x[r / ROWS_PER_POINTER].add(r % ROWS_PER_POINTER * t.x_stride);
                    let mut part = parts.start;
                    while part < parts.end {
                        let x = O::broadcast(at, part);
                        let mut p = 0;
                        while p < P {
                            acc[r][p] = O::mac(acc[r][p], w[part][p], x);
                            p += 1;
                        }
                        part += 1;
                    }
                    r += 1;
                }
                pass += 1;
            }
            if step < t.fetch_count {
                O::S::prefetch_far(*t.fetches.add(step));
            }
            for x in &mut x {
                *x = x.add(O::PAIR);
            }
            let mut p = 0;
            while p < P {
                O::S::prefetch(w_at[p].wrapping_add(t.ahead.near));
                O::S::prefetch_far(w_at[p].wrapping_add(t.ahead.far));
                w_at[p] = w_at[p].add(t.w_stride);
                p += 1;
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (p, acc) in acc.iter().enumerate() {
                O::S::store(t.c.add(r * t.c_stride + p * O::S::LANES), *acc);
            }
        }
    }
}
