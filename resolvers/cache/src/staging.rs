//! A download until it is published.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::{Entry, Inner};
use crate::disk::{remove, touch};
use crate::entry::{Digests, FileDigest, MANIFEST, Manifest, Reference, sha256};
use crate::error::{CacheError, CacheErrorKind};
use crate::lock::Lock;

/// Takes the room of what is written when all has come, so that a full disk is not noticed that late.
const RESERVE: &str = "reserve";
const RESERVE_BYTES: u64 = 16 << 10;

/// A file that is about to be downloaded.
#[derive(Debug, Clone)]
pub struct FileSpec {
    /// Its name in the entry's folder.
    pub name: &'static str,
    /// Bytes.
    pub len: u64,
    /// What its content must hash to, where the source says so: 32 hexadecimal digits.
    pub md5: Option<String>,
}

/// Files on their way in. Dropping it removes them.
#[derive(Debug)]
pub struct Staging {
    cache: Arc<Inner>,
    key: String,
    source: String,
    files: Vec<(FileSpec, PathBuf, File)>,
    written: AtomicU64,
    is_published: bool,
    /// Last: the folder is gone before another may make it.
    lock: Lock,
}

impl Staging {
    /// Makes room and the files. A disk that is full has older entries removed first.
    pub(crate) fn start(
        cache: Arc<Inner>,
        (key, source): (String, String),
        lock: Lock,
        specs: &[FileSpec],
    ) -> Result<Self, CacheError> {
        let total = specs.iter().map(|spec| spec.len).sum();
        let index = cache.index().exclusive(cache.disk())?;
        cache.make_room(&index, total)?;
        let (files, written) = (Vec::new(), AtomicU64::new(0));
        let mut staging =
            Self { cache: cache.clone(), key, source, files, written, is_published: false, lock };
        // A process that was ended may have left some.
        staging.clear();
        loop {
            match staging.make(specs) {
                Ok(()) => return Ok(staging),
                Err(error) if error.kind == CacheErrorKind::Full => {
                    staging.clear();
                    if !cache.evict_one(&index)? {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn make(&mut self, specs: &[FileSpec]) -> Result<(), CacheError> {
        let (disk, folder) = (self.cache.disk(), self.folder());
        disk.make_folder(&folder)?;
        for spec in specs {
            let path = folder.join(spec.name);
            let file = disk.create(&path)?;
            disk.allocate(&file, &path, spec.len)?;
            self.files.push((spec.clone(), path, file));
        }
        let path = folder.join(RESERVE);
        disk.allocate(&disk.create(&path)?, &path, RESERVE_BYTES)
    }

    /// Writes a part of the file that stands at `file` in the list that the download was started with.
    pub fn write(&self, file: usize, offset: u64, bytes: &[u8]) -> Result<(), CacheError> {
        let (spec, path, file) = &self.files[file];
        if offset + bytes.len() as u64 > spec.len {
            let (name, len) = (spec.name, spec.len);
            let message = format!("{name} has more than the {len} bytes that were announced");
            return Err(CacheError::new(CacheErrorKind::Damaged, message));
        }
        self.cache.disk().write(file, path, offset, bytes)?;
        let before = self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.lock.tell(before + bytes.len() as u64);
        Ok(())
    }

    /// Checks the files and lets everybody see them, as what the source has at `version`.
    pub fn publish(mut self, version: &str) -> Result<Entry, CacheError> {
        let cache = self.cache.clone();
        let disk = cache.disk();
        let mut manifest = Manifest { files: Vec::new() };
        for (spec, path, file) in &self.files {
            disk.sync(file, path)?;
            manifest.files.push(check(spec, path)?);
        }
        let text = manifest.to_bytes();
        let digest = sha256(&text);
        let folder = self.folder();
        let reserve = folder.join(RESERVE);
        remove(&reserve).map_err(|error| CacheError::io("remove", &reserve, &error))?;
        let path = folder.join(MANIFEST);
        self.add_text(&path, &text)?;
        // Uses are told by this clock; the file system's own can be coarser.
        touch(&path).map_err(|error| CacheError::io("touch", &path, &error))?;
        disk.sync_folder(&folder)?;
        let place = cache.entry(&digest);
        let is_there = Manifest::holds(&place, &digest);
        let index = cache.index().exclusive(disk)?;
        let is_there = is_there && touch(&place.join(MANIFEST)).is_ok();
        if !is_there {
            cache.discard(&place)?;
            disk.rename(&folder, &place)?;
        }
        let referred = disk.sync_folder(&cache.folder("entries")).and_then(|()| {
            self.refer(Reference {
                source: self.source.clone(),
                version: version.to_owned(),
                entry: digest.clone(),
            })
        });
        if let Err(error) = referred {
            // A download that fails leaves nothing behind.
            if !is_there {
                let _ = remove(&place);
            }
            return Err(error);
        }
        drop(index);
        self.is_published = !is_there;
        cache.hand_out(&digest);
        Ok(Entry { folder: place, version: version.to_owned(), digest })
    }

    /// Points the source to its entry.
    fn refer(&self, reference: Reference) -> Result<(), CacheError> {
        let (disk, refs) = (self.cache.disk(), self.cache.folder("refs"));
        let fresh = self.reference();
        // One that an ended process left.
        let _ = remove(&fresh);
        self.add_text(&fresh, &reference.to_bytes())?;
        // Nothing fails after this. A reference that a power cut takes back costs a download.
        disk.rename(&fresh, &refs.join(&self.key))
    }

    fn add_text(&self, path: &std::path::Path, text: &[u8]) -> Result<(), CacheError> {
        let disk = self.cache.disk();
        let file = disk.create(path)?;
        disk.write(&file, path, 0, text)?;
        disk.sync(&file, path)
    }

    fn folder(&self) -> PathBuf {
        self.cache.folder("staging").join(&self.key)
    }

    fn reference(&self) -> PathBuf {
        self.cache.folder("staging").join(format!("{}.ref", self.key))
    }

    fn clear(&mut self) {
        self.files.clear();
        for path in [self.folder(), self.reference()] {
            if let Err(error) = remove(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot be removed");
            }
        }
    }
}

/// What has arrived, if it is what was announced.
fn check(spec: &FileSpec, path: &std::path::Path) -> Result<FileDigest, CacheError> {
    let digests = File::open(path).and_then(|mut file| Digests::of(&mut file, spec.md5.is_some()));
    let digests = digests.map_err(|error| CacheError::io("read", path, &error))?;
    let (name, Digests { len, sha256, md5 }) = (spec.name, digests);
    let damaged = |what: String| Err(CacheError::new(CacheErrorKind::Damaged, what));
    if len != spec.len {
        return damaged(format!("{name} arrived with {len} bytes in place of {}", spec.len));
    }
    if let (Some(found), Some(wanted)) = (md5, &spec.md5)
        && found != *wanted
    {
        return damaged(format!("{name} arrived with the MD5 {found} in place of {wanted}"));
    }
    Ok(FileDigest { name: name.to_owned(), len, sha256 })
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.is_published {
            self.files.clear();
            // The folder has its final name; nothing of this download is left here.
            debug_assert!(fs::symlink_metadata(self.folder()).is_err(), "the folder has moved");
        } else {
            self.clear();
        }
    }
}
