//! The thread that owns all state of generation and steps it: commands in, plan, run, commit, tokens out.
//!
//! What this module must never do: I/O, parsing, waiting for anything but commands and the device.

mod ahead;
mod command;
mod handle;
mod mailbox;
mod outputs;
mod pause;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Instant;

use loraplex_kernels::StepOutput;

use crate::error::{Error, ErrorKind};
use crate::kv_cache::BlockManager;
use crate::metrics::{Metrics, StepReport};
use crate::request::FinishReason;
use crate::runner::Runner;
use crate::scheduler::{Scheduler, SeqId, Sequence, StepPlan};

pub use handle::{EngineHandle, EngineOptions};
pub use pause::PauseMode;
pub use stream::OutputStream;

use ahead::Flight;
use command::{Command, Drain};
use outputs::Outputs;
use pause::{PauseMode as Mode, PauseState};

/// Everything that a step touches. One thread owns it; see [`EngineHandle::start`].
#[derive(Debug)]
struct Engine {
    scheduler: Scheduler,
    blocks: BlockManager,
    runner: Box<dyn Runner>,
    outputs: Outputs,
    metrics: Arc<Metrics>,
    commands: Receiver<Command>,
    end_tokens: Arc<[u32]>,
    seed: u64,
    /// The step under way, or the last one.
    plan: StepPlan,
    flight: Flight,
    /// A command that came while a step was under way.
    held: Option<Command>,
    results: StepOutput,
    /// Empty between steps.
    arrived: Vec<u64>,
    stopping: bool,
    pause: PauseState,
    /// Whether it is paused, for those who ask from outside.
    paused: Arc<AtomicBool>,
    /// Set when the sets of running and waiting adapters may have changed.
    adapters_moved: bool,
}

impl Engine {
    /// Steps while there is work, waits for commands while there is none, until it is told to stop.
    fn run(mut self) {
        loop {
            if !self.take_commands() {
                break;
            }
            if self.scheduler.has_work() && !self.pause.is_frozen() {
                self.step();
            } else if self.stopping {
                break;
            }
            self.settle();
        }
        // Whoever still listens learns that nothing more comes.
        for sequence in self.scheduler.abort_all(&mut self.blocks) {
            self.outputs.fail(sequence.id, &stopped());
        }
    }

    /// Takes what is queued; waits when there is nothing else to do. False when nobody can send any more.
    fn take_commands(&mut self) -> bool {
        if (!self.scheduler.has_work() || self.pause.is_frozen()) && !self.stopping {
            // The last step has been counted.
            self.plan.clear();
            self.report();
            let received = match (self.held.take(), self.pause.until()) {
                (Some(command), _) => Ok(command),
                (None, None) => self.commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                (None, Some(until)) => {
                    let left = until.saturating_duration_since(Instant::now());
                    self.commands.recv_timeout(left)
                }
            };
            match received {
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        if self.pause.until().is_some_and(|until| until <= Instant::now()) {
            tracing::warn!("a pause has reached its end without a resume: going on");
            self.resume();
        }
        loop {
            let received = self.held.take().map_or_else(|| self.commands.try_recv(), Ok);
            match received {
                Ok(command) => {
                    // It finds all sequences as their last tokens left them.
                    self.land();
                    self.obey(command);
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => {
                    self.stopping = true;
                    return true;
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit { id, request, arrival, sink } => {
                if self.stopping || self.pause.refuses() {
                    sink.fail(if self.stopping { stopped() } else { paused() });
                    return;
                }
                // Requests without a seed differ from each other, and a run is repeated by the server's seed.
                let seed = self.seed.wrapping_add(id.0).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                let sequence = Sequence::new(id, arrival, *request, &self.end_tokens, seed);
                self.adapters_moved |= sequence.adapter.is_some();
                self.outputs.insert(id, sink);
                self.scheduler.add(sequence);
            }
            Command::Abort(id) => {
                self.abort(id);
            }
            Command::ResetPrefixCache(done) => {
                let _ = done.send(self.blocks.reset_cache());
            }
            Command::AbortRequests(requests, done) => {
                let ids = match requests {
                    Some(requests) => self.scheduler.of_requests(&requests),
                    None => self.scheduler.ids(),
                };
                for &id in &ids {
                    self.abort(id);
                }
                // A receiver that left does not want the answer; the same below.
                let _ = done.send(ids.len());
            }
            Command::Replace(new, done) => {
                self.scheduler.flip(&new);
                drop(new);
                self.release_unused_adapters();
                let _ = done.send(());
            }
            Command::ReleaseAdapters(done) => {
                self.release_unused_adapters();
                let _ = done.send(());
            }
            Command::EvictAdapters(done) => {
                let mut evicted = Vec::new();
                let bytes = self.scheduler.evict_idle_adapters(&mut evicted);
                self.runner.evict(&evicted);
                self.runner.release_memory();
                let _ = done.send(bytes);
            }
            Command::Pause(_, done) if self.stopping => {
                let _ = done.send(false);
            }
            Command::Pause(pause, done) => {
                if pause.mode == Mode::Abort {
                    self.abort_all();
                }
                self.pause.start(&pause, done);
                self.paused.store(true, Ordering::Relaxed);
            }
            Command::Resume(done) => {
                self.resume();
                let _ = done.send(());
            }
            Command::Stop(drain) => {
                self.stopping = true;
                // What runs is to finish, so it must not stand still.
                self.resume();
                if drain == Drain::Abort {
                    self.abort_all();
                }
            }
        }
    }

    fn abort(&mut self, id: SeqId) {
        if let Some(sequence) = self.scheduler.abort(id, &mut self.blocks) {
            self.end(sequence, FinishReason::Abort);
        }
    }

    fn abort_all(&mut self) {
        for sequence in self.scheduler.abort_all(&mut self.blocks) {
            self.end(sequence, FinishReason::Abort);
        }
    }

    fn resume(&mut self) {
        self.pause.end();
        self.scheduler.restart_waits();
        self.paused.store(false, Ordering::Relaxed);
    }

    /// Tells those who have asked for a pause that it holds.
    fn settle(&mut self) {
        if self.pause.settle(self.scheduler.has_work()) {
            self.blocks.reset_cache();
        }
    }

    fn release_unused_adapters(&mut self) {
        self.scheduler.release_unused_adapters();
        self.runner.release_unused_adapters();
    }

    fn step(&mut self) {
        if self.flight.under_way {
            self.expire();
        } else {
            self.start_step();
        }
        let next = self.flight.under_way && self.submit_next();
        self.land();
        if next {
            self.take_next();
        }
        if !self.scheduler.has_work() {
            // All that ran ahead has ended meanwhile.
            self.land();
        }
    }

    /// Refuses those who have waited too long for room for their adapter.
    fn expire(&mut self) {
        for sequence in self.scheduler.expire(Instant::now(), &mut self.blocks) {
            self.outputs.fail(sequence.id, &no_room(&sequence));
            self.adapters_moved = true;
        }
    }

    /// Plans a step and submits it, if anything can run.
    fn start_step(&mut self) {
        self.take_arrived(false);
        self.scheduler.schedule(&mut self.plan, &mut self.blocks);
        // Whoever found room just now is not too late.
        self.expire();
        self.runner.evict(&self.plan.evicted);
        self.runner.copy_adapters(&self.plan.copies);
        // Who unloads an adapter waits until nobody holds it.
        self.plan.copies.clear();
        if self.plan.is_empty() {
            // Nobody else could run meanwhile.
            self.take_arrived(true);
            return;
        }
        self.adapters_moved |= !self.plan.admitted.is_empty() || self.plan.preempted > 0;
        for &slot in &self.plan.admitted {
            let sequence = self.scheduler.sequences().get(slot);
            self.outputs.started(sequence);
            self.metrics.admitted(sequence, Instant::now());
        }
        match self.runner.submit(&self.plan, self.scheduler.sequences()) {
            Ok(()) => self.flight.begin(),
            Err(failed) => {
                self.fail_step(&failed.error, failed.generation);
                self.report();
            }
        }
    }

    /// Tells the scheduler which copies of adapters have ended; if `wait`, waits for one.
    fn take_arrived(&mut self, wait: bool) {
        if self.scheduler.awaits_adapters() {
            self.runner.arrived_adapters(wait, &mut self.arrived);
            if self.arrived.is_empty() {
                return;
            }
            for generation in self.arrived.drain(..) {
                self.scheduler.adapter_arrived(generation);
            }
            // Some may have been unloaded meanwhile.
            self.scheduler.release_unused_adapters();
        }
    }

    /// Hands out the step's tokens and takes ended sequences out.
    fn commit(&mut self) {
        let now = Instant::now();
        let mut sample = 0;
        let mut adapter_ended = false;
        for chunk in &self.plan.chunks {
            let scores = sample..sample + chunk.scores.len();
            sample += chunk.samples();
            let draw = chunk.draws.then(|| sample - 1);
            // One that ran ahead has ended meanwhile.
            if self.scheduler.sequences().find(chunk.slot).is_none() {
                continue;
            }
            let token = draw.map(|at| self.results.tokens[at]);
            let ending = self.scheduler.commit(chunk, token, &mut self.blocks);
            let sequence = self.scheduler.sequences().get(chunk.slot);
            let ended = ending.as_ref().map(|(reason, _)| *reason);
            if !scores.is_empty() {
                self.outputs.scored(sequence, &self.results, scores);
            }
            if let Some(at) = draw {
                let gap = self.outputs.drew(sequence, (&self.results, at), ending, now);
                self.metrics.token(sequence, gap, now);
            }
            if let Some(reason) = ended {
                let sequence = self.scheduler.finish(chunk.slot, &mut self.blocks);
                self.metrics.finished(&sequence, reason, now);
                adapter_ended |= sequence.adapter.is_some();
            }
        }
        self.adapters_moved |= adapter_ended;
        if adapter_ended || self.plan.flipped {
            self.release_unused_adapters();
        }
    }

    /// An error in a step ends the sequences of its plan, or those of them that use `generation`; the others go on.
    fn fail_step(&mut self, error: &Error, generation: Option<u64>) {
        tracing::error!(%error, rows = self.plan.rows(), "a step failed");
        for chunk in std::mem::take(&mut self.plan.chunks) {
            let sequence = self.scheduler.sequences().find(chunk.slot);
            let fails =
                |sequence: &Sequence| generation.is_none() || sequence.generation() == generation;
            if !sequence.is_some_and(fails) {
                continue;
            }
            let sequence = self.scheduler.finish(chunk.slot, &mut self.blocks);
            self.outputs.fail(sequence.id, error);
        }
        self.adapters_moved = true;
        self.release_unused_adapters();
    }

    fn end(&mut self, sequence: Sequence, reason: FinishReason) {
        self.metrics.finished(&sequence, reason, Instant::now());
        self.outputs.end(sequence.id, reason);
        if sequence.adapter.is_some() {
            drop(sequence);
            self.adapters_moved = true;
            self.release_unused_adapters();
        }
    }

    fn report(&mut self) {
        if std::mem::take(&mut self.adapters_moved) {
            let (running, waiting) = self.scheduler.queues();
            self.metrics.adapters_in_use(
                running.filter_map(|sequence| sequence.adapter.as_deref()),
                waiting.filter_map(|sequence| sequence.adapter.as_deref()),
            );
        }
        self.metrics.step(&StepReport {
            rows: self.plan.rows(),
            preempted: self.plan.preempted,
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            blocks_used: self.blocks.total() - self.blocks.available(),
            blocks: self.blocks.total(),
            prefix: self.blocks.stats(),
            operations: self.runner.counters(),
            pool: self.scheduler.pool(),
            paused: self.paused.load(Ordering::Relaxed),
        });
    }
}

fn paused() -> Error {
    Error::unavailable("the engine is paused; /resume ends it")
}

fn no_room(sequence: &Sequence) -> Error {
    let name = sequence.adapter.as_ref().map_or("", |adapter| adapter.name());
    Error::unavailable(format!(
        "LoRA adapter '{name}' found no room on the device in time: all of it is in use (--max-loras, --lora-pool-memory)"
    ))
}

fn stopped() -> Error {
    Error::new(ErrorKind::Unavailable, "the server is stopping")
}
