//! What this machine can do at most, to measure the kernels against: read memory, and multiply and add.
//!
//! What it must never do: run beside a step, which would share the machine with it.

use std::time::Instant;

use crate::error::Result;
use crate::weights::DType;

use super::isa::{Arch, Isa, Task};
use super::memory::Memory;
use super::operands::Operands;
use super::pool::Pool;
use super::shared::SharedMut;
use super::simd::Simd;

/// More than the caches of most machines hold.
const READ_BYTES: usize = 512 << 20;
/// Bytes that a task reads.
const READ_TASK: usize = 1 << 20;
/// Streams of a task, as many as a decode has.
const STREAMS: usize = 4;
/// Bytes between asking for a cache line and reading it, as the kernels do.
const NEAR: usize = 1 << 10;
const FAR: usize = 8 << 10;
/// Multiply-adds of a task, a register.
const PEAK_STEPS: usize = 20_000;
/// Accumulators: enough to hide the latency of a multiply-add.
const CHAINS: usize = 12;

/// Measures limits on a pool of its own.
#[derive(Debug)]
pub struct Probe {
    arch: Arch,
    pool: Pool,
    memory: Memory,
}

impl Probe {
    /// A probe with the instructions that a backend with the same options uses.
    pub fn new(dtype: DType, threads: usize, isa: Option<Isa>) -> Result<Self> {
        let mut memory = Memory::new(READ_BYTES, "a probe")?;
        let mut pool = Pool::new(threads)?;
        let start = SharedMut::new(memory.as_mut_ptr::<u8>());
        // Untouched memory is one page of zeros.
        pool.run(READ_BYTES / READ_TASK, |task, _| {
            // SAFETY: within the memory, a part for each task.
            unsafe { start.get().add(task * READ_TASK).write_bytes(1, READ_TASK) }
        })?;
        Ok(Self { arch: Arch::new(isa.unwrap_or_else(Isa::best), dtype)?, pool, memory })
    }

    /// Bytes a second of one read over more memory than the caches hold.
    pub fn read(&mut self) -> Result<f64> {
        let from = SharedMut::new(self.memory.as_mut_ptr::<u8>());
        let arch = &self.arch;
        let start = Instant::now();
        self.pool.run(READ_BYTES / READ_TASK, |task, _| {
            let read = Read { from: from.get().wrapping_add(task * READ_TASK).cast() };
            // SAFETY: within the memory, which nobody writes.
            unsafe { arch.run(&read) }
        })?;
        Ok(READ_BYTES as f64 / start.elapsed().as_secs_f64())
    }

    /// Operations a second of multiply-adds on registers; a multiplication and an addition are two.
    pub fn multiply(&mut self) -> Result<f64> {
        let arch = &self.arch;
        let tasks = self.pool.threads() * 16;
        let start = Instant::now();
        // SAFETY: the task reads nothing but itself.
        self.pool.run(tasks, |_, _| unsafe { arch.run(&Multiply) })?;
        let layout = self.arch.layout();
        let operations =
            tasks * PEAK_STEPS * CHAINS * layout.lanes * (layout.pair / layout.parts) * 2;
        Ok(operations as f64 / start.elapsed().as_secs_f64())
    }
}

/// Sums [`READ_TASK`] bytes.
struct Read {
    from: *const f32,
}

impl Task for Read {
    #[inline(always)]
    unsafe fn run<O: Operands>(&self) {
        let stream = READ_TASK / 4 / STREAMS;
        // SAFETY: the streams make up the task's bytes.
        unsafe {
            let mut sums = [O::S::splat(0.0); 4 * STREAMS];
            for i in (0..stream).step_by(4 * O::S::LANES) {
                for (j, sum) in sums.iter_mut().enumerate() {
                    let at = j % STREAMS * stream + i + j / STREAMS * O::S::LANES;
                    let at = self.from.add(at);
                    O::S::prefetch(at.wrapping_byte_add(NEAR));
                    O::S::prefetch_far(at.wrapping_byte_add(FAR));
                    *sum = O::S::add(*sum, O::S::load(at));
                }
            }
            let mut total = O::S::splat(0.0);
            for sum in sums {
                total = O::S::add(total, sum);
            }
            std::hint::black_box(O::S::sum(total));
        }
    }
}

/// [`PEAK_STEPS`] multiply-adds on each of [`CHAINS`] registers.
struct Multiply;

impl Task for Multiply {
    #[inline(always)]
    unsafe fn run<O: Operands>(&self) {
        let zero = std::hint::black_box([0.0_f32; 16]);
        // SAFETY: the array holds a vector of weights and an activation.
        unsafe {
            let w = O::weights(zero.as_ptr().cast(), 0);
            let x = O::broadcast(zero.as_ptr().cast(), 0);
            let mut acc = [O::S::splat(0.0); CHAINS];
            for _ in 0..PEAK_STEPS {
                for acc in &mut acc {
                    *acc = O::mac(*acc, w, x);
                }
            }
            let mut total = O::S::splat(0.0);
            for acc in acc {
                total = O::S::add(total, acc);
            }
            std::hint::black_box(O::S::sum(total));
        }
    }
}
