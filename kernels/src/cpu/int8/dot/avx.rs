//! 8 lanes, with dot products of bytes and without.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has one contract: the instructions of `Self` are there, and pointers hold what is read"
)]

use std::arch::x86_64::*;

use super::ByteDot;
use crate::cpu::int8::tile::{self, Int8Tile};
use crate::cpu::simd::avx2::Avx2;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn bytes_tile(t: &Int8Tile, rows: usize) {
    tile::run::<Avx2Bytes>(t, rows);
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn vnni_tile(t: &Int8Tile, rows: usize) {
    tile::run::<AvxVnni>(t, rows);
}

/// Pairs of bytes, one without a sign: the weights' magnitudes times the activations with the weights' signs. No pair
/// exceeds `2 * 128 * 127`, which 16 bits hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2Bytes;

impl ByteDot for Avx2Bytes {
    type S = Avx2;
    type Sum = __m256i;
    type Weights = (__m256i, __m256i);
    type Broadcast = __m256i;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        _mm256_setzero_si256()
    }

    #[inline(always)]
    unsafe fn weights(p: *const i8) -> (__m256i, __m256i) {
        let w = _mm256_loadu_si256(p.cast());
        (w, _mm256_abs_epi8(w))
    }

    #[inline(always)]
    unsafe fn broadcast(p: *const i8) -> __m256i {
        _mm256_set1_epi32(p.cast::<i32>().read_unaligned())
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, (w, magnitude): (__m256i, __m256i), x: __m256i) -> __m256i {
        let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }

    #[inline(always)]
    unsafe fn finish(sum: __m256i, _excess: i32) -> __m256 {
        _mm256_cvtepi32_ps(sum)
    }

    #[inline(always)]
    unsafe fn halves(p: *const u16) -> __m256 {
        _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
    }
}

/// Four bytes at once, the weights' without a sign: they are taken as 128 larger, and what that adds is taken off.
#[derive(Debug, Clone, Copy)]
pub(super) struct AvxVnni;

impl ByteDot for AvxVnni {
    type S = Avx2;
    type Sum = __m256i;
    type Weights = __m256i;
    type Broadcast = __m256i;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        _mm256_setzero_si256()
    }

    #[inline(always)]
    unsafe fn weights(p: *const i8) -> __m256i {
        _mm256_xor_si256(_mm256_loadu_si256(p.cast()), _mm256_set1_epi8(-128))
    }

    #[inline(always)]
    unsafe fn broadcast(p: *const i8) -> __m256i {
        _mm256_set1_epi32(p.cast::<i32>().read_unaligned())
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        _mm256_dpbusd_avx_epi32(sum, w, x)
    }

    #[inline(always)]
    unsafe fn finish(sum: __m256i, excess: i32) -> __m256 {
        _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_set1_epi32(excess)))
    }

    #[inline(always)]
    unsafe fn halves(p: *const u16) -> __m256 {
        _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
    }
}
