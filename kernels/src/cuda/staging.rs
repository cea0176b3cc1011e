//! Copies from the host: large ones filled by several threads, small ones of a step without waiting.

use std::ops::Range;
use std::sync::Arc;
use std::thread;

use cudarc::driver::{CudaEvent, CudaStream, result};

use super::error::Context as _;
use super::gpu::Gpu;
use super::memory::{Number, Pinned};
use crate::error::Result;

/// Bytes of one piece of a large copy.
const PIECE: usize = 16 << 20;
/// Pieces under way: while one is copied the next is filled.
const PIECES: usize = 3;
/// Small copies under way: of a step, and of the one before that may still run.
const SMALL: usize = 12;
/// Threads that fill a piece; one core reaches about 6 GB/s, the bus 55.
const THREADS: usize = 8;

/// Page-locked memory and the copy that last read it.
#[derive(Debug)]
struct Slot {
    memory: Pinned,
    copied: CudaEvent,
}

impl Slot {
    fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self> {
        let copied = gpu.context.new_event(None).during("making an event")?;
        Ok(Self { memory: Pinned::new(gpu, bytes)?, copied })
    }

    /// Queues a copy of the first `count` numbers.
    ///
    /// # Safety
    ///
    /// `to` has room for them, and nothing that runs beside the stream uses that memory.
    unsafe fn send<T: Number>(&self, stream: &CudaStream, to: u64, count: usize) -> Result<()> {
        let from = &self.memory.as_slice::<T>()[..count];
        // SAFETY: the caller vouches for `to`; the slot is not written again before `copied`.
        unsafe { result::memcpy_htod_async(to, from, stream.cu_stream()) }
            .during("copying to the device")?;
        self.copied.record(stream).during("recording a copy")
    }
}

/// Large copies over the copy stream.
#[derive(Debug)]
pub(super) struct Staging {
    gpu: Arc<Gpu>,
    slots: Vec<Slot>,
    next: usize,
    done: CudaEvent,
}

impl Staging {
    pub(super) fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        let done = gpu.context.new_event(None).during("making an event")?;
        Ok(Self { gpu: gpu.clone(), slots: Vec::new(), next: 0, done })
    }

    /// As [`Staging::send`] does; work issued to the compute stream afterwards finds the data.
    ///
    /// # Safety
    ///
    /// As for [`Staging::send`].
    pub(super) unsafe fn upload<T: Number>(
        &mut self,
        to: u64,
        shape: (usize, usize),
        fill: impl Fn(Range<usize>, &mut [T]) + Sync,
    ) -> Result<()> {
        // SAFETY: the caller vouches for it.
        unsafe { self.send(to, shape, fill)? };
        self.done.record(&self.gpu.copy).during("recording a copy")?;
        self.gpu.compute.wait(&self.done).during("waiting for a copy")
    }

    /// Waits until everything that was sent has been copied.
    pub(super) fn finish(&self) -> Result<()> {
        self.done.record(&self.gpu.copy).during("recording a copy")?;
        self.done.synchronize().during("waiting for a copy")
    }

    /// Copies `units` units of `width` numbers to device memory at `to`, over the copy stream. `fill` writes the units of
    /// a range; it runs on several threads.
    ///
    /// # Safety
    ///
    /// `to` has room, and no work under way uses that memory but what the copy stream waits for already.
    pub(super) unsafe fn send<T: Number>(
        &mut self,
        to: u64,
        (units, width): (usize, usize),
        fill: impl Fn(Range<usize>, &mut [T]) + Sync,
    ) -> Result<()> {
        let unit_bytes = (width * size_of::<T>()).max(1);
        let at_once = (PIECE / unit_bytes).max(1);
        for first in (0..units).step_by(at_once) {
            let range = first..units.min(first + at_once);
            let count = range.len() * width;
            let slot = self.free_slot(count * size_of::<T>())?;
            fill_together(range, width, &mut slot.memory.as_mut_slice::<T>()[..count], &fill);
            let (stream, place) = (self.gpu.copy.clone(), to + (first * unit_bytes) as u64);
            let slot = &self.slots[self.next];
            // SAFETY: the caller vouches for the whole of `to`.
            unsafe { slot.send::<T>(&stream, place, count)? };
            self.next = (self.next + 1) % PIECES;
        }
        Ok(())
    }

    fn free_slot(&mut self, bytes: usize) -> Result<&mut Slot> {
        if self.slots.len() <= self.next {
            self.slots.push(Slot::new(&self.gpu, bytes.max(PIECE))?);
        }
        let slot = &mut self.slots[self.next];
        slot.copied.synchronize().during("waiting for a copy")?;
        if slot.memory.bytes() < bytes {
            slot.memory = Pinned::new(&self.gpu, bytes)?;
        }
        Ok(slot)
    }
}

/// Cuts a range among threads.
fn fill_together<T: Number>(
    range: Range<usize>,
    width: usize,
    mut out: &mut [T],
    fill: &(impl Fn(Range<usize>, &mut [T]) + Sync),
) {
    let cores = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let share = range.len().div_ceil(cores).max(1);
    // Little work is done before a thread has started.
    if size_of_val(out) < PIECE / 16 || cores == 1 {
        return fill(range, out);
    }
    thread::scope(|scope| {
        for first in range.clone().step_by(share) {
            let own = first..range.end.min(first + share);
            let (piece, rest) = std::mem::take(&mut out).split_at_mut(own.len() * width);
            out = rest;
            scope.spawn(move || fill(own, piece));
        }
    });
}

/// Small copies of a step, over the compute stream.
#[derive(Debug)]
pub(super) struct Letters {
    gpu: Arc<Gpu>,
    slots: Vec<Slot>,
    next: usize,
}

impl Letters {
    pub(super) fn new(gpu: &Arc<Gpu>) -> Self {
        Self { gpu: gpu.clone(), slots: Vec::new(), next: 0 }
    }

    /// Queues a copy of `words`; the slice is free again at once. Waits only when [`SMALL`] copies are under way.
    ///
    /// # Safety
    ///
    /// `to` has room, and belongs to work on the compute stream alone.
    pub(super) unsafe fn send(&mut self, to: u64, words: &[u32]) -> Result<()> {
        let bytes = size_of_val(words);
        if self.slots.len() <= self.next {
            self.slots.push(Slot::new(&self.gpu, bytes.next_power_of_two())?);
        }
        let slot = &mut self.slots[self.next];
        slot.copied.synchronize().during("waiting for a copy")?;
        if slot.memory.bytes() < bytes {
            slot.memory = Pinned::new(&self.gpu, bytes.next_power_of_two())?;
        }
        slot.memory.as_mut_slice::<u32>()[..words.len()].copy_from_slice(words);
        // SAFETY: the caller vouches for `to`.
        unsafe { slot.send::<u32>(&self.gpu.compute, to, words.len())? };
        self.next = (self.next + 1) % SMALL;
        Ok(())
    }
}
