//! Who of those that wait comes in: by importance, where there are blocks, and room for the adapter.

use std::ops::Bound;

use super::{Scheduler, Slot, StepPlan, chunk};
use crate::kv_cache::BlockManager;

impl Scheduler {
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

    pub(super) fn admit(
        &mut self,
        plan: &mut StepPlan,
        budget: &mut usize,
        blocks: &mut BlockManager,
    ) {
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
}
