//! The register tile: the one place where products are summed.
//!
//! Every product of the backend (linear layers, LoRA, scores and values of attention) goes through [`tile`]. An output
//! element has one accumulator, and its sum runs over k upwards, one step at a time, whatever the number of rows and
//! vectors of the tile; so it does not depend on them. Storing an accumulator and going on from it later changes
//! nothing.

use super::operands::Operands;
use super::simd::Simd;

/// Rows whose addresses follow from one register.
const ROWS_PER_POINTER: usize = 4;

/// Most vectors in a tile.
pub(crate) const MAX_VECTORS: usize = 12;

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
    /// Elements from a vector to the cache line that is asked for when it is read.
    pub(crate) prefetch: usize,
    /// Cache lines that something else will read soon: two are asked for in each step.
    pub(crate) fetches: *const [*const u8; 2],
    /// How many twos.
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

/// Whether accumulators, and one row of weights and activations beside them, have registers.
#[inline(always)]
pub(crate) const fn fits(tile: usize, rows: usize, vectors: usize) -> bool {
    rows * vectors <= tile && (rows + 1) * vectors < tile + 8
}

/// How many vectors to take at once for `rows` rows, of `left` vectors: few enough that the tile has registers, and a
/// number that [`run`] knows.
#[inline(always)]
pub(crate) fn vectors_at_once(tile: usize, rows: usize, left: usize) -> usize {
    let usable = |&n: &usize| n <= left && fits(tile, rows, n);
    [8, 6, 4, 3, 2].into_iter().find(usable).unwrap_or(1)
}

/// Four sums of one row, each over a part of `k`, in step with each other: what is too narrow to hide the latency of an
/// addition behind other lanes hides it behind other k.
///
/// Vector `i` of a part lies at `t.w[i]`, parts are `t.steps` steps apart in `x` and `w`, and the last one goes on for
/// `rest` steps. The sums lie one after the other in `c`, those of a part together.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
pub(crate) unsafe fn quarters<O: Operands>(t: &Tile<O>, vectors: usize, rest: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match vectors {
            1 => quarters_of::<O, 1>(t, rest),
            2 => quarters_of::<O, 2>(t, rest),
            3 => quarters_of::<O, 3>(t, rest),
            _ => unreachable!("quarters of {vectors} vectors"),
        }
    }
}

/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn quarters_of<O: Operands, const P: usize>(t: &Tile<O>, rest: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[O::S::splat(0.0); P]; 4];
        let mut x = t.x;
        let mut w = [t.w[0]; P];
        w.copy_from_slice(&t.w[..P]);
        // From one part to the next.
        let (x_part, w_part) = (t.steps * O::PAIR, t.steps * t.w_stride);
        for _ in 0..t.steps {
            let mut part = 0;
            while part < 4 {
                let x = O::broadcast(x.add(part * x_part));
                let mut p = 0;
                while p < P {
                    let w = w[p].add(part * w_part);
                    O::S::prefetch(w.wrapping_add(t.prefetch));
                    acc[part][p] = O::mac(acc[part][p], O::weights(w), x);
                    p += 1;
                }
                part += 1;
            }
            x = x.add(O::PAIR);
            let mut p = 0;
            while p < P {
                w[p] = w[p].add(t.w_stride);
                p += 1;
            }
        }
        for step in 4 * t.steps..4 * t.steps + rest {
            let x = O::broadcast(t.x.add(step * O::PAIR));
            for (acc, w) in acc[3].iter_mut().zip(t.w) {
                *acc = O::mac(*acc, O::weights(w.add(step * t.w_stride)), x);
            }
        }
        for (i, acc) in acc.iter().flatten().enumerate() {
            O::S::store(t.c.add(i * O::S::LANES), *acc);
        }
    }
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
    if !fits(O::S::TILE, R, P) {
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
        let mut x = [t.x; 3];
        for (i, x) in x.iter_mut().enumerate() {
            *x = t.x.add(i * ROWS_PER_POINTER * t.x_stride);
        }
        let mut w_at = t.w;
        for step in 0..t.steps {
            let mut w = [O::weights(w_at[0]); P];
            let mut p = 1;
            while p < P {
                w[p] = O::weights(w_at[p]);
                p += 1;
            }
            let mut r = 0;
            while r < R {
                let at = x[r / ROWS_PER_POINTER].add(r % ROWS_PER_POINTER * t.x_stride);
                let x = O::broadcast(at);
                let mut p = 0;
                while p < P {
                    acc[r][p] = O::mac(acc[r][p], w[p], x);
                    p += 1;
                }
                r += 1;
            }
            if step < t.fetch_count {
                O::S::prefetch_far(*t.fetches.cast::<*const u8>().add(step));
            }
            for x in &mut x {
                *x = x.add(O::PAIR);
            }
            let mut p = 0;
            while p < P {
                O::S::prefetch(w_at[p].wrapping_add(t.prefetch));
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
