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
