//! T-ORACLE: 64 streams over eight adapters and the base, while a random one of them is reloaded every 20 ms and others
//! come and go. Every token must be explained.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use loraplex_tests::Client;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::answer::{Answer, Ask, Leave};
use crate::dice::Dice;
use crate::explain::Record;
use crate::history::{Change, History};
use crate::world::{Operator, Way, World, number};

const STREAMS: usize = 64;
/// Always loaded, reloaded all the time.
const STEADY: [&str; 8] = ["a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7"];
/// Loaded and unloaded.
const COMING: [&str; 3] = ["c0", "c1", "c2"];
/// Fewer are no storm, however long it took.
const LEAST_RELOADS: usize = 150;
const LEAST_ANSWERS: usize = 500;

/// What the tasks of a storm share.
#[derive(Debug)]
struct Storm {
    client: Client,
    operator: Operator,
    history: Arc<History>,
    over: AtomicBool,
    reloads: AtomicUsize,
    answers: AtomicUsize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_token_is_explained() {
    weather(number("ORACLE_SECONDS", 15), &[]).await;
}

/// The same where steps are queued before those before them have ended, as on a GPU.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_token_of_steps_that_run_ahead_is_explained() {
    let ahead = weather(number("ORACLE_SECONDS", 15) / 2, &["--async-scheduling"]).await;
    assert!(ahead > 0.0, "no step ran ahead");
}

/// Weathers a storm of so many seconds. Returns how many steps ran ahead.
#[allow(clippy::print_stdout, reason = "what a long test has done")]
async fn weather(seconds: u64, more: &[&str]) -> f64 {
    let seed = number("ORACLE_SEED", 1);
    let length = Duration::from_secs(seconds);
    // Less room for sequences, adapters and blocks than all would like: queues, evictions, preemptions.
    let flags = [
        "--max-num-seqs",
        "48",
        "--max-loras",
        "3",
        "--max-lora-rank",
        "8",
        "--max-model-len",
        "256",
        "--kv-cache-memory-bytes",
        "384KiB",
    ];
    let mut world = World::start(&[&flags, more].concat()).await;
    let storm = Arc::new(Storm {
        client: world.client().clone(),
        operator: world.operator.clone(),
        history: world.operator.history.clone(),
        over: AtomicBool::new(false),
        reloads: AtomicUsize::new(0),
        answers: AtomicUsize::new(0),
    });
    for name in STEADY {
        world.operator.load(name, Way::SamePath).await;
    }
    let answers = rage(&storm, seed, length).await;

    let changes = storm.history.changes();
    assert!(!changes.iter().any(Change::is_open));
    let record = Record::new(changes);
    let mut tally = Tally::default();
    for answer in &answers {
        match record.explain(answer) {
            Ok(explained) => tally.add(answer, explained.generations.len(), explained.mixed),
            Err(reason) => panic!("seed {seed}: {reason}"),
        }
    }
    println!("seed {seed}, {} reloads: {tally:?}", storm.reloads.load(Ordering::Relaxed));
    tally.check();
    world.quiet().await;
    for metric in [
        "vllm:prefix_cache_hits_total",
        "vllm:num_preemptions_total",
        "loraplex:lora_pool_evictions_total",
    ] {
        assert!(world.metric(metric).await > 0.0, "{metric}: the storm was too small");
    }

    let ahead = world.metric("loraplex:steps_ahead_total").await;
    let id = world.server.id().to_string();
    assert!(std::process::Command::new("kill").arg(id).status().unwrap().success());
    let status = world.server.ended().await;
    let log = world.server.logged();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    ahead
}

/// Runs until the time is over and enough has happened.
async fn rage(storm: &Arc<Storm>, seed: u64, length: Duration) -> Vec<Answer> {
    let start = Instant::now();
    let mut clients = JoinSet::new();
    for index in 0..STREAMS {
        clients.spawn(stream(storm.clone(), index, Dice::new((seed << 32) | index as u64)));
    }
    let mut operators = JoinSet::new();
    operators.spawn(reload(storm.clone(), Dice::new((seed << 32) | (1 << 16))));
    operators.spawn(come_and_go(storm.clone(), Dice::new((seed << 32) | (1 << 17))));
    loop {
        tokio::select! {
            Some(ended) = clients.join_next() => panic!("a stream ended early: {:?}", ended.err()),
            Some(ended) = operators.join_next() => panic!("an operator ended early: {:?}", ended.err()),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
        if start.elapsed() >= length
            && storm.reloads.load(Ordering::Relaxed) >= LEAST_RELOADS
            && storm.answers.load(Ordering::Relaxed) >= LEAST_ANSWERS
        {
            break;
        }
    }
    storm.over.store(true, Ordering::Relaxed);
    operators.join_all().await;
    clients.join_all().await.into_iter().flatten().collect()
}

/// One client: a request after the other.
async fn stream(storm: Arc<Storm>, index: usize, mut dice: Dice) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !storm.over.load(Ordering::Relaxed) {
        let mut ask = random_ask(&mut dice);
        // What an answer left in the cache is found by who goes on from it.
        if let Some(last) = answers.last().filter(|_| dice.chance(35)) {
            go_on(&mut ask, last);
        }
        ask.id = format!("r{index}x{}", answers.len());
        answers.push(ask.send(&storm.client, &storm.history).await);
        storm.answers.fetch_add(1, Ordering::Relaxed);
    }
    answers
}

/// Makes `ask` the next turn after `last`.
fn go_on(ask: &mut Ask, last: &Answer) {
    let turn: Vec<u32> = last.ask.prompt.iter().chain(&last.tokens).copied().collect();
    if turn.len() < 200 {
        ask.model.clone_from(&last.ask.model);
        ask.prompt = turn;
    }
}

fn random_ask(dice: &mut Dice) -> Ask {
    let model = match dice.below(10) {
        0 => "base",
        1 => COMING[dice.below(COMING.len())],
        _ => STEADY[dice.zipf(STEADY.len())],
    };
    // Three families of prompts that all adapters and the base share, cut anywhere, some with an end of their own.
    let family = 1000 * (1 + dice.below(3) as u32);
    let length = if dice.chance(25) { 15 } else { 120 };
    let mut prompt: Vec<u32> = (family..family + 1 + dice.below(length) as u32).collect();
    if dice.chance(50) {
        prompt.extend((0..dice.below(32)).map(|_| 5000 + dice.below(1000) as u32));
    }
    let mut ask = Ask::new(model, &prompt, 4 + dice.below(44));
    ask.follow = dice.chance(40);
    ask.spans = dice.chance(75);
    ask.stream = dice.chance(60);
    if ask.stream {
        ask.leave = match dice.below(10) {
            0 | 1 => Leave::After(1 + dice.below(12)),
            2 => Leave::Abort,
            _ => Leave::Never,
        };
    }
    ask
}

/// Starts a reload of a random adapter every 20 ms, of one that is not being reloaded.
async fn reload(storm: Arc<Storm>, mut dice: Dice) {
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idle: Vec<&str> = STEADY.to_vec();
    let mut loads = JoinSet::new();
    while !storm.over.load(Ordering::Relaxed) {
        ticks.tick().await;
        while let Some(done) = loads.try_join_next() {
            idle.push(done.unwrap());
        }
        if idle.is_empty() {
            continue;
        }
        let name = idle.swap_remove(dice.below(idle.len()));
        let way = [Way::SamePath, Way::NewPath, Way::Upload][dice.below(3)];
        let operator = storm.operator.clone();
        loads.spawn(async move {
            operator.load(name, way).await;
            name
        });
        storm.reloads.fetch_add(1, Ordering::Relaxed);
    }
    loads.join_all().await;
}

/// Loads and unloads the others, one after the other.
async fn come_and_go(storm: Arc<Storm>, mut dice: Dice) {
    let mut loaded = [false; COMING.len()];
    while !storm.over.load(Ordering::Relaxed) {
        let at = dice.below(COMING.len());
        if loaded[at] {
            storm.operator.unload(COMING[at], dice.chance(30)).await;
        } else {
            let way = [Way::SamePath, Way::NewPath, Way::Upload][dice.below(3)];
            storm.operator.load(COMING[at], way).await;
        }
        loaded[at] = !loaded[at];
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// How much of what was meant to happen has happened.
#[derive(Debug, Default)]
struct Tally {
    answers: usize,
    tokens: usize,
    of_the_base: usize,
    with_spans: usize,
    absent: usize,
    left: usize,
    aborted: usize,
    /// Answers of several generations.
    flipped: usize,
    /// Tokens that read the KV of an older generation, as followers may.
    mixed: usize,
}

impl Tally {
    fn add(&mut self, answer: &Answer, generations: usize, mixed: usize) {
        self.answers += 1;
        self.tokens += answer.tokens.len();
        self.of_the_base += usize::from(answer.ask.model == "base");
        self.with_spans += usize::from(answer.spans.is_some());
        self.absent += usize::from(answer.status == 404);
        self.left += usize::from(answer.status == 200 && answer.finish.is_none());
        self.aborted += usize::from(answer.finish.as_deref() == Some("abort"));
        self.flipped += usize::from(generations > 1);
        self.mixed += mixed;
    }

    fn check(&self) {
        let Self { of_the_base, with_spans, absent, left, aborted, flipped, mixed, .. } = *self;
        for (count, what) in [
            (self.answers / 300, "hundreds of answers"),
            (self.tokens / 3000, "thousands of tokens"),
            (of_the_base, "answers of the base"),
            (with_spans, "answers with spans"),
            (absent, "requests for an adapter that is out"),
            (left, "clients that left"),
            (aborted, "requests that were aborted"),
            (flipped, "answers of several generations"),
            (mixed, "tokens that read KV of an older generation"),
        ] {
            assert!(count > 0, "the storm had no {what}: {self:?}");
        }
    }
}
