//! A disk that is full, and one whose every operation fails once.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loraplex_resolver_cache::{Cache, CacheErrorKind, CacheOptions, Disk, Operation};

use crate::{LONG, assert_tidy, download, names, weights_of};

const MIB: usize = 1 << 20;
/// An adapter's weights: six fit a disk of 8 MiB.
const LEN: usize = 13 * MIB / 10;

/// A disk of 8 MiB: a file system of its own where one may be mounted, or else one that counts.
struct Small {
    folder: tempfile::TempDir,
    is_mounted: bool,
}

impl Small {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
            .arg(folder.path())
            .output();
        let is_mounted = mount.is_ok_and(|mount| mount.status.success());
        Self { folder, is_mounted }
    }

    fn cache(&self, keep: std::time::Duration) -> Cache {
        let mut options = CacheOptions::new(self.folder.path(), 1 << 30);
        options.keep = keep;
        if !self.is_mounted {
            let root = self.folder.path().to_owned();
            options.disk = Disk::failing(move |operation, path| {
                let wanted = if path.ends_with(super::WEIGHTS) { LEN as u64 } else { 0 };
                match operation {
                    Operation::Allocate if bytes(&root) + wanted > 8 << 20 => {
                        Err(io::ErrorKind::StorageFull.into())
                    }
                    _ => Ok(()),
                }
            });
        }
        Cache::open(options).unwrap()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        if self.is_mounted {
            assert!(Command::new("umount").arg(self.folder.path()).status().unwrap().success());
        }
    }
}

fn bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |path: PathBuf| match fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() => bytes(&path),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    entries.map(|entry| size(entry.path())).sum()
}

#[test]
fn d1_a_full_disk_has_older_entries_removed_and_then_says_so() {
    let disk = Small::new();
    let folder = disk.folder.path();
    // Nothing is in use: the disk's size is a limit like any other.
    let cache = disk.cache(std::time::Duration::ZERO);
    for n in 0..20_u8 {
        let entry = download(&cache, &format!("free {n}"), &vec![n; LEN]).unwrap();
        assert_eq!(weights_of(&entry), vec![n; LEN]);
        assert_tidy(folder);
    }
    let held = names(folder, "entries");
    assert!((4..=6).contains(&held.len()), "{held:?}");
    // All of it is in use.
    let cache = disk.cache(LONG);
    let mut refused = 0;
    for n in 0..20 {
        match download(&cache, &format!("kept {n}"), &vec![100 + n; LEN]) {
            Ok(_) => assert_eq!(refused, 0),
            Err(error) => {
                assert_eq!(error.kind, CacheErrorKind::Full, "{error}");
                refused += 1;
            }
        }
        assert_tidy(folder);
    }
    assert!(refused >= 18);
    assert!(held.iter().all(|entry| names(folder, "entries").contains(entry)));
    // Room returns; nobody starts anything anew.
    let gone = folder.join("v1/entries").join(&held[0]);
    fs::remove_dir_all(gone).unwrap();
    let entry = download(&cache, "at last", &vec![7; LEN]).unwrap();
    assert_eq!(weights_of(&entry), vec![7; LEN]);
}

/// Every file and folder of the cache that is not for moments only, with its content.
fn listing(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for below in ["entries", "refs"] {
        let mut folders = vec![folder.join("v1").join(below)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    all.insert(path.clone(), Vec::new());
                    folders.push(path);
                } else {
                    all.insert(path.clone(), fs::read(path).unwrap());
                }
            }
        }
    }
    all
}

#[test]
fn d2_whatever_fails_leaves_the_cache_as_it_was() {
    let errors = [
        rustix::io::Errno::NOSPC,
        rustix::io::Errno::IO,
        rustix::io::Errno::MFILE,
        rustix::io::Errno::INTR,
    ];
    for errno in errors {
        let folder = tempfile::tempdir().unwrap();
        // The operation that fails, counted from here; none when it is far away.
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        let countdown = left.clone();
        let mut options = CacheOptions::new(folder.path(), 1 << 20);
        options.keep = LONG;
        options.disk = Disk::failing(move |_, _| match countdown.fetch_sub(1, Ordering::Relaxed) {
            0 => Err(errno.into()),
            _ => Ok(()),
        });
        let cache = Cache::open(options).unwrap();
        download(&cache, "other", b"other weights").unwrap();
        download(&cache, "name", b"old weights").unwrap();
        let before = listing(folder.path());
        let mut points = 0;
        loop {
            left.store(points, Ordering::Relaxed);
            let done = download(&cache, "name", b"new weights");
            let was_met = left.swap(usize::MAX / 2, Ordering::Relaxed) > points;
            if !was_met {
                done.unwrap();
                break;
            }
            let error = done.unwrap_err();
            let is_full = error.kind == CacheErrorKind::Full;
            assert_eq!(is_full, errno == rustix::io::Errno::NOSPC, "{error}");
            assert!(listing(folder.path()) == before, "{errno:?} at operation {points}: {error}");
            assert_tidy(folder.path());
            let kept = cache.latest("name").unwrap().unwrap();
            assert_eq!(weights_of(&kept), b"old weights");
            points += 1;
        }
        assert!(points >= 20, "{points} operations of a download");
        assert_eq!(weights_of(&cache.latest("name").unwrap().unwrap()), b"new weights");
    }
}
