//! The LoRA work of a step at one site: every segment's shrink, and the list of expands that the products take over.
//!
//! A step without segments does nothing here. A segment's A is read once for all of its parts, and once for each row
//! tile where the segment has many rows.

use std::ops::Range;

use crate::backend::OpCounters;
use crate::error::Result;
use crate::weights::{PackedSite, Site};

use super::adapter::{CpuAdapter, LanePanels, NARROW, expand_bytes};
use super::isa::{Arch, Layout, Task};
use super::memory::Memory;
use super::operands::Operands;
use super::pack::shape;
use super::pool::Pool;
use super::product::{Expand, PREFETCH, part_of};
use super::shared::SharedMut;
use super::simd::Simd;
use super::tile::{MAX_VECTORS, Tile, vectors_at_once};

/// Rows of a shrink task.
const MAX_ROWS: usize = 12;
/// Lanes of the widest vector.
const MAX_LANES: usize = 16;

/// Neighbouring rows that use one adapter.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) adapter: CpuAdapter,
    pub(crate) rows: Range<usize>,
}

/// Input of a site: rows of `X`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input {
    pub(crate) x: SharedMut<u8>,
    pub(crate) stride: usize,
    pub(crate) width: usize,
}

/// One site of one decoder layer, with the number of outputs of each of its parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SiteShape<'a> {
    pub(crate) layer: usize,
    pub(crate) site: Site,
    pub(crate) widths: &'a [usize],
}

/// The step's segments and their scratch.
#[derive(Debug, Default)]
pub(crate) struct StepLora {
    pub(crate) segments: Vec<Segment>,
    /// What the products of the site at hand add.
    pub(crate) expands: Vec<Expand>,
    /// Shrinks of the site at hand: a segment and its rows.
    shrinks: Vec<(usize, Range<usize>)>,
    /// `[rows, lanes]`, elements of `X`.
    h: Option<Memory>,
}

impl StepLora {
    /// Forgets the step, keeping memory.
    pub(crate) fn clear(&mut self) {
        self.segments.clear();
        self.expands.clear();
    }

    /// Computes every segment's `scale * x Aᵀ` at a site, and lists the expands.
    pub(crate) fn shrink(
        &mut self,
        at: SiteShape<'_>,
        input: Input,
        (arch, pool, counters): (&Arch, &mut Pool, &mut OpCounters),
    ) -> Result<()> {
        self.expands.clear();
        self.shrinks.clear();
        if self.segments.is_empty() {
            return Ok(());
        }
        let layout = arch.layout();
        let slot = at.site.slot(at.layer);
        let lanes = self.segments.iter().filter_map(|s| Some(s.site(slot)?.lanes)).max();
        let Some(lanes) = lanes else { return Ok(()) };
        let stride = lanes.next_multiple_of(MAX_LANES);
        let rows = self.segments.last().map_or(0, |segment| segment.rows.end);
        let bytes = rows * stride * layout.x_size;
        if self.h.as_ref().is_none_or(|h| h.len() < bytes) {
            self.h = Some(Memory::new(bytes.next_power_of_two(), "LoRA activations")?);
        }
        let Some(h) = &mut self.h else { return Ok(()) };
        let h = SharedMut::new(h.as_mut_ptr::<u8>());
        for (index, segment) in self.segments.iter().enumerate() {
            let Some(site) = segment.site(slot) else { continue };
            segment.check(site, &at, (layout, input.width))?;
            counters.lora_shrinks += 1;
            let tiles = segment.rows.len().div_ceil(MAX_ROWS);
            for tile in 0..tiles {
                let rows = part_of(segment.rows.len(), tiles, tile);
                let start = segment.rows.start;
                self.shrinks.push((index, start + rows.start..start + rows.end));
            }
            let bytes = segment.adapter.0.bytes.as_ptr();
            let mut column = 0;
            for (part, &width) in site.parts.iter().zip(at.widths) {
                if part.rank > 0 {
                    counters.lora_expands += 1;
                    let element = segment.rows.start * stride + part.lane;
                    self.expands.push(Expand {
                        rows: segment.rows.clone(),
                        h: h.get().wrapping_add(element * layout.x_size),
                        h_stride: stride,
                        b: bytes.wrapping_add(part.b),
                        steps: layout.steps(part.rank),
                        columns: column..column + width,
                    });
                }
                column += width;
            }
        }
        self.run(slot, (input, h, stride), (arch, pool))
    }

    /// Shrinks, spread over the threads.
    fn run(
        &self,
        slot: usize,
        (input, h, stride): (Input, SharedMut<u8>, usize),
        (arch, pool): (&Arch, &mut Pool),
    ) -> Result<()> {
        let layout = arch.layout();
        // Few row tiles are cut into panels, so that every thread has some.
        let split = self.shrinks.len() < 4 * pool.threads() && pool.threads() > 1;
        let cuts = if split { pool.threads() } else { 1 };
        pool.run(self.shrinks.len() * cuts, |task, _| {
            let (segment, rows) = &self.shrinks[task / cuts];
            let adapter = &self.segments[*segment].adapter.0;
            let Some(site) = &adapter.sites[slot] else { return };
            let panels = LanePanels::of(site.lanes, layout);
            let shrink = Shrink {
                site,
                a: adapter.bytes.as_ptr().wrapping_add(site.a),
                panels: part_of(panels.count(), cuts, task % cuts),
                x: input.x.get().wrapping_add(rows.start * input.stride * layout.x_size),
                x_stride: input.stride,
                rows: rows.len(),
                k: input.width,
                h: h.get().wrapping_add(rows.start * stride * layout.x_size),
                h_stride: stride,
            };
            // SAFETY: `check` has seen that A lies within the adapter; the rows lie within `x` and `h`; the rows and
            // lanes of `h` are this task's alone.
            unsafe { arch.run(&shrink) }
        })
    }
}

impl Segment {
    fn site(&self, slot: usize) -> Option<&PackedSite> {
        self.adapter.0.sites.get(slot)?.as_ref()
    }

    /// Whether the matrices that a site needs lie within the adapter.
    fn check(
        &self,
        site: &PackedSite,
        at: &SiteShape<'_>,
        (layout, inputs): (Layout, usize),
    ) -> Result<()> {
        let len = self.adapter.0.bytes.len();
        let a_end = site.a + LanePanels::of(site.lanes, layout).bytes(layout, inputs);
        let ends = site.parts.iter().zip(at.widths).filter(|(part, _)| part.rank > 0);
        let b_end = ends.map(|(part, &out)| part.b + expand_bytes(layout, out, part.rank)).max();
        let end = a_end.max(b_end.unwrap_or(0));
        if end > len { Err(shape("bytes of a packed adapter", end, len)) } else { Ok(()) }
    }
}

/// `h = scale * x Aᵀ` for a few rows and some panels of lanes.
#[derive(Debug)]
struct Shrink<'a> {
    site: &'a PackedSite,
    a: *const u8,
    /// Wide ones first, then the narrow one.
    panels: Range<usize>,
    x: *const u8,
    x_stride: usize,
    rows: usize,
    k: usize,
    h: *mut u8,
    h_stride: usize,
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
                let left = self.panels.end.min(wide) - panel;
                let at_once = vectors_at_once(O::S::TILE, self.rows.min(O::S::TILE), left);
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
    /// `vectors` panels from lane `first` on.
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn tile<O: Operands>(&self, first: usize, vectors: usize) {
        let lanes = O::S::LANES;
        let steps = self.k.div_ceil(O::PAIR);
        let mut c = [0.0_f32; MAX_ROWS * MAX_VECTORS * MAX_LANES];
        let c_stride = vectors * lanes;
        let a = self.a.cast::<O::W>().wrapping_add(first * steps * O::PAIR);
        let mut w = [a; MAX_VECTORS];
        for (i, w) in w[..vectors].iter_mut().enumerate() {
            *w = a.wrapping_add(i * lanes * steps * O::PAIR);
        }
        let most = O::S::TILE / vectors;
        let tiles = self.rows.div_ceil(most);
        for index in 0..tiles {
            let rows = part_of(self.rows, tiles, index);
            let tile = Tile {
                x: self.x.cast::<O::X>().wrapping_add(rows.start * self.x_stride),
                x_stride: self.x_stride,
                w,
                w_stride: lanes * O::PAIR,
                prefetch: PREFETCH * lanes * O::PAIR,
                steps,
                c: c[rows.start * c_stride..].as_mut_ptr(),
                c_stride,
                accumulate: false,
            };
            // SAFETY: panels, rows and `c` hold what the tile takes.
            unsafe { O::tile(&tile, rows.len(), vectors) }
        }
        let group = first..first + c_stride;
        for part in self.site.parts.iter().filter(|part| part.rank > 0) {
            let end = part.lane + part.rank.next_multiple_of(O::PAIR);
            for lane in group.start.max(part.lane)..group.end.min(end) {
                for row in 0..self.rows {
                    let value = c[row * c_stride + lane - first] * part.scale;
                    let to = self.h.cast::<O::X>().wrapping_add(row * self.h_stride + lane);
                    // SAFETY: the row and its lanes are this task's.
                    unsafe { to.write(O::to_x(value)) }
                }
            }
        }
    }
}
