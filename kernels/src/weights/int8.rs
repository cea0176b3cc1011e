//! Weights of 8 bits: 32 neighbours of a row share a scale, as in GGUF's Q8_0.

use half::f16;

/// Neighbours that share a scale.
pub const INT8_BLOCK: usize = 32;

/// The largest magnitude of a quantised weight or activation.
pub(crate) const INT8_MOST: f32 = 127.0;

/// Rows of blocks: an element is `scale * value`.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Blocks {
    /// One a block.
    pub scales: Vec<f16>,
    /// 32 a block; those that fill up the last block of a row are zero.
    pub values: Vec<i8>,
}

impl Int8Blocks {
    /// Rounds rows of `cols` elements. `read` writes the row of the number that it gets.
    pub(crate) fn quantize(
        (rows, cols): (usize, usize),
        threads: usize,
        read: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let blocks = cols.div_ceil(INT8_BLOCK);
        let mut scales = vec![f16::ZERO; rows * blocks];
        let mut values = vec![0; rows * blocks * INT8_BLOCK];
        let share = rows.div_ceil(threads.max(1)).max(1);
        std::thread::scope(|scope| {
            let parts = scales
                .chunks_mut(share * blocks.max(1))
                .zip(values.chunks_mut(share * blocks.max(1) * INT8_BLOCK));
            for (part, (scales, values)) in parts.enumerate() {
                let read = &read;
                scope.spawn(move || {
                    let mut row = vec![0.0; blocks * INT8_BLOCK];
                    let rows = scales
                        .chunks_exact_mut(blocks)
                        .zip(values.chunks_exact_mut(blocks * INT8_BLOCK));
                    for (index, (scales, values)) in rows.enumerate() {
                        read(part * share + index, &mut row[..cols]);
                        quantize_row(&row, scales, values);
                    }
                });
            }
        });
        Self { scales, values }
    }

    /// The element of row `row` and column `col`, of rows of `cols` elements.
    pub(crate) fn at(&self, (row, col): (usize, usize), cols: usize) -> f32 {
        let block = row * cols.div_ceil(INT8_BLOCK) + col / INT8_BLOCK;
        self.scales[block].to_f32() * f32::from(self.values[block * INT8_BLOCK + col % INT8_BLOCK])
    }
}

/// Rounds whole blocks. What is not finite makes its whole block so.
fn quantize_row(row: &[f32], scales: &mut [f16], values: &mut [i8]) {
    let (blocks, _) = row.as_chunks::<INT8_BLOCK>();
    let (to, _) = values.as_chunks_mut::<INT8_BLOCK>();
    for ((block, scale), to) in blocks.iter().zip(scales).zip(to) {
        // Values follow from the scale as it is stored, so that its own rounding does not add to theirs.
        *scale = f16::from_f32(largest(block) / INT8_MOST);
        let stored = scale.to_f32();
        let inverse = if stored > 0.0 { 1.0 / stored } else { 0.0 };
        for (to, x) in to.iter_mut().zip(block) {
            *to = nearest((x * inverse).clamp(-INT8_MOST, INT8_MOST));
        }
    }
}

/// Rounds a value that 8 bits hold; ties go to the even one. Any of them for NaN.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> i8 {
    // So large that the lowest bits of the sum are the integer: vectors do it in two instructions.
    const ROUND: f32 = 12_582_912.0;
    (x + ROUND).to_bits() as i8
}

/// The largest magnitude; NaN where there is one.
#[inline(always)]
pub(crate) fn largest(values: &[f32; INT8_BLOCK]) -> f32 {
    // As integers, magnitudes have the order of the numbers, with infinity and NaN above all of them.
    let bits = values.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
    f32::from_bits(bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::HostTensor;

    #[test]
    fn rows_are_rounded_to_the_nearest_step_of_their_block() {
        let (rows, cols) = (7, 72);
        let values: Vec<f32> =
            (0..rows * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect();
        let tensor = HostTensor::from_f32(rows, cols, values.clone()).unwrap();
        for threads in [1, 3, 20] {
            let rounded = tensor.to_int8(threads);
            let mut row = vec![0.0; cols];
            for (index, expected) in values.chunks_exact(cols).enumerate() {
                rounded.row_f32(index, &mut row);
                for (block, found) in expected.chunks(INT8_BLOCK).zip(row.chunks(INT8_BLOCK)) {
                    let most = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                    for (expected, found) in block.iter().zip(found) {
                        // Half a step, and what the scale's 11 bits take from the largest.
                        let bound = most / INT8_MOST * 0.51 + most / 2048.0;
                        assert!((expected - found).abs() <= bound, "{expected}, {found}");
                    }
                }
            }
            assert_eq!(rounded.at(cols + 70), {
                rounded.row_f32(1, &mut row);
                row[70]
            });
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let mut values = vec![127.0; 64];
        values[40] = f32::NAN;
        let rounded = HostTensor::from_f32(1, 64, values).unwrap().to_int8(1).to_f32();
        assert_eq!(rounded[..32], [127.0; 32]);
        assert!(rounded[32..].iter().all(|x| x.is_nan()));
    }
}
