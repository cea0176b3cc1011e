//! Shapes that the parity suite leaves out because the reference takes long over them: long chunks, wide matrices, many
//! heads to a group, large heads, long contexts. `gpu-run.sh` runs them on a GPU.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#![allow(dead_code, reason = "the parity suite uses the rest of its modules")]

#[path = "parity/case.rs"]
mod case;
#[path = "parity/compare.rs"]
mod compare;
#[path = "parity/device.rs"]
mod device;
#[path = "parity/naive.rs"]
mod naive;
#[path = "parity/plan.rs"]
mod plan;
#[path = "parity/run.rs"]
mod run;
#[path = "parity/world.rs"]
mod world;

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use loraplex_kernels::cuda::{CudaBackend, CudaOptions};
use loraplex_kernels::reference::ReferenceBackend;

use case::{Case, Life, Mix, SMALL, Shape};
use compare::{assert_consistent, widened};
use naive::LogProbs;
use plan::Plan;
use run::{Job, Outputs, run_case};
use world::{Probe, World};

/// Largest differences of log-probabilities to the reference's, as shares of a row's spread: of all but one in a thousand
/// values, and of those few: a rounded tie between two keys can change a whole row.
const TOLERANCE: (f64, f64) = (0.12, 0.8);

fn cuda(graph_rows: &[usize], slots: usize) -> CudaBackend {
    // One backend stays open: the last to go would close the device, which takes long to open.
    static OPEN: OnceLock<Mutex<CudaBackend>> = OnceLock::new();
    let kernel_cache = Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cubin"));
    let options = |graph_rows| CudaOptions { device: 0, kernel_cache, graph_rows };
    OPEN.get_or_init(|| Mutex::new(CudaBackend::new(options.clone()(Vec::new())).unwrap()));
    let mut backend = CudaBackend::new(options(graph_rows.to_vec())).unwrap();
    backend.make_slots(slots);
    backend
}

/// Rows share B; sums of squares come in pieces.
const SHARED: Shape =
    Shape { head_dim: 128, hidden: 264, ffn: 392, bias: true, qk_norm: true, ..SMALL };

fn life(arrives: usize, prompt: usize, chunk: usize, decode: usize) -> Life {
    Life { arrives, prompt, chunk, decode }
}

fn base(name: &str) -> Case {
    Case {
        adapters: vec![[16; 7], [8; 7], [33; 7]],
        mix: Mix::Gaps,
        lives: vec![
            life(0, 700, 700, 3),
            life(0, 37, 37, 3),
            life(1, 90, 64, 2),
            life(2, 700, 700, 2),
        ],
        ..case::base(name)
    }
}

/// Long chunks, by the kernels for prompts.
fn prompt_cases() -> Vec<Case> {
    let group = Shape { heads: 12, kv_heads: 1, head_dim: 64, ..SMALL };
    let multi = Shape { heads: 20, kv_heads: 1, head_dim: 8, ..SMALL };
    let large = Shape { heads: 2, kv_heads: 1, head_dim: 256, ..SMALL };
    let odd = Shape { heads: 3, kv_heads: 3, head_dim: 18, hidden: 52, ffn: 90, ..SMALL };
    let window = Shape { window: Some(100), ..group };
    let prompts = vec![life(0, 1100, 1100, 1); 2];
    vec![
        base("a chunk of 700 rows"),
        Case { shape: group, ..base("twelve heads to a group") },
        Case { shape: multi, ..base("twenty heads of 8 to a group") },
        Case { shape: large, ..base("heads of 256") },
        Case { shape: odd, ..base("sizes that are no multiples of 8") },
        Case { shape: Shape { head_dim: 90, ..SMALL }, ..base("heads of 90") },
        Case { shape: window, ..base("a window of 100 over long contexts") },
        Case { block_size: 24, ..base("blocks of 24") },
        Case { lives: vec![life(0, 1500, 512, 12); 3], ..base("long contexts") },
        Case { shape: SHARED, ..base("a chunk of 700 rows, heads of 128") },
        Case {
            shape: Shape { window: Some(100), ..SHARED },
            ..base("a window of 100, heads of 128")
        },
        Case {
            shape: SHARED,
            lives: vec![life(0, 1500, 512, 2); 2],
            ..base("long contexts, heads of 128")
        },
        Case { shape: SHARED, lives: prompts.clone(), ..base("2,200 rows") },
        Case {
            shape: SHARED,
            mix: Mix::Base,
            lives: prompts.clone(),
            ..base("2,200 rows without adapters")
        },
        Case {
            shape: SHARED,
            adapters: vec![[16; 7]],
            mix: Mix::Identical,
            lives: prompts,
            ..base("2,200 rows of an adapter")
        },
    ]
}

fn decode_cases() -> Vec<Case> {
    let short = vec![life(0, 5, 5, 2), life(0, 3, 3, 2), life(1, 1, 1, 2)];
    let wide = Shape { hidden: 2560, heads: 8, kv_heads: 2, head_dim: 128, ffn: 4104, ..SMALL };
    let high = vec![[64; 7], [64; 7], [24; 7]];
    let pieces = Shape { hidden: 1104, ..SHARED };
    // As many outputs as a multiprocessor each has a share of.
    let spread = Shape { hidden: 4104, heads: 2, kv_heads: 1, ffn: 520, bias: false, ..SHARED };
    // Steps with and without adapters that are replayed in turns.
    let turns = vec![life(0, 2, 2, 6), life(0, 2, 2, 40), life(0, 2, 2, 6), life(14, 2, 2, 8)];
    vec![
        Case { shape: wide, lives: short.clone(), ..base("wide matrices") },
        Case { adapters: high, lives: short, ..base("more ranks than are packed") },
        Case { shape: pieces, lives: vec![life(0, 2, 2, 2); 100], ..base("a hundred decodes") },
        Case { shape: spread, lives: vec![life(0, 2, 2, 2); 30], ..base("thirty wide rows") },
        Case { shape: spread, lives: vec![life(0, 2, 2, 2); 5], ..base("five wide rows") },
        Case {
            shape: spread,
            adapters: vec![[16; 7]; 12],
            lives: vec![life(0, 2, 2, 2); 14],
            ..base("wide rows of many adapters")
        },
        Case { shape: pieces, lives: turns, ..base("replays with and without adapters") },
        Case {
            adapters: vec![[16; 7]; 28],
            lives: vec![life(0, 2, 2, 2); 140],
            ..base("many adapters and rows, heads of 16")
        },
        Case {
            shape: pieces,
            adapters: vec![[16; 7]; 28],
            lives: vec![life(0, 2, 2, 2); 140],
            ..base("many adapters and rows")
        },
    ]
}

#[test]
#[ignore = "needs a GPU: see gpu-run.sh"]
fn wide_shapes_agree_with_the_reference() {
    for case in [prompt_cases(), decode_cases()].concat() {
        let (world, plan) = (World::new(&case), Plan::mixed(&case));
        for probe in [Probe::Attention, Probe::Decoder] {
            let (case, world, plan) = (&case, &world, &plan);
            let job = Job { case, world, plan, probe, draws: None };
            let expected = widened(&run_case(ReferenceBackend::new, &job).0);
            for (graph_rows, slots) in [(&[][..], 0), (&[], 40), (&[4, 8], 11)] {
                let found: Outputs = run_case(|| cuda(graph_rows, slots), &job).0;
                assert_consistent(case, world, &found);
                let how = format!("{probe:?}, graphs at {graph_rows:?}, {slots} slots");
                let name = format!("{}, {how}", case.name);
                assert_mostly_close(&name, &expected, &found);
            }
        }
    }
}

fn assert_mostly_close(name: &str, expected: &LogProbs, found: &Outputs) {
    let mut differences = Vec::new();
    for (place, expected) in expected {
        let count = expected.len() as f64;
        let mean = expected.iter().sum::<f64>() / count;
        let spread = (expected.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt();
        let rows = expected.iter().zip(&found[place].logprobs);
        differences.extend(rows.map(|(expected, &row)| (expected - f64::from(row)).abs() / spread));
    }
    // A NaN comes last.
    differences.sort_by(f64::total_cmp);
    let most = differences[differences.len() * 999 / 1000];
    let worst = differences[differences.len() - 1];
    assert!(
        most <= TOLERANCE.0 && worst <= TOLERANCE.1,
        "{name}: one in a thousand differs by over {most}, the worst by {worst} of the spread"
    );
}
