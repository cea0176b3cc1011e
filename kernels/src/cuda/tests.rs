//! What needs no device: how a step is laid out and an adapter packed.

use super::adapter::Packer;
use super::step::{Counts, StepState};
use crate::args::{RowToken, SequenceSpan, Step};
use crate::backend::AdapterPacker;
use crate::weights::testing::packer_contract;
use crate::weights::{AdapterMemory, HostTensor, LoraPart, LoraWeights, Part, Site};

fn decodes(contexts: &[u32]) -> StepState {
    let rows = contexts.len();
    let sequences: Vec<SequenceSpan> = contexts
        .iter()
        .zip(0..)
        .map(|(&context, row)| SequenceSpan { first_row: row, rows: 1, context, first_block: 0 })
        .collect();
    let step = Step {
        tokens: &vec![RowToken::Sampled(3); rows],
        positions: contexts,
        slots: &vec![7; rows],
        sequences: &sequences,
        block_tables: &[5, 6],
        lora: &[],
    };
    let mut state = StepState::default();
    state.take(&step, |row| Ok((row == 0).then_some(1))).unwrap();
    state
}

#[test]
fn items_cover_every_key_once() {
    for (contexts, split) in [(&[0][..], 1), (&[0, 4000, 255, 256], 60), (&[100_000], 264)] {
        let mut state = decodes(contexts);
        let words = state.lay_out(contexts.len(), split, false).to_vec();
        let (counts, places) = (state.counts, state.counts.places());
        assert!(counts.items <= contexts.len() + split, "{contexts:?}");
        let items = words[places.items..places.block_tables].chunks_exact(8);
        let mut covered = vec![0; contexts.len()];
        for (number, item) in items.enumerate() {
            let [row, context, _, first, end, own, of, place] = *item else { unreachable!() };
            assert_eq!((context, first), (contexts[row as usize], covered[row as usize]));
            assert!(first % 16 == 0 && first < end && own < of);
            assert_eq!(place + own, number as u32);
            covered[row as usize] = end;
        }
        assert!(covered.iter().zip(contexts).all(|(end, context)| *end == context + 1));
    }
}

#[test]
fn a_padded_step_has_room_and_nothing_in_it() {
    let mut state = decodes(&[9, 2]);
    let words = state.lay_out(4, 10, true).to_vec();
    let counts = Counts { rows: 4, tiles: 0, items: 14 };
    assert_eq!(state.counts, counts);
    let places = counts.places();
    let sampled = 1 << 31 | 3;
    assert_eq!(words[places.tokens..places.positions], [sampled, sampled, 0, 0]);
    assert_eq!(words[places.slots..places.slots + 4], [7, 7, u32::MAX, u32::MAX]);
    assert!(words[places.items + 16..places.block_tables].iter().all(|&word| word == 0));
    assert_eq!(words[places.block_tables..], [5, 6]);
}

#[test]
fn ranks_are_rounded_up_to_eight() {
    let tensor = |rows: usize, cols: usize| {
        HostTensor::from_f32(rows, cols, vec![1.0; rows * cols]).unwrap()
    };
    let part = |part, rank| LoraPart {
        layer: 1,
        part,
        scale: 2.0,
        a: tensor(rank, 10),
        b: tensor(6, rank),
    };
    let weights = LoraWeights { parts: vec![part(Part::V, 3), part(Part::Q, 9)] };
    let packed = Packer.pack(2, &weights, &AdapterMemory::default()).unwrap();
    let site = packed.sites[Site::Qkv.slot(1)].as_ref().unwrap();
    assert_eq!((site.a, site.lanes, packed.max_rank), (0, 24, 9));
    assert_eq!(site.parts.map(|part| (part.rank, part.lane)), [(9, 0), (0, 0), (3, 16)]);
    // 24 lanes of 16 inputs, then 6 outputs of 16 and of 8 ranks, two bytes each.
    assert_eq!(site.parts.map(|part| part.b), [2 * 24 * 16, 0, 2 * (24 * 16 + 6 * 16)]);
    assert_eq!(packed.bytes.len(), 2 * (24 * 16 + 6 * 16 + 6 * 8));
    assert!(packed.sites.iter().flatten().count() == 1);
}

#[test]
fn adapters_are_packed_from_any_bytes_into_any_memory() {
    packer_contract(&Packer);
}
