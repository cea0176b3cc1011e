//! Decides what runs in the next step.
//!
//! Every step takes the decodes first (one row a running sequence), then chunks of prompts with what is left of the
//! token budget, so a long prompt never stops the others' tokens. A sequence that finds no block takes those of the
//! least important one, which starts over later and gives the same tokens.
//!
//! Sequences that start alike do not compute the same prefix side by side: one does, the others wait for its blocks.
//!
//! An adapter needs room on the device. A request that finds none is passed by others, so that base requests and those of
//! resident adapters go on, but not for ever: an adapter that has come takes along whom its share of the batch has place
//! for, and when too many have passed beyond that, or it has waited for long, the adapters with the fewest sequences take no
//! new ones, but for those of their share that have waited as long, until there is room.
//!
//! What this module must never do: I/O, read a clock, touch a device.

mod adapter_pool;
mod admission;
mod ahead;
mod plan;
mod sequence;
mod successors;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::adapter::Adapter;
use crate::config::SchedulerConfig;
use crate::kv_cache::{BlockManager, BlockTable};

pub use adapter_pool::{AdapterPool, PoolStats};
pub use plan::{Chunk, Slot, StepPlan};
pub use sequence::{Ending, SeqId, Sequence, Sequences};

/// What part of the longest wait for room a request sits still for.
const PATIENCE: u32 = 4;

/// Order of importance: priority, then arrival.
type Rank = (i32, SeqId);

/// Owns all sequences from submission to end.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    max_model_len: usize,
    sequences: Sequences,
    /// Most important first.
    running: Vec<Slot>,
    waiting: BTreeMap<Rank, Slot>,
    slots: HashMap<SeqId, Slot>,
    pool: AdapterPool,
    /// Successors that running sequences are to take when there is room for them.
    flips: Vec<Arc<Adapter>>,
    /// The newest generation of names that have been replaced, for sequences that come with an older one.
    newest: HashMap<String, Weak<Adapter>>,
    /// Sequences that found no room for their adapter in the last step.
    deferred: Vec<Slot>,
    /// Generations that take no new sequences, so that somebody who has waited too long finds room.
    victims: Vec<u64>,
    /// Nobody who waits can come in before somebody ends or gives way, a copy arrives or another sequence comes: the step after
    /// is known.
    closed: bool,
}

impl Scheduler {
    /// A scheduler for sequences of at most `max_model_len` tokens, each of which fits the pool of blocks alone.
    pub fn new(config: SchedulerConfig, max_model_len: usize, pool: AdapterPool) -> Self {
        Self {
            pool,
            flips: Vec::new(),
            newest: HashMap::new(),
            deferred: Vec::new(),
            victims: Vec::new(),
            closed: false,
            config,
            max_model_len,
            sequences: Sequences::default(),
            running: Vec::new(),
            waiting: BTreeMap::new(),
            slots: HashMap::new(),
        }
    }

    /// Puts a sequence into the queue.
    pub fn add(&mut self, mut sequence: Sequence) {
        let name = sequence.adapter.as_ref().map(|adapter| adapter.name());
        let newest = name.and_then(|name| self.newest.get(name)).and_then(Weak::upgrade);
        if let Some(newest) = newest.filter(|newest| sequence.follows(newest)) {
            sequence.take(newest);
        }
        let (id, rank) = (sequence.id, (sequence.priority, sequence.id));
        let slot = self.sequences.insert(sequence);
        self.slots.insert(id, slot);
        self.waiting.insert(rank, slot);
        self.closed = false;
    }

    /// Takes a sequence out, waiting or running; its blocks go back.
    pub fn abort(&mut self, id: SeqId, blocks: &mut BlockManager) -> Option<Sequence> {
        let slot = *self.slots.get(&id)?;
        Some(self.remove(slot, blocks))
    }

    /// The ids of all sequences.
    pub fn ids(&self) -> Vec<SeqId> {
        self.slots.keys().copied().collect()
    }

    /// The ids of sequences that have one of these names.
    pub fn of_requests(&self, names: &[String]) -> Vec<SeqId> {
        let is_named = |sequence: &Sequence| sequence.names.iter().any(|name| names.contains(name));
        let all = self.slots.values().map(|&slot| self.sequences.get(slot));
        all.filter(|sequence| is_named(sequence)).map(|sequence| sequence.id).collect()
    }

    /// Takes out the sequences that have waited for room for their adapter longer than they should. The wait begins when
    /// this finds them without room for the first time.
    pub fn expire(&mut self, now: Instant, blocks: &mut BlockManager) -> Vec<Sequence> {
        let wait = self.config.adapter_wait;
        let mut late = Vec::new();
        for &slot in &self.deferred {
            let sequence = self.sequences.get_mut(slot);
            let since = *sequence.deferred_since.get_or_insert(now);
            let waited = now.saturating_duration_since(since);
            sequence.impatient |= waited > wait / PATIENCE;
            if sequence.preemptions == 0 && waited > wait {
                late.push(slot);
            }
        }
        late.into_iter().map(|slot| self.remove(slot, blocks)).collect()
    }

    /// Lets those who wait for room begin anew: nothing moved while the engine stood still.
    pub fn restart_waits(&mut self) {
        for &slot in &self.deferred {
            let sequence = self.sequences.get_mut(slot);
            (sequence.deferred_since, sequence.impatient) = (None, false);
        }
    }

    /// Forgets what the device holds of generations that nobody uses any more.
    pub fn release_unused_adapters(&mut self) {
        self.pool.release_unused();
    }

    /// An adapter's copy to the device has ended.
    pub fn adapter_arrived(&mut self, generation: u64) {
        self.pool.arrived(generation);
        self.closed = false;
    }

    /// Whether adapters are being copied, for which sequences may wait.
    pub fn awaits_adapters(&self) -> bool {
        self.pool.is_copying()
    }

    /// Takes all adapters without a lease off the device: they are added to `evicted`. Returns their bytes.
    pub fn evict_idle_adapters(&mut self, evicted: &mut Vec<u64>) -> usize {
        self.pool.evict_idle(evicted)
    }

    /// What the device holds of adapters.
    pub fn pool(&self) -> PoolStats {
        self.pool.stats()
    }

    /// Takes everything out.
    pub fn abort_all(&mut self, blocks: &mut BlockManager) -> Vec<Sequence> {
        let slots: Vec<Slot> = self.slots.values().copied().collect();
        slots.into_iter().map(|slot| self.remove(slot, blocks)).collect()
    }

    /// Whether anything waits or runs.
    pub fn has_work(&self) -> bool {
        !self.slots.is_empty()
    }

    /// Sequences that hold blocks.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// All sequences of the table.
    pub fn sequences(&self) -> &Sequences {
        &self.sequences
    }

    /// Sequences that hold blocks, and sequences that wait, most important first.
    pub fn queues(&self) -> (impl Iterator<Item = &Sequence>, impl Iterator<Item = &Sequence>) {
        (
            self.running.iter().map(|&slot| self.sequences.get(slot)),
            self.waiting.values().map(|&slot| self.sequences.get(slot)),
        )
    }

    /// Fills `plan` with the next step. Without chunks only when there is no work, or all of it waits for adapters.
    pub fn schedule(&mut self, plan: &mut StepPlan, blocks: &mut BlockManager) {
        plan.clear();
        self.closed = false;
        self.take_successors(plan);
        let mut budget = self.config.max_num_batched_tokens;
        loop {
            self.plan_decodes(plan, &mut budget, blocks);
            self.plan_prompts(plan, &mut budget, blocks);
            if plan.preempted == 0 || self.running.is_empty() {
                self.admit(plan, &mut budget, blocks);
            }
            // Several half-read prompts can hold all blocks between them: the least important one gives way.
            if !plan.is_empty() || self.running.is_empty() {
                break;
            }
            self.preempt_last(plan, blocks);
        }
        let sequences = &self.sequences;
        plan.chunks.sort_by_key(|chunk| sequences.get(chunk.slot).generation());
    }

    fn plan_decodes(&mut self, plan: &mut StepPlan, budget: &mut usize, blocks: &mut BlockManager) {
        let mut at = 0;
        while at < self.running.len() && *budget > 0 {
            let slot = self.running[at];
            let sequence = self.sequences.get_mut(slot);
            if sequence.pending() > 1 {
                at += 1;
                continue;
            }
            let tokens = sequence.tokens.len();
            if blocks.grow(&mut sequence.table, tokens) {
                plan.chunks.push(chunk(slot, sequence, 1));
                *budget -= 1;
                at += 1;
            } else {
                // The last one is not in the plan yet: decodes are planned in order.
                self.preempt_last(plan, blocks);
            }
        }
    }

    fn plan_prompts(&mut self, plan: &mut StepPlan, budget: &mut usize, blocks: &mut BlockManager) {
        for &slot in &self.running {
            if *budget == 0 {
                break;
            }
            let sequence = self.sequences.get_mut(slot);
            if sequence.pending() == 1 {
                continue;
            }
            let room = (sequence.table.len() + blocks.available()) * blocks.block_size();
            let rows = sequence.pending().min(*budget).min(self.config.most_of_a_prompt);
            let rows = rows.min(room.saturating_sub(sequence.computed));
            if rows > 0 && blocks.grow(&mut sequence.table, sequence.computed + rows) {
                plan.chunks.push(chunk(slot, sequence, rows));
                *budget -= rows;
            }
        }
    }

    fn preempt_last(&mut self, plan: &mut StepPlan, blocks: &mut BlockManager) {
        let slot = self.running.pop().expect("somebody holds the blocks");
        self.closed = false;
        debug_assert!(plan.chunks.iter().all(|chunk| chunk.slot != slot));
        self.end_lease(slot);
        let sequence = self.sequences.get_mut(slot);
        blocks.release(std::mem::take(&mut sequence.table));
        sequence.computed = 0;
        sequence.preemptions += 1;
        self.waiting.insert((sequence.priority, sequence.id), slot);
        plan.preempted += 1;
    }

    /// Takes what a chunk computed: its rows lie in the cache, and `token` is what its last row drew. Returns the
    /// ending if the token was the last; the caller then takes the sequence out with [`Scheduler::finish`].
    pub fn commit(
        &mut self,
        chunk: &Chunk,
        token: Option<u32>,
        blocks: &mut BlockManager,
    ) -> Option<Ending> {
        let sequence = self.sequences.get_mut(chunk.slot);
        sequence.computed = chunk.first + chunk.rows;
        sequence.scored = sequence.scored.max(chunk.scores.end);
        let computed = sequence.computed;
        if !sequence.mixed {
            blocks.publish(sequence.key, &mut sequence.table, &sequence.tokens, computed);
        }
        sequence.push(token?);
        sequence.ending(self.max_model_len)
    }

    /// Takes an ended sequence out; its blocks go back.
    pub fn finish(&mut self, slot: Slot, blocks: &mut BlockManager) -> Sequence {
        self.remove(slot, blocks)
    }

    fn remove(&mut self, slot: Slot, blocks: &mut BlockManager) -> Sequence {
        let mut sequence = self.sequences.remove(slot);
        self.slots.remove(&sequence.id);
        self.closed = false;
        if self.waiting.remove(&(sequence.priority, sequence.id)).is_none() {
            self.running.retain(|&running| running != slot);
            if let Some(generation) = sequence.generation() {
                self.pool.release(generation);
            }
        } else {
            self.deferred.retain(|&deferred| deferred != slot);
        }
        blocks.release(std::mem::take::<BlockTable>(&mut sequence.table));
        sequence
    }
}

fn chunk(slot: Slot, sequence: &Sequence, rows: usize) -> Chunk {
    let first = sequence.computed;
    let scores = match sequence.prompt_logprobs {
        Some(_) => {
            let start = sequence.scored.max(first + 1);
            start..(first + rows + 1).min(sequence.prompt_len).max(start)
        }
        None => 0..0,
    };
    Chunk { slot, first, rows, draws: first + rows == sequence.tokens.len(), scores, follows: None }
}
