//! One repository's folder in the cache: `models--org--name/{blobs,refs,snapshots}`, as `huggingface_hub` has it.
//!
//! `snapshots/<commit>/<file>` is a link to `../../blobs/<digest>`. Others write here too, so nothing is believed: a link
//! counts only if it says exactly that and the blob is a regular file of the right length, and of the right content
//! where that is quick to tell.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::client::RepoFile;
use crate::digest::Digest;
use crate::error::HubError;
use crate::names::{RepoId, Revision, check_file, is_hex};

/// Blobs up to this size are hashed again whenever they are used.
const REHASH: u64 = 4 << 20;
/// What a walk through a snapshot looks at.
const MAX_FILES: usize = 20_000;
const MAX_DEPTH: usize = 16;

/// One repository's folder.
#[derive(Debug, Clone)]
pub struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// The folder of `repo` in `cache_dir`; it need not exist.
    pub fn new(cache_dir: &Path, repo: &RepoId) -> Self {
        let folder = repo.folder();
        Self { root: cache_dir.join(&folder), locks: cache_dir.join(".locks").join(folder) }
    }

    /// The folder of the files of `commit`.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The commit that `revision` was when somebody last asked the Hub.
    pub fn commit_of(&self, revision: &Revision) -> Option<String> {
        if revision.is_commit() {
            return Some(revision.as_str().to_owned());
        }
        let mut text = String::new();
        let path = self.root.join("refs").join(revision.as_str());
        fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        fs::File::open(path).ok()?.take(64).read_to_string(&mut text).ok()?;
        let commit = text.trim();
        is_hex(commit, 40).then(|| commit.to_owned())
    }

    /// Remembers that `revision` is `commit`.
    pub(crate) fn set_commit(&self, revision: &Revision, commit: &str) -> io::Result<()> {
        if revision.is_commit() || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision.as_str());
        replace(&path, |temporary| fs::write(temporary, commit))
    }

    /// `name` of `commit`, if it is whole and where it should be. `len` is what the Hub lists, if it was asked.
    pub fn file(&self, commit: &str, name: &str, len: Option<u64>) -> Option<PathBuf> {
        check_file(name).ok()?;
        if !is_hex(commit, 40) {
            return None;
        }
        let mut folder = self.snapshot(commit);
        let mut parts: Vec<&str> = name.split('/').collect();
        let last = parts.pop()?;
        for part in std::iter::once(None).chain(parts.iter().map(Some)) {
            folder.extend(part);
            fs::symlink_metadata(&folder).ok().filter(fs::Metadata::is_dir)?;
        }
        let path = folder.join(last);
        let found = fs::symlink_metadata(&path).ok()?;
        if found.is_file() {
            // Where links are not possible, huggingface_hub moves the content itself here.
            return len.is_none_or(|len| len == found.len()).then_some(path);
        }
        let target = fs::read_link(&path).ok()?;
        let blobs = format!("{}blobs/", "../".repeat(parts.len() + 2));
        let digest = Digest::from_hex(target.to_str()?.strip_prefix(&blobs)?)?;
        self.blob(&digest, len).map(|_| path)
    }

    /// The files of `commit` that are whole.
    pub(crate) fn files(&self, commit: &str) -> Vec<RepoFile> {
        let mut files = Vec::new();
        self.walk(commit, "", MAX_DEPTH, &mut files);
        files.sort_by(|a, b| a.name.cmp(&b.name));
        files
    }

    fn walk(&self, commit: &str, prefix: &str, depth: usize, files: &mut Vec<RepoFile>) {
        let entries = fs::read_dir(self.snapshot(commit).join(prefix)).into_iter().flatten();
        for entry in entries.take(MAX_FILES).flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            if files.len() >= MAX_FILES {
                return;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth > 0 => {
                    self.walk(commit, &name, depth - 1, files);
                }
                Ok(_) => {
                    if let Some(path) = self.file(commit, &name, None) {
                        let size = fs::metadata(path).ok().map(|found| found.len());
                        files.push(RepoFile { name, size });
                    }
                }
                Err(_) => {}
            }
        }
    }

    /// The blob's path, if it is a regular file of `len` bytes and, where it is small, of the right content.
    pub(crate) fn blob(&self, digest: &Digest, len: Option<u64>) -> Option<PathBuf> {
        let path = self.blob_path(digest);
        let found = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
        if len.is_some_and(|len| len != found.len()) {
            return None;
        }
        if found.len() <= REHASH {
            let mut hasher = digest.hasher(found.len());
            hasher.update(&fs::read(&path).ok()?);
            if hasher.finish() != *digest {
                return None;
            }
        }
        Some(path)
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.as_str())
    }

    /// Where a blob grows, under the name that `huggingface_hub` gives it, so that each resumes the other's.
    pub(crate) fn incomplete_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(format!("{}.incomplete", digest.as_str()))
    }

    /// Makes the folders of `name` and points it to its blob.
    pub(crate) fn link(&self, commit: &str, name: &str, digest: &Digest) -> io::Result<PathBuf> {
        let path = self.snapshot(commit).join(name);
        let up = "../".repeat(name.matches('/').count() + 2);
        let target = format!("{up}blobs/{}", digest.as_str());
        let linked = replace(&path, |temporary| symlink(&target, temporary));
        match linked {
            // A file system without links: the content itself lies here, as `huggingface_hub` has it.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported
                ) =>
            {
                fs::rename(self.blob_path(digest), &path)?;
            }
            other => other?,
        }
        Ok(path)
    }

    /// The file whose lock whoever writes a blob holds, in this process or another, in Rust or Python.
    pub(crate) fn lock_file(&self, digest: &Digest) -> Result<fs::File, HubError> {
        let path = self.locks.join(format!("{}.lock", digest.as_str()));
        let open = || {
            fs::create_dir_all(&self.locks)?;
            fs::create_dir_all(self.root.join("blobs"))?;
            fs::File::options().create(true).truncate(false).read(true).write(true).open(&path)
        };
        open()
            .map_err(|error| HubError::storage(format!("cannot write {}", path.display()), &error))
    }
}

/// Lets `write` make a file beside `path`, and moves it there in one step.
fn replace(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let unique = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".{}.{unique}.tmp", std::process::id()));
    let done = write(&temporary).and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        // Its absence is what is wanted.
        let _ = fs::remove_file(&temporary);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "1111111111111111111111111111111111111111";
    const HELLO: &str = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0";

    fn repo(folder: &Path) -> RepoCache {
        let cache = RepoCache::new(folder, &"o/n".parse().unwrap());
        let blobs = folder.join("models--o--n/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(HELLO), "hello").unwrap();
        cache
    }

    #[test]
    fn the_layout_is_that_of_huggingface_hub() {
        let folder = tempfile::tempdir().unwrap();
        let cache = repo(folder.path());
        let digest = Digest::from_hex(HELLO).unwrap();
        cache.link(COMMIT, "a/b.json", &digest).unwrap();
        cache.link(COMMIT, "c.json", &digest).unwrap();
        cache.set_commit(&"refs/pr/1".parse().unwrap(), COMMIT).unwrap();
        cache.set_commit(&Revision::default(), COMMIT).unwrap();
        let root = folder.path().join("models--o--n");
        let snapshot = root.join("snapshots").join(COMMIT);
        for (name, target) in [
            ("a/b.json", format!("../../../blobs/{HELLO}")),
            ("c.json", format!("../../blobs/{HELLO}")),
        ] {
            assert_eq!(fs::read_link(snapshot.join(name)).unwrap(), Path::new(&target));
            assert_eq!(fs::read_to_string(snapshot.join(name)).unwrap(), "hello");
        }
        assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
        assert_eq!(fs::read_to_string(root.join("refs/refs/pr/1")).unwrap(), COMMIT);
        let names: Vec<_> = cache.files(COMMIT).into_iter().map(|file| file.name).collect();
        assert_eq!(names, ["a/b.json", "c.json"]);
        assert_eq!(fs::read_dir(&snapshot).unwrap().count(), 2, "no temporary file stays");
    }

    #[test]
    fn only_a_link_to_a_whole_blob_counts() {
        let folder = tempfile::tempdir().unwrap();
        let cache = repo(folder.path());
        let snapshot = cache.snapshot(COMMIT);
        fs::create_dir_all(&snapshot).unwrap();
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("f"), "hello").unwrap();
        let blobs = folder.path().join("models--o--n/blobs");
        let (bent, wrong, tree) = ("2".repeat(40), "3".repeat(40), "4".repeat(40));
        symlink(outside.join("f"), blobs.join(&bent)).unwrap();
        fs::write(blobs.join(&wrong), "hello").unwrap();
        fs::create_dir(blobs.join(&tree)).unwrap();
        let absolute = blobs.join(HELLO).display().to_string();
        for (name, target) in [
            ("outside", "/etc/passwd"),
            ("absolute", &absolute),
            ("around", &format!("../../../models--o--n/blobs/{HELLO}")),
            ("short", &format!("../blobs/{HELLO}")),
            ("deeper", &format!("../../blobs/./{HELLO}")),
            ("bent", &format!("../../blobs/{bent}")),
            ("wrong", &format!("../../blobs/{wrong}")),
            ("tree", &format!("../../blobs/{tree}")),
            ("none", &format!("../../blobs/{}", "5".repeat(40))),
        ] {
            symlink(target, snapshot.join(name)).unwrap();
            assert_eq!(cache.file(COMMIT, name, None), None, "{name}");
        }
        symlink(&outside, snapshot.join("folder")).unwrap();
        fs::create_dir(snapshot.join("plain")).unwrap();
        fs::write(snapshot.join("regular"), "hello").unwrap();
        symlink(format!("../../blobs/{HELLO}"), snapshot.join("good")).unwrap();
        assert_eq!(cache.file(COMMIT, "folder/f", None), None);
        assert_eq!(cache.file(COMMIT, "plain", None), None);
        assert_eq!(cache.file(COMMIT, "../x", None), None);
        assert_eq!(cache.file("../x", "good", None), None);
        assert!(cache.file(COMMIT, "good", Some(5)).is_some());
        assert_eq!(cache.file(COMMIT, "good", Some(6)), None, "the Hub lists another length");
        assert!(cache.file(COMMIT, "regular", None).is_some());
        assert_eq!(cache.files(COMMIT).len(), 2, "only good and regular");
        // The right content is no excuse for a blob that lies elsewhere.
        fs::remove_file(blobs.join(HELLO)).unwrap();
        symlink(outside.join("f"), blobs.join(HELLO)).unwrap();
        assert_eq!(cache.file(COMMIT, "good", None), None);
    }

    #[test]
    fn a_reference_is_a_commit_or_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = repo(folder.path());
        let refs = folder.path().join("models--o--n/refs");
        fs::create_dir_all(&refs).unwrap();
        for (text, expected) in [
            (COMMIT, Some(COMMIT)),
            ("../../../etc", None),
            ("", None),
            (&format!("{COMMIT}\n"), Some(COMMIT)),
        ] {
            fs::write(refs.join("main"), text).unwrap();
            assert_eq!(cache.commit_of(&Revision::default()).as_deref(), expected, "{text:?}");
        }
    }
}
