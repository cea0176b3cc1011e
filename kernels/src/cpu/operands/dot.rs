//! Operands of the instructions that multiply pairs of bf16 and add both products.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has one contract: AVX-512 with BF16 is there, and pointers hold what is read"
)]

use std::arch::x86_64::*;

use half::bf16;

use super::{Operands, bf16_bits, widen};
use crate::cpu::simd::Simd;
use crate::cpu::simd::avx2::Avx2;
use crate::cpu::simd::avx512::Avx512;
use crate::cpu::tile::{self, Tile};

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn dot_tile<O: Operands>(t: &Tile<O>, rows: usize, vectors: usize) {
    tile::run(t, rows, vectors);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn dot_quarters<O: Operands>(t: &Tile<O>, vectors: usize, ends: (usize, *const u8)) {
    tile::quarters(t, vectors, ends);
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
    const WIDE_ROWS: usize = 0;

    #[inline(always)]
    unsafe fn weights(p: *const u16, _part: usize) -> __m512bh {
        std::mem::transmute(_mm512_loadu_si512(p.cast()))
    }

    #[inline(always)]
    unsafe fn widened(p: *const u16, k: usize) -> <Avx512 as Simd>::F {
        if k == 0 { Avx512::load_low(p) } else { Avx512::load_high(p) }
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
    unsafe fn quarters(t: &Tile<Self>, vectors: usize, ends: (usize, *const u8)) {
        dot_quarters(t, vectors, ends);
    }

    #[inline(always)]
    fn to_x(value: f32) -> u16 {
        bf16_bits(value)
    }

    #[inline(always)]
    fn x_to_f32(value: u16) -> f32 {
        widen(value)
    }

    #[inline(always)]
    fn to_w(value: f32) -> u16 {
        bf16_bits(value)
    }

    #[inline(always)]
    fn bf16_to_w(value: bf16) -> u16 {
        value.to_bits()
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
    const WIDE_ROWS: usize = 0;

    #[inline(always)]
    unsafe fn weights(p: *const u16, _part: usize) -> __m256bh {
        std::mem::transmute(_mm256_loadu_si256(p.cast()))
    }

    #[inline(always)]
    unsafe fn widened(p: *const u16, k: usize) -> <Avx2 as Simd>::F {
        if k == 0 { Avx2::load_low(p) } else { Avx2::load_high(p) }
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
    unsafe fn quarters(t: &Tile<Self>, vectors: usize, ends: (usize, *const u8)) {
        dot_quarters(t, vectors, ends);
    }

    #[inline(always)]
    fn to_x(value: f32) -> u16 {
        bf16_bits(value)
    }

    #[inline(always)]
    fn x_to_f32(value: u16) -> f32 {
        widen(value)
    }

    #[inline(always)]
    fn to_w(value: f32) -> u16 {
        bf16_bits(value)
    }

    #[inline(always)]
    fn bf16_to_w(value: bf16) -> u16 {
        value.to_bits()
    }

    #[inline(always)]
    fn w_to_f32(value: u16) -> f32 {
        widen(value)
    }
}
