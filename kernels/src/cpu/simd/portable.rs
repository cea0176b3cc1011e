//! Plain Rust in the shape of vectors: 8 lanes, for processors without any of the others, and the shapes of the others' tiles
//! for tests where their instructions are not there.

use super::Simd;
use crate::cpu::operands::Operands;
use crate::cpu::tile::{self, Tile};
use crate::cpu::wide::{self, WideTile};

/// Needs nothing of the processor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shaped<
    const LANES: usize,
    const REGISTERS: usize,
    const TILE: usize,
    const WIDE_ROWS: usize,
>;

/// A vector takes two of SSE2's sixteen registers.
pub(crate) type Portable = Shaped<8, 8, 4, 2>;

/// A vector.
pub(crate) type Lanes = [f32; Portable::LANES];

#[inline(always)]
fn each<const LANES: usize>(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for (i, out) in out.iter_mut().enumerate() {
        *out = f(i);
    }
    out
}

impl<const LANES: usize, const REGISTERS: usize, const TILE: usize, const WIDE_ROWS: usize> Simd
    for Shaped<LANES, REGISTERS, TILE, WIDE_ROWS>
{
    type F = [f32; LANES];
    const LANES: usize = LANES;
    const REGISTERS: usize = REGISTERS;
    const TILE: usize = TILE;
    const WIDE_ROWS: usize = WIDE_ROWS;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the caller has a vector there.
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: the caller has a vector there.
        unsafe { p.cast::<Self::F>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_low(p: *const u16) -> Self::F {
        // SAFETY: the caller has a vector there.
        let pairs = unsafe { p.cast::<[u32; LANES]>().read_unaligned() };
        each(|i| f32::from_bits(pairs[i] << 16))
    }

    #[inline(always)]
    unsafe fn load_high(p: *const u16) -> Self::F {
        // SAFETY: the caller has a vector there.
        let pairs = unsafe { p.cast::<[u32; LANES]>().read_unaligned() };
        each(|i| f32::from_bits(pairs[i] & 0xffff_0000))
    }

    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] / b[i])
    }

    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    // `mul_add` calls a library function where there is no instruction for it.
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        // Adding and taking away 1.5 * 2²³ leaves no bits for a fraction.
        const SHIFT: f32 = 12_582_912.0;
        each(|i| (x[i] + SHIFT) - SHIFT)
    }

    #[inline(always)]
    unsafe fn pow2(n: Self::F) -> Self::F {
        each(|i| f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    unsafe fn select_less(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }

    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        v.iter().sum()
    }

    #[inline(always)]
    unsafe fn largest(v: Self::F) -> f32 {
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
