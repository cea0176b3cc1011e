//! Reads files that somebody else wrote: regular files only, bounded, by positioned reads into buffers of our own.
//!
//! What this module must never do: map a file into memory (a file that shrinks would kill the process), or reserve
//! memory for a length that the file system has not confirmed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::ParallelSliceMut as _;

use crate::error::{Error, Result};

/// Bytes that one core reads at a time: few enough to share a file evenly, and more than a call costs.
const PIECE: usize = 1 << 20;

/// A regular file and its length when it was opened.
#[derive(Debug)]
pub(crate) struct Source {
    file: File,
    len: u64,
    /// The file's own name, for messages.
    name: String,
}

impl Source {
    /// Opens `path`. `Ok(None)` when there is nothing; anything but a regular file is refused.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        let name = file_name(path);
        // Looked at before it is opened: opening a pipe would wait for somebody to write to it.
        match std::fs::metadata(path) {
            Ok(found) if !found.is_file() => {
                return Err(Error::invalid(format!("{name} is not a regular file")));
            }
            Ok(_) => {}
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(cannot_read(&name, &error)),
        }
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(cannot_read(&name, &error)),
        };
        let found = file.metadata().map_err(|error| cannot_read(&name, &error))?;
        if !found.is_file() {
            return Err(Error::invalid(format!("{name} is not a regular file")));
        }
        Ok(Some(Self { file, len: found.len(), name }))
    }

    /// Bytes in the file when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The file's own name, without its folder.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `len` bytes from `offset`. A range beyond the file is refused before memory is reserved for it.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.check_range(offset, len)?;
        let mut bytes = vec![0; len];
        self.read_to(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// As many bytes from `offset` as `bytes` takes.
    pub(crate) fn read_to(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.check_range(offset, bytes.len())?;
        let pieces = bytes.par_chunks_mut(PIECE).enumerate();
        let read = pieces.try_for_each(|(index, piece)| {
            self.file.read_exact_at(piece, offset + (index * PIECE) as u64)
        });
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::invalid(format!("{} became shorter while it was read", self.name))
            }
            _ => cannot_read(&self.name, &error),
        })
    }

    fn check_range(&self, offset: u64, len: usize) -> Result<()> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(Error::invalid(format!(
                "{}: {len} bytes at {offset} lie beyond its {} bytes",
                self.name, self.len
            ))),
        }
    }
}

/// All of a file of at most `limit` bytes; `Ok(None)` when there is none.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let Some(source) = Source::open(path)? else { return Ok(None) };
    if source.len > limit {
        return Err(Error::invalid(format!(
            "{} has {} bytes, the limit is {limit}",
            source.name, source.len
        )));
    }
    let len = usize::try_from(source.len).map_err(|_| Error::invalid("file too large"))?;
    source.read(0, len).map(Some)
}

/// The last part of a path, for messages.
pub(crate) fn file_name(path: &Path) -> String {
    match path.file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => path.display().to_string(),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn cannot_read(name: &str, error: &io::Error) -> Error {
    Error::invalid(format!("cannot read {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_inside_the_file_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"0123456789").unwrap();
        let source = Source::open(&path).unwrap().unwrap();
        assert_eq!(source.read(3, 4).unwrap(), b"3456");
        assert!(source.read(8, 3).is_err());
        assert!(source.read(u64::MAX, 2).is_err());
        assert!(source.read(0, usize::MAX).is_err());
        std::fs::write(&path, b"0123").unwrap();
        let error = source.read(0, 10).unwrap_err();
        assert_eq!(error.message, "a became shorter while it was read");
    }

    #[test]
    fn refuses_what_is_not_a_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Source::open(&folder.path().join("none")).unwrap().is_none());
        assert!(Source::open(folder.path()).is_err());
        assert!(Source::open(Path::new("/dev/zero")).is_err());
        std::fs::write(folder.path().join("big"), [0; 11]).unwrap();
        assert!(read(&folder.path().join("big"), 10).is_err());
        assert_eq!(read(&folder.path().join("big"), 11).unwrap().unwrap().len(), 11);
    }
}
