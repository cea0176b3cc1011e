//! Entries that somebody has changed, and files that nobody knows.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use loraplex_resolver_cache::{Cache, Entry};

use crate::kill::hex;
use crate::{CONFIG, LONG, WEIGHTS, assert_tidy, download, names, open, weights_of};

/// What is done to an entry, with a folder outside of the cache that must stay as it is.
type Tampering = (&'static str, fn(entry: &Path, outside: &Path));

fn replace(path: &Path, with: impl FnOnce(&Path)) {
    fs::remove_file(path).unwrap();
    with(path);
}

const TAMPERINGS: [Tampering; 18] = [
    ("shorter", |entry, _| fs::write(entry.join(WEIGHTS), "weight").unwrap()),
    ("longer", |entry, _| fs::write(entry.join(WEIGHTS), "weights!").unwrap()),
    ("empty", |entry, _| fs::write(entry.join(WEIGHTS), "").unwrap()),
    ("another content", |entry, _| fs::write(entry.join(WEIGHTS), "weightz").unwrap()),
    ("another configuration", |entry, _| fs::write(entry.join(CONFIG), "[]").unwrap()),
    ("no weights", |entry, _| fs::remove_file(entry.join(WEIGHTS)).unwrap()),
    ("no manifest", |entry, _| fs::remove_file(entry.join("manifest.json")).unwrap()),
    ("another manifest", |entry, _| {
        let path = entry.join("manifest.json");
        let text = fs::read_to_string(&path).unwrap().replace("\"len\":7", "\"len\":8");
        fs::write(path, text).unwrap();
    }),
    ("another content, and a manifest that agrees", |entry, _| {
        fs::write(entry.join(WEIGHTS), "weightz").unwrap();
        let path = entry.join("manifest.json");
        let text = fs::read_to_string(&path).unwrap();
        let agreeing = text.replace(&hex(b"weights"), &hex(b"weightz"));
        assert_ne!(agreeing, text);
        fs::write(path, agreeing).unwrap();
    }),
    ("no JSON", |entry, _| fs::write(entry.join("manifest.json"), "{").unwrap()),
    ("a file more", |entry, _| fs::write(entry.join("adapter_model.bin"), "x").unwrap()),
    ("a link to the same", |entry, outside| {
        replace(&entry.join(WEIGHTS), |path| symlink(outside.join("weights"), path).unwrap());
    }),
    ("a link to nothing", |entry, _| {
        replace(&entry.join(WEIGHTS), |path| symlink("/nowhere", path).unwrap());
    }),
    ("a manifest by a link", |entry, outside| {
        fs::rename(entry.join("manifest.json"), outside.join("manifest.json")).unwrap();
        symlink(outside.join("manifest.json"), entry.join("manifest.json")).unwrap();
    }),
    ("a folder for a file", |entry, _| {
        replace(&entry.join(WEIGHTS), |path| fs::create_dir(path).unwrap());
    }),
    ("a link for the entry", |entry, outside| {
        fs::rename(entry, outside.join("entry")).unwrap();
        symlink(outside.join("entry"), entry).unwrap();
    }),
    ("a file for the entry", |entry, _| {
        fs::remove_dir_all(entry).unwrap();
        fs::write(entry, "x").unwrap();
    }),
    ("nothing at all", |entry, _| fs::remove_dir_all(entry).unwrap()),
];

fn published(folder: &Path) -> (Cache, Entry) {
    let cache = open(folder, 1 << 20, LONG);
    let entry = download(&cache, "a", b"weights").unwrap();
    (cache, entry)
}

#[test]
fn d6_an_entry_that_was_changed_is_removed_and_never_followed() {
    for (what, tamper) in TAMPERINGS {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (cache, entry) = published(folder.path());
        fs::write(outside.path().join("weights"), "weights").unwrap();
        tamper(&entry.folder, outside.path());
        assert_eq!(cache.latest("a").unwrap(), None, "{what}");
        assert_eq!(names(folder.path(), "entries").len(), 0, "{what}");
        assert_eq!(fs::read(outside.path().join("weights")).unwrap(), b"weights");
        if what == "a link for the entry" {
            assert_eq!(fs::read_dir(outside.path().join("entry")).unwrap().count(), 3);
        }
        assert_eq!(weights_of(&download(&cache, "a", b"weights").unwrap()), b"weights", "{what}");
        // A download that meets it is not led astray either.
        tamper(&entry.folder, tempfile::tempdir().unwrap().path());
        assert_eq!(weights_of(&download(&cache, "b", b"weights").unwrap()), b"weights", "{what}");
        assert!(fs::symlink_metadata(&entry.folder).unwrap().is_dir(), "{what}");
        assert_tidy(folder.path());
    }
}

#[test]
fn d6_a_file_that_may_not_be_read_is_fetched_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, entry) = published(folder.path());
    let path = entry.folder.join(WEIGHTS);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap();
    // The superuser reads it all the same.
    let readable = fs::read(&path).is_ok();
    assert_eq!(cache.latest("a").unwrap().is_some(), readable);
    assert_eq!(weights_of(&download(&cache, "a", b"weights").unwrap()), b"weights");
}

#[test]
fn d6_a_reference_leads_to_an_entry_or_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, entry) = published(folder.path());
    let name = names(folder.path(), "refs").remove(0);
    let path = folder.path().join("v1/refs").join(name);
    let text = fs::read_to_string(&path).unwrap();
    let outside = folder.path().join("outside");
    for changed in [
        String::new(),
        "{".to_owned(),
        text.replace(&entry.digest, "../../../outside"),
        text.replace(&entry.digest, &"0".repeat(64)),
        text.replace("\"source\":\"a\"", "\"source\":\"b\""),
        format!("{text}{}", " ".repeat(1 << 20)),
    ] {
        fs::write(&path, changed).unwrap();
        assert_eq!(cache.latest("a").unwrap(), None);
    }
    fs::write(&outside, &text).unwrap();
    fs::remove_file(&path).unwrap();
    symlink(&outside, &path).unwrap();
    assert_eq!(cache.latest("a").unwrap(), None, "a link is not followed");
    assert_eq!(download(&cache, "a", b"weights").unwrap(), entry);
    assert_eq!(fs::read_to_string(&outside).unwrap(), text, "nor written through");
}

#[test]
fn d6_files_that_nobody_knows_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, entry) = published(folder.path());
    for below in ["entries", "refs", "staging", "locks"] {
        for n in 0..2500 {
            fs::write(folder.path().join("v1").join(below).join(format!("stray-{n}")), "").unwrap();
        }
    }
    assert_eq!(cache.latest("a").unwrap(), Some(entry));
    let small = open(folder.path(), 1100, Duration::ZERO);
    download(&small, "b", &[1; 1000]).unwrap();
    assert_eq!(small.latest("a").unwrap(), None, "it was evicted");
    assert_eq!(names(folder.path(), "entries").len(), 2501);
}

#[test]
fn an_entry_of_another_version_is_neither_read_nor_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (_, entry) = published(folder.path());
    // Whoever reads it removes it.
    fs::write(entry.folder.join(WEIGHTS), "weightz").unwrap();
    let manifest = fs::File::open(entry.folder.join("manifest.json")).unwrap();
    manifest.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let cache = open(folder.path(), 1100, LONG);
    assert_eq!(cache.of_version("a", "v2").unwrap(), None);
    assert!(entry.folder.exists());
    assert_eq!(manifest.metadata().unwrap().modified().unwrap(), SystemTime::UNIX_EPOCH);
    // It does not count as in use, so it gives way.
    let newer = download(&cache, "a", &[1; 1000]).unwrap();
    assert_eq!(names(folder.path(), "entries"), [newer.digest]);
}
