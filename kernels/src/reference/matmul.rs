//! Linear layers, and what LoRA adds to them.

use crate::weights::{PackedPart, PackedSite};

use super::int8;
use super::memory::{Adapter, Linear, Values};

/// Independent sums of a dot product, so that the compiler can use vector instructions.
const LANES: usize = 16;

/// `y = x Wᵀ + b`: x is `[rows, in]`, W `[out, in]`, y `[rows, out]`.
pub(super) fn linear(weight: &Linear, x: &[f32], y: &mut [f32]) {
    match &weight.values {
        Values::Float(values) => {
            for (output, w) in values.chunks_exact(weight.inputs).enumerate() {
                // A row of the weight is used for all rows of x while it is near.
                for (x, y) in x.chunks_exact(weight.inputs).zip(y.chunks_exact_mut(weight.out)) {
                    y[output] = dot(x, w);
                }
            }
        }
        Values::Int8(blocks) => int8::linear(blocks, x, weight.inputs, y),
    }
    let Some(bias) = &weight.bias else { return };
    for y in y.chunks_exact_mut(weight.out) {
        y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
    }
}

/// `h = scale * (x Aᵀ)` for all parts of a site: x is `[rows, in]`, A `[lanes, in]`, h `[rows, lanes]`.
///
/// PEFT's `LoraLayer` computes `lora_B(lora_A(x)) * scaling`; scaling h instead is the same function with fewer
/// multiplications, and lets one expand serve parts of different scales.
pub(super) fn shrink(adapter: &Adapter, site: &PackedSite, x: &[f32], inputs: usize) -> Vec<f32> {
    let a = adapter.values(site.a, site.lanes * inputs);
    let mut h = Vec::with_capacity(x.len() / inputs * site.lanes);
    for x in x.chunks_exact(inputs) {
        h.extend(a.chunks_exact(inputs).map(|a| dot(x, a)));
    }
    for h in h.chunks_exact_mut(site.lanes) {
        for part in &site.parts {
            h[part.lane..part.lane + part.rank].iter_mut().for_each(|h| *h *= part.scale);
        }
    }
    h
}

/// Neighbouring columns of a matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns {
    /// First column.
    pub(super) first: usize,
    /// Number of columns.
    pub(super) width: usize,
    /// Columns of the whole matrix.
    pub(super) stride: usize,
}

/// `y += h Bᵀ` for one part: h is the part's lanes of `[rows, lanes]`, B `[width, rank]`, y those columns of
/// `[rows, stride]`.
pub(super) fn expand(
    adapter: &Adapter,
    part: &PackedPart,
    (h, lanes): (&[f32], usize),
    (y, columns): (&mut [f32], Columns),
) {
    let b = adapter.values(part.b, columns.width * part.rank);
    for (h, y) in h.chunks_exact(lanes).zip(y.chunks_exact_mut(columns.stride)) {
        let h = &h[part.lane..part.lane + part.rank];
        let y = &mut y[columns.first..columns.first + columns.width];
        for (y, b) in y.iter_mut().zip(b.chunks_exact(part.rank)) {
            *y += dot(h, b);
        }
    }
}

/// `Σ a[i] b[i]`. The order of the sum depends on the length alone.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
