//! 16 lanes, with dot products of bytes and without.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has one contract: the instructions of `Self` are there, and pointers hold what is read"
)]

use std::arch::x86_64::*;

use super::ByteDot;
use crate::cpu::int8::tile::{self, Int8Tile};
use crate::cpu::simd::avx512::Avx512;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn bytes_tile(t: &Int8Tile, rows: usize) {
    tile::run::<Avx512Bytes>(t, rows);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(super) unsafe fn vnni_tile(t: &Int8Tile, rows: usize) {
    tile::run::<Avx512Vnni>(t, rows);
}

/// As on AVX2, with the weights' signs in a mask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512Bytes;

impl ByteDot for Avx512Bytes {
    type S = Avx512;
    type Sum = __m512i;
    type Weights = (__mmask64, __m512i);
    type Broadcast = __m512i;
    const ROWS: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        _mm512_setzero_si512()
    }

    #[inline(always)]
    unsafe fn weights(p: *const i8) -> (__mmask64, __m512i) {
        let w = _mm512_loadu_si512(p.cast());
        (_mm512_movepi8_mask(w), _mm512_abs_epi8(w))
    }

    #[inline(always)]
    unsafe fn broadcast(p: *const i8) -> __m512i {
        _mm512_set1_epi32(p.cast::<i32>().read_unaligned())
    }

    #[inline(always)]
    unsafe fn dot(sum: __m512i, (negative, w): (__mmask64, __m512i), x: __m512i) -> __m512i {
        let x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
        let pairs = _mm512_maddubs_epi16(w, x);
        _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
    }

    #[inline(always)]
    unsafe fn finish(sum: __m512i, _excess: i32) -> __m512 {
        _mm512_cvtepi32_ps(sum)
    }

    #[inline(always)]
    unsafe fn halves(p: *const u16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
    }
}

/// As [`AvxVnni`](super::avx::AvxVnni).
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512Vnni;

impl ByteDot for Avx512Vnni {
    type S = Avx512;
    type Sum = __m512i;
    type Weights = __m512i;
    type Broadcast = __m512i;
    const ROWS: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        _mm512_setzero_si512()
    }

    #[inline(always)]
    unsafe fn weights(p: *const i8) -> __m512i {
        _mm512_xor_si512(_mm512_loadu_si512(p.cast()), _mm512_set1_epi8(-128))
    }

    #[inline(always)]
    unsafe fn broadcast(p: *const i8) -> __m512i {
        _mm512_set1_epi32(p.cast::<i32>().read_unaligned())
    }

    #[inline(always)]
    unsafe fn dot(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(sum, w, x)
    }

    #[inline(always)]
    unsafe fn finish(sum: __m512i, excess: i32) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_set1_epi32(excess)))
    }

    #[inline(always)]
    unsafe fn halves(p: *const u16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
    }
}
