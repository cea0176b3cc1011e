//! How much lies in the cache, and what goes first.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::cache::Inner;
use crate::disk::remove;
use crate::entry::{MANIFEST, Reference, is_digest};
use crate::error::{CacheError, CacheErrorKind};
use crate::lock::Held;

/// An entry as far as room goes.
struct Occupant {
    digest: String,
    bytes: u64,
    /// When it was last handed out, by any process.
    used: SystemTime,
}

impl Inner {
    /// Removes what was used longest ago until `bytes` more fit the limit. The index is held exclusively.
    pub(crate) fn make_room(&self, index: &Held, bytes: u64) -> Result<(), CacheError> {
        let limit = self.options.max_bytes;
        if bytes > limit {
            let message = format!("{bytes} bytes never fit the cache's limit of {limit}");
            return Err(CacheError::new(CacheErrorKind::TooLarge, message));
        }
        let mut is_swept = false;
        loop {
            let occupants = self.occupants();
            let held: u64 = occupants.iter().map(|occupant| occupant.bytes).sum();
            let held = held + self.staged();
            if held + bytes <= limit {
                return Ok(());
            }
            // What ended processes left is in nobody's use.
            if !is_swept {
                self.sweep_downloads()?;
                is_swept = true;
            } else if !self.evict_one(index)? {
                return Err(CacheError::new(
                    CacheErrorKind::Full,
                    format!(
                        "{bytes} bytes do not fit: the cache holds {held} of at most {limit}, all of them in use"
                    ),
                ));
            }
        }
    }

    /// Removes the entry that was used longest ago, unless all may be in use. The index is held exclusively.
    pub(crate) fn evict_one(&self, _index: &Held) -> Result<bool, CacheError> {
        let now = SystemTime::now();
        let mut occupants = self.occupants();
        occupants.retain(|occupant| !self.may_be_in_use(occupant, now));
        let Some(oldest) = occupants.into_iter().min_by_key(|occupant| occupant.used) else {
            return Ok(false);
        };
        tracing::info!(entry = oldest.digest, bytes = oldest.bytes, "evicted");
        self.discard(&self.entry(&oldest.digest))?;
        self.drop_references();
        Ok(true)
    }

    fn may_be_in_use(&self, occupant: &Occupant, now: SystemTime) -> bool {
        let keep = self.options.keep;
        let handed = self.handed();
        if handed.get(&occupant.digest).is_some_and(|since| since.elapsed() < keep) {
            return true;
        }
        // Another process's, by the system's clock; one that was set back does not make entries stay for ever.
        let apart = now.duration_since(occupant.used).unwrap_or_else(|ahead| ahead.duration());
        apart < keep
    }

    /// All entries, damaged ones too, but nothing that the cache has not made.
    fn occupants(&self) -> Vec<Occupant> {
        let entries = fs::read_dir(self.folder("entries")).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|name| is_digest(name))
            .map(|digest| {
                let folder = self.entry(&digest);
                let manifest = fs::symlink_metadata(folder.join(MANIFEST));
                let used = manifest.and_then(|found| found.modified());
                Occupant {
                    bytes: size(&folder),
                    used: used.unwrap_or(SystemTime::UNIX_EPOCH),
                    digest,
                }
            })
            .collect()
    }

    /// Bytes of downloads under way, by any process.
    fn staged(&self) -> u64 {
        let folders = fs::read_dir(self.folder("staging")).into_iter().flatten().flatten();
        folders.map(|entry| size(&entry.path())).sum()
    }

    /// Removes references to entries that are gone.
    fn drop_references(&self) {
        for reference in fs::read_dir(self.folder("refs")).into_iter().flatten().flatten() {
            let path = reference.path();
            if let Some(entry) = Reference::entry_at(&path)
                && !self.entry(&entry).exists()
            {
                // It costs a look-up that finds nothing.
                let _ = remove(&path);
            }
        }
    }

    /// Takes `path` out of sight in one step, then removes it.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), CacheError> {
        if fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let unique = format!("{name}.{}.{}", std::process::id(), self.unique());
        let trash: PathBuf = self.folder("trash").join(unique);
        self.disk().rename(path, &trash)?;
        // What cannot be removed now is when the cache is next opened.
        if let Err(error) = remove(&trash) {
            tracing::warn!(path = %trash.display(), %error, "cannot be removed");
        }
        Ok(())
    }
}

/// Bytes of the files in `folder`.
fn size(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .filter_map(|file| file.metadata().ok())
        .filter(|found| found.is_file())
        .map(|f| f.len())
        .sum()
}

/// How long an entry that was handed out counts as in use, where nobody says otherwise: longer than any load takes.
pub(crate) const KEEP: Duration = Duration::from_secs(900);
