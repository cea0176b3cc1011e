//! Servers that share a folder: one downloads, all serve, and one that is killed holds nobody up.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use loraplex_resolver_cache::{Cache, Claim};

use crate::{LONG, assert_tidy, open, own_folder, spawn, specs, weights_of};

const NAMES: u64 = 8;
const ROUNDS: u64 = 25;
const SERVERS: usize = 2;
/// Room for all there is.
const ROOM: u64 = 1 << 30;

/// What was published, one a line, and a file that says that a server has served all.
const PUBLISHED: &str = "published";
const SERVED: &str = "served";

fn content(source: &str) -> Vec<u8> {
    source.as_bytes().repeat(10_000)
}

/// As a resolver does it: look, claim, look again, download.
fn bring(cache: &Cache, source: &str, published: &Path) {
    loop {
        if let Some(entry) = cache.latest(source).unwrap() {
            assert!(weights_of(&entry) == content(source), "{source} is torn");
            return;
        }
        let Claim::Mine(claimed) = cache.claim(source).unwrap() else {
            std::thread::park_timeout(Duration::from_micros(200));
            continue;
        };
        if cache.latest(source).unwrap().is_some() {
            continue;
        }
        let weights = content(source);
        let staging = claimed.stage(&specs(&weights)).unwrap();
        staging.write(0, 0, b"{}").unwrap();
        for (at, piece) in weights.chunks(10_000).enumerate() {
            staging.write(1, 10_000 * at as u64, piece).unwrap();
        }
        staging.publish("v1").unwrap();
        let mut log = OpenOptions::new().create(true).append(true).open(published).unwrap();
        log.write_all(format!("{source}\n").as_bytes()).unwrap();
    }
}

#[test]
#[ignore = "it is a child of the test below"]
fn child_that_serves_every_name_of_every_round() {
    let folder = own_folder();
    let cache = open(&folder.join("cache"), ROOM, LONG);
    for round in 0..ROUNDS {
        for name in 0..NAMES {
            bring(&cache, &format!("{name} of {round}"), &folder.join(PUBLISHED));
        }
    }
    fs::write(folder.join(format!("{SERVED}-{}", std::process::id())), "").unwrap();
}

fn serve(folder: &Path) -> Child {
    spawn("sharing::child_that_serves_every_name_of_every_round", folder)
}

#[test]
fn d5_processes_that_share_a_folder_download_once_and_serve_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers: Vec<Child> = (0..SERVERS).map(|_| serve(folder.path())).collect();
    // One more, which is killed again and again.
    let staging = folder.path().join("cache/v1/staging");
    let mut kills = 0_u64;
    while servers.iter_mut().all(|server| server.try_wait().unwrap().is_none()) {
        let mut victim = serve(folder.path());
        while fs::read_dir(&staging).map_or(0, Iterator::count) == 0
            && victim.try_wait().unwrap().is_none()
        {
            std::thread::yield_now();
        }
        std::thread::park_timeout(Duration::from_micros(kills * 7919 % 40_000));
        victim.kill().unwrap();
        victim.wait().unwrap();
        kills += 1;
    }
    for server in &mut servers {
        assert!(server.wait().unwrap().success());
        assert!(folder.path().join(format!("{SERVED}-{}", server.id())).exists());
    }
    let mut times = BTreeMap::<String, usize>::new();
    for source in fs::read_to_string(folder.path().join(PUBLISHED)).unwrap().lines() {
        *times.entry(source.to_owned()).or_default() += 1;
    }
    let again: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(again.is_empty(), "downloaded more than once: {again:?}");
    // One that was killed may have published without having said so.
    let unsaid = (NAMES * ROUNDS) as usize - times.len();
    assert!(unsaid as u64 <= kills, "{unsaid} came from nowhere, {kills} were killed");
    let cache = open(&folder.path().join("cache"), ROOM, LONG);
    for source in times.keys() {
        let entry = cache.latest(source).unwrap().expect("it was published");
        assert!(weights_of(&entry) == content(source), "{source}");
    }
    assert_tidy(&folder.path().join("cache"));
}
