//! Products of a task's pairs of row and head: with keys, and with values.

use crate::cpu::operands::Operands;
use crate::cpu::simd::Simd;
use crate::cpu::tile::{Ahead, MAX_ROWS, MAX_VECTORS, Tile, vectors_at_once};

/// A product of a task's pairs of row and head.
pub(super) struct Pairs<O: Operands> {
    pub(super) x: *const O::X,
    pub(super) x_stride: usize,
    pub(super) w_stride: usize,
    /// Elements from what is read to what is read after it.
    pub(super) ahead: usize,
    pub(super) steps: usize,
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    pub(super) accumulate: bool,
}

impl<O: Operands> Pairs<O> {
    /// Multiplies `rows` rows with `vectors` vectors, whose addresses `w` knows.
    ///
    /// # Safety
    /// The instructions of `O` are there; the pointers hold what is read and written.
    #[inline(always)]
    pub(super) unsafe fn run(&self, rows: usize, vectors: usize, w: impl Fn(usize) -> *const O::W) {
        let tiles = rows.div_ceil(O::S::TILE.min(MAX_ROWS));
        let most = rows.div_ceil(tiles);
        let mut vector = 0;
        while vector < vectors {
            let at_once = vectors_at_once::<O>(most, vectors - vector);
            let mut pointers = [w(vector); MAX_VECTORS];
            for (i, pointer) in pointers[..at_once].iter_mut().enumerate() {
                *pointer = w(vector + i);
            }
            let mut row = 0;
            while row < rows {
                let count = most.min(rows - row);
                let tile = Tile {
                    x: self.x.wrapping_add(row * self.x_stride),
                    x_stride: self.x_stride,
                    w: pointers,
                    w_stride: self.w_stride,
                    ahead: Ahead::by(self.ahead),
                    fetches: std::ptr::null(),
                    fetch_count: 0,
                    steps: self.steps,
                    c: self.c.wrapping_add(row * self.c_stride + vector * O::S::LANES),
                    c_stride: self.c_stride,
                    accumulate: self.accumulate,
                };
                // SAFETY: the caller's promise.
                unsafe { O::tile(&tile, count, at_once) }
                row += count;
            }
            vector += at_once;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::operands::Single;
    use crate::cpu::simd::portable::Shaped;

    const STEPS: usize = 3;

    /// Products of `rows` rows with vectors of ones, twos and so on.
    fn check<S: Simd>(rows: usize, vectors: usize)
    where
        Single<(S, S)>: Operands<X = f32, W = f32>,
    {
        let x: Vec<f32> = (0..rows * STEPS).map(|i| i as f32).collect();
        let lanes = S::LANES;
        let w: Vec<f32> =
            (0..vectors * STEPS * lanes).map(|i| (1 + i / (STEPS * lanes)) as f32).collect();
        let mut c = vec![f32::NAN; rows * vectors * lanes];
        let pairs = Pairs::<Single<(S, S)>> {
            x: x.as_ptr(),
            x_stride: STEPS,
            w_stride: lanes,
            ahead: 0,
            steps: STEPS,
            c: c.as_mut_ptr(),
            c_stride: vectors * lanes,
            accumulate: false,
        };
        // SAFETY: plain Rust; everything has the sizes that are said.
        unsafe { pairs.run(rows, vectors, |vector| w[vector * STEPS * lanes..].as_ptr()) }
        for (i, &found) in c.iter().enumerate() {
            let (row, vector) = (i / (vectors * lanes), i / lanes % vectors);
            let expected: f32 = x[row * STEPS..][..STEPS].iter().sum();
            assert_eq!(
                found,
                expected * (vector + 1) as f32,
                "row {row} of {rows}, vector {vector}"
            );
        }
    }

    /// With the lanes, registers and tiles of every instruction set, whatever this processor has.
    #[test]
    fn every_number_of_rows_fits_the_register_tile() {
        for rows in 1..=100 {
            for vectors in [1, 2, 4, 7] {
                check::<Shaped<16, 32, 24, 12>>(rows, vectors);
                check::<Shaped<8, 16, 8, 6>>(rows, vectors);
                check::<Shaped<8, 8, 4, 2>>(rows, vectors);
            }
        }
    }
}
