//! What the engine does beside computing, each beside the time that reading its bytes from memory would take.
//!
//! `cargo bench -p loraplex-core --bench pieces`. What it defends: 64 sequences are scheduled and committed in under
//! 50 µs, a hundredth of a step of the smallest model that anyone serves.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion};
use loraplex_core::kv_cache::{BlockManager, BlockTable, PrefixKey};
use loraplex_core::probe::Probe;
use loraplex_core::scheduler::{AdapterPool, Scheduler, SeqId, Sequence, StepPlan};
use loraplex_core::{
    DType, GenerateRequest, SamplingParams, SchedulerConfig, TextOptions, UpdatePolicy,
};

const BLOCK: usize = 16;
const SEQUENCES: usize = 64;
/// Tokens of a long prompt.
const PROMPT: usize = 2048;

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut probe = Probe::new(DType::F32, threads, None).expect("a probe");
    let read = (0..5).filter_map(|_| probe.read().ok()).fold(f64::MIN_POSITIVE, f64::max);
    let limit = |name: &str, bytes: usize| {
        let nanos = bytes as f64 / read * 1e9;
        println!("{name}: limit {nanos:.0} ns: {bytes} bytes at {:.1} GB/s", read / 1e9);
    };
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    limit("scheduler-step", SEQUENCES * size_of::<Sequence>());
    scheduler_step(&mut criterion);
    limit("block-manager", PROMPT / BLOCK * size_of::<[u64; 6]>());
    block_manager(&mut criterion);
    limit("prefix-lookup", PROMPT * size_of::<u32>());
    prefix_lookup(&mut criterion);
    criterion.final_summary();
}

/// A step of 64 sequences that all draw: planned and committed.
fn scheduler_step(criterion: &mut Criterion) {
    let config = SchedulerConfig { max_num_seqs: SEQUENCES, ..SchedulerConfig::default() };
    let mut scheduler = Scheduler::new(config, usize::MAX, AdapterPool::new(0));
    // Sequences that end in time are replaced, so that every step has as many.
    let mut blocks = BlockManager::new(SEQUENCES * PROMPT / BLOCK, BLOCK, true);
    let mut plan = StepPlan::default();
    let mut next = 0;
    criterion.bench_function("scheduler-step", |b| {
        b.iter(|| {
            while scheduler.running() + scheduler.waiting() < SEQUENCES {
                scheduler.add(sequence(next));
                next += 1;
            }
            scheduler.schedule(&mut plan, &mut blocks);
            for chunk in &plan.chunks {
                let token = chunk.draws.then_some(7);
                if scheduler.commit(chunk, token, &mut blocks).is_some() {
                    scheduler.finish(chunk.slot, &mut blocks);
                }
            }
        });
    });
}

/// Blocks of a long prompt, taken and given back.
fn block_manager(criterion: &mut Criterion) {
    let mut blocks = BlockManager::new(4 * PROMPT / BLOCK, BLOCK, false);
    criterion.bench_function("block-manager", |b| {
        b.iter(|| {
            let mut table = BlockTable::default();
            assert!(blocks.grow(&mut table, black_box(PROMPT)));
            blocks.release(table);
        });
    });
}

/// A long prompt that is in the cache, among others.
fn prefix_lookup(criterion: &mut Criterion) {
    let mut blocks = BlockManager::new(64 * PROMPT / BLOCK, BLOCK, true);
    let key = PrefixKey::new(Some(3), None);
    let prompt = |which: u32| (0..PROMPT as u32).map(|at| at * 31 + which).collect::<Vec<u32>>();
    for which in 0..32 {
        let (tokens, mut table) = (prompt(which), BlockTable::default());
        assert!(blocks.grow(&mut table, PROMPT));
        blocks.publish(key, &mut table, &tokens, PROMPT);
        blocks.release(table);
    }
    let tokens = prompt(5);
    criterion.bench_function("prefix-lookup", |b| {
        b.iter_batched(
            BlockTable::default,
            |mut table| {
                let found = blocks.take_prefix(key, black_box(&tokens), &mut table);
                assert_eq!(found, PROMPT - BLOCK, "all but the block of the last token");
                blocks.release(table);
            },
            BatchSize::SmallInput,
        );
    });
}

fn sequence(id: u64) -> Sequence {
    let request = GenerateRequest {
        ids: Vec::new(),
        prompt: vec![id as u32; 16],
        adapter: None,
        params: SamplingParams { max_tokens: 1000, ignore_eos: true, ..SamplingParams::default() },
        text: TextOptions::default(),
        cache_salt: None,
        priority: 0,
        prompt_logprobs: None,
        update_policy: UpdatePolicy::Pin,
    };
    Sequence::new(SeqId(id), Instant::now(), request, &[].into(), 0)
}
