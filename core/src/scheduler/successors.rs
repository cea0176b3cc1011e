//! In-place replacement: sequences that follow take the successor of their adapter.

use std::sync::Arc;

use super::{Scheduler, Slot, StepPlan};
use crate::adapter::Adapter;

impl Scheduler {
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

    /// Running sequences that follow take their adapter's successor, if it has room once they have given theirs back.
    pub(super) fn take_successors(&mut self, plan: &mut StepPlan) {
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

    pub(super) fn end_lease(&mut self, slot: Slot) {
        if let Some(generation) = self.sequences.get(slot).generation() {
            self.pool.release(generation);
        }
    }
}
