//! Adapters whose A lies below the base weights, so that one product gives both: `[y, h] = x [W, A]ᵀ`.
//!
//! Every weight of a site has room behind its outputs for the lanes of a few adapters, cut into slots. A step whose adapters
//! fit needs no shrink of its own; who was there in the step before lies there still. Where rows share them the kernels that read
//! y find their B laid out for tensor cores, too, at a place that does not depend on who they are.

use std::ops::Range;
use std::sync::{Arc, Weak};

use super::CudaBackend;
use super::adapter::{Adapter, PART_BYTES, PARTS, Resident};
use super::error::check_below;
use super::gpu::{Gpu, Shape};
use super::kernel_args::{Spread, Stack as StackArgs};
use super::layers::fits_packed;
use super::lora::Place;
use super::memory::{Block, Workspace, padded};
use super::step::MOST_SMALL;
use super::weights::Linear;
use crate::args::KvShape;
use crate::error::Result;

/// Ranks of a slot, for each part of a site.
pub const SLOT_RANKS: usize = 16;
/// How many slots products are made with: as many as a step needs, rounded up, if there are as many.
const SIZES: [usize; 9] = [1, 2, 4, 8, 16, 24, 32, 48, 64];
/// Slots below a weight.
pub(super) const MOST_SLOTS: usize = SIZES[SIZES.len() - 1];
/// Blocks that share the copy of a site's A.
const COPY_SHARES: usize = 16;
/// Words of `StackPlace` in `stack.cu`.
const PLACE_WORDS: usize = 10;
const INPUTS: usize = 4;
const LANES: usize = 5;
const WIDTHS: usize = 6;
/// Columns that B's laying out is made for, and the bytes in front of the first slot (`packed.cuh`).
pub(super) const PACKED_COLUMNS: usize = 32;
const PACKED_SCALES: usize = MOST_SLOTS * 4 * size_of::<f32>();

/// Slots of steps of more than [`MOST_SMALL`] rows. `prompts.cuh` has them in a word.
const MOST_OF_PROMPTS: usize = 32;
const _: () = assert!(MOST_OF_PROMPTS <= u32::BITS as usize);

/// Whether so many slots had better have B laid out. Eight rows (sixteen of prompts) take theirs in turns, so a few have to share
/// each; with more rows that each read their own B it pays sooner. And of prompts all rows compute what the others' slots have of
/// A.
pub(super) fn is_worth_packing(slots: usize, rows: usize) -> bool {
    let (most, rows_per_slot) = match rows {
        0..=64 => (MOST_SLOTS, 4),
        65..=MOST_SMALL => (MOST_SLOTS, 2),
        _ => (MOST_OF_PROMPTS, 1),
    };
    slots == 1 || slots <= most && slots * rows_per_slot <= rows
}

/// What lies below the weights.
#[derive(Debug, Default)]
pub(super) struct Stack {
    /// By [`Site::slot`](crate::Site::slot).
    weights: Vec<Option<Known>>,
    places: Vec<[u32; PLACE_WORDS]>,
    /// The same on the device.
    table: Workspace,
    /// Whether it is.
    sent: bool,
    slots: Slots<Weak<Resident>>,
    wanted: Vec<(Weak<Resident>, usize)>,
    fresh: Vec<usize>,
}

/// A weight that was told of.
#[derive(Debug)]
struct Known {
    weight: Arc<Block>,
    /// Room for B of its slots.
    packed: Block,
}

impl Stack {
    /// Remembers a place's weight, which has room for so many slots.
    pub(super) fn know(
        &mut self,
        gpu: &Arc<Gpu>,
        place: Place,
        weight: &Linear,
        slots: usize,
    ) -> Result<()> {
        check_below("parts of a site", weight.widths.len(), PARTS + 1)?;
        let at = place.site.slot(place.layer);
        if self.weights.len() <= at {
            self.weights.resize_with(at + 1, || None);
            self.places.resize(at + 1, [0; PLACE_WORDS]);
        }
        let of_part = |width: &usize| width.next_multiple_of(PACKED_COLUMNS);
        let columns: usize = weight.widths.iter().map(of_part).sum();
        let slots = if weight.slot_lanes > 0 { slots } else { 0 };
        let bytes = slots * columns * SLOT_RANKS * size_of::<u16>();
        let packed = Block::filled(gpu, PACKED_SCALES + bytes, 0, "room for adapters")?;
        let inputs = padded(weight.inputs);
        let lanes = weight.weight.address() + (padded(weight.outputs) * inputs * 2) as u64;
        let halves = |address: u64| [address as u32, (address >> 32) as u32];
        let words = &mut self.places[at];
        words[..2].copy_from_slice(&halves(lanes));
        words[2..4].copy_from_slice(&halves(packed.address()));
        words[INPUTS] = inputs as u32;
        words[LANES] = weight.slot_lanes as u32;
        for (word, &width) in words[WIDTHS..].iter_mut().zip(&weight.widths) {
            *word = width as u32;
        }
        self.weights[at] = Some(Known { weight: weight.weight.clone(), packed });
        // Nothing lies below this one.
        self.slots = Slots::default();
        self.sent = false;
        Ok(())
    }

    fn known(&self, place: Place) -> Option<&Known> {
        self.weights.get(place.site.slot(place.layer))?.as_ref()
    }

    fn knows(&self, place: Place, weight: &Linear) -> bool {
        self.known(place).is_some_and(|known| Arc::ptr_eq(&known.weight, &weight.weight))
    }

    /// Where B of the slots is laid out.
    pub(super) fn packed(&self, place: Place) -> u64 {
        self.known(place).map_or(0, |known| known.packed.address())
    }

    /// Whether there is a weight with room at every site of a model of so many.
    fn is_complete(&self, sites: usize) -> bool {
        self.weights.len() == sites && self.places.iter().all(|words| words[LANES] > 0)
    }
}

impl CudaBackend {
    /// Finds slots for the step's adapters and has those copied that are new there. Where they do not fit, or where not all
    /// weights are known, the step has no slots.
    pub(super) fn stack_adapters(&mut self) -> Result<()> {
        let stack = &mut self.stack;
        self.step.stacked = 0;
        let Some(first) = self.step.lora.first() else { return Ok(()) };
        let sites = first.adapter.sites().len();
        if !stack.is_complete(sites) || !self.step.has_lora() {
            return Ok(());
        }
        // Many rows that each read their own B take longer than a shrink and an expand.
        let most = match self.limits.cache {
            _ if self.step.rows <= MOST_SMALL => self.slots,
            Some(cache) if fits_packed(cache.head_dim) => self.slots.min(MOST_OF_PROMPTS),
            _ => return Ok(()),
        };
        stack.wanted.clear();
        for segment in &self.step.lora {
            let key = segment.adapter.resident();
            if !stack.wanted.iter().any(|(known, _)| known.ptr_eq(&key)) {
                let slots = segment.adapter.max_rank().div_ceil(SLOT_RANKS);
                stack.wanted.push((key, slots.max(1)));
            }
        }
        stack.fresh.clear();
        let same = |a: &Weak<Resident>, b: &Weak<Resident>| a.ptr_eq(b);
        let Some(size) = stack.slots.place(&stack.wanted, most, same, &mut stack.fresh) else {
            return Ok(());
        };
        self.step.stacked = size;
        for segment in &mut self.step.lora {
            let key = segment.adapter.resident();
            segment.slots = stack.slots.of(|held| held.ptr_eq(&key)).unwrap_or_default();
        }
        if stack.fresh.is_empty() {
            return Ok(());
        }
        let copied = self.copy_fresh();
        if copied.is_err() {
            self.stack.slots = Slots::default();
        }
        copied
    }

    fn copy_fresh(&mut self) -> Result<()> {
        let stack = &mut self.stack;
        if !stack.sent {
            let words = stack.places.as_flattened();
            stack.table.reserve(&self.gpu, 4 * words.len(), "the places of adapters")?;
            // SAFETY: reserved just above, and read on the compute stream alone.
            unsafe { self.letters.send(stack.table.address(), words)? };
            stack.sent = true;
        }
        for &index in &stack.fresh {
            let key = &stack.wanted[index].0;
            let of_step = |adapter: &Adapter| adapter.resident().ptr_eq(key);
            let segment = self.step.lora.iter().find(|segment| of_step(&segment.adapter));
            let Some(segment) = segment else { continue };
            let args = StackArgs {
                sites: segment.adapter.table(),
                places: stack.table.address(),
                slot: segment.slots.start as u32,
                slots: segment.slots.len() as u32,
            };
            let shape = Shape::new([stack.places.len(), COPY_SHARES, 1], 256);
            // SAFETY: the adapter is on the device, the step holds it, and it fits the model; the weights live as long as
            // `stack` remembers them, and have room for all slots.
            unsafe { self.gpu.launch(&self.kernels.stack, &self.gpu.compute, shape, &args)? };
        }
        Ok(())
    }

    /// Has every row told what its adapter has at every site, where readers find B by the row.
    pub(super) fn spread_adapters(&mut self) -> Result<()> {
        let packed = |cache: KvShape| self.packs() && fits_packed(cache.head_dim);
        if self.step.stacked == 0 || self.limits.cache.is_some_and(packed) {
            return Ok(());
        }
        let rows = self.step.counts.rows;
        let room = rows.max(MOST_SMALL) * self.stack.places.len() * PARTS * PART_BYTES;
        self.graphs.make_room(&mut self.work.parts, room, "what rows have of adapters")?;
        let tiles = self.meta(self.step.counts.places().tiles);
        let args = Spread { tiles, parts: self.work.parts.address(), rows: rows as u32, unused: 0 };
        let shape = Shape::new([self.stack.places.len(), rows.div_ceil(256), 1], 256);
        // SAFETY: tiles are one a row, of adapters that the step holds and whose tables have all sites; reserved just above.
        unsafe { self.gpu.launch(&self.kernels.spread, &self.gpu.compute, shape, &args) }
    }

    /// What rows have at a place.
    pub(super) fn parts_of(&self, place: Place) -> u64 {
        let before = place.site.slot(place.layer) * PARTS * self.step.counts.rows;
        self.work.parts.address() + (before * PART_BYTES) as u64
    }

    /// Lanes below `weight` that its product is to give as well; 0 where the step's adapters do not lie there.
    pub(super) fn stacked_lanes(&self, place: Place, weight: &Linear) -> usize {
        if self.stack.knows(place, weight) { self.step.stacked * weight.slot_lanes } else { 0 }
    }
}

/// Who has which slots.
#[derive(Debug)]
struct Slots<K> {
    held: Vec<(K, Range<usize>)>,
    /// Whether the adapters of this step have them.
    taken: Vec<bool>,
}

impl<K> Default for Slots<K> {
    fn default() -> Self {
        Self { held: Vec::new(), taken: Vec::new() }
    }
}

impl<K: Clone> Slots<K> {
    /// Finds slots for adapters that want so many each, and adds to `fresh` which of them have not had theirs before.
    /// Returns the least of [`SIZES`] and `most` that is enough; `None` where none is. All lie below it, since a product gives
    /// all of them.
    fn place(
        &mut self,
        wanted: &[(K, usize)],
        most: usize,
        same: impl Fn(&K, &K) -> bool,
        fresh: &mut Vec<usize>,
    ) -> Option<usize> {
        let total: usize = wanted.iter().map(|(_, slots)| slots).sum();
        let end = SIZES.into_iter().map(|size| size.min(most)).find(|&size| total <= size)?;
        let stays = |held: &(K, Range<usize>)| {
            held.1.end <= end && wanted.iter().any(|(key, _)| same(key, &held.0))
        };
        self.taken.clear();
        self.taken.resize(end, false);
        for (_, slots) in self.held.iter().filter(|held| stays(held)) {
            self.taken[slots.clone()].fill(true);
        }
        for (index, (key, slots)) in wanted.iter().enumerate() {
            if self.held.iter().any(|held| same(&held.0, key) && stays(held)) {
                continue;
            }
            let is_free = |&at: &usize| !self.taken[at..at + slots].contains(&true);
            let Some(start) = (0..=end - slots).find(is_free) else {
                // What is free lies in pieces.
                self.place_anew(wanted, fresh);
                break;
            };
            let found = start..start + slots;
            self.taken[found.clone()].fill(true);
            let apart = |held: &Range<usize>| held.end <= found.start || found.end <= held.start;
            self.held.retain(|held| !same(&held.0, key) && apart(&held.1));
            self.held.push((key.clone(), found));
            fresh.push(index);
        }
        Some(end)
    }

    fn place_anew(&mut self, wanted: &[(K, usize)], fresh: &mut Vec<usize>) {
        self.held.clear();
        fresh.clear();
        let mut end = 0;
        for (index, (key, slots)) in wanted.iter().enumerate() {
            self.held.push((key.clone(), end..end + slots));
            fresh.push(index);
            end += slots;
        }
    }

    fn of(&self, is: impl Fn(&K) -> bool) -> Option<Range<usize>> {
        self.held.iter().find(|held| is(&held.0)).map(|held| held.1.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places adapters of so many slots each, 8 at most; who is fresh, and the size. Checks that none overlap.
    fn place(slots: &mut Slots<char>, wanted: &[(char, usize)]) -> Option<(String, usize)> {
        let mut fresh = Vec::new();
        let end = slots.place(wanted, 8, |a, b| a == b, &mut fresh)?;
        let mut taken = [false; 8];
        for (key, count) in wanted {
            let own = slots.of(|held| held == key).expect("it has its slots");
            assert!(own.len() == *count && own.end <= end, "{key} has {own:?} of {end}");
            assert!(!taken[own.clone()].contains(&true), "{key} shares {own:?}");
            taken[own].fill(true);
        }
        Some((fresh.iter().map(|&index| wanted[index].0).collect(), end))
    }

    #[test]
    fn who_has_slots_keeps_them_and_others_give_way() {
        let mut slots = Slots::default();
        let fresh = |text: &str, end| Some((text.to_owned(), end));
        assert_eq!(place(&mut slots, &[('a', 1)]), fresh("a", 1));
        assert_eq!(place(&mut slots, &[('a', 1), ('b', 1)]), fresh("b", 2));
        assert_eq!(place(&mut slots, &[('b', 1), ('a', 1), ('c', 1)]), fresh("c", 4));
        assert_eq!(place(&mut slots, &[('a', 1), ('b', 1)]), fresh("", 2));
        // A single one does not lie behind the places of others that are not there.
        assert_eq!(place(&mut slots, &[('b', 1)]), fresh("b", 1));
        // c has kept its slot meanwhile, b has moved, and a comes back.
        assert_eq!(place(&mut slots, &[('a', 1), ('b', 1), ('c', 1)]), fresh("a", 4));
        let all: Vec<_> = "stuvwxyz".chars().map(|key| (key, 1)).collect();
        assert_eq!(place(&mut slots, &all), fresh("stuvwxyz", 8));
        assert_eq!(place(&mut slots, &all[4..]), fresh("wxyz", 4));
    }

    #[test]
    fn high_ranks_take_neighbouring_slots() {
        let mut slots = Slots::default();
        assert_eq!(place(&mut slots, &[('a', 4), ('b', 4)]), Some(("ab".into(), 8)));
        assert_eq!(place(&mut slots, &[('b', 4), ('c', 1), ('d', 1)]), Some(("cd".into(), 8)));
        assert_eq!(place(&mut slots, &[('e', 3), ('b', 4)]), Some(("e".into(), 8)));
        // Two slots are free, one on each side of another.
        let mut slots = Slots::default();
        place(&mut slots, &[('a', 1), ('b', 2), ('c', 1)]).unwrap();
        assert_eq!(place(&mut slots, &[('b', 2), ('d', 2)]), Some(("bd".into(), 4)));
        assert_eq!(place(&mut slots, &[('a', 8), ('b', 1)]), None);
    }

    #[test]
    fn b_is_packed_where_rows_share_it() {
        let packs = |rows: usize, slots: &[usize]| {
            slots.iter().map(|&slots| is_worth_packing(slots, rows)).collect::<Vec<_>>()
        };
        assert_eq!(packs(1, &[1, 2]), [true, false]);
        assert_eq!(packs(64, &[8, 16, 24, 64]), [true, true, false, false]);
        assert_eq!(packs(72, &[32, 48]), [true, false]);
        assert_eq!(packs(128, &[48, 64]), [true, true]);
        // Of prompts all rows have products with the lanes of all slots.
        assert_eq!(packs(MOST_SMALL + 1, &[32, 48, 64]), [true, false, false]);
    }
}
