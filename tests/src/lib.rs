//! The harness of the suites: a server process, and an HTTP client that reads JSON and events.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod client;
pub mod oracle;
mod process;

use std::path::{Path, PathBuf};

pub use client::{Answer, Client};
pub use process::{ServerProcess, plugin_dir, run_to_end};

/// The project's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file or folder of `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    root().join("tests/fixtures").join(path)
}

/// A JSON file.
pub fn json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
