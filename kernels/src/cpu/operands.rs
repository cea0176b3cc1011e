//! The types of a product's operands, and how one step of a sum over k is made from them.
//!
//! `W` is what weights, adapters and the KV cache hold; `X` is what activations hold. Weights come in vectors over
//! outputs, with `PAIR` neighbouring k in each 32-bit lane; activations are broadcast.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has one contract: the instructions of `Self::S` are there, and pointers hold what is read"
)]

use std::marker::PhantomData;

use half::bf16;

use super::simd::Simd;
use super::tile::{self, Tile};

/// How to multiply and add.
///
/// # Safety
/// As for [`Simd`].
pub(crate) trait Operands: Copy + 'static {
    /// The vectors.
    type S: Simd;
    /// Element of an activation.
    type X: Copy + Send + Sync + 'static;
    /// Element of a weight.
    type W: Copy + Send + Sync + 'static;
    /// A loaded vector of weights.
    type Weights: Copy;
    /// A broadcast activation.
    type Broadcast: Copy;
    /// The same with vectors of 8 lanes.
    type Half: Operands<X = Self::X, W = Self::W>;
    /// k's that one step takes: neighbours in `X`, and in each lane of `W`.
    const PAIR: usize;
    /// Multiply-adds that a step takes: each for its own part of the pair.
    const PARTS: usize;

    /// Part `part` of a step's weights.
    unsafe fn weights(p: *const Self::W, part: usize) -> Self::Weights;
    /// Part `part` of a step's activations.
    unsafe fn broadcast(p: *const Self::X, part: usize) -> Self::Broadcast;
    unsafe fn mac(
        acc: <Self::S as Simd>::F,
        w: Self::Weights,
        x: Self::Broadcast,
    ) -> <Self::S as Simd>::F;

    /// [`tile::run`], compiled once for each type and not inlined: it is the bulk of the code.
    unsafe fn tile(t: &Tile<Self>, rows: usize, vectors: usize);

    /// [`tile::quarters`], in the same way.
    unsafe fn quarters(t: &Tile<Self>, vectors: usize, rest: usize);

    fn to_x(value: f32) -> Self::X;
    fn to_w(value: f32) -> Self::W;
    fn w_to_f32(value: Self::W) -> f32;
}

/// The upper half of `x`, rounded to nearest even.
#[inline(always)]
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding could carry a NaN into infinity.
    (if x.is_nan() { (bits >> 16) | 0x40 } else { rounded }) as u16
}

#[inline(always)]
fn widen(bits: u16) -> f32 {
    bf16::from_bits(bits).to_f32()
}

/// bf16 weights, widened; activations are f32 that hold bf16 values, so that broadcasting them takes no arithmetic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Widen<S>(PhantomData<S>);

impl<S: Simd, H: Simd> Operands for Widen<(S, H)> {
    type S = S;
    type X = f32;
    type W = u16;
    type Weights = S::F;
    type Broadcast = S::F;
    type Half = Widen<(H, H)>;
    const PAIR: usize = 2;
    const PARTS: usize = 2;

    #[inline(always)]
    unsafe fn weights(p: *const u16, part: usize) -> S::F {
        if part == 0 { S::load_low(p) } else { S::load_high(p) }
    }

    #[inline(always)]
    unsafe fn broadcast(p: *const f32, part: usize) -> S::F {
        S::splat(*p.add(part))
    }

    #[inline(always)]
    unsafe fn mac(acc: S::F, w: S::F, x: S::F) -> S::F {
        S::fma(w, x, acc)
    }

    #[inline(always)]
    unsafe fn tile(t: &Tile<Self>, rows: usize, vectors: usize) {
        S::tile(t, rows, vectors);
    }

    #[inline(always)]
    unsafe fn quarters(t: &Tile<Self>, vectors: usize, rest: usize) {
        S::quarters(t, vectors, rest);
    }

    #[inline(always)]
    fn to_x(value: f32) -> f32 {
        widen(bf16_bits(value))
    }

    #[inline(always)]
    fn to_w(value: f32) -> u16 {
        bf16_bits(value)
    }

    #[inline(always)]
    fn w_to_f32(value: u16) -> f32 {
        widen(value)
    }
}

/// f32 throughout.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Single<S>(PhantomData<S>);

impl<S: Simd, H: Simd> Operands for Single<(S, H)> {
    type S = S;
    type X = f32;
    type W = f32;
    type Weights = S::F;
    type Broadcast = S::F;
    type Half = Single<(H, H)>;
    const PAIR: usize = 1;
    const PARTS: usize = 1;

    #[inline(always)]
    unsafe fn weights(p: *const f32, _part: usize) -> S::F {
        S::load(p)
    }

    #[inline(always)]
    unsafe fn broadcast(p: *const f32, _part: usize) -> S::F {
        S::splat(*p)
    }

    #[inline(always)]
    unsafe fn mac(acc: S::F, w: S::F, x: S::F) -> S::F {
        S::fma(w, x, acc)
    }

    #[inline(always)]
    unsafe fn tile(t: &Tile<Self>, rows: usize, vectors: usize) {
        S::tile(t, rows, vectors);
    }

    #[inline(always)]
    unsafe fn quarters(t: &Tile<Self>, vectors: usize, rest: usize) {
        S::quarters(t, vectors, rest);
    }

    #[inline(always)]
    fn to_x(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn to_w(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn w_to_f32(value: f32) -> f32 {
        value
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use dot::Dot;

#[cfg(target_arch = "x86_64")]
mod dot {
    use std::arch::x86_64::*;

    use super::{Operands, Tile, bf16_bits, tile, widen};
    use crate::cpu::simd::avx2::Avx2;
    use crate::cpu::simd::avx512::Avx512;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn dot_tile<O: Operands>(t: &Tile<O>, rows: usize, vectors: usize) {
        tile::run(t, rows, vectors);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn dot_quarters<O: Operands>(t: &Tile<O>, vectors: usize, rest: usize) {
        tile::quarters(t, vectors, rest);
    }

    /// bf16 dot products of pairs, 16 lanes.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Dot;

    impl Operands for Dot {
        type S = Avx512;
        type X = u16;
        type W = u16;
        type Weights = __m512bh;
        type Broadcast = __m512bh;
        type Half = DotHalf;
        const PAIR: usize = 2;
        const PARTS: usize = 1;

        #[inline(always)]
        unsafe fn weights(p: *const u16, _part: usize) -> __m512bh {
            std::mem::transmute(_mm512_loadu_si512(p.cast()))
        }

        #[inline(always)]
        unsafe fn broadcast(p: *const u16, _part: usize) -> __m512bh {
            std::mem::transmute(_mm512_set1_epi32(p.cast::<i32>().read_unaligned()))
        }

        #[inline(always)]
        unsafe fn mac(acc: __m512, w: __m512bh, x: __m512bh) -> __m512 {
            _mm512_dpbf16_ps(acc, w, x)
        }

        #[inline(always)]
        unsafe fn tile(t: &Tile<Self>, rows: usize, vectors: usize) {
            dot_tile(t, rows, vectors);
        }

        #[inline(always)]
        unsafe fn quarters(t: &Tile<Self>, vectors: usize, rest: usize) {
            dot_quarters(t, vectors, rest);
        }

        #[inline(always)]
        fn to_x(value: f32) -> u16 {
            bf16_bits(value)
        }

        #[inline(always)]
        fn to_w(value: f32) -> u16 {
            bf16_bits(value)
        }

        #[inline(always)]
        fn w_to_f32(value: u16) -> f32 {
            widen(value)
        }
    }

    /// bf16 dot products of pairs, 8 lanes.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct DotHalf;

    impl Operands for DotHalf {
        type S = Avx2;
        type X = u16;
        type W = u16;
        type Weights = __m256bh;
        type Broadcast = __m256bh;
        type Half = Self;
        const PAIR: usize = 2;
        const PARTS: usize = 1;

        #[inline(always)]
        unsafe fn weights(p: *const u16, _part: usize) -> __m256bh {
            std::mem::transmute(_mm256_loadu_si256(p.cast()))
        }

        #[inline(always)]
        unsafe fn broadcast(p: *const u16, _part: usize) -> __m256bh {
            std::mem::transmute(_mm256_set1_epi32(p.cast::<i32>().read_unaligned()))
        }

        #[inline(always)]
        unsafe fn mac(acc: __m256, w: __m256bh, x: __m256bh) -> __m256 {
            _mm256_dpbf16_ps(acc, w, x)
        }

        #[inline(always)]
        unsafe fn tile(t: &Tile<Self>, rows: usize, vectors: usize) {
            dot_tile(t, rows, vectors);
        }

        #[inline(always)]
        unsafe fn quarters(t: &Tile<Self>, vectors: usize, rest: usize) {
            dot_quarters(t, vectors, rest);
        }

        #[inline(always)]
        fn to_x(value: f32) -> u16 {
            bf16_bits(value)
        }

        #[inline(always)]
        fn to_w(value: f32) -> u16 {
            bf16_bits(value)
        }

        #[inline(always)]
        fn w_to_f32(value: u16) -> f32 {
            widen(value)
        }
    }
}
