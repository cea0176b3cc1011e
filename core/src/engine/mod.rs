//! The thread that owns all state of generation and steps it: commands in, plan, run, commit, tokens out.
//!
//! What this module must never do: I/O, parsing, waiting for anything but commands and the device.

mod command;
mod handle;
mod outputs;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use loraplex_kernels::StepOutput;

use crate::error::{Error, ErrorKind};
use crate::kv_cache::BlockManager;
use crate::metrics::{Metrics, StepReport};
use crate::request::FinishReason;
use crate::runner::Runner;
use crate::scheduler::{Scheduler, Sequence, StepPlan};

pub use handle::{EngineHandle, EngineOptions};
pub use stream::OutputStream;

use command::{Command, Drain};
use outputs::Outputs;

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
    plan: StepPlan,
    results: StepOutput,
    stopping: bool,
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
            if self.scheduler.has_work() {
                self.step();
            } else if self.stopping {
                break;
            }
        }
        // Whoever still listens learns that nothing more comes.
        for sequence in self.scheduler.abort_all(&mut self.blocks) {
            self.outputs.fail(sequence.id, &stopped());
        }
    }

    /// Takes what is queued; waits when there is nothing else to do. False when nobody can send any more.
    fn take_commands(&mut self) -> bool {
        if !self.scheduler.has_work() && !self.stopping {
            self.report();
            match self.commands.recv() {
                Ok(command) => self.obey(command),
                Err(_) => return false,
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
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
                if self.stopping {
                    sink.fail(stopped());
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
                if let Some(sequence) = self.scheduler.abort(id, &mut self.blocks) {
                    self.end(sequence, FinishReason::Abort);
                }
            }
            Command::ResetPrefixCache(done) => {
                // A receiver that left does not want the answer.
                let _ = done.send(self.blocks.reset_cache());
            }
            Command::ReleaseAdapters(done) => {
                self.runner.release_unused_adapters();
                // A receiver that left does not want the answer.
                let _ = done.send(());
            }
            Command::Stop(drain) => {
                self.stopping = true;
                if drain == Drain::Abort {
                    for sequence in self.scheduler.abort_all(&mut self.blocks) {
                        self.end(sequence, FinishReason::Abort);
                    }
                }
            }
        }
    }

    fn step(&mut self) {
        self.scheduler.schedule(&mut self.plan, &mut self.blocks);
        if self.plan.is_empty() {
            return;
        }
        self.adapters_moved |= !self.plan.admitted.is_empty() || self.plan.preempted > 0;
        for &slot in &self.plan.admitted {
            let sequence = self.scheduler.sequences().get(slot);
            self.outputs.started(sequence);
            self.metrics.admitted(sequence, Instant::now());
        }
        let ran = self
            .runner
            .submit(&self.plan, self.scheduler.sequences())
            .and_then(|()| self.runner.collect(&mut self.results));
        match ran {
            Ok(()) => self.commit(),
            Err(error) => self.fail_step(&error),
        }
        self.report();
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
        if adapter_ended {
            self.adapters_moved = true;
            self.runner.release_unused_adapters();
        }
    }

    /// An error in a step ends the sequences of its plan; the others go on.
    fn fail_step(&mut self, error: &Error) {
        tracing::error!(%error, rows = self.plan.rows(), "a step failed");
        for chunk in std::mem::take(&mut self.plan.chunks) {
            let sequence = self.scheduler.finish(chunk.slot, &mut self.blocks);
            self.outputs.fail(sequence.id, error);
        }
    }

    fn end(&mut self, sequence: Sequence, reason: FinishReason) {
        self.metrics.finished(&sequence, reason, Instant::now());
        self.outputs.end(sequence.id, reason);
        if sequence.adapter.is_some() {
            drop(sequence);
            self.adapters_moved = true;
            self.runner.release_unused_adapters();
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
        });
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Unavailable, "the server is stopping")
}
