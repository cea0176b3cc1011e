//! How far a load is, on stderr: one line that rewrites itself on a terminal, one line a stage elsewhere.

use std::collections::HashMap;
use std::io::{IsTerminal, Write, stderr};
use std::sync::Mutex;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
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

/// Downloads on stderr: a bar a file on a terminal, two lines a file elsewhere.
#[derive(Debug)]
pub(crate) struct Downloads {
    terminal: bool,
    bars: MultiProgress,
    files: Mutex<HashMap<String, ProgressBar>>,
}

impl Downloads {
    pub(crate) fn new() -> Self {
        let terminal = stderr().is_terminal();
        Self { terminal, bars: MultiProgress::new(), files: Mutex::default() }
    }

    fn begin(&self, file: &str, total: u64) -> ProgressBar {
        if !self.terminal {
            tracing::info!("downloading {file} ({})", HumanBytes(total));
            return ProgressBar::hidden();
        }
        let style =
            "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(style).expect("the template is well formed");
        self.bars.add(ProgressBar::new(total).with_style(style).with_message(file.to_owned()))
    }
}

impl loraplex_hub_client::Progress for Downloads {
    fn file(&self, file: &str, done: u64, total: u64) {
        let mut files = self.files.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let bar = files.entry(file.to_owned()).or_insert_with(|| self.begin(file, total));
        bar.set_position(done);
        if done == total && !bar.is_finished() {
            bar.finish();
            if !self.terminal {
                tracing::info!("downloaded {file}");
            }
        }
    }
}
