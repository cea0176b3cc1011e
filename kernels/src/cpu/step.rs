//! The metadata of a step, copied and checked, so that kernels can follow it without looking.

use crate::args::{RowToken, SequenceSpan, Step};
use crate::error::Result;

use super::adapter::CpuAdapter;
use super::lora::{Segment, StepLora};
use super::pack::shape;

/// A step with every token known. Memory is kept from step to step.
#[derive(Debug, Default)]
pub(crate) struct StepState {
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) slots: Vec<u32>,
    pub(crate) sequences: Vec<SequenceSpan>,
    pub(crate) block_tables: Vec<u32>,
    /// One more than the largest position.
    pub(crate) positions_end: usize,
    /// One more than the largest slot.
    pub(crate) slots_end: usize,
    /// One more than the largest block number.
    pub(crate) blocks_end: usize,
}

impl StepState {
    pub(crate) fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Copies a step; `drawn` holds the tokens of the step before. Fails on a step that breaks a promise of [`Step`].
    pub(crate) fn take(
        &mut self,
        step: &Step<'_, CpuAdapter>,
        drawn: &[u32],
        lora: &mut StepLora,
    ) -> Result<()> {
        let rows = step.tokens.len();
        if step.positions.len() != rows || step.slots.len() != rows {
            let found = step.positions.len().min(step.slots.len());
            return Err(shape("positions and slots of a step", rows, found));
        }
        self.tokens.clear();
        for &token in step.tokens {
            self.tokens.push(match token {
                RowToken::Known(token) => token,
                RowToken::Sampled(row) => *drawn
                    .get(row as usize)
                    .ok_or_else(|| shape("sampled row", drawn.len(), row as usize))?,
            });
        }
        replace(&mut self.positions, step.positions);
        replace(&mut self.slots, step.slots);
        replace(&mut self.sequences, step.sequences);
        replace(&mut self.block_tables, step.block_tables);
        self.positions_end = end(step.positions);
        self.slots_end = end(step.slots);
        self.blocks_end = end(step.block_tables);
        self.check_sequences()?;
        lora.clear();
        let mut free = 0;
        for segment in step.lora {
            let first = segment.first_row as usize;
            let end = first + segment.rows as usize;
            if first < free || end > rows || segment.rows == 0 {
                return Err(shape("end of a LoRA segment", rows, end));
            }
            free = end;
            lora.segments.push(Segment { adapter: segment.adapter.clone(), rows: first..end });
        }
        Ok(())
    }

    /// Sequences cover all rows, and positions go up by one from each sequence's context.
    fn check_sequences(&self) -> Result<()> {
        let mut row = 0;
        for sequence in &self.sequences {
            if sequence.first_row as usize != row {
                return Err(shape("first row of a sequence", row, sequence.first_row as usize));
            }
            for expected in (sequence.context..).take(sequence.rows as usize) {
                match self.positions.get(row) {
                    Some(&position) if position == expected => row += 1,
                    found => {
                        let found = found.map_or(0, |&position| position as usize);
                        return Err(shape("position of a row", expected as usize, found));
                    }
                }
            }
        }
        if row == self.rows() {
            Ok(())
        } else {
            Err(shape("rows of all sequences", self.rows(), row))
        }
    }
}

/// Makes `to` equal to `from`, keeping its memory.
fn replace<T: Copy>(to: &mut Vec<T>, from: &[T]) {
    to.clear();
    to.extend_from_slice(from);
}

fn end(values: &[u32]) -> usize {
    values.iter().max().map_or(0, |&largest| largest as usize + 1)
}
