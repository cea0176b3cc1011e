//! The metadata of a step, copied and checked.

use std::ops::{Range, RangeInclusive};

use crate::args::{KvShape, RowToken, SequenceSpan, Step};
use crate::error::{KernelError, Result};

use super::memory::{Adapter, check, check_index};

/// A [`Step`] of its own, with every token known.
#[derive(Debug, Default)]
pub(super) struct StepState {
    pub(super) tokens: Vec<u32>,
    pub(super) positions: Vec<u32>,
    pub(super) slots: Vec<u32>,
    pub(super) sequences: Vec<SequenceSpan>,
    pub(super) lora: Vec<Segment>,
    block_tables: Vec<u32>,
}

/// Neighbouring rows that use one adapter.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) adapter: Adapter,
    rows: Range<usize>,
}

impl Segment {
    /// Where the segment's rows lie in a matrix of `width` columns.
    pub(super) fn span(&self, width: usize) -> Range<usize> {
        self.rows.start * width..self.rows.end * width
    }
}

impl StepState {
    /// Rows of the step.
    pub(super) fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Copies a step; `drawn` holds the tokens of the step before. Fails on a step that breaks a promise of [`Step`].
    pub(super) fn take(&mut self, step: &Step<'_, Adapter>, drawn: &[u32]) -> Result<()> {
        let rows = step.tokens.len();
        check(
            "positions and slots of a step",
            [rows; 2],
            [step.positions.len(), step.slots.len()],
        )?;
        check_sequences(step)?;
        self.tokens.clear();
        for &token in step.tokens {
            self.tokens.push(known(token, drawn)?);
        }
        replace(&mut self.positions, step.positions);
        replace(&mut self.slots, step.slots);
        replace(&mut self.sequences, step.sequences);
        replace(&mut self.block_tables, step.block_tables);
        self.lora.clear();
        for segment in step.lora {
            let first = segment.first_row as usize;
            let segment_rows = first..first + segment.rows as usize;
            let free = self.lora.last().map_or(0, |before| before.rows.end)..=rows;
            check_range("rows of a LoRA segment", &segment_rows, free)?;
            self.lora.push(Segment { adapter: segment.adapter.clone(), rows: segment_rows });
        }
        Ok(())
    }

    /// The cache slots of the positions that `row` of `sequence` sees, `max(0, p - window + 1)..=p`, in order.
    pub(super) fn seen_slots(
        &self,
        sequence: &SequenceSpan,
        row: usize,
        window: Option<u32>,
        cache: &KvShape,
    ) -> Result<Vec<usize>> {
        let position = self.positions[row] as usize;
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
        let slot = |position: usize| {
            let place = sequence.first_block as usize + position / cache.block_size;
            check_index("place in the block tables", place, self.block_tables.len())?;
            let block = self.block_tables[place] as usize;
            check_index("block", block, cache.blocks)?;
            Ok(block * cache.block_size + position % cache.block_size)
        };
        check("slot of a row", slot(position)?, self.slots[row] as usize)?;
        (first..=position).map(slot).collect()
    }
}

/// Makes `to` equal to `from`, keeping its memory.
fn replace<T: Copy>(to: &mut Vec<T>, from: &[T]) {
    to.clear();
    to.extend_from_slice(from);
}

/// Fails unless `range` is not empty and lies within `limits`.
fn check_range(what: &str, range: &Range<usize>, limits: RangeInclusive<usize>) -> Result<()> {
    if !range.is_empty() && limits.start() <= &range.start && &range.end <= limits.end() {
        return Ok(());
    }
    Err(KernelError::Shape {
        what: what.into(),
        expected: format!("within {limits:?}"),
        found: format!("{range:?}"),
    })
}

/// Sequences cover all rows, and positions go up by one from each sequence's context.
fn check_sequences<A>(step: &Step<'_, A>) -> Result<()> {
    let mut row = 0;
    for sequence in step.sequences {
        check("first row of a sequence", row, sequence.first_row as usize)?;
        let end = row + sequence.rows as usize;
        check_range("rows of a sequence", &(row..end), 0..=step.positions.len())?;
        for (&found, expected) in step.positions[row..end].iter().zip(sequence.context..) {
            check("position of a row", expected, found)?;
        }
        row = end;
    }
    check("rows of all sequences", step.tokens.len(), row)
}

fn known(token: RowToken, drawn: &[u32]) -> Result<u32> {
    match token {
        RowToken::Known(token) => Ok(token),
        RowToken::Sampled(row) => {
            check_index("sampled row", row as usize, drawn.len())?;
            Ok(drawn[row as usize])
        }
    }
}
