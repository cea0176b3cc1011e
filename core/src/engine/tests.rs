//! Whole steps with a scripted runner: what streams see, and that nothing is left behind.

mod ahead;
mod pausing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use loraplex_kernels::{OpCounters, StepOutput};
use tokio::runtime::Builder;

use super::*;
use crate::adapter::Adapter;
use crate::adapter::testing::adapter;
use crate::config::SchedulerConfig;
use crate::error::Result;
use crate::request::{GenerateRequest, Output, SamplingParams, TextOptions, UpdatePolicy};
use crate::runner::StepError;
use crate::scheduler::Sequences;
use crate::tokenizer::Tokenizer;

/// A generation that is never on the device.
const LOST: u64 = 404;

/// Draws the token after the last one; fails when it meets the token 99 and panics when it meets 999.
#[derive(Debug, Default)]
struct Counting {
    /// What the step submitted last has drawn.
    drawn: Vec<u32>,
    /// The same of all steps under way.
    under_way: VecDeque<Vec<u32>>,
    /// How many steps were submitted before the one before them was collected.
    ahead: Arc<AtomicUsize>,
    /// How long a step takes.
    pace: Duration,
}

impl Runner for Counting {
    fn copies_adapters(&self) -> bool {
        false
    }

    fn copy_adapters(&mut self, _adapters: &[Arc<Adapter>]) {}

    fn arrived_adapters(&mut self, _wait: bool, _arrived: &mut Vec<u64>) {}

    fn submit(&mut self, plan: &StepPlan, sequences: &Sequences) -> Result<(), StepError> {
        let mut generations =
            plan.chunks.iter().map(|chunk| sequences.get(chunk.slot).generation());
        if generations.any(|generation| generation == Some(LOST)) {
            let error = Error::internal("it is lost");
            return Err(StepError { error, generation: Some(LOST) });
        }
        let before = std::mem::take(&mut self.drawn);
        for chunk in plan.chunks.iter().filter(|chunk| chunk.draws) {
            let last = match chunk.follows {
                Some(sample) => before[sample as usize],
                None => *sequences.get(chunk.slot).tokens.last().expect("prompts are not empty"),
            };
            assert_ne!(last, 999, "the script says so");
            if last == 99 {
                return Err(Error::internal("the script says so").into());
            }
            self.drawn.push(last + 1);
        }
        self.ahead.fetch_add(self.under_way.len(), Ordering::Relaxed);
        self.under_way.push_back(self.drawn.clone());
        Ok(())
    }

    fn has_ended(&self) -> bool {
        true
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<()> {
        std::thread::park_timeout(self.pace);
        let drawn = self.under_way.pop_front().expect("a step is under way");
        out.clear();
        out.tokens.extend(&drawn);
        out.logprobs.resize(drawn.len(), f32::NAN);
        out.ranks.resize(drawn.len(), 0);
        out.top_ends.resize(drawn.len(), 0);
        Ok(())
    }

    fn counters(&self) -> OpCounters {
        OpCounters::default()
    }

    fn evict(&mut self, _generations: &[u64]) {}

    fn release_memory(&mut self) {}

    fn release_unused_adapters(&mut self) {}
}

fn engine(max_waiting: usize) -> EngineHandle {
    engine_of(Counting::default(), |options| options.scheduler.max_waiting = max_waiting)
}

fn engine_of(runner: Counting, change: impl FnOnce(&mut EngineOptions)) -> EngineHandle {
    let scheduler = SchedulerConfig {
        max_num_seqs: 2,
        max_num_batched_tokens: 8,
        ..SchedulerConfig::default()
    };
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/smollm2/tokenizer");
    let tokenizer = Arc::new(Tokenizer::from_folder(folder.as_ref()).unwrap());
    let mut options = EngineOptions {
        scheduler,
        max_model_len: 64,
        vocab_size: 1000,
        blocks: BlockManager::new(16, 4, true),
        end_tokens: [2].into(),
        seed: 0,
        adapter_pool: 100,
        metrics: Arc::new(Metrics::new("test", 1)),
    };
    change(&mut options);
    EngineHandle::start(Box::new(runner), tokenizer, options).unwrap()
}

fn request(first: u32, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        ids: Vec::new(),
        prompt: vec![first],
        adapter: None,
        params: SamplingParams { max_tokens, ..SamplingParams::default() },
        text: TextOptions::default(),
        cache_salt: None,
        priority: 0,
        prompt_logprobs: None,
        update_policy: UpdatePolicy::Pin,
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn tokens_come_in_order_and_end() {
    let engine = engine(8);
    let output = wait(engine.submit(request(20, 5)).unwrap().collect()).unwrap();
    let ids: Vec<u32> = output.tokens.iter().map(|token| token.id).collect();
    assert_eq!(ids, [21, 22, 23, 24, 25]);
    assert_eq!(output.finish.unwrap().reason, FinishReason::Length);
    assert_eq!(engine.open_requests(), 0);
}

#[test]
fn a_reader_that_comes_late_finds_one_piece() {
    let engine = engine(8);
    let mut late = engine.submit(request(20, 40)).unwrap();
    // Runs beside it and ends after it.
    wait(engine.submit(request(30, 60)).unwrap().collect()).unwrap();
    let piece = wait(late.next()).unwrap().unwrap();
    assert!(piece.tokens.iter().map(|token| token.id).eq(21..61));
    assert_eq!(piece.finish.unwrap().reason, FinishReason::Length);
    assert!(wait(late.next()).is_none());
}

#[test]
fn a_failed_step_fails_its_sequences_and_the_engine_goes_on() {
    let engine = engine(8);
    let error = wait(engine.submit(request(99, 5)).unwrap().collect()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(wait(engine.submit(request(20, 2)).unwrap().collect()).is_ok());
}

#[test]
fn a_full_queue_refuses() {
    let engine = engine(0);
    let open: Vec<_> = (0..2).map(|_| engine.submit(request(20, 63)).unwrap()).collect();
    let refused = engine.submit(request(20, 1)).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Exhausted);
    assert!(refused.retry_after.is_some());
    drop(open);
    assert!(engine.submit(request(20, 1)).is_ok());
}

#[test]
fn stopping_finishes_what_runs_and_refuses_the_rest() {
    let engine = engine(8);
    let running = engine.submit(request(20, 9)).unwrap();
    engine.stop(true);
    let late = engine.submit(request(20, 1));
    assert_eq!(wait(running.collect()).unwrap().tokens.len(), 9);
    let late = late.and_then(|stream| wait(stream.collect()));
    assert_eq!(late.unwrap_err().kind, ErrorKind::Unavailable);
    engine.join();
    assert!(!engine.is_alive());
    assert_eq!(engine.submit(request(20, 1)).unwrap_err().kind, ErrorKind::Unavailable);
}

#[test]
fn requests_outside_the_bounds_are_refused_before_the_queue() {
    let engine = engine(8);
    for (bad, param) in [
        (request(1 << 20, 1), "prompt"),
        (request(20, 0), "max_tokens"),
        (request(20, 64), "max_tokens"),
        (GenerateRequest { prompt: Vec::new(), ..request(20, 1) }, "prompt"),
    ] {
        let error = engine.submit(bad).unwrap_err();
        assert_eq!((error.kind, error.param), (ErrorKind::InvalidRequest, Some(param)));
    }
    assert_eq!(engine.open_requests(), 0);
}

/// Q4: the step that fails takes its own sequences along and nothing else, at whatever step it comes.
#[test]
fn a_step_that_fails_late_leaves_the_others_and_no_block_behind() {
    let engine = engine(8);
    for step in 1..=50 {
        let fails = engine.submit(request(100 - step, 60)).unwrap();
        let beside = engine.submit(request(200, 60)).unwrap();
        let waits = engine.submit(request(300, 60)).unwrap();

        let error = wait(fails.collect()).unwrap_err();
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::Internal, "the script says so")
        );
        // Whether it shared the failed step depends on when it came and whether it gave way.
        let whole = |first: u32| (first + 1..=first + 60).collect::<Vec<_>>();
        let ids = |output: Output| output.tokens.iter().map(|token| token.id).collect::<Vec<_>>();
        match wait(beside.collect()) {
            Ok(output) => assert_eq!(ids(output), whole(200)),
            Err(error) => assert_eq!(error.kind, ErrorKind::Internal),
        }
        assert_eq!(ids(wait(waits.collect()).unwrap()), whole(300), "step {step}");
        assert!(wait(engine.reset_prefix_cache()).unwrap(), "step {step} left a block in use");
        assert_eq!(engine.open_requests(), 0);
    }
}

#[test]
fn an_adapter_that_cannot_be_had_on_the_device_ends_its_own_requests_alone() {
    let engine = engine_of(Counting::default(), |options| {
        options.scheduler.max_num_seqs = 8;
        options.adapter_pool = 100;
    });
    for _ in 0..20 {
        let of = |generation: u64| GenerateRequest {
            adapter: Some(adapter("x", generation, 10)),
            ..request(200, 20)
        };
        let runs = [request(300, 20), of(1), of(2)].map(|request| engine.submit(request).unwrap());
        let fails = [of(LOST), of(LOST)].map(|request| engine.submit(request).unwrap());
        for stream in fails {
            assert_eq!(wait(stream.collect()).unwrap_err().message, "it is lost");
        }
        for stream in runs {
            let tokens = wait(stream.collect()).unwrap().tokens;
            assert!(tokens.windows(2).all(|pair| pair[1].id == pair[0].id + 1));
            assert_eq!(tokens.len(), 20);
        }
    }
    assert!(wait(engine.reset_prefix_cache()).unwrap(), "a block is in use");
}

/// Q4: an engine that dies answers everybody and takes nothing more; nobody hangs.
#[test]
fn a_panic_in_a_step_ends_every_stream_with_an_error() {
    for step in [1, 2, 30] {
        let engine = engine(8);
        let dies = engine.submit(request(1000 - step, 60)).unwrap();
        let others = [200, 300].map(|first| engine.submit(request(first, 60)));
        let error = wait(dies.collect()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Internal, "{error}");
        // The others either ended before or share its fate; one that came too late was refused.
        for other in others {
            match other.and_then(|stream| wait(stream.collect())) {
                Ok(output) => assert!(output.finish.is_some()),
                Err(error) => {
                    assert!(matches!(error.kind, ErrorKind::Internal | ErrorKind::Unavailable));
                }
            }
        }
        engine.join();
        let refused = engine.submit(request(20, 1)).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Unavailable);
    }
}
