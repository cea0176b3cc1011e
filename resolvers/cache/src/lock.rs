//! Locks of files, which go with the process that holds them.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::error::{CacheError, CacheErrorKind};

/// A lock whose file exists only while somebody holds it or is about to. Its length tells others how far its holder is.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock; `None` when another call or process has it.
    pub(crate) fn try_take(disk: &Disk, path: &Path) -> Result<Option<Self>, CacheError> {
        loop {
            let file = disk.open_lock(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(no_locks(path, &error)),
            }
            // Whoever held it before has removed its file, and another may have made a new one since.
            let here = file.metadata().map(|found| (found.dev(), found.ino()));
            let there = fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
            if matches!((here, there), (Ok(here), Ok(there)) if here == there) {
                let lock = Self { file, path: path.to_owned() };
                lock.tell(0);
                return Ok(Some(lock));
            }
        }
    }

    /// Lets others see that the holder is at `done`.
    pub(crate) fn tell(&self, done: u64) {
        // Others then see it stand still; nothing else depends on it.
        let _ = self.file.set_len(done);
    }

    /// How far the holder of the lock at `path` is.
    pub(crate) fn told(path: &Path) -> u64 {
        fs::symlink_metadata(path).map_or(0, |found| found.len())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still held, so that nobody else's file goes.
        let _ = fs::remove_file(&self.path);
    }
}

/// The lock of the list of entries, held for moments.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
}

/// Held until it is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Held {
    _file: File,
}

impl Index {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Nobody adds or removes an entry meanwhile.
    pub(crate) fn shared(&self, disk: &Disk) -> Result<Held, CacheError> {
        let file = disk.open_lock(&self.path)?;
        file.lock_shared().map_err(|error| no_locks(&self.path, &error))?;
        Ok(Held { _file: file })
    }

    /// Nobody hands an entry out meanwhile either.
    pub(crate) fn exclusive(&self, disk: &Disk) -> Result<Held, CacheError> {
        let file = disk.open_lock(&self.path)?;
        file.lock().map_err(|error| no_locks(&self.path, &error))?;
        Ok(Held { _file: file })
    }
}

fn no_locks(path: &Path, error: &std::io::Error) -> CacheError {
    let path = path.display();
    let message = format!("cannot lock {path}: {error}; the cache needs a file system with locks");
    CacheError::new(CacheErrorKind::Storage, message)
}
