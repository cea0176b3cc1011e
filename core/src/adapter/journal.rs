//! Adapters that were loaded at run time, kept over restarts in a folder of the operator's (`--state-dir`).
//!
//! | file | holds |
//! |---|---|
//! | `adapters.journal` | a line of JSON for each change, on disk before the change is acknowledged |
//! | `uploads/<digest>/` | the two files of each adapter whose bytes came with a request |
//! | `lock` | held by the server that uses the folder |
//!
//! A kill at any moment leaves a folder that can be read: a line without its end did not happen, and files that no line
//! names are swept at the next start.

mod uploads;

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use loraplex_plugin_sdk::LoraRequest;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Content;
use crate::error::{Error, Result};

use uploads::Uploads;

const FILE: &str = "adapters.journal";
/// Generations that are reserved at once, so that a line is written for each million loads and not for each.
const RESERVE: u64 = 1 << 20;
/// Bytes below which the file is never written anew while the server runs.
const SMALL: u64 = 1 << 20;

/// What brings an adapter back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its name and, unless it was uploaded, its folder.
    pub(super) request: LoraRequest,
    /// Digest of the content that came with a request.
    #[serde(default)]
    pub(super) upload: Option<String>,
    /// Never evicted from host memory.
    #[serde(default)]
    pub(super) pinned: bool,
    /// The trainer's version.
    #[serde(default)]
    pub(super) policy_version: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// Every generation so far is below.
    Ceiling(u64),
    Load(Record),
    Unload(String),
}

/// The journal, open and locked.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    uploads: Uploads,
    state: Mutex<State>,
    /// Unlocked when it is closed.
    _lock: File,
}

#[derive(Debug)]
struct State {
    file: File,
    /// Bytes of whole lines.
    len: u64,
    /// Bytes of the file when it was last written anew.
    compact: u64,
    ceiling: u64,
    live: IndexMap<String, Record>,
}

impl Journal {
    /// Opens the journal in `folder`, which is made if it is not there. Blocks, as all of this does.
    pub fn open(folder: &Path) -> Result<Self> {
        let failed =
            |error: io::Error| Error::invalid(format!("--state-dir {}: {error}", folder.display()));
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let folder = folder.canonicalize().map_err(failed)?;
        let lock = File::create(folder.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let text = "another server uses this folder; give each its own";
                return Err(failed(io::Error::other(text)));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let (live, ceiling) = read(&folder.join(FILE)).map_err(failed)?;
        let uploads = Uploads::open(&folder, live.values()).map_err(failed)?;
        let (file, len) = rewrite(&folder, &live, ceiling).map_err(failed)?;
        let state = State { file, len, compact: len, ceiling, live };
        Ok(Self { folder, uploads, state: Mutex::new(state), _lock: lock })
    }

    /// What is to be loaded, in order of registration.
    pub(super) fn records(&self) -> Vec<Record> {
        self.state.lock().live.values().cloned().collect()
    }

    /// The uploaded content with this digest.
    pub(super) fn upload(&self, digest: &str) -> Result<Content> {
        self.uploads.read(digest).map_err(|error| self.failed(&error))
    }

    /// Above every generation of earlier runs.
    pub(super) fn first_generation(&self) -> u64 {
        self.state.lock().ceiling
    }

    /// Notes a load, with the bytes that came with it. On return it is on disk; on an error nothing has changed.
    pub(super) fn loaded(&self, record: Record, content: &Content, generation: u64) -> Result<()> {
        let mut state = self.state.lock();
        let noted = (|| {
            if let (Some(digest), Content::Bytes { config, weights }) = (&record.upload, content) {
                self.uploads.write(digest, config, weights)?;
            }
            if generation >= state.ceiling {
                let ceiling = generation + RESERVE;
                state.append(&Line::Ceiling(ceiling))?;
                state.ceiling = ceiling;
            }
            if state.live.get(&record.request.name) != Some(&record) {
                state.append(&Line::Load(record.clone()))?;
            }
            Ok(())
        })();
        noted.map_err(|error| self.failed(&error))?;
        let old = state.live.insert(record.request.name.clone(), record);
        self.tidy(&mut state, old);
        Ok(())
    }

    /// Notes that a name is gone.
    pub(super) fn unloaded(&self, name: &str) -> Result<()> {
        let mut state = self.state.lock();
        if !state.live.contains_key(name) {
            return Ok(());
        }
        let line = Line::Unload(name.to_owned());
        state.append(&line).map_err(|error| self.failed(&error))?;
        let old = state.live.shift_remove(name);
        self.tidy(&mut state, old);
        Ok(())
    }

    /// Notes a pin, if the name was loaded at run time.
    pub(super) fn pinned(&self, name: &str, pinned: bool) -> Result<()> {
        let mut state = self.state.lock();
        let Some(record) = state.live.get(name).filter(|record| record.pinned != pinned) else {
            return Ok(());
        };
        let record = Record { pinned, ..record.clone() };
        state.append(&Line::Load(record.clone())).map_err(|error| self.failed(&error))?;
        state.live.insert(name.to_owned(), record);
        Ok(())
    }

    /// Removes what `old` alone needed, and lines that say nothing any more once they are most of the file.
    fn tidy(&self, state: &mut State, old: Option<Record>) {
        if let Some(digest) = old.and_then(|record| record.upload)
            && !state.live.values().any(|record| record.upload.as_ref() == Some(&digest))
        {
            self.uploads.remove(&digest);
        }
        if state.len > SMALL.max(4 * state.compact) {
            match rewrite(&self.folder, &state.live, state.ceiling) {
                Ok((file, len)) => (state.file, state.len, state.compact) = (file, len, len),
                // It goes on growing, and is complete as it is.
                Err(error) => tracing::warn!(%error, "the journal cannot be written anew"),
            }
        }
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::unavailable(format!(
            "the state folder {} cannot be used: {error}; nothing was changed",
            self.folder.display()
        ))
    }
}

impl State {
    /// Writes a line to disk. One that fails half-way is taken back.
    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        if written.is_err() {
            // A rest that stays has no end and does not count, until the next line would end it.
            self.file.set_len(self.len)?;
        } else {
            self.len += text.len() as u64;
        }
        written
    }
}

/// The adapters that the file's lines leave, and a generation above all of theirs.
fn read(path: &Path) -> io::Result<(IndexMap<String, Record>, u64)> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    let (mut live, mut ceiling, mut damaged) = (IndexMap::new(), 0, 0);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        // The last one may have been cut by a kill.
        let Some(line) = line.strip_suffix(b"\n") else { break };
        match serde_json::from_slice(line) {
            Ok(Line::Ceiling(above)) => ceiling = above.max(ceiling),
            Ok(Line::Load(record)) => drop(live.insert(record.request.name.clone(), record)),
            Ok(Line::Unload(name)) => drop(live.shift_remove(&name)),
            Err(_) => damaged += 1,
        }
    }
    if damaged > 0 {
        let aside = path.with_extension("damaged");
        std::fs::copy(path, &aside)?;
        tracing::error!(
            "{} lines of {} cannot be read and are left out; the file is kept as {}",
            damaged,
            path.display(),
            aside.display()
        );
    }
    Ok((live, ceiling))
}

/// Replaces the file by one that says the same in the fewest lines; opened for more.
fn rewrite(
    folder: &Path,
    live: &IndexMap<String, Record>,
    ceiling: u64,
) -> io::Result<(File, u64)> {
    let mut text = serde_json::to_vec(&Line::Ceiling(ceiling))?;
    text.push(b'\n');
    for record in live.values() {
        text.extend(serde_json::to_vec(&Line::Load(record.clone()))?);
        text.push(b'\n');
    }
    let (new, path) = (folder.join("adapters.journal.new"), folder.join(FILE));
    let mut file = File::create(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    File::open(folder)?.sync_all()?;
    Ok((OpenOptions::new().append(true).open(path)?, text.len() as u64))
}
