//! The cache over real folders: what is let in, what goes, what survives.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod faults;
mod kill;
mod sharing;
mod tampering;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use loraplex_resolver_cache::{
    Cache, CacheError, CacheErrorKind, CacheOptions, Claim, Claimed, Entry, FileSpec, Staging,
    md5_of,
};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// Longer than any run of this suite.
const LONG: Duration = Duration::from_secs(86_400);

/// Where a child of these tests finds its folder.
const FOLDER: &str = "LORAPLEX_TEST_CACHE";

/// Runs an ignored test in a process of its own, which works in `folder`.
fn spawn(test: &str, folder: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "--ignored", test])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The folder of such a process.
fn own_folder() -> PathBuf {
    #[allow(clippy::disallowed_methods, reason = "the parent says where")]
    let folder = env::var_os(FOLDER).unwrap();
    folder.into()
}

/// A cache in `folder` that keeps what was handed out for `keep`.
fn open(folder: &Path, max_bytes: u64, keep: Duration) -> Cache {
    let mut options = CacheOptions::new(folder, max_bytes);
    options.keep = keep;
    Cache::open(options).unwrap()
}

fn claim(cache: &Cache, source: &str) -> Claimed {
    match cache.claim(source).unwrap() {
        Claim::Mine(claimed) => claimed,
        Claim::Others(at) => panic!("somebody else has {source} and is at {at}"),
    }
}

fn specs(weights: &[u8]) -> [FileSpec; 2] {
    [
        FileSpec { name: CONFIG, len: 2, md5: None },
        FileSpec { name: WEIGHTS, len: weights.len() as u64, md5: Some(md5_of(weights)) },
    ]
}

/// Downloads an adapter with these weights, in two pieces and the second first.
fn download(cache: &Cache, source: &str, weights: &[u8]) -> Result<Entry, CacheError> {
    let Claim::Mine(claimed) = cache.claim(source)? else { panic!("{source} is somebody else's") };
    let staging = claimed.stage(&specs(weights))?;
    let half = weights.len() / 2;
    staging.write(0, 0, b"{}")?;
    staging.write(1, half as u64, &weights[half..])?;
    staging.write(1, 0, &weights[..half])?;
    staging.publish("v1")
}

fn weights_of(entry: &Entry) -> Vec<u8> {
    fs::read(entry.folder.join(WEIGHTS)).unwrap()
}

/// The names below a folder of the cache.
fn names(folder: &Path, below: &str) -> Vec<String> {
    let entries = fs::read_dir(folder.join("v1").join(below)).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Nothing is under way or half done.
fn assert_tidy(folder: &Path) {
    for below in ["staging", "locks", "trash"] {
        assert_eq!(names(folder, below), Vec::<String>::new(), "{below}");
    }
}

#[test]
fn what_was_published_is_found_by_everybody() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, other) = (open(folder.path(), 1 << 20, LONG), open(folder.path(), 1 << 20, LONG));
    assert_eq!(cache.latest("a").unwrap(), None);
    let entry = download(&cache, "a", b"weights").unwrap();
    assert_eq!((weights_of(&entry), entry.version.as_str()), (b"weights".to_vec(), "v1"));
    for cache in [&cache, &other, &open(folder.path(), 1 << 20, LONG)] {
        assert_eq!(cache.latest("a").unwrap().as_ref(), Some(&entry));
        assert_eq!(cache.of_version("a", "v1").unwrap().as_ref(), Some(&entry));
        assert_eq!(cache.of_version("a", "v2").unwrap(), None);
        assert_eq!(cache.latest("b").unwrap(), None);
    }
    // Another source with the same content shares the entry, a new version of the first has its own.
    assert_eq!(download(&other, "b", b"weights").unwrap().folder, entry.folder);
    let newer = download(&cache, "a", b"other weights").unwrap();
    assert_ne!(newer.folder, entry.folder);
    assert_eq!(weights_of(&entry), b"weights", "who loads the old one still can");
    assert_eq!(names(folder.path(), "entries").len(), 2);
    assert_eq!(weights_of(&other.latest("a").unwrap().unwrap()), b"other weights");
    assert_tidy(folder.path());
}

#[test]
fn one_at_a_time_downloads_and_the_others_see_how_far_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, other) = (open(folder.path(), 1 << 20, LONG), open(folder.path(), 1 << 20, LONG));
    let staging = claim(&cache, "a").stage(&specs(b"weights")).unwrap();
    let at = |cache: &Cache| match cache.claim("a").unwrap() {
        Claim::Others(at) => at,
        Claim::Mine(_) => panic!("it is somebody's"),
    };
    assert_eq!((at(&cache), at(&other)), (0, 0));
    staging.write(1, 0, b"wei").unwrap();
    assert_eq!((at(&cache), at(&other)), (3, 3));
    // Nothing of it is to be seen, and a start of another process does not sweep it away.
    assert_eq!(other.latest("a").unwrap(), None);
    open(folder.path(), 1 << 20, LONG);
    assert_eq!(names(folder.path(), "staging").len(), 1);
    drop(staging);
    assert_tidy(folder.path());
    drop(claim(&other, "a"));
    assert_tidy(folder.path());
}

#[test]
fn what_is_not_what_was_announced_is_not_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), 1 << 20, LONG);
    let stage = || claim(&cache, "a").stage(&specs(b"weights")).unwrap();
    let kind = |error: CacheError| error.kind;
    let (staging, longer): (Staging, _) = (stage(), b"weights and more");
    assert_eq!(kind(staging.write(1, 0, longer).unwrap_err()), CacheErrorKind::Damaged);
    drop(staging);
    let staging = stage();
    staging.write(0, 0, b"{}").unwrap();
    staging.write(1, 0, b"weighty").unwrap();
    let error = staging.publish("v1").unwrap_err();
    assert!(error.message.contains("MD5"), "{error}");
    assert_eq!(kind(error), CacheErrorKind::Damaged);
    assert_eq!(names(folder.path(), "entries").len(), 0);
    assert_tidy(folder.path());
}

#[test]
fn what_was_used_longest_ago_goes_first_and_what_is_in_use_never() {
    let folder = tempfile::tempdir().unwrap();
    let content = |n: u8| vec![n; 1000];
    // Three entries with their manifests fit.
    let cache = open(folder.path(), 4000, Duration::ZERO);
    for n in 0..3 {
        download(&cache, &n.to_string(), &content(n)).unwrap();
    }
    cache.latest("0").unwrap().unwrap();
    download(&cache, "3", &content(3)).unwrap();
    let here: Vec<_> = (0..4).filter(|n| cache.latest(&n.to_string()).unwrap().is_some()).collect();
    assert_eq!(here, [0, 2, 3], "1 was used longest ago");
    assert_eq!(names(folder.path(), "refs").len(), 3, "and its reference went with it");
    // What was handed out a moment ago may be in use, by this process or another.
    for keeping in [open(folder.path(), 4000, LONG), open(folder.path(), 4000, LONG)] {
        let error = download(&keeping, "4", &content(4)).unwrap_err();
        assert_eq!(error.kind, CacheErrorKind::Full);
        assert!(error.message.contains("1002 bytes do not fit: the cache holds"), "{error}");
    }
    let error = download(&cache, "5", &[0; 4000]).unwrap_err();
    assert_eq!(error.kind, CacheErrorKind::TooLarge);
    assert_eq!(names(folder.path(), "entries").len(), 3);
    // What is under way counts too.
    let under_way = claim(&cache, "6").stage(&specs(&content(6))).unwrap();
    assert_eq!(names(folder.path(), "entries").len(), 2);
    drop(under_way);
    assert_tidy(folder.path());
}
