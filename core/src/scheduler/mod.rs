//! Decides what runs in the next step.
//!
//! Every step takes the decodes first (one row a running sequence), then chunks of prompts with what is left of the
//! token budget, so a long prompt never stops the others' tokens. A sequence that finds no block takes those of the
//! least important one, which starts over later and gives the same tokens.
//!
//! What this module must never do: I/O, read a clock, touch a device.

mod plan;
mod sequence;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use crate::config::SchedulerConfig;
use crate::kv_cache::{BlockManager, BlockTable};

pub use plan::{Chunk, Slot, StepPlan};
pub use sequence::{Ending, SeqId, Sequence};

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
}

/// Sequences by [`Slot`].
#[derive(Debug, Default)]
pub struct Sequences {
    entries: Vec<Option<Sequence>>,
    vacant: Vec<Slot>,
}

impl Sequences {
    /// The sequence at `slot`, which is occupied.
    pub fn get(&self, slot: Slot) -> &Sequence {
        self.entries[slot.0].as_ref().expect("a slot is occupied until its sequence ends")
    }

    fn get_mut(&mut self, slot: Slot) -> &mut Sequence {
        self.entries[slot.0].as_mut().expect("a slot is occupied until its sequence ends")
    }

    fn insert(&mut self, sequence: Sequence) -> Slot {
        match self.vacant.pop() {
            Some(slot) => {
                self.entries[slot.0] = Some(sequence);
                slot
            }
            None => {
                self.entries.push(Some(sequence));
                Slot(self.entries.len() - 1)
            }
        }
    }

    fn remove(&mut self, slot: Slot) -> Sequence {
        self.vacant.push(slot);
        self.entries[slot.0].take().expect("a slot is occupied until its sequence ends")
    }
}

impl Scheduler {
    /// A scheduler for sequences of at most `max_model_len` tokens, each of which fits the pool of blocks alone.
    pub fn new(config: SchedulerConfig, max_model_len: usize) -> Self {
        Self {
            config,
            max_model_len,
            sequences: Sequences::default(),
            running: Vec::new(),
            waiting: BTreeMap::new(),
            slots: HashMap::new(),
        }
    }

    /// Puts a sequence into the queue.
    pub fn add(&mut self, sequence: Sequence) {
        let (id, rank) = (sequence.id, (sequence.priority, sequence.id));
        let slot = self.sequences.insert(sequence);
        self.slots.insert(id, slot);
        self.waiting.insert(rank, slot);
    }

    /// Takes a sequence out, waiting or running; its blocks go back.
    pub fn abort(&mut self, id: SeqId, blocks: &mut BlockManager) -> Option<Sequence> {
        let slot = *self.slots.get(&id)?;
        Some(self.remove(slot, blocks))
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

    /// Fills `plan` with the next step. Empty only when there is no work.
    pub fn schedule(&mut self, plan: &mut StepPlan, blocks: &mut BlockManager) {
        plan.clear();
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
            let rows = sequence.pending().min(*budget).min(room.saturating_sub(sequence.computed));
            if rows > 0 && blocks.grow(&mut sequence.table, sequence.computed + rows) {
                plan.chunks.push(chunk(slot, sequence, rows));
                *budget -= rows;
            }
        }
    }

    fn admit(&mut self, plan: &mut StepPlan, budget: &mut usize, blocks: &mut BlockManager) {
        while *budget > 0 && self.running.len() < self.config.max_num_seqs {
            let Some((&rank, &slot)) = self.waiting.first_key_value() else { break };
            let sequence = self.sequences.get_mut(slot);
            // Prompt log-probabilities need every row computed.
            if sequence.prompt_logprobs.is_none() {
                let (key, tokens) = (sequence.key, &sequence.tokens);
                sequence.computed = blocks.take_prefix(key, tokens, &mut sequence.table);
            }
            let rows = sequence.pending().min(*budget);
            let fits = blocks.missing(&sequence.table, sequence.computed + rows)
                <= blocks.available().saturating_sub(self.reserve(blocks));
            let sequence = self.sequences.get_mut(slot);
            if !fits || !blocks.grow(&mut sequence.table, sequence.computed + rows) {
                sequence.computed = 0;
                blocks.release(std::mem::take(&mut sequence.table));
                break;
            }
            if sequence.preemptions == 0 {
                sequence.cached_tokens = sequence.computed;
                blocks.count_lookup(sequence.prompt_len, sequence.computed);
            }
            plan.chunks.push(chunk(slot, sequence, rows));
            plan.admitted.push(slot);
            *budget -= rows;
            self.waiting.remove(&rank);
            let sequences = &self.sequences;
            let place = self.running.partition_point(|&other| {
                let other = sequences.get(other);
                (other.priority, other.id) < rank
            });
            self.running.insert(place, slot);
        }
    }

    /// Blocks that stay free at an admission while others run, so that their next tokens do not evict the newcomer.
    fn reserve(&self, blocks: &BlockManager) -> usize {
        if self.running.is_empty() { 0 } else { self.running.len().min(blocks.total() / 50) }
    }

    fn preempt_last(&mut self, plan: &mut StepPlan, blocks: &mut BlockManager) {
        let slot = self.running.pop().expect("somebody holds the blocks");
        debug_assert!(plan.chunks.iter().all(|chunk| chunk.slot != slot));
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
        blocks.publish(sequence.key, &mut sequence.table, &sequence.tokens, computed);
        sequence.tokens.push(token?);
        sequence.ending(self.max_model_len)
    }

    /// Takes an ended sequence out; its blocks go back.
    pub fn finish(&mut self, slot: Slot, blocks: &mut BlockManager) -> Sequence {
        self.remove(slot, blocks)
    }

    fn remove(&mut self, slot: Slot, blocks: &mut BlockManager) -> Sequence {
        let mut sequence = self.sequences.remove(slot);
        self.slots.remove(&sequence.id);
        if self.waiting.remove(&(sequence.priority, sequence.id)).is_none() {
            self.running.retain(|&running| running != slot);
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
    Chunk { slot, first, rows, draws: first + rows == sequence.tokens.len(), scores }
}
