//! The cache: open it, look a source up, begin a download.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::disk::{Disk, remove, touch};
use crate::entry::{MANIFEST, Manifest, Reference, is_digest, sha256};
use crate::error::CacheError;
use crate::lock::{Index, Lock};
use crate::room::KEEP;
use crate::staging::{FileSpec, Staging};

/// The layout's name: another one would live beside it.
const LAYOUT: &str = "v1";
const FOLDERS: [&str; 5] = ["entries", "refs", "staging", "locks", "trash"];

/// Settings of a [`Cache`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CacheOptions {
    /// Made when it is missing.
    pub folder: PathBuf,
    /// Bytes of all entries and downloads together, at most.
    pub max_bytes: u64,
    /// How long an entry that was handed out counts as in use and is not evicted: 15 minutes.
    pub keep: Duration,
    /// The file system.
    pub disk: Disk,
}

impl CacheOptions {
    /// A cache of `max_bytes` in `folder`.
    pub fn new(folder: impl Into<PathBuf>, max_bytes: u64) -> Self {
        Self { folder: folder.into(), max_bytes, keep: KEEP, disk: Disk::default() }
    }
}

/// An adapter's files, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The folder of the files. It stays as it is.
    pub folder: PathBuf,
    /// The version that the source had.
    pub version: String,
    /// SHA-256 of the files' names, lengths and digests.
    pub digest: String,
}

/// Who downloads what a source has.
#[derive(Debug)]
pub enum Claim {
    /// The caller does.
    Mine(Claimed),
    /// Another call or process does, and is this far: a number that changes while it gets somewhere.
    Others(u64),
}

/// The right to download what one source has, until it is dropped.
#[derive(Debug)]
pub struct Claimed {
    cache: Arc<Inner>,
    key: String,
    source: String,
    lock: Lock,
}

/// A folder of downloads. Clones share it.
#[derive(Debug, Clone)]
pub struct Cache(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) options: CacheOptions,
    root: PathBuf,
    index: Index,
    /// When this process last handed an entry out, by a clock that nobody sets.
    handed: Mutex<HashMap<String, Instant>>,
    next: AtomicU64,
}

impl Cache {
    /// Opens the folder, makes it if it is missing, and removes what ended processes left half done.
    pub fn open(options: CacheOptions) -> Result<Self, CacheError> {
        let made = fs::create_dir_all(&options.folder).and_then(|()| options.folder.canonicalize());
        let folder =
            made.map_err(|error| CacheError::io("make the folder", &options.folder, &error))?;
        let root = folder.join(LAYOUT);
        let index = Index::new(root.join("index.lock"));
        for name in FOLDERS {
            options.disk.make_folder(&root.join(name))?;
        }
        let (handed, next) = (Mutex::default(), AtomicU64::new(0));
        let cache = Self(Arc::new(Inner { options, root, index, handed, next }));
        cache.0.sweep()?;
        Ok(cache)
    }

    /// What `source` had when somebody last looked, if it is all here and as it was.
    pub fn latest(&self, source: &str) -> Result<Option<Entry>, CacheError> {
        self.find(source, |_| true)
    }

    /// The same if it is of this version; one of another is neither checked nor counted as in use.
    pub fn of_version(&self, source: &str, version: &str) -> Result<Option<Entry>, CacheError> {
        self.find(source, |found| found == version)
    }

    fn find(
        &self,
        source: &str,
        wanted: impl FnOnce(&str) -> bool,
    ) -> Result<Option<Entry>, CacheError> {
        let inner = &self.0;
        let path = inner.folder("refs").join(sha256(source.as_bytes()));
        let Some(reference) = Reference::read(&path, source) else { return Ok(None) };
        let Reference { version, entry: digest, .. } = reference;
        if !wanted(&version) {
            return Ok(None);
        }
        let folder = inner.entry(&digest);
        {
            let _index = inner.index.shared(inner.disk())?;
            // From here on it counts as in use, so it is not evicted while it is read.
            let _ = touch(&folder.join(MANIFEST));
            inner.hand_out(&digest);
        }
        if Manifest::holds(&folder, &digest) {
            return Ok(Some(Entry { folder, version, digest }));
        }
        if fs::symlink_metadata(&folder).is_ok() {
            tracing::warn!(entry = digest, "it is not what was put there and is removed");
            let _index = inner.index.exclusive(inner.disk())?;
            inner.discard(&folder)?;
        }
        Ok(None)
    }

    /// Claims the download of what `source` has.
    pub fn claim(&self, source: &str) -> Result<Claim, CacheError> {
        let key = sha256(source.as_bytes());
        let path = self.0.folder("locks").join(&key);
        Ok(match Lock::try_take(self.0.disk(), &path)? {
            Some(lock) => {
                Claim::Mine(Claimed { cache: self.0.clone(), key, source: source.to_owned(), lock })
            }
            None => Claim::Others(Lock::told(&path)),
        })
    }
}

impl Claimed {
    /// Makes room for `files` and takes it.
    pub fn stage(self, files: &[FileSpec]) -> Result<Staging, CacheError> {
        Staging::start(self.cache, (self.key, self.source), self.lock, files)
    }
}

impl Inner {
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn entry(&self, digest: &str) -> PathBuf {
        self.root.join("entries").join(digest)
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.options.disk
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    pub(crate) fn handed(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        // Every change of it is a single call.
        self.handed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn hand_out(&self, digest: &str) {
        let keep = self.options.keep;
        let mut handed = self.handed();
        handed.retain(|_, since| since.elapsed() < keep);
        handed.insert(digest.to_owned(), Instant::now());
    }

    /// A number that no other call of this process gets.
    pub(crate) fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Removes what processes left that ended before they were done.
    fn sweep(&self) -> Result<(), CacheError> {
        for name in self.names("trash") {
            // Whatever stays is tried again at the next start.
            let _ = remove(&self.folder("trash").join(name));
        }
        self.sweep_downloads()
    }

    /// Removes downloads that nobody holds.
    pub(crate) fn sweep_downloads(&self) -> Result<(), CacheError> {
        for name in self.names("locks").chain(self.names("staging")) {
            let key = name.trim_end_matches(".ref");
            if !is_digest(key) {
                continue;
            }
            // Nobody downloads who does not hold the lock.
            let lock = Lock::try_take(self.disk(), &self.folder("locks").join(key))?;
            if lock.is_some() {
                let staging = self.folder("staging");
                for path in [staging.join(key), staging.join(format!("{key}.ref"))] {
                    remove(&path).map_err(|error| CacheError::io("remove", &path, &error))?;
                }
            }
        }
        Ok(())
    }

    fn names(&self, folder: &str) -> impl Iterator<Item = String> + use<> {
        let entries = fs::read_dir(self.folder(folder)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok())
    }
}
