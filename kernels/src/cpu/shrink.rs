//! The kernel of a shrink: `h = scale * x Aᵀ` for a few rows of a segment, all stacked parts in one pass over `x`.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::weights::PackedSite;

use super::adapter::NARROW;
use super::isa::Task;
use super::operands::Operands;
use super::pointwise::convert;
use super::pool::part_of;
use super::simd::Simd;
use super::tile::{Ahead, MAX_ROWS, MAX_VECTORS, Tile, fits};

/// Panels that are taken at once.
const VECTORS: usize = 3;
/// Lanes of the widest vector.
pub(crate) const MAX_LANES: usize = 16;

/// `h = scale * x Aᵀ` for a few rows and some panels of lanes.
#[derive(Debug)]
pub(crate) struct Shrink<'a> {
    pub(crate) site: &'a PackedSite,
    pub(crate) a: *const u8,
    /// Wide ones first, then the narrow one.
    pub(crate) panels: Range<usize>,
    pub(crate) x: *const u8,
    pub(crate) x_stride: usize,
    pub(crate) rows: usize,
    pub(crate) k: usize,
    /// What this thread reads after these panels.
    pub(crate) next: *const u8,
    pub(crate) h: *mut u8,
    pub(crate) h_stride: usize,
}

impl Task for Shrink<'_> {
    #[inline(always)]
    unsafe fn run<O: Operands>(&self) {
        // SAFETY: the caller's promise; panels lie within A.
        unsafe {
            let lanes = O::S::LANES;
            let wide = self.site.lanes / lanes
                + usize::from(self.site.lanes % lanes > if lanes > NARROW { NARROW } else { 0 });
            let mut panel = self.panels.start;
            while panel < self.panels.end.min(wide) {
                let at_once = VECTORS.min(self.panels.end.min(wide) - panel);
                self.tile::<O>(panel * lanes, at_once);
                panel += at_once;
            }
            if self.panels.end > wide && panel < self.panels.end {
                self.tile::<O::Half>(wide * lanes, 1);
            }
        }
    }
}

impl Shrink<'_> {
    /// `vectors` panels from lane `first` on. The sums over k are cut in four, whatever the number of rows, because one
    /// row and one panel have nothing else to do while an addition is under way.
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn tile<O: Operands>(&self, first: usize, vectors: usize) {
        let lanes = O::S::LANES;
        let steps = self.k.div_ceil(O::PAIR);
        let quarter = steps / 4;
        let mut c = [MaybeUninit::<f32>::uninit(); MAX_ROWS * 4 * VECTORS * MAX_LANES];
        let c = c.as_mut_ptr().cast::<f32>();
        let c_stride = 4 * vectors * lanes;
        let a = self.a.cast::<O::W>().wrapping_add(first * steps * O::PAIR);
        let mut w = [a; MAX_VECTORS];
        for (i, w) in w[..vectors].iter_mut().enumerate() {
            *w = a.wrapping_add(i * lanes * steps * O::PAIR);
        }
        let w_stride = lanes * O::PAIR;
        let end = (self.panels.end * lanes).min(self.site.lanes.next_multiple_of(lanes));
        let ends_here = first + vectors * lanes >= end;
        let next = if ends_here {
            self.next
        } else {
            w[vectors - 1].wrapping_add(lanes * steps * O::PAIR).cast()
        };
        let tile = Tile::<O> {
            x: self.x.cast::<O::X>(),
            x_stride: self.x_stride,
            w,
            w_stride,
            ahead: Ahead::of_stream(w_stride),
            fetches: std::ptr::null(),
            fetch_count: 0,
            steps: quarter,
            c,
            c_stride,
            accumulate: false,
        };
        // SAFETY: panels, rows and `c` hold what the tiles take; all of `c` that is read has been written.
        unsafe {
            if self.rows <= 2 {
                for row in 0..self.rows {
                    let x = tile.x.wrapping_add(row * self.x_stride);
                    let c = c.wrapping_add(row * c_stride);
                    O::quarters(&Tile { x, c, ..tile }, vectors, (steps - 4 * quarter, next));
                }
            } else {
                for part in 0..4 {
                    self.part::<O>(&tile, (part, vectors), steps);
                }
            }
            self.finish::<O>(c, first, vectors);
        }
    }

    /// One of the four sums, for many rows.
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn part<O: Operands>(
        &self,
        whole: &Tile<O>,
        (part, vectors): (usize, usize),
        steps: usize,
    ) {
        let start = part * whole.steps;
        let steps = if part == 3 { steps - start } else { whole.steps };
        let most = (1..=MAX_ROWS).rev().find(|&rows| fits::<O>(rows, vectors));
        let tiles = self.rows.div_ceil(most.unwrap_or(1));
        let w = whole.w.map(|w| w.wrapping_add(start * whole.w_stride));
        for index in 0..tiles {
            let rows = part_of(self.rows, tiles, index);
            let tile = Tile {
                x: whole.x.wrapping_add(rows.start * self.x_stride + start * O::PAIR),
                w,
                steps,
                c: whole.c.wrapping_add(rows.start * whole.c_stride + part * vectors * O::S::LANES),
                ..*whole
            };
            // SAFETY: the caller's promise.
            unsafe { O::tile(&tile, rows.len(), vectors) }
        }
    }

    /// Adds the four sums up, scales and rounds.
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn finish<O: Operands>(&self, c: *const f32, first: usize, vectors: usize) {
        let lanes = O::S::LANES;
        let count = vectors * lanes;
        let mut scales = [0.0_f32; VECTORS * MAX_LANES];
        // Lanes between the parts' are zero, those behind the last one are not written.
        let mut used = 0;
        for part in self.site.parts.iter().filter(|part| part.rank > 0) {
            let end = (part.lane + part.rank.next_multiple_of(O::PAIR)).saturating_sub(first);
            let start = part.lane.saturating_sub(first);
            scales[start.min(count)..end.min(count)].fill(part.scale);
            used = used.max(end.min(count));
        }
        for row in 0..self.rows {
            let mut h = [0.0_f32; VECTORS * MAX_LANES];
            // SAFETY: the caller's promise.
            unsafe {
                for i in (0..count).step_by(lanes) {
                    let part = |part: usize| O::S::load(c.add((row * 4 + part) * count + i));
                    let sum = O::S::add(O::S::add(part(0), part(1)), O::S::add(part(2), part(3)));
                    let scaled = O::S::mul(sum, O::S::load(scales.as_ptr().add(i)));
                    O::S::store(h.as_mut_ptr().add(i), scaled);
                }
                let to = self.h.cast::<O::X>().wrapping_add(row * self.h_stride + first);
                convert::<O>(h.as_ptr(), used, to);
            }
        }
    }
}
