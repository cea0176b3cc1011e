//! The LoRA work of a step at one site: every segment's shrink, and the list of expands that the products take over.
//!
//! A step without segments does nothing here. A segment's A is read once for all of its parts, and once for each row
//! tile where the segment has many rows.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::backend::OpCounters;
use crate::error::Result;
use crate::weights::{PackedSite, Site};

use super::adapter::{CpuAdapter, LanePanels, NARROW, expand_bytes};
use super::isa::{Arch, Layout, Task};
use super::memory::Memory;
use super::operands::Operands;
use super::pack::shape;
use super::pointwise::convert;
use super::pool::part_of;
use super::product::Expand;
use super::shared::SharedMut;
use super::simd::Simd;
use super::tile::{Ahead, MAX_VECTORS, Tile, fits};

/// Panels that a shrink takes at once.
const VECTORS: usize = 3;
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

    /// Lists the shrinks and expands of a site.
    pub(crate) fn begin(
        &mut self,
        at: SiteShape<'_>,
        input: Input,
        (layout, threads, counters): (Layout, usize, &mut OpCounters),
    ) -> Result<Shrinks> {
        self.expands.clear();
        self.shrinks.clear();
        let slot = at.site.slot(at.layer);
        let lanes = self.segments.iter().filter_map(|s| Some(s.site(slot)?.lanes)).max();
        let stride = lanes.unwrap_or(0).next_multiple_of(MAX_LANES);
        let rows = self.segments.last().map_or(0, |segment| segment.rows.end);
        let h = SharedMut::new(self.room(rows * stride * layout.x_size)?);
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
        let cuts = cuts(self.shrinks.len(), threads);
        let count = self.shrinks.len() * cuts;
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Ok(Shrinks { slot, input, h, stride, cuts, count, next, done })
    }

    /// Memory for the activations.
    fn room(&mut self, bytes: usize) -> Result<*mut u8> {
        if let Some(h) = &mut self.h
            && h.len() >= bytes
        {
            return Ok(h.as_mut_ptr());
        }
        let h = Memory::new(bytes.next_power_of_two(), "LoRA activations")?;
        Ok(self.h.insert(h).as_mut_ptr())
    }

    /// Runs shrinks until none is left to claim.
    pub(crate) fn help(&self, shrinks: &Shrinks, arch: &Arch) {
        while shrinks.next.load(Ordering::Relaxed) < shrinks.count {
            let task = shrinks.next.fetch_add(1, Ordering::Relaxed);
            if task < shrinks.count {
                // Counts even when the shrink panics: others wait for it.
                let _done = Done(&shrinks.done);
                self.run(task, shrinks, arch);
            }
        }
    }

    fn run(&self, task: usize, shrinks: &Shrinks, arch: &Arch) {
        let layout = arch.layout();
        let Shrinks { input, h, stride, cuts, .. } = *shrinks;
        let (segment, rows) = &self.shrinks[task / cuts];
        let adapter = &self.segments[*segment].adapter.0;
        let Some(site) = &adapter.sites[shrinks.slot] else { return };
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
        // SAFETY: `check` has seen that A lies within the adapter; the rows lie within `x` and `h`; the rows and lanes
        // of `h` are this task's alone.
        unsafe { arch.run(&shrink) }
    }
}

/// The shrinks of a site, which the threads take as they come to it: before their first product, whose weights need
/// nothing of them.
#[derive(Debug)]
pub(crate) struct Shrinks {
    slot: usize,
    input: Input,
    h: SharedMut<u8>,
    stride: usize,
    cuts: usize,
    count: usize,
    next: AtomicUsize,
    done: AtomicUsize,
}

impl Shrinks {
    /// Waits for those that other threads have claimed; none may be left to claim.
    #[inline(always)]
    pub(crate) fn wait(&self) {
        while self.done.load(Ordering::Acquire) < self.count {
            std::hint::spin_loop();
        }
    }
}

/// Counts when it is dropped.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// How many tasks a shrink is cut into, by panels: few shrinks are cut so that every thread has some.
fn cuts(shrinks: usize, threads: usize) -> usize {
    if shrinks < 4 * threads { threads } else { 1 }
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
                    O::quarters(&Tile { x, c, ..tile }, vectors, steps - 4 * quarter);
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
        let most = (1..=O::S::TILE).rev().find(|&rows| fits::<O>(rows, vectors));
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
