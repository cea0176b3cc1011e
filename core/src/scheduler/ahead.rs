//! The step after the one under way, planned before its tokens are known: every sequence goes on by the token that is
//! being drawn.

use super::{Chunk, Scheduler, StepPlan};
use crate::kv_cache::BlockManager;

impl Scheduler {
    /// Fills `plan` with the step after `last`, which is under way and not committed. False where somebody may come in,
    /// reads a prompt, changes weights or finds no block: then it is planned by [`Scheduler::schedule`] once `last` has ended.
    ///
    /// A sequence that `last` ends by its token is in `plan` all the same. What is computed for it is thrown away: it writes
    /// to a place that nobody has read, in a block that only later steps can be given.
    pub fn schedule_ahead(
        &mut self,
        last: &StepPlan,
        plan: &mut StepPlan,
        blocks: &mut BlockManager,
    ) -> bool {
        plan.clear();
        let nobody_comes = self.waiting.is_empty() || self.closed;
        if !nobody_comes || !self.flips.is_empty() || self.pool.is_copying() {
            return false;
        }
        let (mut sample, mut live) = (0, 0);
        for chunk in &last.chunks {
            sample += chunk.samples();
            let Some(sequence) = self.sequences.find_mut(chunk.slot) else { continue };
            if !chunk.draws {
                return false;
            }
            live += 1;
            // The token that is being drawn is its last, whatever it is.
            if sequence.is_full_after(1, self.max_model_len) {
                continue;
            }
            let first = sequence.tokens.len();
            if !blocks.grow(&mut sequence.table, first + 1) {
                return false;
            }
            plan.chunks.push(Chunk {
                slot: chunk.slot,
                first,
                rows: 1,
                draws: true,
                scores: 0..0,
                follows: Some(sample as u32 - 1),
            });
        }
        // Others read their prompts.
        live == self.running.len() && !plan.is_empty()
    }
}
