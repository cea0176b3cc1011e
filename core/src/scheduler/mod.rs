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
mod ahead;
mod plan;
mod sequence;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::adapter::Adapter;
use crate::config::SchedulerConfig;
use crate::kv_cache::{BlockManager, BlockTable};

pub use adapter_pool::{AdapterPool, PoolStats};
pub use plan::{Chunk, Slot, StepPlan};
pub use sequence::{Ending, SeqId, Sequence};

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

    /// The sequence at `slot`, unless it has ended.
    pub fn find(&self, slot: Slot) -> Option<&Sequence> {
        self.entries[slot.0].as_ref()
    }

    fn find_mut(&mut self, slot: Slot) -> Option<&mut Sequence> {
        self.entries[slot.0].as_mut()
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

    /// `new` succeeds the earlier generations of its name for the sequences that follow: those that wait take it now,
    /// those that run at the next step that has room for it.
    pub fn flip(&mut self, new: &Arc<Adapter>) {
        self.newest.retain(|_, adapter| adapter.strong_count() > 0);
        self.newest.insert(new.name().to_owned(), Arc::downgrade(new));
        self.take_waiting(new);
        self.flips.retain(|older| older.name() != new.name());
        if self.running.iter().any(|&slot| self.sequences.get(slot).follows(new)) {
            self.flips.push(new.clone());
        }
    }

    fn take_waiting(&mut self, new: &Arc<Adapter>) {
        for &slot in self.waiting.values() {
            let sequence = self.sequences.get_mut(slot);
            if sequence.follows(new) {
                sequence.take(new.clone());
            }
        }
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

    /// Running sequences that follow take their adapter's successor, if it has room once they have given theirs back.
    fn take_successors(&mut self, plan: &mut StepPlan) {
        let mut flips = std::mem::take(&mut self.flips);
        flips.retain(|new| {
            // A follower may have given its blocks back since.
            self.take_waiting(new);
            let sequences = &self.sequences;
            let followers = self.running.iter().filter(|&&slot| sequences.get(slot).follows(new));
            let followers: Vec<Slot> = followers.copied().collect();
            // Tokens go on with the older one while the new one is copied, if there is room for both.
            if !followers.is_empty()
                && self.pool.can_lease(new)
                && !self.pool.prepare(new, &mut plan.evicted, &mut plan.copies)
            {
                return true;
            }
            for &slot in &followers {
                self.end_lease(slot);
            }
            let fits = self.pool.can_lease(new);
            for &slot in &followers {
                let sequence = self.sequences.get_mut(slot);
                if fits {
                    sequence.take(new.clone());
                }
                let adapter = sequence.adapter.as_ref().expect("a follower has an adapter");
                self.pool.lease(adapter, &mut plan.evicted);
            }
            plan.flipped |= fits && !followers.is_empty();
            !fits && !followers.is_empty()
        });
        self.flips = flips;
    }

    fn end_lease(&mut self, slot: Slot) {
        if let Some(generation) = self.sequences.get(slot).generation() {
            self.pool.release(generation);
        }
    }

    /// Whether a waiting sequence may have its adapter on the device now.
    fn may_lease(&mut self, slot: Slot, plan: &mut StepPlan) -> bool {
        let patience = self.config.max_num_seqs;
        let sequence = self.sequences.get_mut(slot);
        let Some(adapter) = &sequence.adapter else { return true };
        // While somebody's room is being made, nobody else's adapter takes it.
        let generation = adapter.generation;
        let drains = self.victims.contains(&generation)
            && (!sequence.impatient || self.pool.had_its_share(generation, patience));
        let reserved = !self.victims.is_empty() && (drains || !self.pool.holds(generation));
        if !reserved && self.pool.can_lease(adapter) {
            return self.pool.prepare(adapter, &mut plan.evicted, &mut plan.copies);
        }
        let impatient = sequence.impatient;
        if self.victims.is_empty() && (impatient || sequence.overtaken >= patience) {
            self.pool.victims(adapter.bytes(), (patience, impatient), &mut self.victims);
        }
        self.deferred.push(slot);
        false
    }

    fn admit(&mut self, plan: &mut StepPlan, budget: &mut usize, blocks: &mut BlockManager) {
        self.deferred.clear();
        self.victims.clear();
        let mut last = Bound::Unbounded;
        // Whether somebody waits for a prefix that others compute.
        let mut soon = false;
        loop {
            if self.running.len() >= self.config.max_num_seqs {
                self.closed = true;
                break;
            }
            let mut rest = self.waiting.range((last, Bound::Unbounded));
            let Some((&rank, &slot)) = rest.next() else {
                self.closed = !soon;
                break;
            };
            if *budget == 0 {
                break;
            }
            last = Bound::Excluded(rank);
            if blocks.is_caching() && self.is_being_computed(slot, blocks.block_size()) {
                soon = true;
                continue;
            }
            if !self.may_lease(slot, plan) {
                continue;
            }
            let sequence = self.sequences.get_mut(slot);
            // Prompt log-probabilities need every row computed.
            if sequence.prompt_logprobs.is_none() {
                let (key, tokens) = (sequence.key, &sequence.tokens);
                sequence.computed = blocks.take_prefix(key, tokens, &mut sequence.table);
            }
            let rows = sequence.pending().min(*budget).min(self.config.most_of_a_prompt);
            let fits = blocks.missing(&sequence.table, sequence.computed + rows)
                <= blocks.available().saturating_sub(self.reserve(blocks));
            let sequence = self.sequences.get_mut(slot);
            if !fits || !blocks.grow(&mut sequence.table, sequence.computed + rows) {
                sequence.computed = 0;
                blocks.release(std::mem::take(&mut sequence.table));
                self.closed = !soon;
                break;
            }
            (sequence.deferred_since, sequence.impatient) = (None, false);
            if let Some(adapter) = &sequence.adapter {
                self.pool.lease(adapter, &mut plan.evicted);
            }
            // Those who come along with an adapter that somebody waited for do not count.
            let generation = sequence.generation();
            let all = self.config.max_num_seqs;
            if generation.is_some_and(|generation| self.pool.had_its_share(generation, all)) {
                for &passed in &self.deferred {
                    self.sequences.get_mut(passed).overtaken += 1;
                }
            }
            let sequence = self.sequences.get_mut(slot);
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

    /// Whether a running sequence computes a block now that a waiting one starts with: a step later that one finds it
    /// cached. So the choices of a request, and a trainer's samples of one prompt, read the prompt once.
    fn is_being_computed(&self, slot: Slot, block_size: usize) -> bool {
        let sequence = self.sequences.get(slot);
        if sequence.prompt_logprobs.is_some() {
            return false;
        }
        self.running.iter().map(|&slot| self.sequences.get(slot)).any(|other| {
            let shared = (other.computed / block_size + 1) * block_size;
            other.pending() > 1
                && other.key == sequence.key
                && shared <= other.tokens.len()
                && shared < sequence.tokens.len()
                && other.tokens[..shared] == sequence.tokens[..shared]
        })
    }

    /// Blocks that stay free at an admission while others run, so that their next tokens do not evict the newcomer.
    fn reserve(&self, blocks: &BlockManager) -> usize {
        if self.running.is_empty() { 0 } else { self.running.len().min(blocks.total() / 50) }
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
