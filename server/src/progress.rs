//! How far a load is, on stderr: one line that rewrites itself on a terminal, one line a stage elsewhere.

use std::io::{IsTerminal, Write, stderr};
use std::sync::Mutex;

use loraplex_core::Progress;

/// Reports to stderr.
#[derive(Debug)]
pub(crate) struct Stderr {
    terminal: bool,
    last: Mutex<(String, u64)>,
}

impl Stderr {
    pub(crate) fn new() -> Self {
        Self { terminal: stderr().is_terminal(), last: Mutex::default() }
    }
}

impl Progress for Stderr {
    fn stage(&self, stage: &str, done: u64, total: u64) {
        let percent = done * 100 / total.max(1);
        let mut last = self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let is_new = last.0 != stage;
        if !is_new && last.1 == percent {
            return;
        }
        *last = (stage.to_owned(), percent);
        // A closed stderr is no reason to stop loading.
        let _ = if self.terminal {
            let end = if done >= total { "\n" } else { "" };
            write!(stderr(), "\r\x1b[Kloading {stage} {percent}%{end}")
        } else if is_new {
            writeln!(stderr(), "loading {stage}")
        } else {
            Ok(())
        };
    }
}
