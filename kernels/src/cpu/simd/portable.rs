//! Plain Rust in the shape of vectors: 8 lanes, for processors without any of the others.

use super::Simd;
use crate::cpu::operands::Operands;
use crate::cpu::tile::{self, Tile};
use crate::cpu::wide::{self, WideTile};

/// Needs nothing of the processor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

/// A vector.
pub(crate) type Lanes = [f32; 8];

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Lanes {
    let mut out = [0.0; 8];
    for (i, out) in out.iter_mut().enumerate() {
        *out = f(i);
    }
    out
}

impl Simd for Portable {
    type F = Lanes;
    const LANES: usize = 8;
    // A vector takes two of SSE2's sixteen.
    const REGISTERS: usize = 8;
    const TILE: usize = 4;
    const WIDE_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Lanes {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Lanes {
        // SAFETY: the caller has a vector there.
        unsafe { p.cast::<Lanes>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Lanes) {
        // SAFETY: the caller has a vector there.
        unsafe { p.cast::<Lanes>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_low(p: *const u16) -> Lanes {
        // SAFETY: the caller has a vector there.
        let pairs = unsafe { p.cast::<[u32; 8]>().read_unaligned() };
        each(|i| f32::from_bits(pairs[i] << 16))
    }

    #[inline(always)]
    unsafe fn load_high(p: *const u16) -> Lanes {
        // SAFETY: the caller has a vector there.
        let pairs = unsafe { p.cast::<[u32; 8]>().read_unaligned() };
        each(|i| f32::from_bits(pairs[i] & 0xffff_0000))
    }

    #[inline(always)]
    unsafe fn add(a: Lanes, b: Lanes) -> Lanes {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn sub(a: Lanes, b: Lanes) -> Lanes {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    unsafe fn mul(a: Lanes, b: Lanes) -> Lanes {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn div(a: Lanes, b: Lanes) -> Lanes {
        each(|i| a[i] / b[i])
    }

    #[inline(always)]
    unsafe fn max(a: Lanes, b: Lanes) -> Lanes {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    unsafe fn min(a: Lanes, b: Lanes) -> Lanes {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    // `mul_add` calls a library function where there is no instruction for it.
    #[inline(always)]
    unsafe fn fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        each(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn round(x: Lanes) -> Lanes {
        // Adding and taking away 1.5 * 2²³ leaves no bits for a fraction.
        const SHIFT: f32 = 12_582_912.0;
        each(|i| (x[i] + SHIFT) - SHIFT)
    }

    #[inline(always)]
    unsafe fn pow2(n: Lanes) -> Lanes {
        each(|i| f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    unsafe fn select_less(a: Lanes, b: Lanes, yes: Lanes, no: Lanes) -> Lanes {
        each(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }

    #[inline(always)]
    unsafe fn sum(v: Lanes) -> f32 {
        v.iter().sum()
    }

    #[inline(always)]
    unsafe fn largest(v: Lanes) -> f32 {
        v.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(never)]
    unsafe fn tile<O: Operands>(t: &Tile<O>, rows: usize, vectors: usize) {
        // SAFETY: the caller's promise.
        unsafe { tile::run(t, rows, vectors) }
    }

    #[inline(never)]
    unsafe fn quarters<O: Operands>(t: &Tile<O>, vectors: usize, ends: (usize, *const u8)) {
        // SAFETY: the caller's promise.
        unsafe { tile::quarters(t, vectors, ends) }
    }

    #[inline(never)]
    unsafe fn wide(t: &WideTile, rows: usize) {
        // SAFETY: the caller's promise.
        unsafe { wide::run::<Self>(t, rows) }
    }

    #[inline(always)]
    unsafe fn prefetch<T>(_p: *const T) {}

    #[inline(always)]
    unsafe fn prefetch_far<T>(_p: *const T) {}
}
