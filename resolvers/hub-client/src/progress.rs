//! Who is told how far a download is.

use std::fmt::Debug;

/// Is told how far each file is.
pub trait Progress: Debug + Send + Sync {
    /// `file` has `done` of `total` bytes; `done` falls back when a transfer starts over.
    fn file(&self, file: &str, done: u64, total: u64);

    /// A file waits for other transfers, and those get somewhere. Told now and then.
    fn waiting(&self) {}
}

/// Tells nobody.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn file(&self, _file: &str, _done: u64, _total: u64) {}
}
