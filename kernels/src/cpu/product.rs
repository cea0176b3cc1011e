//! Linear layers: a block of rows times some panels of a weight, with LoRA added on top, into a scratch tile of f32.
//!
//! The scratch tile stays in the nearest caches until the operation's epilogue has read it. LoRA goes on from the same
//! accumulators: `h Bᵀ` is a product with few steps whose panels are laid out as the weight's.

use std::ops::Range;

use super::isa::{Layout, Task};
use super::operands::Operands;
use super::pack::CpuLinear;
use super::simd::Simd;
use super::tile::{MAX_VECTORS, Tile, vectors_at_once};

/// Steps after which a sum over many k is put aside, so that the weights and activations of one part of it stay in the
/// second-level cache while all row tiles use them.
const STEPS_AT_ONCE: usize = 1024;

/// Steps between asking for a cache line of weights and reading it.
pub(crate) const PREFETCH: usize = 24;

/// Neighbouring panels of a weight, and where their columns go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strip {
    /// First panel.
    pub(crate) panel: usize,
    /// Number of panels.
    pub(crate) panels: usize,
    /// Column of the scratch tile. There is a panel's width of room on both sides, for LoRA panels that straddle the
    /// strip's ends.
    pub(crate) column: usize,
}

/// What LoRA adds to some rows and columns: `h Bᵀ`.
#[derive(Debug, Clone)]
pub(crate) struct Expand {
    /// Rows of the step.
    pub(crate) rows: Range<usize>,
    /// The part's lanes of the first of these rows; elements of `X`.
    pub(crate) h: *const u8,
    /// Elements from one row of `h` to the next.
    pub(crate) h_stride: usize,
    /// Packed B; elements of `W`.
    pub(crate) b: *const u8,
    /// Steps of the sum over the rank.
    pub(crate) steps: usize,
    /// Columns of the stacked weight.
    pub(crate) columns: Range<usize>,
}

// SAFETY: addresses into the step's scratch and into adapters that the step holds; both are only read.
unsafe impl Send for Expand {}
// SAFETY: as above.
unsafe impl Sync for Expand {}

/// See the module.
#[derive(Debug)]
pub(crate) struct Product<'a> {
    /// First row; elements of `X`.
    pub(crate) x: *const u8,
    /// Elements from one row to the next.
    pub(crate) x_stride: usize,
    /// Rows of the step.
    pub(crate) rows: Range<usize>,
    pub(crate) weight: &'a CpuLinear,
    pub(crate) strips: &'a [Strip],
    /// In order of rows.
    pub(crate) lora: &'a [Expand],
    /// Scratch tile: first row.
    pub(crate) c: *mut f32,
    /// Elements from one row to the next.
    pub(crate) c_stride: usize,
}

/// Columns that a scratch tile needs for strips of `panels` panels each.
pub(crate) fn scratch_columns(layout: Layout, strips: usize, panels: usize) -> usize {
    layout.panel() * (1 + strips * (panels + 1))
}

/// Range `index` of `count` nearly equal ones that make up `total`.
#[inline(always)]
pub(crate) fn part_of(total: usize, count: usize, index: usize) -> Range<usize> {
    total * index / count..total * (index + 1) / count
}

impl Task for Product<'_> {
    #[inline(always)]
    unsafe fn run<O: Operands>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            let steps = self.weight.inputs.div_ceil(O::PAIR);
            for first in (0..steps).step_by(STEPS_AT_ONCE) {
                let part = first..steps.min(first + STEPS_AT_ONCE);
                for strip in self.strips {
                    self.base::<O>(strip, part.clone());
                }
            }
            for expand in self.lora {
                for strip in self.strips {
                    self.expand::<O>(strip, expand);
                }
            }
        }
    }
}

impl Product<'_> {
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn base<O: Operands>(&self, strip: &Strip, steps: Range<usize>) {
        let panels = Panels {
            w: self.weight.panel::<O::W>(strip.panel),
            stride: steps_elements::<O>(self.weight.inputs.div_ceil(O::PAIR)),
            count: strip.panels,
        };
        let task = TileRows {
            x: self.x.cast::<O::X>(),
            x_stride: self.x_stride,
            rows: self.rows.len(),
            steps,
            c: self.c.wrapping_add(strip.column),
            c_stride: self.c_stride,
            accumulate: false,
        };
        // SAFETY: the strip lies within the weight and the scratch tile, the rows within `x`.
        unsafe { task.run::<O>(&panels) }
    }

    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn expand<O: Operands>(&self, strip: &Strip, expand: &Expand) {
        let width = 2 * O::S::LANES;
        let rows = self.rows.start.max(expand.rows.start)..self.rows.end.min(expand.rows.end);
        let strip_columns = strip.panel * width..(strip.panel + strip.panels) * width;
        let start = expand.columns.start;
        if rows.is_empty()
            || start >= strip_columns.end
            || expand.columns.end <= strip_columns.start
        {
            return;
        }
        // Panels of B that touch the strip.
        let first = strip_columns.start.saturating_sub(start) / width;
        let end = strip_columns.end.min(expand.columns.end) - start;
        let stride = steps_elements::<O>(expand.steps);
        let panels = Panels {
            w: expand.b.cast::<O::W>().wrapping_add(first * stride),
            stride,
            count: end.div_ceil(width) - first,
        };
        let column = strip.column + start + first * width - strip_columns.start;
        let row = rows.start - self.rows.start;
        let task = TileRows {
            x: expand
                .h
                .cast::<O::X>()
                .wrapping_add((rows.start - expand.rows.start) * expand.h_stride),
            x_stride: expand.h_stride,
            rows: rows.len(),
            steps: 0..expand.steps,
            c: self.c.wrapping_add(row * self.c_stride + column),
            c_stride: self.c_stride,
            accumulate: true,
        };
        // SAFETY: the panels lie within B, the rows within `h` and the scratch tile, whose columns have a panel's width
        // of room on both sides of the strip.
        unsafe { task.run::<O>(&panels) }
    }
}

/// Elements of `W` in a panel of `steps` steps.
#[inline(always)]
fn steps_elements<O: Operands>(steps: usize) -> usize {
    steps * O::PAIR * 2 * O::S::LANES
}

struct Panels<W> {
    w: *const W,
    /// Elements from one panel to the next.
    stride: usize,
    count: usize,
}

/// Rows times panels, cut into register tiles.
struct TileRows<X> {
    x: *const X,
    x_stride: usize,
    rows: usize,
    steps: Range<usize>,
    c: *mut f32,
    c_stride: usize,
    /// Go on from `c` even at step 0.
    accumulate: bool,
}

impl<X> TileRows<X> {
    /// # Safety
    /// The instructions of `O` are there, panels and rows are readable, `c` is this task's.
    #[inline(always)]
    unsafe fn run<O: Operands<X = X>>(&self, panels: &Panels<O::W>) {
        let lanes = O::S::LANES;
        let w_stride = O::PAIR * 2 * lanes;
        let row_tiles = self.rows.div_ceil(O::S::TILE / 2);
        let vectors = panels.count * 2;
        let most_rows = self.rows.div_ceil(row_tiles);
        let mut v = 0;
        while v < vectors {
            let at_once = vectors_at_once(O::S::TILE, most_rows, vectors - v);
            let mut w = [panels.w; MAX_VECTORS];
            for (i, w) in w[..at_once].iter_mut().enumerate() {
                let (panel, half) = ((v + i) / 2, (v + i) % 2);
                *w = panels.w.wrapping_add(
                    panel * panels.stride + half * lanes * O::PAIR + self.steps.start * w_stride,
                );
            }
            for tile in 0..row_tiles {
                let rows = part_of(self.rows, row_tiles, tile);
                let tile = Tile {
                    x: self.x.wrapping_add(rows.start * self.x_stride + self.steps.start * O::PAIR),
                    x_stride: self.x_stride,
                    w,
                    w_stride,
                    prefetch: PREFETCH * w_stride,
                    steps: self.steps.len(),
                    c: self.c.wrapping_add(rows.start * self.c_stride + v * lanes),
                    c_stride: self.c_stride,
                    accumulate: self.accumulate || self.steps.start > 0,
                };
                // SAFETY: within what the caller promised.
                unsafe { O::tile(&tile, rows.len(), at_once) }
            }
            v += at_once;
        }
    }
}
