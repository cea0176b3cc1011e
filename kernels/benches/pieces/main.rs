//! The kernels one by one, each beside what the machine allows: bytes over the read bandwidth, or multiply-adds over the
//! peak, both measured just before.
//!
//! `cargo bench -p loraplex-kernels --bench pieces`, in under a minute. What it defends: a piece that reads (`gemv`,
//! `shrink`, `expand`, `attention-decode`) at half of its limit or more, one that multiplies (`gemm`) at 0.6 or more.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

mod bench;
mod floor;

use std::time::Duration;

use criterion::{Criterion, Throughput};
use loraplex_kernels::cpu::probe::Probe;
use loraplex_kernels::{DType, SamplingParams};

use bench::{Bench, Shape};
use floor::Floor;

/// More weights than most caches hold, in layers that take turns.
const SQUARE: Shape = Shape { inputs: 4096, outputs: 4096, layers: 4, rank: 0 };
/// Eight adapters whose A is nearly all there is to read.
const WIDE: Shape = Shape { inputs: 8192, outputs: 64, layers: 8, rank: 64 };
/// Eight adapters whose B is.
const TALL: Shape = Shape { inputs: 64, outputs: 8192, layers: 8, rank: 64 };

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut probe = Probe::new(DType::Bf16, threads, None).expect("a probe");
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for (name, shape, rows) in
        [("gemv", SQUARE, 1), ("gemm", SQUARE, 512), ("shrink", WIDE, 8), ("expand", TALL, 8)]
    {
        let mut bench = Bench::projection(shape, rows, threads);
        let mut layer = 0;
        measure(&mut criterion, &mut probe, name, bench.floor(), || {
            bench.project(layer);
            layer = (layer + 1) % shape.layers;
        });
    }
    for (name, sequences, rows, context) in
        [("attention-decode", 8, 1, 2047), ("attention-prefill", 1, 512, 0)]
    {
        let mut bench = Bench::attention((sequences, rows, context), threads);
        measure(&mut criterion, &mut probe, name, bench.floor(), || bench.attend());
    }
    let drawn = SamplingParams {
        temperature: 0.8,
        top_k: 50,
        top_p: 0.95,
        seed: 7,
        ..SamplingParams::GREEDY
    };
    for (name, params) in [("sampler-greedy", SamplingParams::GREEDY), ("sampler-top-p", drawn)] {
        let mut bench = Bench::sampler(8, threads);
        measure(&mut criterion, &mut probe, name, bench.floor(), || bench.sample(params));
    }
    criterion.final_summary();
}

/// Measures `piece`, and says what bounds it.
fn measure(
    criterion: &mut Criterion,
    probe: &mut Probe,
    name: &str,
    floor: Floor,
    mut piece: impl FnMut(),
) {
    let limit = floor.limit(probe);
    println!("{name}: limit {limit}");
    let mut group = criterion.benchmark_group("pieces");
    group.throughput(floor.throughput()).bench_function(name, |b| b.iter(&mut piece));
}

impl Floor {
    /// So that its rate stands beside the limit's.
    fn throughput(&self) -> Throughput {
        match *self {
            Self::Bytes(bytes) => Throughput::BytesDecimal(bytes as u64),
            Self::Operations(operations) => Throughput::Elements(operations as u64),
        }
    }
}
