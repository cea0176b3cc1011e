//! What the reference refuses, and what lies where in a packed adapter.

use super::*;
use crate::args::{AttentionShape, LoraSegment, RowToken, SampleTask, SequenceSpan};
use crate::error::KernelError;
use crate::weights::testing::packer_contract;
use crate::weights::{AdapterMemory, AlignedBytes, LoraPart, LoraWeights, Part};

fn counting(rows: usize, cols: usize, first: f32) -> HostTensor {
    HostTensor::from_f32(rows, cols, (0..rows * cols).map(|i| first + i as f32).collect()).unwrap()
}

fn part(layer: usize, part: Part, a: [usize; 2], b: [usize; 2]) -> LoraPart {
    let (a, b) = (counting(a[0], a[1], 100.0), counting(b[0], b[1], 200.0));
    LoraPart { layer, part, scale: 0.5, a, b }
}

fn pack(layers: usize, parts: Vec<LoraPart>) -> Result<PackedAdapter> {
    Packer.pack(layers, &LoraWeights { parts }, &AdapterMemory::default())
}

/// Two sequences: rows 0 and 1 at positions 3 and 4, row 2 at position 0, in blocks of two.
const STEP: Step<'static, Adapter> = Step {
    tokens: &[RowToken::Known(1), RowToken::Known(2), RowToken::Known(0)],
    positions: &[3, 4, 0],
    slots: &[7, 0, 2],
    sequences: &[
        SequenceSpan { first_row: 0, rows: 2, context: 3, first_block: 0 },
        SequenceSpan { first_row: 2, rows: 1, context: 0, first_block: 3 },
    ],
    block_tables: &[2, 3, 0, 1],
    lora: &[],
};

/// Embeds and attends to a cache that nobody has written to.
fn run(step: &Step<'_, Adapter>) -> Result<()> {
    let mut backend = ReferenceBackend::new();
    let table = backend.upload_linear(&[counting(3, 2, 0.0)], None)?;
    let mut buffers = [(); 2].map(|()| Buffer::new(4, 2));
    let shape = KvShape { layers: 1, blocks: 4, block_size: 2, kv_heads: 1, head_dim: 2 };
    let kv = backend.kv_cache(shape)?;
    assert!(buffers[0].rows(4)?.iter().all(|x| x.is_nan()), "fresh memory holds NaN");
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 2, scale: 1.0, window: Some(2) };
    backend.begin_step(step)?;
    let [q, out] = &mut buffers;
    backend.embed(&table, q)?;
    backend.attention(AttentionOp { layer: 0, shape, q, kv: &kv, out })?;
    assert!(out.rows(3)?.iter().all(|x| x.is_nan()), "nobody wrote to the cache");
    backend.end_step().map(|_| ())
}

#[test]
fn a_step_that_breaks_a_promise_is_refused() {
    run(&STEP).unwrap();
    let adapter = Adapter::new(&pack(1, vec![]).unwrap());
    let segments = [(0, 2), (1, 2)].map(|(first_row, rows)| LoraSegment {
        adapter: &adapter,
        first_row,
        rows,
    });
    let span = |first_row, rows, context, first_block| SequenceSpan {
        first_row,
        rows,
        context,
        first_block,
    };
    let first = STEP.sequences[0];
    let broken = [
        ("fewer positions", Step { positions: &[3, 4], ..STEP }),
        ("more slots", Step { slots: &[7, 0, 2, 3], ..STEP }),
        ("positions that jump", Step { positions: &[3, 5, 0], ..STEP }),
        ("a context that is not the position", Step { positions: &[3, 4, 1], ..STEP }),
        ("rows of no sequence", Step { sequences: &[first], ..STEP }),
        ("a gap", Step { sequences: &[first, span(3, 1, 0, 3)], ..STEP }),
        ("rows beyond the step", Step { sequences: &[first, span(2, 2, 0, 3)], ..STEP }),
        ("a token of a step that never was", Step { tokens: &[RowToken::Sampled(0); 3], ..STEP }),
        ("a token beyond the vocabulary", Step { tokens: &[RowToken::Known(3); 3], ..STEP }),
        ("a slot off the table", Step { slots: &[7, 1, 2], ..STEP }),
        ("a table that is too short", Step { block_tables: &[2, 3, 0], ..STEP }),
        ("a block beyond the pool", Step { block_tables: &[2, 3, 4, 1], ..STEP }),
        ("segments that overlap", Step { lora: &segments, ..STEP }),
        (
            "a segment beyond the step",
            Step { lora: &[LoraSegment { rows: 4, ..segments[0] }], ..STEP },
        ),
        ("an empty segment", Step { lora: &[LoraSegment { rows: 0, ..segments[0] }], ..STEP }),
    ];
    for (what, step) in broken {
        let result = run(&step);
        assert!(matches!(result, Err(KernelError::Shape { .. })), "{what}: {result:?}");
    }
}

#[test]
fn a_failed_step_does_not_disturb_the_next() {
    let mut backend = ReferenceBackend::new();
    let head = backend.upload_linear(&[counting(3, 2, 0.0)], None).unwrap();
    let mut x = Buffer::new(4, 2);
    let mut draw = |backend: &mut ReferenceBackend, tokens: &[RowToken]| -> Result<StepOutput> {
        backend.begin_step(&Step { tokens, ..STEP })?;
        backend.embed(&head, &mut x)?;
        let row = SampleRow { row: 1, task: SampleTask::Score(2), logprobs: None };
        backend.sample(&head, &x, &[row])?;
        // A row that the step lacks.
        if tokens[0] == RowToken::Known(0) {
            backend.sample(&head, &x, &[SampleRow { row: 3, ..row }])?;
        }
        let ticket = backend.end_step()?;
        let mut output = StepOutput::default();
        backend.wait(ticket, &mut output)?;
        Ok(output)
    };
    let known = [RowToken::Known(1); 3];
    let expected = draw(&mut backend, &known).unwrap();
    assert_eq!(expected.tokens, [2]);
    draw(&mut backend, &[RowToken::Known(0); 3]).unwrap_err();
    draw(&mut backend, &[RowToken::Sampled(1); 3]).unwrap_err();
    let after = draw(&mut backend, &[RowToken::Sampled(0); 3]).unwrap();
    assert_eq!(after.tokens, expected.tokens);
}

#[test]
fn shapes_are_checked_at_upload() {
    let mut backend = ReferenceBackend::new();
    let weights = [counting(2, 3, 0.0), counting(1, 3, 0.0)];
    backend.upload_linear(&weights, Some(&[1.0; 3])).unwrap();
    backend.upload_linear(&weights, Some(&[1.0; 2])).unwrap_err();
    backend.upload_linear(&[counting(2, 3, 0.0), counting(1, 2, 0.0)], None).unwrap_err();
}

#[test]
fn a_packed_adapter_holds_a_by_lane_and_b_as_it_came() {
    let parts = vec![part(1, Part::V, [2, 3], [4, 2]), part(1, Part::Q, [1, 3], [5, 1])];
    let packed = pack(2, parts).unwrap();
    assert_eq!(packed.max_rank, 2);
    assert_eq!(packed.sites.len(), 8);
    let touched: Vec<usize> = (0..8).filter(|&slot| packed.sites[slot].is_some()).collect();
    assert_eq!(touched, [Site::Qkv.slot(1)]);
    let site = packed.sites[touched[0]].as_ref().unwrap();
    assert_eq!(site.lanes, 3);
    let [q, k, v] = site.parts;
    assert_eq!([q.rank, k.rank, v.rank], [1, 0, 2]);
    assert_eq!([q.lane, v.lane], [0, 1]);
    assert_eq!([q.scale, v.scale], [0.5, 0.5]);
    let adapter = Adapter::new(&packed);
    assert_eq!(adapter.values(site.a, 9), [100., 101., 102., 100., 101., 102., 103., 104., 105.]);
    assert_eq!(adapter.values(q.b, 5), [200., 201., 202., 203., 204.]);
    assert_eq!(adapter.values(v.b, 8)[7], 207.0);
}

#[test]
fn an_adapter_that_does_not_fit_is_refused() {
    let broken = [
        ("a layer beyond the model", vec![part(1, Part::O, [2, 3], [4, 2])]),
        ("ranks that differ", vec![part(0, Part::O, [2, 3], [4, 3])]),
        (
            "inputs that differ within a site",
            vec![part(0, Part::Q, [2, 3], [4, 2]), part(0, Part::K, [2, 4], [4, 2])],
        ),
    ];
    for (what, parts) in broken {
        assert!(matches!(pack(1, parts), Err(KernelError::Shape { .. })), "{what}");
    }
}

#[test]
fn bytes_give_back_what_they_took() {
    for count in [0, 1, 15, 16, 17, 40] {
        let values: Vec<f32> = (0..count).map(|i| i as f32 - 7.5).collect();
        let bytes = AlignedBytes::from_f32s(&values);
        assert_eq!((bytes.len(), bytes.to_f32s()), (4 * count, values));
    }
}

#[test]
fn adapters_are_packed_from_any_bytes() {
    packer_contract(&Packer);
}
