//! The metadata of a step: checked, cut into tiles and items, and laid out as one block of words.
//!
//! Places of the parts depend on the counts in [`Counts`] alone, so a captured graph finds them in every step that it
//! serves. Block tables, whose length varies, come last.

use std::ops::Range;

use super::adapter::Adapter;
use super::error::{check, check_below, mismatch};
use crate::args::{KvShape, RowToken, SequenceSpan, Step};
use crate::error::Result;
use crate::weights::{PackedSite, Site};

/// Rows of a LoRA tile where a step has few.
pub(super) const SMALL_TILE: usize = 16;
/// Rows of a LoRA tile where a step has many: a load of B serves them all.
pub(super) const LARGE_TILE: usize = 64;
/// Most rows of a step with small tiles.
pub(super) const MOST_SMALL: usize = 512;
/// A slot that takes nothing: of rows that only fill a graph's size.
const NO_SLOT: u32 = u32::MAX;
/// Marks a token that the step before drew.
const SAMPLED: u32 = 1 << 31;
/// Keys of one decode item are a multiple of this: what four warps take at once, four times. Combining items takes about as
/// long as reading as many keys.
pub(super) const ITEM_KEYS: usize = 256;
/// Words of `DecodeItem` in `decode.cu`.
const ITEM_WORDS: usize = 8;
/// Words of `Tile` in `lora.cuh`.
const TILE_WORDS: usize = 4;

/// What the places of a step's parts depend on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Rows, those included that only fill a graph's size.
    pub(super) rows: usize,
    /// Most LoRA tiles; 0 without LoRA.
    pub(super) tiles: usize,
    /// Most items of decode attention.
    pub(super) items: usize,
}

/// Offsets in words.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Places {
    pub(super) tokens: usize,
    pub(super) positions: usize,
    pub(super) slots: usize,
    pub(super) tiles: usize,
    pub(super) items: usize,
    pub(super) block_tables: usize,
}

impl Counts {
    pub(super) const fn places(&self) -> Places {
        // Tiles hold addresses and items are read as vectors: both start at a multiple of 16 bytes.
        let tiles = (3 * self.rows).next_multiple_of(4);
        let items = tiles + self.tiles * TILE_WORDS;
        Places {
            tokens: 0,
            positions: self.rows,
            slots: 2 * self.rows,
            tiles,
            items,
            block_tables: items + self.items * ITEM_WORDS,
        }
    }
}

/// Neighbouring rows that use one adapter.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) adapter: Adapter,
    /// The slots of its adapter, where adapters lie below the weights.
    pub(super) slots: Range<usize>,
    first: usize,
    rows: usize,
}

impl Segment {
    pub(super) fn site(&self, slot: usize) -> Option<&PackedSite> {
        self.adapter.sites().get(slot)?.as_ref()
    }
}

/// The largest of what a step refers to, for whoever knows how much there is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extremes {
    pub(super) token: Option<u32>,
    pub(super) position: Option<u32>,
}

/// A step of its own.
#[derive(Debug, Default)]
pub(super) struct StepState {
    pub(super) counts: Counts,
    /// Rows of the step itself.
    pub(super) rows: usize,
    pub(super) lora: Vec<Segment>,
    /// Slots below the weights that products are to give as well; 0 where the adapters do not lie there.
    pub(super) stacked: usize,
    pub(super) sequences: Vec<SequenceSpan>,
    pub(super) extremes: Extremes,
    /// For each site the most lanes of any layer and adapter.
    pub(super) lanes: [usize; Site::ALL.len()],
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    block_tables: Vec<u32>,
    tiles: Vec<[u32; TILE_WORDS]>,
    items: Vec<[u32; ITEM_WORDS]>,
    words: Vec<u32>,
    /// The cache that slots and blocks were checked against.
    checked: Option<KvShape>,
}

impl StepState {
    /// Copies a step; `sampled` says what is known of a token that the step before drew: `None` if it is on the device.
    /// Fails on a step that breaks a promise of [`Step`].
    pub(super) fn take(
        &mut self,
        step: &Step<'_, Adapter>,
        sampled: impl Fn(u32) -> Result<Option<u32>>,
    ) -> Result<()> {
        let rows = step.tokens.len();
        check(
            "positions and slots of a step",
            [rows; 2],
            [step.positions.len(), step.slots.len()],
        )?;
        check_sequences(step)?;
        self.rows = rows;
        self.checked = None;
        self.extremes = Extremes { token: None, position: step.positions.iter().copied().max() };
        self.tokens.clear();
        for &token in step.tokens {
            let known = match token {
                RowToken::Known(token) => Some(token),
                RowToken::Sampled(row) => sampled(row)?,
            };
            self.extremes.token = self.extremes.token.max(known);
            self.tokens.push(match (known, token) {
                (Some(token), _) | (None, RowToken::Known(token)) => token,
                (None, RowToken::Sampled(row)) => row | SAMPLED,
            });
        }
        replace(&mut self.positions, step.positions);
        replace(&mut self.slots, step.slots);
        replace(&mut self.sequences, step.sequences);
        replace(&mut self.block_tables, step.block_tables);
        self.take_segments(step, rows)
    }

    fn take_segments(&mut self, step: &Step<'_, Adapter>, rows: usize) -> Result<()> {
        self.lora.clear();
        self.lanes = [0; Site::ALL.len()];
        let mut free = 0;
        for segment in step.lora {
            let (first, count) = (segment.first_row as usize, segment.rows as usize);
            if count == 0 || first < free || first + count > rows {
                let found = first..first + count;
                return Err(mismatch("rows of a LoRA segment", free..rows, found));
            }
            free = first + count;
            for (slot, site) in segment.adapter.sites().iter().enumerate() {
                let most = &mut self.lanes[slot % Site::ALL.len()];
                *most = (*most).max(site.as_ref().map_or(0, |site| site.lanes));
            }
            let adapter = segment.adapter.clone();
            self.lora.push(Segment { adapter, slots: 0..0, first, rows: count });
        }
        Ok(())
    }

    /// The token of a row.
    pub(super) fn token(&self, row: usize) -> RowToken {
        match self.tokens[row] {
            token if token & SAMPLED != 0 => RowToken::Sampled(token & !SAMPLED),
            token => RowToken::Known(token),
        }
    }

    /// Whether every sequence has one row.
    pub(super) fn decodes_only(&self) -> bool {
        self.sequences.iter().all(|sequence| sequence.rows == 1)
    }

    /// Whether any adapter changes anything.
    pub(super) fn has_lora(&self) -> bool {
        self.lanes.iter().any(|&lanes| lanes > 0)
    }

    /// Rows of a LoRA tile.
    pub(super) fn tile_rows(&self) -> usize {
        match self.counts.rows {
            _ if self.stacked > 0 => 1,
            rows if rows <= MOST_SMALL => SMALL_TILE,
            _ => LARGE_TILE,
        }
    }

    /// Lays everything out for `rows` rows; `split` is how many items attention had better have. `padded`: with room
    /// for as many tiles and items as any step of so many rows may need.
    pub(super) fn lay_out(&mut self, rows: usize, split: usize, padded: bool) -> &[u32] {
        self.counts.rows = rows;
        self.cut_tiles();
        self.cut_items(split);
        let has_lora = self.has_lora();
        self.counts.tiles = if padded && has_lora { rows } else { self.tiles.len() };
        self.counts.items = if padded { rows + split } else { self.items.len() };
        let places = self.counts.places();
        self.words.clear();
        // Tiles and items past the last are zeros.
        self.words.resize(places.block_tables, 0);
        let filled = [
            (places.tokens, &self.tokens, 0),
            (places.positions, &self.positions, 0),
            (places.slots, &self.slots, NO_SLOT),
        ];
        for (place, values, rest) in filled {
            let part = &mut self.words[place..place + rows];
            part[..values.len()].copy_from_slice(values);
            part[values.len()..].fill(rest);
        }
        copy(&mut self.words[places.tiles..], self.tiles.as_flattened());
        copy(&mut self.words[places.items..], self.items.as_flattened());
        self.words.extend_from_slice(&self.block_tables);
        &self.words
    }

    /// See [`each_tile`]. None without LoRA.
    fn cut_tiles(&mut self) {
        self.tiles.clear();
        if self.has_lora() {
            let most = self.tile_rows();
            each_tile(&self.lora, self.rows, most, |tile| self.tiles.push(tile));
        }
    }

    /// Cuts the keys of sequences with one row into items of about the same length.
    fn cut_items(&mut self, split: usize) {
        self.items.clear();
        let singles = || self.sequences.iter().filter(|sequence| sequence.rows == 1);
        let keys: usize = singles().map(|sequence| sequence.context as usize + 1).sum();
        let length = keys.div_ceil(split.max(1)).next_multiple_of(ITEM_KEYS);
        for sequence in singles() {
            let end = sequence.context as usize + 1;
            let (items, place) = (end.div_ceil(length), self.items.len() as u32);
            for item in 0..items {
                let keys = [item * length, end.min((item + 1) * length)].map(|key| key as u32);
                self.items.push([
                    sequence.first_row,
                    sequence.context,
                    sequence.first_block,
                    keys[0],
                    keys[1],
                    item as u32,
                    items as u32,
                    place,
                ]);
            }
        }
    }

    /// Every slot and block of the step lies in the cache, and the slots are those of the tables.
    pub(super) fn check_cache(&mut self, cache: &KvShape) -> Result<()> {
        if self.checked == Some(*cache) {
            return Ok(());
        }
        for &block in &self.block_tables {
            check_below("block", block as usize, cache.blocks)?;
        }
        for sequence in &self.sequences {
            let rows = sequence.first_row as usize..(sequence.first_row + sequence.rows) as usize;
            for (&slot, &position) in self.slots[rows.clone()].iter().zip(&self.positions[rows]) {
                let place = sequence.first_block as usize + position as usize / cache.block_size;
                check_below("place in the block tables", place, self.block_tables.len())?;
                let block = self.block_tables[place] as usize;
                let expected = block * cache.block_size + position as usize % cache.block_size;
                check("slot of a row", expected, slot as usize)?;
            }
        }
        self.checked = Some(*cache);
        Ok(())
    }
}

/// Tiles of at most `most` rows over all rows: those of segments with their adapter's table, the others without.
fn each_tile(
    segments: &[Segment],
    rows: usize,
    most: usize,
    mut add: impl FnMut([u32; TILE_WORDS]),
) {
    let mut cut = |table: u64, slots: usize, first: usize, rows: usize| {
        for from in (first..first + rows).step_by(most) {
            let rows = most.min(first + rows - from);
            add([table as u32, (table >> 32) as u32, from as u32, (rows | slots << 16) as u32]);
        }
    };
    let mut row = 0;
    for segment in segments {
        cut(0, 0, row, segment.first - row);
        let slots = segment.slots.start | segment.slots.len() << 8;
        cut(segment.adapter.table(), slots, segment.first, segment.rows);
        row = segment.first + segment.rows;
    }
    cut(0, 0, row, rows - row);
}

/// Copies to the start of `to`.
fn copy(to: &mut [u32], from: &[u32]) {
    to[..from.len()].copy_from_slice(from);
}

/// Makes `to` equal to `from`, keeping its memory.
fn replace<T: Copy>(to: &mut Vec<T>, from: &[T]) {
    to.clear();
    to.extend_from_slice(from);
}

/// Sequences cover all rows, and positions go up by one from each sequence's context.
fn check_sequences(step: &Step<'_, Adapter>) -> Result<()> {
    let mut row = 0;
    for sequence in step.sequences {
        check("first row of a sequence", row, sequence.first_row as usize)?;
        let end = row + sequence.rows as usize;
        if sequence.rows == 0 || end > step.positions.len() {
            return Err(mismatch("rows of a sequence", row..step.positions.len(), row..end));
        }
        for (&found, expected) in step.positions[row..end].iter().zip(sequence.context..) {
            check("position of a row", expected, found)?;
        }
        row = end;
    }
    check("rows of all sequences", step.tokens.len(), row)
}
