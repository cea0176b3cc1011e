//! Cache lines to ask for while a product computes: what the same thread reads next.
//!
//! A stream of weights is asked for a little ahead by the tile that reads it. Where a stream starts, and for what is
//! read in pieces (adapters, whose matrices are short), nothing is ahead; so the tile before asks for it, a line a step,
//! while it multiplies.
//!
//! What it must never do: follow an address. Asking for a line changes nothing, wherever it leads.

use std::mem::MaybeUninit;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;
/// Regions of a task, more than which are not asked for.
const MOST_REGIONS: usize = 128;
/// Lines of a tile.
const MOST_LINES: usize = 512;

/// Bytes to be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    pub(crate) start: *const u8,
    pub(crate) bytes: usize,
}

/// What a task reads later, in order.
pub(crate) struct Regions {
    regions: [MaybeUninit<Region>; MOST_REGIONS],
    count: usize,
    /// The first one that is not asked for, or not all of it.
    first: usize,
}

impl Regions {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self { regions: [MaybeUninit::uninit(); MOST_REGIONS], count: 0, first: 0 }
    }

    #[inline(always)]
    pub(crate) fn add(&mut self, region: Region) {
        if self.count < MOST_REGIONS {
            self.regions[self.count].write(region);
            self.count += 1;
        }
    }

    /// Moves up to `room` lines to `lines`.
    #[inline(always)]
    pub(crate) fn take(&mut self, lines: &mut Lines, room: usize) {
        let mut room = room.min(MOST_LINES - lines.count);
        while self.first < self.count && room > 0 {
            // SAFETY: written by `add`.
            let region = unsafe { self.regions[self.first].assume_init_mut() };
            let count = region.bytes.div_ceil(LINE).min(room);
            lines.add(region.start, count);
            room -= count;
            region.start = region.start.wrapping_add(count * LINE);
            region.bytes = region.bytes.saturating_sub(count * LINE);
            if region.bytes == 0 {
                self.first += 1;
            }
        }
    }
}

/// What a tile asks for.
pub(crate) struct Lines {
    lines: [MaybeUninit<*const u8>; MOST_LINES],
    count: usize,
}

impl Lines {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self { lines: [MaybeUninit::uninit(); MOST_LINES], count: 0 }
    }

    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        self.count = 0;
    }

    /// Lines from `start` on.
    #[inline(always)]
    pub(crate) fn add(&mut self, start: *const u8, count: usize) {
        let count = count.min(MOST_LINES - self.count);
        for (i, line) in self.lines[self.count..][..count].iter_mut().enumerate() {
            line.write(start.wrapping_add(i * LINE));
        }
        self.count += count;
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Address of the first.
    #[inline(always)]
    pub(crate) fn as_ptr(&self) -> *const *const u8 {
        self.lines.as_ptr().cast()
    }
}
