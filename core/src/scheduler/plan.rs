//! What one step runs: the scheduler's decision as data.

use std::ops::Range;
use std::sync::Arc;

use crate::adapter::Adapter;

/// Place of a sequence in the scheduler's table. Stays the same from admission to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot(pub usize);

/// Neighbouring tokens of one sequence that a step computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Whose.
    pub slot: Slot,
    /// Position of the first token.
    pub first: usize,
    /// Number of tokens.
    pub rows: usize,
    /// Whether the last row draws the next token.
    pub draws: bool,
    /// Prompt positions whose log-probability is reported; the row before each one predicts it.
    pub scores: Range<usize>,
    /// Where the token of the only row is not known yet: the sample of the step before that draws it.
    pub follows: Option<u32>,
}

impl Chunk {
    /// Rows whose logits are wanted.
    pub fn samples(&self) -> usize {
        self.scores.len() + usize::from(self.draws)
    }
}

/// One step. Chunks of one adapter are neighbours.
#[derive(Debug, Default)]
pub struct StepPlan {
    /// In the order of their rows.
    pub chunks: Vec<Chunk>,
    /// Sequences admitted in this step.
    pub admitted: Vec<Slot>,
    /// Generations that leave the device before the step.
    pub evicted: Vec<u64>,
    /// Adapters whose copy to the device begins before the step, for steps to come.
    pub copies: Vec<Arc<Adapter>>,
    /// Whether a sequence took its adapter's successor: the predecessor may be free now.
    pub flipped: bool,
    /// How many sequences gave their blocks back to let others go on.
    pub preempted: usize,
}

impl StepPlan {
    /// Rows of the step.
    pub fn rows(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.rows).sum()
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// As of a step that ran nothing.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.admitted.clear();
        self.evicted.clear();
        self.copies.clear();
        self.flipped = false;
        self.preempted = 0;
    }
}
