//! The rules of the house as tests: arrows between crates, the shape of files, the rooms of `unsafe`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::fs;
use std::path::{Path, PathBuf};

use loraplex_tests::root;

/// Each crate's folder and the crates of this project that it may depend on.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("plugin-sdk", &[]),
    ("kernels", &[]),
    ("core", &["loraplex-plugin-sdk", "loraplex-kernels"]),
    ("server", &["loraplex-core", "loraplex-hub-client"]),
    ("resolvers/cache", &[]),
    ("resolvers/hub-client", &[]),
    ("resolvers/filesystem", &["loraplex-plugin-sdk"]),
    ("resolvers/s3", &["loraplex-plugin-sdk", "loraplex-resolver-cache"]),
    ("resolvers/hf-hub", &["loraplex-plugin-sdk", "loraplex-hub-client"]),
];

/// Where `unsafe` may stand.
const UNSAFE_ROOMS: &[&str] = &[
    "kernels/src/cpu/",
    "kernels/src/cuda/",
    "plugin-sdk/src/abi/",
    "core/src/plugin/",
    "tests/third_party/host/",
];

/// What stands at the top, beside dot-files, `Cargo.lock`, a licence and build output.
const TOP: &[&str] = &[
    "Cargo.toml",
    "core",
    "server",
    "resolvers",
    "plugin-sdk",
    "kernels",
    "examples",
    "tests",
    "README.md",
];

/// Lines of a file before its tests: a longer one holds more than one idea.
const MAX_LINES: usize = 600;

fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for folder in ["plugin-sdk", "kernels", "core", "server", "resolvers", "examples", "tests"] {
        walk(&root().join(folder), &mut files);
    }
    assert!(files.len() > 30, "the walk finds the sources");
    let name = |path: &PathBuf| {
        path.strip_prefix(root()).expect("inside the root").to_string_lossy().into_owned()
    };
    files.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let skipped = path.file_name().is_some_and(|name| name == "target");
        if path.is_dir() && !skipped {
            walk(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn crates_depend_only_downwards() {
    for (folder, allowed) in MAY_DEPEND_ON {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let dependencies = manifest
            .split("[dependencies]")
            .nth(1)
            .unwrap_or_default()
            .split("\n[")
            .next()
            .unwrap_or_default();
        for line in dependencies.lines().filter(|line| line.starts_with("loraplex-")) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            assert!(allowed.contains(&name), "{folder} must not depend on {name}");
        }
    }
}

#[test]
fn the_top_level_stays_as_it_is() {
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let free = name.starts_with('.')
            || name.starts_with("LICENSE")
            || ["Cargo.lock", "target"].contains(&name.as_str());
        assert!(free || TOP.contains(&name.as_str()), "{name} does not belong at the top level");
    }
}

#[test]
fn every_file_says_what_it_is_and_holds_one_idea() {
    for (name, text) in sources() {
        assert!(text.starts_with("//!"), "{name} does not open with what it is");
        let tests = text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(text.len());
        let lines = text[..tests].lines().count();
        assert!(lines <= MAX_LINES, "{name} has {lines} lines, {MAX_LINES} is the limit");
    }
}

#[test]
fn unsafe_and_features_stay_in_their_rooms() {
    // Spelt in two halves, or this file would find itself.
    let (keyword, feature) = (concat!("uns", "afe "), concat!("feature", " = \""));
    for (name, text) in sources() {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let mut code = code.filter(|line| !line.contains("unsafe_code"));
        if !UNSAFE_ROOMS.iter().any(|room| name.starts_with(room)) {
            let found = code.find(|line| line.contains(keyword));
            assert_eq!(found, None, "{name} is no room for it");
        }
        if !name.ends_with("/lib.rs") {
            assert!(!text.contains(feature), "{name} switches on a feature");
        }
    }
}
