//! Loads while requests come and run: who sees what (R2, R3, R4, R9).

use std::fs;
use std::path::Path;

use futures::future::join_all;
use loraplex_tests::oracle::AdapterFiles;
use serde_json::{Value, json};

use crate::answer::{Answer, Ask};
use crate::world::{Way, World, times};

fn prompt(length: u32) -> Vec<u32> {
    (100..100 + length).collect()
}

/// R2: whoever asks after the acknowledgement is served by that generation, over any connection.
#[tokio::test]
async fn an_acknowledged_load_is_seen_by_every_later_request() {
    let world = World::start(&[]).await;
    for turn in 0..200 * times() {
        let way = [Way::SamePath, Way::NewPath, Way::Upload][turn % 3];
        let generation = world.operator.load("a", way).await;
        let mut ask = Ask::new("a", &prompt(5), 1);
        ask.follow = turn % 2 == 0;
        // A client of its own has connections of its own.
        let stranger = loraplex_tests::Client::new(world.client().base().to_owned());
        let client = if turn % 10 == 0 { &stranger } else { world.client() };
        let answer = ask.send(client, &world.operator.history).await;
        assert_eq!(world.explain(&answer).generations, [generation], "turn {turn}");
    }
}

/// R3: no prefix of an older generation is found again, same path or not; all others keep theirs.
#[tokio::test]
async fn a_reload_hides_its_own_prefixes_and_no_others() {
    let world = World::start(&[]).await;
    let all = ["a", "b", "base"];
    for name in &all[..2] {
        world.operator.load(name, Way::SamePath).await;
    }
    let prompt = prompt(50);
    let cached = async |model: &str| {
        let answer = world.ask(Ask::new(model, &prompt, 2)).await;
        assert_eq!(world.explain(&answer).mixed, 0);
        answer.cached
    };
    for model in all {
        assert_eq!(cached(model).await, 0);
    }
    for turn in 0..100 * times() {
        let way = [Way::SamePath, Way::Upload][turn % 2];
        world.operator.load("a", way).await;
        let found = [cached("a").await, cached("b").await, cached("base").await];
        assert_eq!(found, [0, 48, 48], "turn {turn}");
        assert_eq!(cached("a").await, 48, "turn {turn}: its own");
    }
}

/// R4: whatever is wrong with a load, the generation stays, and so do the requests under way.
#[tokio::test]
async fn failed_reloads_change_nothing_for_64_requests_under_way() {
    let world = World::start(&["--max-lora-rank", "8"]).await;
    world.operator.load("a", Way::NewPath).await;
    let card = async || world.client().get("/v1/lora_adapters/a").await.json();
    let before = card().await;
    let folder = tempfile::tempdir().unwrap();
    let bad = bad_folders(folder.path());
    for round in 0..4 * times() {
        let asks = (0..64).map(|index| {
            let mut ask = Ask::new("a", &prompt(20 + index), 40);
            ask.follow = index % 2 == 0;
            world.ask(ask)
        });
        let loads = async {
            let mut failed = 0;
            for (path, status) in &bad {
                let body = json!({"lora_name": "a", "lora_path": path, "load_inplace": true});
                let answer = world.client().post("/v1/load_lora_adapter", &body).await;
                assert_eq!(answer.status, *status, "{path}: {}", answer.text);
                failed += 1;
            }
            failed
        };
        let (answers, failed) = futures::join!(join_all(asks), loads);
        assert_eq!(failed, bad.len());
        for answer in &answers {
            assert_eq!(world.explain(answer).generations.len(), 1, "round {round}");
            assert_eq!(answer.tokens.len(), 40);
        }
    }
    world.quiet().await;
    let after = card().await;
    for key in ["generation", "digest", "bytes", "policy_version", "path"] {
        assert_eq!(before[key], after[key]);
    }
}

/// Folders that cannot be loaded, with the status that says so.
fn bad_folders(root: &Path) -> Vec<(String, u16)> {
    let good = AdapterFiles::new(99, 2);
    let write = |name: &str, files: &AdapterFiles, status: u16| {
        files.write(&root.join(name));
        (root.join(name).display().to_string(), status)
    };
    let cut = |at: usize| AdapterFiles { weights: good.weights[..at].to_vec(), ..good.clone() };
    let mut config: Value = serde_json::from_slice(&good.config).unwrap();
    config["r"] = 4.into();
    let other_rank = AdapterFiles { config: config.to_string().into_bytes(), ..good.clone() };
    let mut bad = vec![
        write("cut-in-data", &cut(good.weights.len() - 1), 400),
        write("cut-in-header", &cut(100), 400),
        write("empty", &cut(0), 400),
        write("other-rank", &other_rank, 400),
        write("too-large", &AdapterFiles::new(99, 16), 400),
        (root.join("absent").display().to_string(), 404),
    ];
    bad.push(write("no-weights", &good, 400));
    fs::remove_file(root.join("no-weights/adapter_model.safetensors")).unwrap();
    bad
}

/// R9: an unload while tokens flow, and the name's next load before they end.
#[tokio::test]
async fn an_unloaded_adapter_ends_its_requests_while_its_name_has_new_weights() {
    let world = World::start(&[]).await;
    for round in 0..25 {
        let old = world.operator.load("a", Way::SamePath).await;
        // Nothing moves, so the old request cannot end before the new one has come.
        world.post("/pause?mode=keep").await;
        let mut ask = Ask::new("a", &prompt(10 + round), 30);
        ask.follow = round % 2 == 0;
        let first = world.ask(ask);
        let rest = async {
            while world.client().get("/v1/lora_adapters/a").await.json()["leases"] == 0 {
                tokio::task::yield_now().await;
            }
            let unload = world.operator.unload("a", true);
            let others = async {
                while world.client().get("/v1/lora_adapters/a").await.status != 404 {
                    tokio::task::yield_now().await;
                }
                let new = world.operator.load("a", Way::Upload).await;
                world.queued(1).await;
                // A load is acknowledged and an old request waits: the unload has not been answered.
                let changes = world.operator.history.changes();
                assert_eq!(changes.iter().filter(|change| change.is_open()).count(), 1);
                let second = world.ask(Ask::new("a", &prompt(10), 10));
                let (_, second) = futures::join!(world.post("/resume"), second);
                (new, second)
            };
            futures::join!(unload, others).1
        };
        let (first, (new, second)) = futures::join!(first, rest);
        assert_eq!(world.explain(&first).generations, [old], "round {round}");
        assert_eq!(world.explain(&second).generations, [new], "round {round}");
        assert_eq!(whole(&first) + whole(&second), 40);
        world.operator.unload("a", true).await;
        world.reaches("loraplex:lora_pool_adapters", 0.0).await;
    }
}

fn whole(answer: &Answer) -> usize {
    assert_eq!(answer.finish.as_deref(), Some("length"));
    answer.tokens.len()
}
