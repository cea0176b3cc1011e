//! The types of a product's operands, and how one step of a sum over k is made from them.
//!
//! `W` is what weights, adapters and the KV cache hold; `X` is what activations hold. Weights come in vectors over
//! outputs, with `PAIR` neighbouring k in each 32-bit lane; activations are broadcast.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function here has one contract: the instructions of `Self::S` are there, and pointers hold what is read"
)]

#[cfg(target_arch = "x86_64")]
mod dot;

use std::marker::PhantomData;

use half::bf16;

use crate::cpu::simd::Simd;
use crate::cpu::tile::Tile;

#[cfg(target_arch = "x86_64")]
pub(crate) use dot::Dot;

/// Lanes of the widest vector.
const MAX_LANES: usize = 16;

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
    /// Rows of a [`WideTile`](crate::cpu::wide::WideTile); 0 where weights are not widened, and `X` need not be f32.
    const WIDE_ROWS: usize;

    /// Part `part` of a step's weights.
    unsafe fn weights(p: *const Self::W, part: usize) -> Self::Weights;
    /// Part `part` of a step's activations.
    unsafe fn broadcast(p: *const Self::X, part: usize) -> Self::Broadcast;
    /// The k's that are number `k` in each pair of a step's weights, as f32.
    unsafe fn widened(p: *const Self::W, k: usize) -> <Self::S as Simd>::F;
    unsafe fn mac(
        acc: <Self::S as Simd>::F,
        w: Self::Weights,
        x: Self::Broadcast,
    ) -> <Self::S as Simd>::F;

    /// [`run`](crate::cpu::tile::run), compiled once for each type and not inlined: it is the bulk of the code.
    unsafe fn tile(t: &Tile<Self>, rows: usize, vectors: usize);

    /// [`quarters`](crate::cpu::tile::quarters), in the same way.
    unsafe fn quarters(t: &Tile<Self>, vectors: usize, ends: (usize, *const u8));

    /// Rounds a vector to activations.
    #[inline(always)]
    unsafe fn store_x(v: <Self::S as Simd>::F, to: *mut Self::X) {
        let mut lanes = [0.0_f32; MAX_LANES];
        Self::S::store(lanes.as_mut_ptr(), v);
        for (i, &lane) in lanes[..Self::S::LANES].iter().enumerate() {
            to.add(i).write(Self::to_x(lane));
        }
    }

    fn to_x(value: f32) -> Self::X;
    fn x_to_f32(value: Self::X) -> f32;
    fn to_w(value: f32) -> Self::W;
    fn w_to_f32(value: Self::W) -> f32;

    /// As [`Operands::to_w`] of what is a bf16 already.
    #[inline(always)]
    fn bf16_to_w(value: bf16) -> Self::W {
        Self::to_w(value.to_f32())
    }
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
    const WIDE_ROWS: usize = S::WIDE_ROWS;

    #[inline(always)]
    unsafe fn weights(p: *const u16, part: usize) -> S::F {
        if part == 0 { S::load_low(p) } else { S::load_high(p) }
    }

    #[inline(always)]
    unsafe fn widened(p: *const u16, k: usize) -> S::F {
        Self::weights(p, k)
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
    unsafe fn quarters(t: &Tile<Self>, vectors: usize, ends: (usize, *const u8)) {
        S::quarters(t, vectors, ends);
    }

    #[inline(always)]
    fn to_x(value: f32) -> f32 {
        widen(bf16_bits(value))
    }

    #[inline(always)]
    fn x_to_f32(value: f32) -> f32 {
        value
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
    const WIDE_ROWS: usize = S::WIDE_ROWS;

    #[inline(always)]
    unsafe fn weights(p: *const f32, _part: usize) -> S::F {
        S::load(p)
    }

    #[inline(always)]
    unsafe fn widened(p: *const f32, _k: usize) -> S::F {
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
    unsafe fn quarters(t: &Tile<Self>, vectors: usize, ends: (usize, *const u8)) {
        S::quarters(t, vectors, ends);
    }

    #[inline(always)]
    fn to_x(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn x_to_f32(value: f32) -> f32 {
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
