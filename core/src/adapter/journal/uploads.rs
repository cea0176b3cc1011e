//! Adapters whose bytes came with a request, as folders named by their digests.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{Content, Record};
use crate::adapter::peft::{CONFIG, WEIGHTS};

/// A folder that is being written. One at a time, under the journal's lock.
const STAGING: &str = "staging";

#[derive(Debug)]
pub(super) struct Uploads {
    folder: PathBuf,
}

impl Uploads {
    /// Opens `uploads` in the state folder, and removes what no record names.
    pub(super) fn open<'a>(
        state: &Path,
        live: impl Iterator<Item = &'a Record>,
    ) -> io::Result<Self> {
        let folder = state.join("uploads");
        std::fs::create_dir_all(&folder)?;
        let known: HashSet<&str> = live.filter_map(|record| record.upload.as_deref()).collect();
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self { folder })
    }

    /// Makes the content present, on disk when this returns.
    pub(super) fn write(&self, digest: &str, config: &[u8], weights: &[u8]) -> io::Result<()> {
        let place = self.folder.join(digest);
        if place.exists() {
            return Ok(());
        }
        let staging = self.folder.join(STAGING);
        let written = (|| {
            std::fs::create_dir_all(&staging)?;
            for (name, bytes) in [(CONFIG, config), (WEIGHTS, weights)] {
                let mut file = File::create(staging.join(name))?;
                file.write_all(bytes)?;
                file.sync_all()?;
            }
            File::open(&staging)?.sync_all()?;
            std::fs::rename(&staging, &place)?;
            File::open(&self.folder)?.sync_all()
        })();
        if written.is_err() {
            // What is left is room that the disk may lack.
            let _ = std::fs::remove_dir_all(&staging);
        }
        written
    }

    pub(super) fn read(&self, digest: &str) -> io::Result<Content> {
        if !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(io::Error::other(format!("{digest:?} is no digest")));
        }
        let read = |name| std::fs::read(self.folder.join(digest).join(name)).map(Bytes::from);
        Ok(Content::Bytes { config: read(CONFIG)?, weights: read(WEIGHTS)? })
    }

    /// A folder that cannot be removed is swept at the next start.
    pub(super) fn remove(&self, digest: &str) {
        if let Err(error) = std::fs::remove_dir_all(self.folder.join(digest)) {
            tracing::warn!(digest, %error, "an upload that nobody needs cannot be removed");
        }
    }
}
