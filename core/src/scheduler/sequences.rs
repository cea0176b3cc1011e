//! The table of all sequences: their places stay while they live.

use super::{Sequence, Slot};

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

    pub(super) fn find_mut(&mut self, slot: Slot) -> Option<&mut Sequence> {
        self.entries[slot.0].as_mut()
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> &mut Sequence {
        self.entries[slot.0].as_mut().expect("a slot is occupied until its sequence ends")
    }

    pub(super) fn insert(&mut self, sequence: Sequence) -> Slot {
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

    pub(super) fn remove(&mut self, slot: Slot) -> Sequence {
        self.vacant.push(slot);
        self.entries[slot.0].take().expect("a slot is occupied until its sequence ends")
    }
}
