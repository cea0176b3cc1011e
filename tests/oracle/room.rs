//! More wanted than there is room for: adapters (R7, R8, R14) and blocks (Q3).

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::answer::Ask;
use crate::world::{Way, World, times};

/// R7: who finds no room waits up to its deadline and is told to come back; who has room keeps it.
#[tokio::test]
async fn who_finds_no_room_is_refused_in_time_and_evicts_nobody() {
    // Room for two, in the device's own layout.
    let size = {
        let world = World::start(&[]).await;
        world.operator.load_ranked("a", Way::SamePath, |_| 8).await;
        world.explain(&world.ask(Ask::new("a", &[0; 8], 1)).await);
        // An answer is out before the engine reports its step.
        loop {
            let bytes = world.metric("loraplex:lora_pool_bytes").await;
            if bytes > 0.0 {
                break bytes;
            }
        }
    };
    let room = format!("{}", (2.5 * size) as u64);
    let flags = ["--lora-pool-memory", &room, "--lora-wait-timeout", "0.01"];
    let world = World::start(&flags).await;
    for name in ["a", "b", "c"] {
        world.operator.load_ranked(name, Way::SamePath, |_| 8).await;
    }
    for round in 0..5 * times() as u32 {
        // All three are there before the first step, which two of them find room in; they keep it for 900 steps.
        world.post("/pause?mode=keep").await;
        let holders = ["a", "b"].map(|name| {
            let mut ask = Ask::new(name, &[round; 8], 900);
            ask.follow = true;
            world.ask(ask)
        });
        let late = async {
            world.queued(2).await;
            let resume = async {
                world.queued(3).await;
                world.post("/resume").await;
            };
            futures::join!(world.ask(Ask::new("c", &[round; 8], 4)), resume).0
        };
        let (held, refused) = futures::join!(join_all(holders), late);
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!(refused.error.contains("found no room on the device in time"), "{refused:?}");
        for answer in &held {
            assert_eq!((answer.tokens.len(), world.explain(answer).generations.len()), (900, 1));
        }
        // Once they have ended there is room, and theirs is needed again for the next round.
        let served = world.ask(Ask::new("c", &[round; 8], 4)).await;
        assert_eq!(world.explain(&served).generations.len(), 1);
        for name in ["a", "b"] {
            world.explain(&world.ask(Ask::new(name, &[round; 8], 1)).await);
        }
        let used = world.metric("loraplex:lora_pool_bytes").await;
        assert!(used <= world.metric("loraplex:lora_pool_limit_bytes").await);
    }
}

/// R8: a backlog of 64 adapters over room for 8 takes hardly more steps than one of 8 adapters.
#[tokio::test]
async fn a_backlog_over_little_room_runs_in_full_batches() {
    let flags = ["--max-loras", "8", "--max-lora-rank", "8", "--max-num-seqs", "64"];
    let world = World::start(&flags).await;
    let names: Vec<String> = (0..64).map(|index| format!("a{index}")).collect();
    for name in &names {
        world.operator.load(name, Way::Upload).await;
    }
    let mut steps = Vec::new();
    for distinct in [8, 64] {
        let before = world.metric("vllm:iteration_tokens_count").await;
        // All of it is there before the first step, so that the steps can be counted.
        world.post("/pause?mode=keep").await;
        let asks = (0..512).map(|index| {
            world.ask(Ask::new(&names[index % distinct], &[distinct as u32, index as u32, 7], 16))
        });
        let resume = async {
            world.queued(512).await;
            world.post("/resume").await;
        };
        let (answers, ()) = futures::join!(join_all(asks), resume);
        for answer in answers {
            let explained = world.explain(&answer);
            assert_eq!((explained.generations.len(), answer.tokens.len()), (1, 16), "{answer:?}");
        }
        world.quiet().await;
        steps.push(world.metric("vllm:iteration_tokens_count").await - before);
    }
    assert!(world.metric("loraplex:lora_pool_evictions_total").await >= 48.0, "all had room");
    let [few, many] = steps[..] else { unreachable!("two backlogs") };
    assert!(many <= 1.5 * few, "{many} steps with 64 adapters, {few} with 8");
}

/// R14: what comes back to the device is what was there before, to the last bit of every score.
#[tokio::test]
async fn an_evicted_adapter_comes_back_as_it_was() {
    // Room for one, on the device and in host memory: the one that comes back is copied, and sometimes read again.
    for flags in
        [vec!["--lora-pool-memory", "40KiB"], vec!["--max-loras", "8", "--max-cpu-loras", "1"]]
    {
        let world = World::start(&flags).await;
        let mut first = [Value::Null, Value::Null, Value::Null];
        let names = ["a", "b", "c"];
        for name in names {
            world.operator.load(name, Way::SamePath).await;
        }
        for turn in 0..100 {
            for (name, first) in names.iter().zip(&mut first) {
                let body = json!({
                    "model": name, "prompt": [1, 2, 3, turn], "max_tokens": 3, "temperature": 0,
                    "logprobs": 3, "return_token_ids": true,
                });
                let answer = world.client().ok("/v1/completions", &body).await;
                let choice = &answer["choices"][0];
                let said = json!([choice["token_ids"], choice["logprobs"]]);
                if first.is_null() {
                    *first = said;
                } else {
                    assert_eq!(*first, said, "{name} in turn {turn}");
                }
            }
        }
    }
}

/// Q3: requests that want more than half of all blocks each take turns, and each gets its own tokens.
#[tokio::test]
async fn sixty_four_requests_for_sixty_percent_of_the_blocks_each_all_end() {
    // 24 blocks of 16 tokens; each request fills 15 of them.
    let world =
        World::start(&["--kv-cache-memory-bytes", "192KiB", "--max-model-len", "256"]).await;
    for name in ["a", "b", "c"] {
        world.operator.load(name, Way::SamePath).await;
    }
    let asks = (0..64u32).map(|index| {
        let model = ["base", "a", "b", "c"][index as usize % 4];
        let prompt: Vec<u32> = (100 * index..100 * index + 60 + index).collect();
        let tokens = 240 - prompt.len();
        world.ask(Ask::new(model, &prompt, tokens))
    });
    for answer in join_all(asks).await {
        let explained = world.explain(&answer);
        assert_eq!((answer.finish.as_deref(), explained.mixed), (Some("length"), 0));
        assert_eq!(answer.tokens.len() + answer.ask.prompt.len(), 240);
    }
    assert!(world.metric("vllm:num_preemptions_total").await > 0.0, "there was room for all");
    world.quiet().await;
    let reset = world.client().request(Method::POST, "/reset_prefix_cache").send().await.unwrap();
    assert_eq!(reset.json::<Value>().await.unwrap()["success"], true);
}
