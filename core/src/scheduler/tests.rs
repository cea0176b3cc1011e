//! Scenarios: what each step runs, written as a trace.
//!
//! A step is a line of chunks `sequence[first..end)`; a star marks a draw. Every drawn token is 7.

mod adapters;

use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::request::{
    FinishReason, GenerateRequest, SamplingParams, StopReason, TextOptions, UpdatePolicy,
};

struct Scene {
    scheduler: Scheduler,
    blocks: BlockManager,
    next: u64,
    endings: Vec<(u64, Ending)>,
}

impl Scene {
    /// Steps of `rows` rows and `seqs` sequences over `blocks` blocks of 4 tokens.
    fn new(rows: usize, seqs: usize, blocks: usize) -> Self {
        let config = SchedulerConfig {
            max_num_seqs: seqs,
            max_num_batched_tokens: rows,
            ..SchedulerConfig::default()
        };
        Self {
            scheduler: Scheduler::new(config, blocks * 4, AdapterPool::new(30)),
            blocks: BlockManager::new(blocks, 4, true),
            next: 0,
            endings: Vec::new(),
        }
    }

    /// Adds a sequence whose prompt is `prompt` tokens, all different from other sequences', and draws `output`.
    fn add(&mut self, prompt: usize, output: u32) -> SeqId {
        let first = 1000 * (self.next as u32 + 1);
        self.add_with(|request| {
            request.prompt = (first..first + prompt as u32).collect();
            request.params.max_tokens = output;
        })
    }

    fn add_with(&mut self, change: impl FnOnce(&mut GenerateRequest)) -> SeqId {
        let mut request = GenerateRequest {
            ids: Vec::new(),
            prompt: vec![1],
            adapter: None,
            params: SamplingParams::default(),
            text: TextOptions::default(),
            cache_salt: None,
            priority: 0,
            prompt_logprobs: None,
            update_policy: UpdatePolicy::Pin,
        };
        change(&mut request);
        let id = SeqId(self.next);
        self.next += 1;
        let end_tokens: Arc<[u32]> = [2].into();
        self.scheduler.add(Sequence::new(id, Instant::now(), request, &end_tokens, 0));
        id
    }

    fn step(&mut self) -> String {
        let mut plan = StepPlan::default();
        self.scheduler.schedule(&mut plan, &mut self.blocks);
        assert!(plan.preempted == 0 || !self.scheduler.closed, "who gave way may come back");
        let mut line = Vec::new();
        for chunk in &plan.chunks {
            let id = self.scheduler.sequences().get(chunk.slot).id.0;
            let end = chunk.first + chunk.rows;
            let draw = if chunk.draws { "*" } else { "" };
            line.push((id, format!("{id}[{}..{end}){draw}", chunk.first)));
            let token = chunk.draws.then_some(7);
            if let Some(ending) = self.scheduler.commit(chunk, token, &mut self.blocks) {
                self.scheduler.finish(chunk.slot, &mut self.blocks);
                self.endings.push((id, ending));
            }
        }
        line.sort();
        line.into_iter().map(|(_, chunk)| chunk).collect::<Vec<_>>().join(" ")
    }

    fn run(&mut self) -> Vec<String> {
        let mut trace = Vec::new();
        while self.scheduler.has_work() {
            trace.push(self.step());
            assert!(trace.len() < 1000, "no progress");
        }
        assert_eq!(self.blocks.available(), self.blocks.total(), "every block is back");
        trace
    }
}

#[test]
fn a_long_prompt_is_read_in_chunks_beside_the_decodes() {
    let mut scene = Scene::new(6, 4, 16);
    scene.add(3, 5);
    assert_eq!(scene.step(), "0[0..3)*");
    scene.add(12, 2);
    assert_eq!(
        scene.run(),
        ["0[3..4)* 1[0..5)", "0[4..5)* 1[5..10)", "0[5..6)* 1[10..12)*", "0[6..7)* 1[12..13)*"]
    );
}

#[test]
fn a_long_prompt_can_leave_some_of_each_step_to_those_behind_it() {
    let mut scene = Scene::new(8, 4, 16);
    scene.scheduler.config.most_of_a_prompt = 5;
    scene.add(12, 1);
    scene.add(2, 1);
    assert_eq!(scene.run(), ["0[0..5) 1[0..2)*", "0[5..10)", "0[10..12)*"]);
}

#[test]
fn several_prompts_share_a_step_and_the_sequence_limit_holds() {
    let mut scene = Scene::new(8, 2, 16);
    for _ in 0..3 {
        scene.add(3, 1);
    }
    assert_eq!(scene.run(), ["0[0..3)* 1[0..3)*", "2[0..3)*"]);
}

#[test]
fn priority_goes_before_arrival() {
    let mut scene = Scene::new(8, 1, 16);
    scene.add(2, 1);
    scene.add_with(|request| {
        request.priority = -1;
        request.params.max_tokens = 1;
    });
    assert_eq!(scene.run(), ["1[0..1)*", "0[0..2)*"]);
}

#[test]
fn the_least_important_gives_its_blocks_back_and_starts_over() {
    // Two sequences of 4 + 9 tokens need 4 blocks each; there are 5. What the cache kept is not computed again.
    for (caching, again) in [(true, "1[8..9)*"), (false, "1[0..9)*")] {
        let mut scene = Scene::new(16, 4, 5);
        scene.blocks = BlockManager::new(5, 4, caching);
        scene.add(4, 9);
        scene.add(4, 9);
        let trace = scene.run();
        assert_eq!(trace[4], "0[7..8)* 1[7..8)*");
        assert_eq!(trace[5], "0[8..9)*", "1 gives way");
        assert_eq!(trace[9], again, "{trace:?}");
        let order: Vec<u64> = scene.endings.iter().map(|(id, _)| *id).collect();
        assert_eq!(order, [0, 1], "the older one ends first");
    }
}

#[test]
fn prompts_that_hold_all_blocks_between_them_do_not_lock_up() {
    // Read one after the other, and side by side.
    for most in [8, 4] {
        let mut scene = Scene::new(8, 4, 6);
        scene.scheduler.config.most_of_a_prompt = most;
        for _ in 0..4 {
            scene.add(20, 3);
        }
        scene.run();
        assert_eq!(scene.endings.len(), 4);
    }
}

#[test]
fn a_prefix_is_computed_once_per_adapter_and_salt() {
    let mut scene = Scene::new(64, 4, 32);
    let prompt: Vec<u32> = (0..10).collect();
    let add = |scene: &mut Scene, salt: Option<&str>, prompt_logprobs| {
        scene.add_with(|request| {
            request.prompt = prompt.clone();
            request.params.max_tokens = 1;
            request.cache_salt = salt.map(str::to_owned);
            request.prompt_logprobs = prompt_logprobs;
        });
        scene.run().concat()
    };
    assert_eq!(add(&mut scene, None, None), "0[0..10)*");
    assert_eq!(add(&mut scene, None, None), "1[8..10)*");
    assert_eq!(add(&mut scene, Some("tenant"), None), "2[0..10)*");
    assert_eq!(add(&mut scene, Some("tenant"), None), "3[8..10)*");
    assert_eq!(add(&mut scene, None, Some(0)), "4[0..10)*", "every row is wanted");
    assert_eq!(scene.blocks.stats().hit_tokens, 16);
}

#[test]
fn a_prompt_that_many_ask_for_is_read_once() {
    let alike = |scene: &mut Scene, salt: Option<&str>, prompt: std::ops::Range<u32>| {
        scene.add_with(|request| {
            request.prompt = prompt.collect();
            request.params.max_tokens = 2;
            request.cache_salt = salt.map(Into::into);
        });
    };
    let mut scene = Scene::new(16, 8, 32);
    for _ in 0..3 {
        alike(&mut scene, None, 10..20);
    }
    // Neither another tenant nor a prompt that shares no whole block waits.
    alike(&mut scene, Some("tenant"), 10..13);
    alike(&mut scene, None, 10..13);
    assert_eq!(
        scene.run(),
        [
            "0[0..10)* 3[0..3)* 4[0..3)*",
            "0[10..11)* 1[8..10)* 2[8..10)* 3[3..4)* 4[3..4)*",
            "1[10..11)* 2[10..11)*"
        ]
    );

    // In chunks too, and who shares less goes on as soon as there is nothing more to gain.
    let mut scene = Scene::new(6, 8, 32);
    alike(&mut scene, None, 10..24);
    alike(&mut scene, None, 10..24);
    let mut shares_a_block: Vec<u32> = (10..14).collect();
    shares_a_block.extend([90, 91]);
    scene.add_with(|request| {
        request.prompt = shares_a_block;
        request.params.max_tokens = 1;
    });
    assert_eq!(
        scene.run(),
        ["0[0..6)", "0[6..12)", "0[12..14)* 1[12..14)* 2[4..6)*", "0[14..15)* 1[14..15)*"]
    );
}

#[test]
fn prompt_positions_are_scored_once_each_over_chunks() {
    let mut scene = Scene::new(4, 1, 16);
    scene.add_with(|request| {
        request.prompt = (0..10).collect();
        request.params.max_tokens = 2;
        request.prompt_logprobs = Some(1);
    });
    let mut scored = Vec::new();
    while scene.scheduler.has_work() {
        let mut plan = StepPlan::default();
        scene.scheduler.schedule(&mut plan, &mut scene.blocks);
        let chunk = plan.chunks[0].clone();
        scored.push(chunk.scores.clone());
        let token = chunk.draws.then_some(7);
        if scene.scheduler.commit(&chunk, token, &mut scene.blocks).is_some() {
            scene.scheduler.finish(chunk.slot, &mut scene.blocks);
        }
    }
    assert_eq!(scored[..3], [1..5, 5..9, 9..10]);
    assert!(scored[3..].iter().all(std::ops::Range::is_empty));
}

#[test]
fn endings() {
    type Change = fn(&mut SamplingParams);
    let cases: [(Change, usize, Ending); 4] = [
        (|p| p.max_tokens = 3, 3, (FinishReason::Length, None)),
        (|p| p.stop_token_ids = vec![7], 1, (FinishReason::Stop, Some(StopReason::Token(7)))),
        (|p| (p.max_tokens, p.ignore_eos) = (2, true), 2, (FinishReason::Length, None)),
        (|p| p.max_tokens = 1000, 63, (FinishReason::Length, None)),
    ];
    for (change, steps, ending) in cases {
        let mut scene = Scene::new(8, 1, 16);
        scene.add_with(|request| change(&mut request.params));
        assert_eq!(scene.run().len(), steps);
        assert_eq!(scene.endings, [(0, ending)]);
    }
}

#[test]
fn aborts_give_everything_back() {
    let mut scene = Scene::new(4, 1, 16);
    let running = scene.add(10, 5);
    let waiting = scene.add(3, 5);
    scene.step();
    for id in [waiting, running, running] {
        scene.scheduler.abort(id, &mut scene.blocks);
    }
    assert!(!scene.scheduler.has_work());
    assert_eq!(scene.blocks.available(), 16);
}

#[test]
fn requests_are_found_by_their_own_names() {
    let mut scene = Scene::new(16, 8, 64);
    for names in [&["a"][..], &["a-0", "a"], &["a-0-1"], &["b"]] {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        scene.add_with(|request| request.ids = names);
    }
    for (wanted, expected) in [("a", vec![SeqId(0), SeqId(1)]), ("a-0", vec![SeqId(1)])] {
        let mut found = scene.scheduler.of_requests(&[wanted.to_owned()]);
        found.sort();
        assert_eq!(found, expected);
    }
    scene.run();
}
