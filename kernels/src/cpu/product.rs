//! Linear layers: a block of rows times some panels of a weight, with LoRA added on top, into a scratch tile of f32.
//!
//! The scratch tile stays in the nearest caches until the operation's epilogue has read it. LoRA goes on from the same
//! accumulators: `h Bᵀ` is a product with few steps whose panels are laid out as the weight's.

use std::ops::Range;

use super::expand::RowExpand;
use super::fetch::{LINE, Lines, Region, Regions};
use super::int8::{Dots, Int8Input};
use super::isa::{Layout, Task};
use super::lora::Shrinks;
use super::operands::Operands;
use super::pack::CpuLinear;
use super::pool::part_of;
use super::simd::Simd;
use super::tile::{Ahead, MAX_VECTORS, Tile, vectors_at_once};
use super::wide::{DEPTH, LEAST_ROWS, WidePanel, WideTile};

/// Steps after which a sum over many k is put aside, so that the weights and activations of one part of it stay in the
/// second-level cache while all row tiles use them.
const STEPS_AT_ONCE: usize = 1024;

/// Expands between asking for panels of B and multiplying them.
const EXPANDS_AHEAD: usize = 12;

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

/// What the step's adapters do to a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Adapted<'a> {
    /// In order of rows.
    pub(crate) expands: &'a [Expand],
    /// What the expands read; claimed already, but perhaps not at its end.
    pub(crate) shrinks: &'a Shrinks,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Product<'a> {
    /// First row; elements of `X`.
    pub(crate) x: *const u8,
    /// Elements from one row to the next.
    pub(crate) x_stride: usize,
    /// Rows of the step.
    pub(crate) rows: Range<usize>,
    /// The same rows of the step in 8 bits, where the weight is.
    pub(crate) int8: Option<(Dots, Int8Input)>,
    pub(crate) weight: &'a CpuLinear,
    pub(crate) strips: &'a [Strip],
    pub(crate) lora: Option<Adapted<'a>>,
    /// What this thread reads after the strips: the first panel of its next task.
    pub(crate) next: Option<usize>,
    /// Scratch tile: first row.
    pub(crate) c: *mut f32,
    /// Elements from one row to the next.
    pub(crate) c_stride: usize,
}

/// Columns that a scratch tile needs for strips of `panels` panels each.
pub(crate) fn scratch_columns(layout: Layout, strips: usize, panels: usize) -> usize {
    layout.panel() * (1 + strips * (panels + 1))
}

impl Task for Product<'_> {
    #[inline(always)]
    unsafe fn run<O: Operands>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            if let Some((dots, x)) = self.int8 {
                for strip in 0..self.strips.len() {
                    self.bytes::<O>(strip, dots, x);
                }
            } else if O::WIDE_ROWS > 0 && self.rows.len() >= LEAST_ROWS {
                self.widened::<O>();
            } else {
                let steps = self.weight.inputs.div_ceil(O::PAIR);
                let mut regions = self.regions::<O>();
                for first in (0..steps).step_by(STEPS_AT_ONCE) {
                    let part = first..steps.min(first + STEPS_AT_ONCE);
                    for strip in 0..self.strips.len() {
                        self.base::<O>(strip, part.clone(), &mut regions);
                    }
                }
            }
            let Some(lora) = &self.lora else { return };
            // Few rows ask for all of B while they are multiplied with the weights.
            let many = self.rows.len() > O::S::TILE;
            if many {
                for index in 0..EXPANDS_AHEAD {
                    self.fetch_expand::<O>(lora.expands.get(index));
                }
            }
            lora.shrinks.wait();
            for (index, expand) in lora.expands.iter().enumerate() {
                if many {
                    self.fetch_expand::<O>(lora.expands.get(index + EXPANDS_AHEAD));
                }
                for strip in self.strips {
                    self.expand::<O>(strip, expand);
                }
            }
        }
    }
}

impl Product<'_> {
    /// The weights, widened, with all rows: a part of k after the other, so that the rows' share of it stays in the
    /// second-level cache.
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn widened<O: Operands>(&self) {
        let steps = self.weight.inputs.div_ceil(O::PAIR);
        let parts = (steps * O::PAIR).div_ceil(DEPTH);
        let row_tiles = self.rows.len().div_ceil(O::WIDE_ROWS);
        let mut panel = WidePanel::new();
        for part in 0..parts {
            let steps = part_of(steps, parts, part);
            for strip in self.strips {
                for index in 0..strip.panels {
                    let from = self.weight.panel::<O::W>(strip.panel + index);
                    let from = from.wrapping_add(steps_elements::<O>(steps.start));
                    let column = strip.column + index * 2 * O::S::LANES;
                    // SAFETY: the strip lies within the weight and the scratch tile, the rows within `x`.
                    unsafe {
                        let w = panel.fill::<O>(from, steps.len());
                        for tile in 0..row_tiles {
                            let rows = part_of(self.rows.len(), row_tiles, tile);
                            let at = rows.start * self.x_stride + steps.start * O::PAIR;
                            let tile = WideTile {
                                x: self.x.cast::<f32>().wrapping_add(at),
                                x_stride: self.x_stride,
                                w,
                                depth: steps.len() * O::PAIR,
                                c: self.c.wrapping_add(rows.start * self.c_stride + column),
                                c_stride: self.c_stride,
                                accumulate: part > 0,
                            };
                            O::S::wide(&tile, rows.len());
                        }
                    }
                }
            }
        }
    }

    /// Asks for the panels of an expand that comes later.
    ///
    /// # Safety
    /// The instructions of `O` are there.
    #[inline(always)]
    unsafe fn fetch_expand<O: Operands>(&self, expand: Option<&Expand>) {
        if let Some(expand) = expand {
            for strip in self.strips {
                let Some((panels, _)) = self.overlap::<O>(strip, expand) else { continue };
                let bytes = panels.count * panels.stride * size_of::<O::W>();
                for at in (0..bytes).step_by(LINE) {
                    // SAFETY: the caller's promise.
                    unsafe { O::S::prefetch(panels.w.cast::<u8>().wrapping_add(at)) };
                }
            }
        }
    }

    /// What is read after the weights.
    #[inline(always)]
    fn regions<O: Operands>(&self) -> Regions {
        let mut regions = Regions::new();
        // Many rows take so long that reading hides behind them as it is.
        if self.rows.len() <= O::S::TILE {
            for expand in self.lora.iter().flat_map(|lora| lora.expands) {
                for strip in self.strips {
                    if let Some((panels, _)) = self.overlap::<O>(strip, expand) {
                        let start = panels.w.cast::<u8>();
                        let bytes = panels.count * panels.stride * size_of::<O::W>();
                        regions.add(Region { start, bytes });
                    }
                }
            }
        }
        regions
    }

    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn base<O: Operands>(&self, index: usize, steps: Range<usize>, regions: &mut Regions) {
        let strip = &self.strips[index];
        let panels = Panels {
            w: self.weight.panel::<O::W>(strip.panel),
            stride: steps_elements::<O>(self.weight.inputs.div_ceil(O::PAIR)),
            count: strip.panels,
        };
        let next = self.strips.get(index + 1).map(|strip| strip.panel).or(self.next);
        let mut later = Later {
            lines: Lines::new(),
            next: next.map(|panel| self.weight.panel::<O::W>(panel).cast()),
            regions,
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
        unsafe { task.run::<O>(&panels, Some(&mut later)) }
    }

    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn expand<O: Operands>(&self, strip: &Strip, expand: &Expand) {
        let Some((panels, column)) = self.overlap::<O>(strip, expand) else { return };
        let rows = self.rows.start.max(expand.rows.start)..self.rows.end.min(expand.rows.end);
        let skipped = (rows.start - expand.rows.start) * expand.h_stride;
        let row = rows.start - self.rows.start;
        if rows.len() == 1 {
            let expand = RowExpand::<O> {
                h: expand.h.cast::<O::X>().wrapping_add(skipped),
                b: panels.w,
                stride: panels.stride,
                panels: panels.count,
                steps: expand.steps,
                c: self.c.wrapping_add(row * self.c_stride + column),
            };
            // SAFETY: as below.
            unsafe { expand.run() }
            return;
        }
        let task = TileRows {
            x: expand.h.cast::<O::X>().wrapping_add(skipped),
            x_stride: expand.h_stride,
            rows: rows.len(),
            steps: 0..expand.steps,
            c: self.c.wrapping_add(row * self.c_stride + column),
            c_stride: self.c_stride,
            accumulate: true,
        };
        // SAFETY: the panels lie within B, the rows within `h` and the scratch tile, whose columns have a panel's width
        // of room on both sides of the strip.
        unsafe { task.run::<O>(&panels, None) }
    }

    /// The panels of B that touch a strip, and the column of the scratch tile where they start.
    #[inline(always)]
    fn overlap<O: Operands>(
        &self,
        strip: &Strip,
        expand: &Expand,
    ) -> Option<(Panels<O::W>, usize)> {
        let width = 2 * O::S::LANES;
        let strip_columns = strip.panel * width..(strip.panel + strip.panels) * width;
        let Range { start, end } = expand.columns;
        let apart = expand.rows.start >= self.rows.end
            || expand.rows.end <= self.rows.start
            || start >= strip_columns.end
            || end <= strip_columns.start;
        if apart {
            return None;
        }
        let first = strip_columns.start.saturating_sub(start) / width;
        let end = strip_columns.end.min(end) - start;
        let stride = steps_elements::<O>(expand.steps);
        let w = expand.b.cast::<O::W>().wrapping_add(first * stride);
        let column = strip.column + start + first * width - strip_columns.start;
        Some((Panels { w, stride, count: end.div_ceil(width) - first }, column))
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

/// What to ask for while panels are read.
struct Later<'a> {
    /// Of the tile at hand.
    lines: Lines,
    /// The panel that is read after these.
    next: Option<*const u8>,
    regions: &'a mut Regions,
}

impl Later<'_> {
    /// Fills `lines` for a tile of `steps` steps, after which the panels `after` are read. The tile itself runs on into
    /// the panel that ends at `own`.
    #[inline(always)]
    fn prepare<O: Operands>(
        &mut self,
        steps: usize,
        panels: &Panels<O::W>,
        (own, after): (usize, Range<usize>),
    ) {
        self.lines.clear();
        // The heads of the panels get most of the steps, but not all.
        let head = (steps * 3 / 4 / after.len().max(1)).min(2 * Ahead::FAR);
        let address = |panel: usize| panels.w.wrapping_add(panel * panels.stride).cast();
        if after.is_empty()
            && let Some(next) = self.next
            && next != address(own)
        {
            self.lines.add(next, head);
        }
        for panel in after {
            if panel != own {
                self.lines.add(address(panel), head);
            }
        }
        let room = steps.saturating_sub(self.lines.len());
        self.regions.take(&mut self.lines, room);
    }
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
    unsafe fn run<O: Operands<X = X>>(
        &self,
        panels: &Panels<O::W>,
        mut later: Option<&mut Later<'_>>,
    ) {
        let lanes = O::S::LANES;
        let w_stride = O::PAIR * 2 * lanes;
        let row_tiles = self.rows.div_ceil(O::S::TILE / 2);
        let vectors = panels.count * 2;
        let most_rows = self.rows.div_ceil(row_tiles);
        let x = self.x.wrapping_add(self.steps.start * O::PAIR);
        let w = panels.w.wrapping_add(self.steps.start * w_stride);
        let mut tile = Tile::<O> {
            x,
            x_stride: self.x_stride,
            w: [w; MAX_VECTORS],
            w_stride,
            // Panels of B are short, and asked for already.
            ahead: if later.is_some() { Ahead::of_stream(w_stride) } else { Ahead::by(0) },
            fetches: std::ptr::null(),
            fetch_count: 0,
            steps: self.steps.len(),
            c: self.c,
            c_stride: self.c_stride,
            accumulate: self.accumulate || self.steps.start > 0,
        };
        let mut first = 0;
        while first < vectors {
            // Whole panels, so that each is read from front to back.
            let at_once = vectors_at_once::<O>(most_rows, vectors - first) & !1;
            let end = first + at_once;
            for (i, to) in tile.w[..at_once].iter_mut().enumerate() {
                let (panel, half) = ((first + i) / 2, (first + i) % 2);
                *to = w.wrapping_add(panel * panels.stride + half * lanes * O::PAIR);
            }
            tile.fetch_count = 0;
            for index in 0..row_tiles {
                let rows = part_of(self.rows, row_tiles, index);
                // The last rows find the panels near, so that the memory is free for what is read later.
                if let Some(later) = &mut later
                    && index + 1 == row_tiles
                {
                    let after = end / 2..(end + at_once).min(vectors) / 2;
                    later.prepare::<O>(tile.steps, panels, (end / 2, after));
                    (tile.fetches, tile.fetch_count) = (later.lines.as_ptr(), later.lines.len());
                }
                tile.x = x.wrapping_add(rows.start * self.x_stride);
                tile.c = self.c.wrapping_add(rows.start * self.c_stride + first * lanes);
                // SAFETY: within what the caller promised.
                unsafe { O::tile(&tile, rows.len(), at_once) }
            }
            first = end;
        }
    }
}
