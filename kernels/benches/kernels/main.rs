//! Whole steps of random decoders, beside what the machine can read and multiply in the same seconds.
//!
//! `cargo bench -p loraplex-kernels -- [llama] [f32] [int8] [threads=N] [isa=NAME] [rank=N] [adapters=N] [rounds=N] [only=NAME,NAME]`
//!
//! What it defends, with SmolLM2-135M in bf16: decode of one stream reads at 0.75 of the machine's bandwidth or more, a
//! prefill of 512 tokens multiplies at 0.6 of its peak or more, and eight streams with eight adapters of rank 16 run at
//! 0.79 or more of the same batch without (a step with them reads 1.27 times the bytes).
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

mod model;

use std::time::Duration;

use loraplex_kernels::DType;
use loraplex_kernels::cpu::probe::Probe;
use loraplex_kernels::cpu::{CpuOptions, Isa};

use model::{Model, Sequence, Shape, Times};

const SMOL: Shape = Shape {
    name: "SmolLM2-135M",
    layers: 30,
    hidden: 576,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    ffn: 1536,
    vocab: 49152,
};

/// Two layers: more than the caches hold, less than the memory.
const LLAMA: Shape = Shape {
    name: "two layers of Llama-3-8B",
    layers: 2,
    hidden: 4096,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    ffn: 14336,
    vocab: 4096,
};

/// A step to measure.
struct Workload {
    name: &'static str,
    sequences: Vec<Sequence>,
    /// Steps a round, of which the fastest half counts.
    steps: usize,
}

fn workloads(adapters: usize) -> Vec<Workload> {
    let decode = |count: usize, adapter: fn(usize) -> Option<usize>| {
        (0..count)
            .map(|i| Sequence { context: 96, rows: 1, adapter: adapter(i) })
            .collect::<Vec<_>>()
    };
    let prefill = |adapter| vec![Sequence { context: 0, rows: 512, adapter }];
    let mut all = vec![
        Workload { name: "decode-1", sequences: decode(1, |_| None), steps: 4 },
        Workload { name: "decode-8", sequences: decode(8, |_| None), steps: 4 },
        Workload { name: "prefill-512", sequences: prefill(None), steps: 1 },
    ];
    if adapters > 8 {
        let each = |adapter: fn(usize) -> Option<usize>| decode(adapters, adapter);
        all.extend([
            Workload { name: "decode-many", sequences: each(|_| None), steps: 2 },
            Workload { name: "decode-many-lora-1", sequences: each(|_| Some(0)), steps: 2 },
            Workload { name: "decode-many-lora-many", sequences: each(Some), steps: 2 },
        ]);
    }
    if adapters >= 8 {
        all.extend([
            Workload { name: "decode-1-lora", sequences: decode(1, |_| Some(0)), steps: 4 },
            Workload { name: "decode-8-lora-1", sequences: decode(8, |_| Some(0)), steps: 4 },
            Workload { name: "decode-8-lora-8", sequences: decode(8, Some), steps: 4 },
            Workload { name: "prefill-512-lora", sequences: prefill(Some(0)), steps: 1 },
        ]);
    }
    all
}

/// What the command line asks for.
struct Arguments {
    shape: Shape,
    options: CpuOptions,
    rounds: usize,
    rank: usize,
    adapters: usize,
    int8: bool,
    only: Option<String>,
    /// Run this many steps and print nothing: for a profiler.
    profile: usize,
}

fn arguments() -> Arguments {
    let mut arguments = Arguments {
        shape: SMOL,
        options: CpuOptions { dtype: DType::Bf16, threads: 2, isa: None },
        rounds: 5,
        rank: 16,
        adapters: 8,
        int8: false,
        only: None,
        profile: 0,
    };
    for word in std::env::args().skip(1) {
        let number = || word.split('=').nth(1).and_then(|n| n.parse().ok());
        match word.split('=').next().unwrap_or("") {
            "llama" => arguments.shape = LLAMA,
            "int8" => arguments.int8 = true,
            "f32" => arguments.options.dtype = DType::F32,
            "threads" => arguments.options.threads = number().unwrap_or(2),
            "rounds" => arguments.rounds = number().unwrap_or(5),
            "rank" => arguments.rank = number().unwrap_or(16),
            "adapters" => arguments.adapters = number().unwrap_or(8),
            "profile" => arguments.profile = number().unwrap_or(0),
            "only" => arguments.only = word.split('=').nth(1).map(String::from),
            "isa" => {
                let name = word.split('=').nth(1);
                arguments.options.isa = Isa::ALL.into_iter().find(|isa| Some(isa.name()) == name);
            }
            _ => {}
        }
    }
    arguments
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The fastest of some steps.
fn fastest(model: &mut Model, workload: &Workload) -> Times {
    let times = (0..workload.steps).map(|_| model.step(&workload.sequences));
    times.min_by_key(|times| times.total).unwrap_or_default()
}

fn main() {
    let arguments = arguments();
    let shape = arguments.shape;
    let options = arguments.options;
    let mut model =
        Model::new(shape, (options, arguments.int8), (arguments.adapters, arguments.rank));
    let mut workloads = workloads(arguments.adapters);
    if let Some(only) = &arguments.only {
        workloads.retain(|workload| only.split(',').any(|name| name == workload.name));
    }
    for _ in 0..arguments.profile {
        for workload in &workloads {
            model.step(&workload.sequences);
        }
    }
    if arguments.profile > 0 {
        return;
    }
    let mut probe = Probe::new(options.dtype, options.threads, options.isa).expect("a probe");
    let mut reads = Vec::new();
    let mut peaks = Vec::new();
    let mut all: Vec<Vec<(Times, f64, f64)>> = workloads.iter().map(|_| Vec::new()).collect();
    for workload in &workloads {
        model.step(&workload.sequences);
    }
    for _ in 0..arguments.rounds {
        for (workload, samples) in workloads.iter().zip(&mut all) {
            let read = probe.read().expect("reads");
            let peak = probe.multiply().expect("multiplies");
            samples.push((fastest(&mut model, workload), read, peak));
            reads.push(read);
            peaks.push(peak);
        }
    }
    println!("{}, {}, adapters of rank {}", shape.name, model.device(), arguments.rank);
    println!(
        "read {:.1} GB/s, multiply {:.0} GFLOP/s (medians)",
        median(&mut reads) / 1e9,
        median(&mut peaks) / 1e9
    );
    // A scale in 16 bits for 32 weights in 8.
    let element = if arguments.int8 { 34.0 / 32.0 } else { model.dtype().size() as f64 };
    let bytes = shape.weights() as f64 * element;
    println!(
        "{:<18} {:>9} {:>7} {:>6} {:>8} {:>6} | ms: embed, qkv, attention, o, gate_up, down, sample",
        "", "ms", "GB/s", "share", "GFLOP/s", "share"
    );
    for (workload, samples) in workloads.iter().zip(&all) {
        report(&shape, bytes, workload, samples);
        // Beside the workload without adapters, round by round.
        let Some((base, _)) = workload.name.split_once("-lora") else { continue };
        let base = workloads.iter().position(|workload| workload.name == base);
        if let Some(base) = base {
            let seconds = |sample: &(Times, f64, f64)| sample.0.total.as_secs_f64();
            let pairs = all[base].iter().zip(samples);
            let mut shares: Vec<f64> = pairs.map(|(a, b)| seconds(a) / seconds(b)).collect();
            println!("{:<18} {:>9.3} of {}", "", median(&mut shares), workloads[base].name);
        }
    }
}

fn report(shape: &Shape, bytes: f64, workload: &Workload, samples: &[(Times, f64, f64)]) {
    let of = |f: &dyn Fn(&(Times, f64, f64)) -> f64| {
        median(&mut samples.iter().map(f).collect::<Vec<_>>())
    };
    let ms = |part: fn(&Times) -> Duration| of(&|(times, ..)| part(times).as_secs_f64() * 1e3);
    let rows = workload.sequences.iter().map(|sequence| sequence.rows).sum::<usize>();
    let flop = 2.0
        * (rows * shape.layers * shape.layer_weights()
            + workload.sequences.len() * shape.vocab * shape.hidden) as f64;
    println!(
        "{:<18} {:>9.3} {:>7.1} {:>6.3} {:>8.1} {:>6.3} | {:.2} {:.2} {:.2} {:.2} {:.2} {:.2} {:.2}",
        workload.name,
        ms(|times| times.total),
        of(&|(times, ..)| bytes / times.total.as_secs_f64()) / 1e9,
        of(&|(times, read, _)| bytes / times.total.as_secs_f64() / read),
        of(&|(times, ..)| flop / times.total.as_secs_f64()) / 1e9,
        of(&|(times, _, peak)| flop / times.total.as_secs_f64() / peak),
        ms(|times| times.embed),
        ms(|times| times.qkv),
        ms(|times| times.attention),
        ms(|times| times.o),
        ms(|times| times.gate_up),
        ms(|times| times.down),
        ms(|times| times.sample),
    );
}
