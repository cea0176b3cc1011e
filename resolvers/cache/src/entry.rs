//! What an entry says of itself, and whether that is so.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use md5::Digest as _;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::disk::open_regular;

pub(crate) const MANIFEST: &str = "manifest.json";
/// Bytes of a manifest or a reference at most.
const MAX_TEXT: u64 = 64 << 10;

/// The files of an entry. Its SHA-256 is the entry's name, so it cannot be changed unnoticed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) files: Vec<FileDigest>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileDigest {
    pub(crate) name: String,
    pub(crate) len: u64,
    pub(crate) sha256: String,
}

/// Which entry a source had.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) source: String,
    pub(crate) version: String,
    pub(crate) entry: String,
}

impl Manifest {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("names and numbers are JSON")
    }

    /// Whether `folder`, whose name is `digest`, holds the files that its manifest names, whole, and nothing else.
    pub(crate) fn holds(folder: &Path, digest: &str) -> bool {
        Self::check(folder, digest).is_some()
    }

    fn check(folder: &Path, digest: &str) -> Option<()> {
        fs::symlink_metadata(folder).ok().filter(fs::Metadata::is_dir)?;
        let text = read_text(&folder.join(MANIFEST))?;
        if sha256(&text) != digest {
            return None;
        }
        let manifest: Self = serde_json::from_slice(&text).ok()?;
        // A folder that somebody filled up is not read to its end.
        let found = fs::read_dir(folder).ok()?.take(manifest.files.len() + 2).count();
        if found != manifest.files.len() + 1 {
            return None;
        }
        for file in &manifest.files {
            let found = Digests::of(&mut open_regular(&folder.join(&file.name))?, false).ok()?;
            if (found.len, &found.sha256) != (file.len, &file.sha256) {
                return None;
            }
        }
        Some(())
    }
}

impl Reference {
    /// The reference at `path`, if it is one of `source`.
    pub(crate) fn read(path: &Path, source: &str) -> Option<Self> {
        let reference: Self = serde_json::from_slice(&read_text(path)?).ok()?;
        (reference.source == source && is_digest(&reference.entry)).then_some(reference)
    }

    /// The entry of the reference at `path`, whoever's it is.
    pub(crate) fn entry_at(path: &Path) -> Option<String> {
        let reference: Self = serde_json::from_slice(&read_text(path)?).ok()?;
        is_digest(&reference.entry).then_some(reference.entry)
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text is JSON")
    }
}

/// What a file's content is.
pub(crate) struct Digests {
    pub(crate) len: u64,
    pub(crate) sha256: String,
    pub(crate) md5: Option<String>,
}

impl Digests {
    /// Reads a file from where it is to its end.
    pub(crate) fn of(file: &mut File, with_md5: bool) -> std::io::Result<Self> {
        let (mut sha256, mut md5) = (sha2::Sha256::new(), with_md5.then(md5::Md5::new));
        let mut buffer = vec![0; 1 << 20];
        let mut len = 0;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            sha256.update(&buffer[..read]);
            if let Some(md5) = &mut md5 {
                md5.update(&buffer[..read]);
            }
            len += read as u64;
        }
        let md5 = md5.map(|md5| hex(&md5.finalize()));
        Ok(Self { len, sha256: hex(&sha256.finalize()), md5 })
    }
}

fn read_text(path: &Path) -> Option<Vec<u8>> {
    let file = open_regular(path)?;
    if file.metadata().ok()?.len() > MAX_TEXT {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_TEXT).read_to_end(&mut text).ok()?;
    Some(text)
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

/// The MD5 of some bytes, in hexadecimal digits: what many stores' ETags are.
pub fn md5_of(bytes: &[u8]) -> String {
    hex(&md5::Md5::digest(bytes))
}

/// Whether a name may be a digest's: nothing else becomes part of a path.
pub(crate) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
