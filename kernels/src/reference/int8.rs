//! Products of 8-bit weights: the definition.
//!
//! Activations are rounded, 32 neighbours to a scale, so that products are of integers.

use crate::weights::{INT8_BLOCK, INT8_MOST, Int8Blocks};

/// A row of activations in 8 bits.
struct Rounded {
    /// One a block.
    scales: Vec<f32>,
    /// As many a block as a block of the weight has.
    values: Vec<i32>,
}

/// `y = x Wᵀ`: x is `[rows, inputs]`, y `[rows, out]`.
pub(super) fn linear(weight: &Int8Blocks, x: &[f32], inputs: usize, y: &mut [f32]) {
    let blocks = inputs.div_ceil(INT8_BLOCK);
    let out = weight.scales.len() / blocks;
    for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(out)) {
        let x = round(x);
        for (output, y) in y.iter_mut().enumerate() {
            *y = (0..blocks).fold(0.0, |sum, block| {
                let at = output * blocks + block;
                let scale = weight.scales[at].to_f32() * x.scales[block];
                let w = &weight.values[at * INT8_BLOCK..][..INT8_BLOCK];
                let x = &x.values[block * INT8_BLOCK..][..INT8_BLOCK];
                let products: i32 = w.iter().zip(x).map(|(&w, x)| i32::from(w) * x).sum();
                sum + scale * products as f32
            });
        }
    }
}

/// Zeros fill up the last block. A block that holds NaN gets NaN as its scale.
fn round(x: &[f32]) -> Rounded {
    let mut rounded = Rounded { scales: Vec::new(), values: Vec::new() };
    for block in x.chunks(INT8_BLOCK) {
        let larger = |a: f32, b: &f32| if b.is_nan() || b.abs() > a { b.abs() } else { a };
        let most = block.iter().fold(0.0, larger);
        rounded.scales.push(most / INT8_MOST);
        let step = if most > 0.0 { INT8_MOST / most } else { 0.0 };
        rounded.values.extend(block.iter().map(|x| (x * step).round_ties_even() as i32));
        rounded.values.resize(rounded.scales.len() * INT8_BLOCK, 0);
    }
    rounded
}
