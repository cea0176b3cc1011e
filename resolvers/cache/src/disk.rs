//! Each operation on a file, with a place for tests to let it fail.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{FallocateFlags, OFlags};

use crate::error::CacheError;

/// What is about to be done to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A folder is made.
    MakeFolder,
    /// A file is made or opened to be written.
    Create,
    /// Room for a file is asked for.
    Allocate,
    /// Bytes are written.
    Write,
    /// What was written is made to last.
    Sync,
    /// A path gets its final name, or goes to the trash.
    Rename,
}

type Fault = Arc<dyn Fn(Operation, &Path) -> io::Result<()> + Send + Sync>;

/// The file system, or one that fails when a test says so.
#[derive(Clone, Default)]
pub struct Disk {
    fault: Option<Fault>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("has_faults", &self.fault.is_some()).finish()
    }
}

impl Disk {
    /// A file system whose every operation is preceded by `fault`; an error of that is the operation's.
    pub fn failing(
        fault: impl Fn(Operation, &Path) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { fault: Some(Arc::new(fault)) }
    }

    fn before(&self, operation: Operation, path: &Path) -> io::Result<()> {
        self.fault.as_ref().map_or(Ok(()), |fault| fault(operation, path))
    }

    pub(crate) fn make_folder(&self, path: &Path) -> Result<(), CacheError> {
        self.before(Operation::MakeFolder, path)
            .and_then(|()| fs::create_dir_all(path))
            .map_err(|error| CacheError::io("make the folder", path, &error))
    }

    /// A new file; one that is there is an error.
    pub(crate) fn create(&self, path: &Path) -> Result<File, CacheError> {
        let create = || File::options().write(true).read(true).create_new(true).open(path);
        self.before(Operation::Create, path)
            .and_then(|()| create())
            .map_err(|error| CacheError::io("make", path, &error))
    }

    /// Opens a file to hold its lock, and makes it if it is missing.
    pub(crate) fn open_lock(&self, path: &Path) -> Result<File, CacheError> {
        let open = || {
            File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .custom_flags(OFlags::NOFOLLOW.bits() as i32)
                .open(path)
        };
        self.before(Operation::Create, path)
            .and_then(|()| open())
            .map_err(|error| CacheError::io("open", path, &error))
    }

    /// Takes room for `len` bytes now, so that a full disk is seen before anything is downloaded.
    pub(crate) fn allocate(&self, file: &File, path: &Path, len: u64) -> Result<(), CacheError> {
        let allocate = || match len {
            0 => Ok(()),
            _ => match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
                // A file system that cannot: the disk may turn out to be full at a write.
                Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(len),
                other => Ok(other?),
            },
        };
        self.before(Operation::Allocate, path)
            .and_then(|()| allocate())
            .map_err(|error| CacheError::io(&format!("take {len} bytes for"), path, &error))
    }

    pub(crate) fn write(
        &self,
        file: &File,
        path: &Path,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), CacheError> {
        self.before(Operation::Write, path)
            .and_then(|()| file.write_all_at(bytes, offset))
            .map_err(|error| CacheError::io("write", path, &error))
    }

    pub(crate) fn sync(&self, file: &File, path: &Path) -> Result<(), CacheError> {
        self.before(Operation::Sync, path)
            .and_then(|()| file.sync_all())
            .map_err(|error| CacheError::io("sync", path, &error))
    }

    pub(crate) fn sync_folder(&self, path: &Path) -> Result<(), CacheError> {
        let folder = File::open(path).map_err(|error| CacheError::io("open", path, &error))?;
        self.sync(&folder, path)
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), CacheError> {
        self.before(Operation::Rename, to)
            .and_then(|()| fs::rename(from, to))
            .map_err(|error| CacheError::io("put in place", to, &error))
    }
}

/// Opens a regular file to be read; a link is none.
pub(crate) fn open_regular(path: &Path) -> Option<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

/// Removes whatever lies at `path`, never what a link leads to. That it is gone already is as good.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Sets the time at which the entry of this manifest was last handed out.
pub(crate) fn touch(manifest: &Path) -> io::Result<()> {
    let flags = OFlags::NOFOLLOW.bits() as i32;
    let file = File::options().write(true).custom_flags(flags).open(manifest)?;
    file.set_modified(SystemTime::now())
}
