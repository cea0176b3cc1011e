//! AVX2 and FMA: 8 lanes, 16 registers.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has one contract: AVX2 and FMA are there, and pointers hold a vector"
)]

use std::arch::x86_64::*;

use super::Simd;
use crate::cpu::operands::Operands;
use crate::cpu::tile::{self, Tile};
use crate::cpu::wide::{self, WideTile};

#[target_feature(enable = "avx2,fma")]
unsafe fn run_tile<O: Operands>(t: &Tile<O>, rows: usize, vectors: usize) {
    tile::run(t, rows, vectors);
}

#[target_feature(enable = "avx2,fma")]
unsafe fn run_quarters<O: Operands>(t: &Tile<O>, vectors: usize, ends: (usize, *const u8)) {
    tile::quarters(t, vectors, ends);
}

#[target_feature(enable = "avx2,fma")]
unsafe fn run_wide(t: &WideTile, rows: usize) {
    wide::run::<Avx2>(t, rows);
}

/// The features that functions using [`Avx2`] are compiled with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2;

impl Simd for Avx2 {
    type F = __m256;
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    const TILE: usize = 8;
    const WIDE_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        _mm256_loadu_ps(p)
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        _mm256_storeu_ps(p, v);
    }

    #[inline(always)]
    unsafe fn load_low(p: *const u16) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(p.cast())))
    }

    #[inline(always)]
    unsafe fn load_high(p: *const u16) -> __m256 {
        let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(p.cast()), high))
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }

    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        _mm256_sub_ps(a, b)
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }

    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        _mm256_div_ps(a, b)
    }

    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        _mm256_max_ps(a, b)
    }

    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        _mm256_min_ps(a, b)
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    unsafe fn round(x: __m256) -> __m256 {
        _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
    }

    #[inline(always)]
    unsafe fn pow2(n: __m256) -> __m256 {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }

    #[inline(always)]
    unsafe fn select_less(a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
    }

    #[inline(always)]
    unsafe fn sum(v: __m256) -> f32 {
        let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
        _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
    }

    #[inline(always)]
    unsafe fn largest(v: __m256) -> f32 {
        let half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
        _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
    }

    #[inline(always)]
    unsafe fn tile<O: Operands>(t: &Tile<O>, rows: usize, vectors: usize) {
        run_tile(t, rows, vectors);
    }

    #[inline(always)]
    unsafe fn quarters<O: Operands>(t: &Tile<O>, vectors: usize, ends: (usize, *const u8)) {
        run_quarters(t, vectors, ends);
    }

    #[inline(always)]
    unsafe fn wide(t: &WideTile, rows: usize) {
        run_wide(t, rows);
    }

    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }

    #[inline(always)]
    unsafe fn prefetch_far<T>(p: *const T) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
}
