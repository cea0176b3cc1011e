//! One interface over the vector instructions that the kernels need, and the numbers made of them.
//!
//! What it must never do: let the result of a lane depend on another lane, except in `sum` and `largest`.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has one contract: the instructions of `Self` are there, and pointers hold a vector"
)]

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod portable;

use super::operands::Operands;
use super::tile::Tile;
use super::wide::WideTile;

/// Vectors of f32.
///
/// # Safety
/// Every function needs the instructions that the implementing type stands for; functions that take a pointer need a
/// whole vector behind it, at any alignment.
pub(crate) trait Simd: Copy + 'static {
    /// A vector.
    type F: Copy;
    /// Its length.
    const LANES: usize;
    /// Registers.
    const REGISTERS: usize;
    /// Accumulators that a register tile may hold.
    const TILE: usize;
    /// Rows of a tile over widened weights, two vectors each.
    const WIDE_ROWS: usize;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    /// Widens the low halves of a vector of pairs of bf16.
    unsafe fn load_low(p: *const u16) -> Self::F;
    /// Widens the high halves of a vector of pairs of bf16.
    unsafe fn load_high(p: *const u16) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// The larger one; `b` where one is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller one; `b` where one is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the instruction set can.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Rounds to the nearest integer.
    unsafe fn round(x: Self::F) -> Self::F;
    /// `2ⁿ` for integers in -126..=127.
    unsafe fn pow2(n: Self::F) -> Self::F;
    /// `yes` where `a < b`, else `no`.
    unsafe fn select_less(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
    /// Sum of the lanes, in one fixed order.
    unsafe fn sum(v: Self::F) -> f32;
    unsafe fn largest(v: Self::F) -> f32;
    /// Asks for the cache line at `p`, which may be any address.
    unsafe fn prefetch<T>(p: *const T);
    /// As `prefetch`, into a cache that holds more.
    unsafe fn prefetch_far<T>(p: *const T);
    /// [`tile::run`](super::tile::run) as a function compiled for these instructions.
    unsafe fn tile<O: Operands>(t: &Tile<O>, rows: usize, vectors: usize);
    /// [`tile::quarters`](super::tile::quarters) as a function compiled for these instructions.
    unsafe fn quarters<O: Operands>(t: &Tile<O>, vectors: usize, ends: (usize, *const u8));
    /// [`wide::run`](super::wide::run) as a function compiled for these instructions.
    unsafe fn wide(t: &WideTile, rows: usize);
}

/// `eˣ`, within 2 units in the last place; 0 below -87.3, where the result would not be normal, and `eˣ` of 88 above
/// that. Exactly 1 at 0.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    const LOWEST: f32 = -87.3;
    // Cephes: the part of x that is left after taking out n ln 2 lies within ±0.347. ln 2 comes in two parts, the first
    // of which has few enough bits that its product with n is exact.
    // In this order, a NaN goes through.
    let clamped = S::min(S::splat(88.0), S::max(S::splat(LOWEST), x));
    let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
    let r = S::fma(n, S::splat(-0.693_359_4), clamped);
    let r = S::fma(n, S::splat(2.121_944_4e-4), r);
    let mut p = S::splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = S::fma(p, r, S::splat(c));
    }
    let p = S::add(S::fma(S::mul(r, r), p, r), S::splat(1.0));
    let y = S::mul(p, S::pow2(n));
    S::select_less(x, S::splat(LOWEST), S::splat(0.0), y)
}

/// `x / (1 + e⁻ˣ)`
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::F) -> S::F {
    let e = exp::<S>(S::sub(S::splat(0.0), x));
    S::div(x, S::add(S::splat(1.0), e))
}

/// Sum of squares of `n` values, in an order that depends on `n` alone.
#[inline(always)]
pub(crate) unsafe fn sum_of_squares<S: Simd>(x: *const f32, n: usize) -> f32 {
    // Four sums hide the latency of the additions.
    let mut sums = [S::splat(0.0); 4];
    let step = 4 * S::LANES;
    let mut i = 0;
    while i + step <= n {
        for (j, sum) in sums.iter_mut().enumerate() {
            let v = S::load(x.add(i + j * S::LANES));
            *sum = S::fma(v, v, *sum);
        }
        i += step;
    }
    while i + S::LANES <= n {
        let v = S::load(x.add(i));
        sums[0] = S::fma(v, v, sums[0]);
        i += S::LANES;
    }
    let mut total = S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])));
    while i < n {
        total += *x.add(i) * *x.add(i);
        i += 1;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::{Simd, exp};
    use crate::DType;
    use crate::cpu::isa::{Arch, Isa, Task};
    use crate::cpu::operands::Operands;

    /// `exp` of some values, a multiple of 16.
    struct Exp<'a> {
        x: &'a [f32],
        y: *mut f32,
    }

    impl Task for Exp<'_> {
        #[inline(always)]
        unsafe fn run<O: Operands>(&self) {
            for i in (0..self.x.len()).step_by(O::S::LANES) {
                // SAFETY: both hold a multiple of a vector.
                unsafe {
                    O::S::store(self.y.add(i), exp::<O::S>(O::S::load(&raw const self.x[i])))
                };
            }
        }
    }

    fn exp_of(isa: Isa, x: &[f32]) -> Vec<f32> {
        let mut y = vec![f32::NAN; x.len()];
        let task = Exp { x, y: y.as_mut_ptr() };
        // SAFETY: `y` is as long as `x`.
        unsafe { Arch::new(isa, DType::F32).unwrap().run(&task) };
        y
    }

    #[test]
    fn exp_is_within_two_units_of_the_last_place() {
        let x: Vec<f32> = (0..1 << 16).map(|i| -87.25 + i as f32 * (175.0 / 65536.0)).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            for (x, y) in x.iter().zip(exp_of(isa, &x)) {
                let exact = f64::from(*x).exp();
                let error = (f64::from(y) - exact).abs() / exact;
                assert!(error < 2.0 * f64::from(f32::EPSILON), "{isa:?}: exp({x}) = {y}");
            }
        }
    }

    #[test]
    fn exp_is_exact_where_softmax_needs_it() {
        let mut x = [0.0; 16];
        x[1] = f32::NEG_INFINITY;
        x[2] = -100.0;
        x[3] = -1e30;
        x[4] = f32::NAN;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let y = exp_of(isa, &x);
            assert_eq!(y[..4], [1.0, 0.0, 0.0, 0.0], "{isa:?}");
            assert!(y[4].is_nan(), "{isa:?}");
            assert_eq!(y[5..], [1.0; 11], "{isa:?}");
        }
    }
}
