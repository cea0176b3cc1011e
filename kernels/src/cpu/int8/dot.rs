//! The instructions that multiply bytes: four neighbours in k at once, in every 32-bit lane.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has one contract: the instructions of `Self` are there, and pointers hold what is read"
)]

use half::f16;

use super::STEP;
use super::tile::{self, Int8Tile};
use crate::cpu::isa::Isa;
use crate::cpu::simd::Simd;
use crate::cpu::simd::portable::{Lanes, Portable};

#[cfg(target_arch = "x86_64")]
mod avx;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod tests;

/// How to multiply bytes and add.
///
/// # Safety
/// Every function needs the instructions that the implementing type stands for; functions that take a pointer need
/// behind it what they read, at any alignment.
pub(super) trait ByteDot: Copy {
    /// Vectors of f32, as long as those of integers.
    type S: Simd;
    /// A vector of sums.
    type Sum: Copy;
    /// A vector of weights, four a lane.
    type Weights: Copy;
    /// Four activations in every lane.
    type Broadcast: Copy;
    /// Rows of a tile that have registers.
    const ROWS: usize;

    unsafe fn zero() -> Self::Sum;
    unsafe fn weights(p: *const i8) -> Self::Weights;
    unsafe fn broadcast(p: *const i8) -> Self::Broadcast;
    /// Exact for activations from -127 to 127 and any weights.
    unsafe fn dot(sum: Self::Sum, w: Self::Weights, x: Self::Broadcast) -> Self::Sum;
    /// The sum as f32. `excess` is 128 times the sum of the activations.
    unsafe fn finish(sum: Self::Sum, excess: i32) -> <Self::S as Simd>::F;
    /// A vector of f16, widened.
    unsafe fn halves(p: *const u16) -> <Self::S as Simd>::F;
}

/// The instructions that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dots {
    /// AVX-512 with dot products of bytes.
    Avx512Vnni,
    /// AVX-512 without them.
    Avx512,
    /// AVX2 with dot products of bytes.
    AvxVnni,
    /// AVX2 without them.
    Avx2,
    /// What the compiler makes of plain Rust.
    Portable,
}

impl Dots {
    /// The fastest with vectors as long as those of `isa`, which this processor has.
    pub(crate) fn best(isa: Isa) -> Self {
        let usable = |dots: &Self| dots.fits(isa) && dots.available();
        let all = [Self::Avx512Vnni, Self::Avx512, Self::AvxVnni, Self::Avx2];
        all.into_iter().find(usable).unwrap_or(Self::Portable)
    }

    fn fits(self, isa: Isa) -> bool {
        match self {
            Self::Avx512Vnni | Self::Avx512 => matches!(isa, Isa::Avx512Bf16 | Isa::Avx512),
            Self::AvxVnni | Self::Avx2 => isa == Isa::Avx2,
            Self::Portable => isa == Isa::Scalar,
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn available(self) -> bool {
        match self {
            Self::Avx512Vnni => Isa::Avx512.available() && is_x86_feature_detected!("avx512vnni"),
            Self::Avx512 => Isa::Avx512.available(),
            Self::AvxVnni => Isa::Avx2.available() && is_x86_feature_detected!("avxvnni"),
            Self::Avx2 => Isa::Avx2.available(),
            Self::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn available(self) -> bool {
        self == Self::Portable
    }

    /// Rows of a tile.
    #[inline(always)]
    pub(crate) fn rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => avx512::Avx512Vnni::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::Avx512Bytes::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => avx::AvxVnni::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx::Avx2Bytes::ROWS,
            _ => PortableBytes::ROWS,
        }
    }

    /// Runs a tile of `rows` rows.
    ///
    /// # Safety
    /// The processor has these instructions; `t`'s pointers hold what it says; nobody else touches `c`.
    #[inline(always)]
    pub(crate) unsafe fn tile(self, t: &Int8Tile, rows: usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => avx512::vnni_tile(t, rows),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::bytes_tile(t, rows),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => avx::vnni_tile(t, rows),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx::bytes_tile(t, rows),
            _ => tile::run::<PortableBytes>(t, rows),
        }
    }
}

/// Needs nothing of the processor.
#[derive(Debug, Clone, Copy)]
struct PortableBytes;

/// Lanes of [`Portable`].
const LANES: usize = Portable::LANES;

impl ByteDot for PortableBytes {
    type S = Portable;
    type Sum = [i32; LANES];
    type Weights = [[i8; STEP]; LANES];
    type Broadcast = [i8; STEP];
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn weights(p: *const i8) -> Self::Weights {
        p.cast::<Self::Weights>().read()
    }

    #[inline(always)]
    unsafe fn broadcast(p: *const i8) -> Self::Broadcast {
        p.cast::<Self::Broadcast>().read()
    }

    #[inline(always)]
    unsafe fn dot(mut sum: Self::Sum, w: Self::Weights, x: Self::Broadcast) -> Self::Sum {
        for (sum, w) in sum.iter_mut().zip(w) {
            for (w, x) in w.into_iter().zip(x) {
                *sum += i32::from(w) * i32::from(x);
            }
        }
        sum
    }

    #[inline(always)]
    unsafe fn finish(sum: Self::Sum, _excess: i32) -> Lanes {
        sum.map(|sum| sum as f32)
    }

    #[inline(always)]
    unsafe fn halves(p: *const u16) -> Lanes {
        p.cast::<[u16; LANES]>().read_unaligned().map(|bits| f16::from_bits(bits).to_f32())
    }
}
