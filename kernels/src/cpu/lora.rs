//! The LoRA work of a step at one site: every segment's shrink, and the list of expands that the products take over.
//!
//! A step without segments does nothing here. A segment's A is read once for all of its parts, and once for each row
//! tile where the segment has many rows.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::backend::OpCounters;
use crate::error::Result;
use crate::weights::{PackedSite, Site};

use super::adapter::{CpuAdapter, LanePanels, expand_bytes};
use super::isa::{Arch, Layout};
use super::memory::Memory;
use super::pack::shape;
use super::pool::part_of;
use super::product::Expand;
use super::shared::SharedMut;
use super::shrink::{MAX_LANES, Shrink};
use super::tile::MAX_ROWS;

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
        Ok(Shrinks { slot, input, h, stride, cuts, threads, count, next, done })
    }

    /// Memory for the activations; none for no bytes.
    fn room(&mut self, bytes: usize) -> Result<*mut u8> {
        if bytes == 0 {
            return Ok(std::ptr::null_mut());
        }
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

    /// Where A of a task starts; threads take tasks in turns, so that it is likely the one that this thread takes next.
    fn read_next(&self, task: usize, shrinks: &Shrinks) -> *const u8 {
        let shrink = self.shrinks.get(task / shrinks.cuts);
        let adapter = shrink.map(|(segment, _)| &self.segments[*segment].adapter.0);
        let site =
            adapter.and_then(|adapter| Some((adapter, adapter.sites[shrinks.slot].as_ref()?)));
        site.map_or(std::ptr::null(), |(adapter, site)| adapter.bytes.as_ptr().wrapping_add(site.a))
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
            next: self.read_next(task + shrinks.threads, shrinks),
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
    threads: usize,
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
