//! A block of rows in 8 bits times a strip of panels, into the scratch tile of a product.

use super::{Dots, Int8Input, Int8Tile};
use crate::cpu::operands::Operands;
use crate::cpu::pool::part_of;
use crate::cpu::product::Product;
use crate::cpu::simd::Simd;

impl Product<'_> {
    /// Multiplies the rows with strip `index`.
    ///
    /// # Safety
    /// As for [`Task::run`](crate::cpu::isa::Task::run).
    #[inline(always)]
    pub(crate) unsafe fn bytes<O: Operands>(&self, index: usize, dots: Dots, x: Int8Input) {
        let strip = &self.strips[index];
        let after = self.strips.get(index + 1).map(|strip| strip.panel).or(self.next);
        let row_tiles = self.rows.len().div_ceil(dots.rows());
        for panel in strip.panel..strip.panel + strip.panels {
            let column = strip.column + (panel - strip.panel) * 2 * O::S::LANES;
            let w = self.weight.panel::<u8>(panel);
            let last = panel + 1 == strip.panel + strip.panels;
            let next = if last { after } else { Some(panel + 1) };
            for tile in 0..row_tiles {
                let rows = part_of(self.rows.len(), row_tiles, tile);
                let tile = Int8Tile {
                    x: x.row(self.rows.start + rows.start),
                    x_stride: x.stride,
                    w,
                    blocks: x.blocks,
                    // Of the first rows; the others find the panel near.
                    next: (tile == 0).then(|| next.map_or(w, |next| self.weight.panel(next))),
                    c: self.c.wrapping_add(rows.start * self.c_stride + column),
                    c_stride: self.c_stride,
                };
                // SAFETY: `Arch` has found these instructions; the panel lies within the weight, the rows within `x` and
                // the scratch tile.
                unsafe { dots.tile(&tile, rows.len()) }
            }
        }
    }
}
