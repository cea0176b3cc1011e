//! A fork-join pool for short tasks: the caller is worker 0, the others spin for a moment before they sleep.
//!
//! Each worker has a share of a job's tasks and takes from the others' when it is done with its own. One word says which
//! job a share belongs to and what is left of it, so claiming a task is one compare-and-swap, and a worker that comes
//! late finds nothing to claim. The caller waits for tasks, never for workers: one that sleeps, or that the system has
//! taken off its core, holds up nobody.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::error::{KernelError, Result};

/// How long a worker looks for the next job before it sleeps: longer than the gaps within a step.
const SPIN: Duration = Duration::from_micros(60);

/// What a job runs: the task's number and the worker's.
type Run = unsafe fn(*const (), usize, usize);

/// See the module.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// On its own cache line, so that spinning on it does not slow what lies beside it.
#[derive(Debug)]
#[repr(align(128))]
struct Line<T>(T);

#[derive(Debug)]
struct Shared {
    /// Number of the latest job.
    number: Line<AtomicU32>,
    /// Tasks of the job that have ended.
    done: Line<AtomicUsize>,
    job: Line<Job>,
    /// One a worker.
    shares: Vec<Line<Share>>,
    sleepers: Vec<Sleeper>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// A worker's part of a job's tasks: neighbours, so that a worker reads memory from front to back, and the same ones in
/// every job of the same size. Job number, first task left, and end, in one word.
#[derive(Debug)]
struct Share(AtomicU64);

impl Share {
    const BITS: u32 = 20;
    const MASK: u64 = (1 << Self::BITS) - 1;

    /// Job numbers are compared by the bits that a share has room for.
    fn word(number: u32, tasks: std::ops::Range<usize>) -> u64 {
        u64::from(number) << (2 * Self::BITS)
            | (tasks.start as u64) << Self::BITS
            | tasks.end as u64
    }

    /// Takes the first task left, if the share is of job `number`.
    fn claim(&self, number: u32) -> Option<usize> {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let task = word >> Self::BITS & Self::MASK;
            let of_job = word >> (2 * Self::BITS) == Self::word(number, 0..0) >> (2 * Self::BITS);
            if !of_job || task >= word & Self::MASK {
                return None;
            }
            let next = word + (1 << Self::BITS);
            match self.0.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(task as usize),
                Err(found) => word = found,
            }
        }
    }
}

/// The job: a function and what it is called with. Valid from the publication of its shares until its last task has
/// ended.
#[derive(Debug)]
struct Job {
    run: AtomicPtr<()>,
    data: AtomicPtr<()>,
}

#[derive(Debug, Default)]
struct Sleeper {
    asleep: AtomicBool,
    thread: std::sync::OnceLock<Thread>,
}

impl Pool {
    /// A pool of `threads` workers, the caller being one.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let others = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            number: Line(AtomicU32::new(0)),
            done: Line(AtomicUsize::new(0)),
            job: Line(Job {
                run: AtomicPtr::new(std::ptr::null_mut()),
                data: AtomicPtr::new(std::ptr::null_mut()),
            }),
            shares: (0..=others).map(|_| Line(Share(AtomicU64::new(0)))).collect(),
            sleepers: (0..others).map(|_| Sleeper::default()).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(others) };
        for worker in 1..=others {
            let shared = Arc::clone(&pool.shared);
            let handle = std::thread::Builder::new()
                .name(format!("kernels-{worker}"))
                .spawn(move || shared.work(worker))
                .map_err(|error| {
                    KernelError::Device(format!("cannot start thread {worker}: {error}"))
                })?;
            // The worker cannot be waited for before it is registered: it sleeps only after a spin, and is woken
            // only by `run`, which this thread calls later.
            let _ = pool.shared.sleepers[worker - 1].thread.set(handle.thread().clone());
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    /// Workers, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f(task, worker)` for every task, each once, and returns when all have ended. No two calls at a time have
    /// the same `worker`. Fails when a call panicked. Takes `&mut self` because one job runs at a time.
    pub(crate) fn run<F: Fn(usize, usize) + Sync>(&mut self, tasks: usize, f: F) -> Result<()> {
        if tasks == 0 {
            return Ok(());
        }
        if self.workers.is_empty() || tasks == 1 {
            let all = AssertUnwindSafe(|| (0..tasks).for_each(|task| f(task, 0)));
            return catch_unwind(all).map_err(|_| panicked());
        }
        if tasks as u64 > Share::MASK {
            return Err(KernelError::Device(format!("{tasks} tasks in one job")));
        }
        let shared = &*self.shared;
        shared.job.0.data.store((&raw const f).cast_mut().cast(), Ordering::Relaxed);
        shared.job.0.run.store(call::<F> as Run as *mut (), Ordering::Relaxed);
        shared.done.0.store(0, Ordering::Relaxed);
        let number = shared.number.0.load(Ordering::Relaxed).wrapping_add(1);
        let workers = shared.shares.len();
        for (worker, share) in shared.shares.iter().enumerate() {
            let word = Share::word(number, part_of(tasks, workers, worker));
            share.0.0.store(word, Ordering::Release);
        }
        // Sequentially consistent against a worker that is about to sleep: either it sees this number, or its `asleep`
        // is seen below.
        shared.number.0.store(number, Ordering::SeqCst);
        for sleeper in &shared.sleepers {
            if sleeper.asleep.load(Ordering::SeqCst)
                && let Some(thread) = sleeper.thread.get()
            {
                thread.unpark();
            }
        }
        shared.help(number, 0);
        while shared.done.0.load(Ordering::Acquire) != tasks {
            std::hint::spin_loop();
        }
        if shared.panicked.swap(false, Ordering::Relaxed) {
            return Err(panicked());
        }
        Ok(())
    }
}

fn panicked() -> KernelError {
    KernelError::Device("a kernel panicked".into())
}

/// Range `index` of `count` nearly equal ones that make up `total`.
#[inline(always)]
pub(crate) fn part_of(total: usize, count: usize, index: usize) -> std::ops::Range<usize> {
    total * index / count..total * (index + 1) / count
}

/// # Safety
/// `f` points to an `F`.
unsafe fn call<F: Fn(usize, usize) + Sync>(f: *const (), task: usize, worker: usize) {
    // SAFETY: the caller's promise.
    unsafe { (*f.cast::<F>())(task, worker) }
}

impl Shared {
    /// Runs tasks of job `number` until none is left to claim: the worker's own first, then the others'.
    fn help(&self, number: u32, worker: usize) {
        let mut ended = 0;
        for turn in 0..self.shares.len() {
            let share = &self.shares[(worker + turn) % self.shares.len()].0;
            while let Some(task) = share.claim(number) {
                let data = self.job.0.data.load(Ordering::Relaxed);
                let run = self.job.0.run.load(Ordering::Relaxed);
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    // SAFETY: `run` stored a `Run`. The claim was for the job that was published with these values,
                    // and its caller waits until the task counts as done, so `data` lives and fits.
                    unsafe { std::mem::transmute::<*mut (), Run>(run)(data, task, worker) }
                }));
                if outcome.is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
                ended += 1;
            }
        }
        // Counted once, not a task at a time: the caller watches this line.
        if ended > 0 {
            self.done.0.fetch_add(ended, Ordering::Release);
        }
    }

    /// A worker's life.
    fn work(&self, worker: usize) {
        let sleeper = &self.sleepers[worker - 1];
        let mut seen = 0;
        loop {
            let number = self.next_job(seen, sleeper);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.help(number, worker);
            seen = number;
        }
    }

    /// Waits for a job other than `seen`: spinning at first, then asleep.
    fn next_job(&self, seen: u32, sleeper: &Sleeper) -> u32 {
        let number = |order| self.number.0.load(order);
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..32 {
                if number(Ordering::Acquire) != seen {
                    return number(Ordering::Acquire);
                }
                std::hint::spin_loop();
            }
        }
        sleeper.asleep.store(true, Ordering::SeqCst);
        while number(Ordering::SeqCst) == seen {
            std::thread::park();
        }
        sleeper.asleep.store(false, Ordering::Relaxed);
        number(Ordering::Acquire)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.number.0.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its tasks, so it ends without one.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        let mut pool = Pool::new(3).unwrap();
        for tasks in [0, 1, 2, 7, 100] {
            for _ in 0..200 {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |task, worker| {
                    assert!(worker < 3);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_goes_on() {
        let mut pool = Pool::new(2).unwrap();
        let outcome = pool.run(8, |task, _| assert!(task != 5, "task 5"));
        assert!(matches!(outcome, Err(KernelError::Device(_))));
        pool.run(8, |_, _| ()).unwrap();
    }
}
