//! Processes that are ended while they download.

use std::fs;
use std::path::Path;
use std::time::Duration;

use sha2::Digest;

use crate::{LONG, assert_tidy, claim, download, names, open, own_folder, spawn, weights_of};

const KILLS: u64 = 20;

/// Weights that tell which source they are of.
fn content(source: u64) -> Vec<u8> {
    source.to_le_bytes().repeat(25_000)
}

#[test]
#[ignore = "it is the child of the test below, and never ends by itself"]
fn child_that_downloads_for_ever() {
    // A dozen entries fit, so that some are always on their way out.
    let cache = open(&own_folder(), 2_500_000, Duration::ZERO);
    for source in 0.. {
        let source = source % 40;
        if cache.latest(&source.to_string()).unwrap().is_none() {
            download(&cache, &source.to_string(), &content(source)).unwrap();
        }
    }
}

/// What is visible is whole, by its name and not by the cache's word.
fn assert_whole(folder: &Path) -> usize {
    let entries = names(folder, "entries");
    for entry in &entries {
        let folder = folder.join("v1/entries").join(entry);
        let manifest = fs::read(folder.join("manifest.json")).unwrap();
        assert_eq!(*entry, hex(&manifest));
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        for file in manifest["files"].as_array().unwrap() {
            let content = fs::read(folder.join(file["name"].as_str().unwrap())).unwrap();
            assert_eq!(file["sha256"].as_str().unwrap(), hex(&content));
        }
    }
    entries.len()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn d3_a_process_that_is_killed_leaves_a_valid_cache() {
    let folder = tempfile::tempdir().unwrap();
    // Another server of the same folder, which goes on.
    let survivor = open(folder.path(), 2_500_000, Duration::ZERO);
    let mut left_behind = 0;
    for kill in 0..KILLS {
        let mut child = spawn("kill::child_that_downloads_for_ever", folder.path());
        // Its first download is under way or done, then a moment that is another each time.
        let staging = folder.path().join("v1/staging");
        while fs::read_dir(&staging).map_or(0, Iterator::count) == 0 {
            assert!(child.try_wait().unwrap().is_none(), "it never ends by itself");
            std::thread::yield_now();
        }
        std::thread::park_timeout(Duration::from_micros(kill * 7919 % 60_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let left = names(folder.path(), "staging");
        left_behind += left.len();
        assert_whole(folder.path());
        if kill % 2 == 0 {
            // What was begun is begun anew by whoever wants it.
            for source in
                (0..40).filter(|source| left.contains(&hex(source.to_string().as_bytes())))
            {
                let entry = download(&survivor, &source.to_string(), &content(source)).unwrap();
                assert_eq!(weights_of(&entry), content(source));
            }
        }
        let cache = open(folder.path(), 2_500_000, LONG);
        assert_tidy(folder.path());
        assert_whole(folder.path());
        for source in 0..40 {
            if let Some(entry) = cache.latest(&source.to_string()).unwrap() {
                assert_eq!(weights_of(&entry), content(source));
            }
        }
        // The lock of a killed holder is nobody's.
        drop(claim(&cache, &(kill % 40).to_string()));
    }
    assert!(left_behind > 0, "no process was killed while it downloaded");
}
