//! One file into the cache: asked for once, continued where it was cut, bounded, and let in only with the right digest.

use std::fs::{self, TryLockError};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout_at};

use crate::cache::RepoCache;
use crate::digest::{Digest, Hasher};
use crate::error::{HubError, HubErrorKind};
use crate::http::{COMMIT, Http, LINKED_ETAG, LINKED_SIZE, Subject, host};
use crate::progress::Progress;

/// How often a lock that somebody else holds is tried.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// What the Hub says about a file before its content is asked for.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// Asks what `subject` is, and makes sure that it belongs to the commit that was asked for.
pub(crate) async fn metadata(http: &Http, subject: Subject<'_>) -> Result<Metadata, HubError> {
    let url = http.file_url(subject);
    let answer = http.send(Method::HEAD, url, &HeaderMap::new(), subject).await?;
    if !answer.status().is_success() && !answer.status().is_redirection() {
        return Err(http.refusal(&answer, subject));
    }
    let text = |name: &header::HeaderName| answer.headers().get(name)?.to_str().ok();
    if let Some(commit) = text(&COMMIT)
        && commit != subject.revision
    {
        let asked = subject.revision;
        return Err(HubError::unavailable(format!(
            "{subject}: the Hub answered for the commit {commit}, not for {asked}"
        )));
    }
    let digest = text(&LINKED_ETAG).or_else(|| text(&header::ETAG)).and_then(Digest::from_etag);
    let size = text(&LINKED_SIZE).or_else(|| text(&header::CONTENT_LENGTH));
    match (digest, size.and_then(|size| size.parse().ok())) {
        (Some(digest), Some(size)) => Ok(Metadata { digest, size }),
        _ => Err(HubError::invalid(format!(
            "{subject}: {} tells no digest and size, as the Hub does",
            host(answer.url())
        ))),
    }
}

/// Brings the blob of `subject` into the cache, unless somebody else has meanwhile.
pub(crate) async fn blob(
    http: &Http,
    cache: &RepoCache,
    subject: Subject<'_>,
    wanted: &Metadata,
    progress: &dyn Progress,
) -> Result<(), HubError> {
    let _lock = lock(http, cache, &wanted.digest, progress).await?;
    if cache.blob(&wanted.digest, Some(wanted.size)).is_some() {
        return Ok(());
    }
    let path = cache.incomplete_path(&wanted.digest);
    let transfer = Transfer { http, subject, wanted, path: &path, progress };
    if let Err(error) = transfer.run().await {
        // Room for others: what did not fit would not fit the next time.
        if error.kind == HubErrorKind::StorageFull {
            let _ = fs::remove_file(&path);
        }
        return Err(error);
    }
    let blob = cache.blob_path(&wanted.digest);
    fs::rename(&path, &blob)
        .map_err(|error| HubError::storage(format!("cannot write {}", blob.display()), &error))
}

/// Waits for the blob's lock. Whoever holds it is believed as long as the blob grows.
async fn lock(
    http: &Http,
    cache: &RepoCache,
    digest: &Digest,
    progress: &dyn Progress,
) -> Result<fs::File, HubError> {
    let file = cache.lock_file(digest)?;
    let window = http.options.limits.progress_window;
    let grown = || fs::metadata(cache.incomplete_path(digest)).map_or(0, |found| found.len());
    let (mut seen, mut since) = (grown(), Instant::now());
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
            // A file system without locks: the digest still guards what is let in.
            Err(TryLockError::Error(_)) => return Ok(file),
        }
        sleep(LOCK_POLL).await;
        let now = grown();
        if now != seen {
            (seen, since) = (now, Instant::now());
            progress.waiting();
        } else if since.elapsed() > window * 3 {
            return Err(HubError::unavailable(format!(
                "another download of {} holds its lock and does not go on",
                digest.as_str()
            )));
        }
    }
}

/// One file on its way to `path`.
struct Transfer<'a> {
    http: &'a Http,
    subject: Subject<'a>,
    wanted: &'a Metadata,
    path: &'a Path,
    progress: &'a dyn Progress,
}

/// What lies in the file, and its hash so far.
struct Part {
    file: tokio::fs::File,
    len: u64,
    hasher: Hasher,
    /// The ETag of the host that sends the content: with it, a continuation is of the same content.
    etag: Option<HeaderValue>,
}

/// Why a body ended early.
enum Cut {
    /// The connection did; the rest may be asked for.
    Body(String),
    Final(HubError),
}

impl Transfer<'_> {
    async fn run(&self) -> Result<(), HubError> {
        let mut part = self.open().await?;
        let mut was_resumed = part.len > 0;
        let mut attempts = self.http.options.limits.attempts.max(1);
        loop {
            if part.len == self.wanted.size {
                part.file.sync_all().await.map_err(|error| self.storage(&error))?;
                let found = part.hasher.clone().finish();
                if found == self.wanted.digest {
                    return Ok(());
                }
                self.start_over(&mut part).await?;
                // What another process left may be damaged; what came just now is what the Hub has.
                if !was_resumed {
                    return Err(HubError::unavailable(format!(
                        "{} arrived damaged: its digest is {} in place of {}",
                        self.subject,
                        found.as_str(),
                        self.wanted.digest.as_str()
                    )));
                }
                was_resumed = false;
            }
            let before = part.len;
            let cut = match self.request(&mut part).await {
                Ok(()) if part.len == self.wanted.size => continue,
                Ok(()) => "the body ended early".to_owned(),
                Err(Cut::Body(reason)) => reason,
                Err(Cut::Final(error)) => return Err(error),
            };
            attempts -= 1;
            if attempts == 0 {
                let (have, size) = (part.len, self.wanted.size);
                return Err(HubError::unavailable(format!(
                    "{}: {have} of {size} bytes arrived, then the transfer was cut: {cut}",
                    self.subject
                )));
            }
            tracing::debug!(file = %self.subject, before, have = part.len, cut, "continuing");
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Opens what an earlier transfer left, and hashes it.
    async fn open(&self) -> Result<Part, HubError> {
        let (path, size) = (self.path.to_owned(), self.wanted.size);
        let mut hasher = self.wanted.digest.hasher(size);
        let opened = tokio::task::spawn_blocking(move || -> std::io::Result<_> {
            // Anything but a file of our own making is replaced, never followed.
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_file() && found.len() <= size => {}
                Ok(found) if found.is_dir() => fs::remove_dir_all(&path)?,
                Ok(_) => fs::remove_file(&path)?,
                Err(_) => {}
            }
            let mut file = fs::File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .append(true)
                .open(&path)?;
            let mut buffer = vec![0; 1 << 20];
            let mut len = 0;
            loop {
                let read = file.read(&mut buffer)?;
                if read == 0 {
                    return Ok((file, len, hasher));
                }
                hasher.update(&buffer[..read]);
                len += read as u64;
            }
        });
        let opened = opened.await.map_err(|error| HubError::unavailable(error.to_string()))?;
        let (file, len, hasher) = opened.map_err(|error| self.storage(&error))?;
        Ok(Part { file: file.into(), len, hasher, etag: None })
    }

    async fn start_over(&self, part: &mut Part) -> Result<(), HubError> {
        part.file.set_len(0).await.map_err(|error| self.storage(&error))?;
        part.len = 0;
        part.hasher = self.wanted.digest.hasher(self.wanted.size);
        part.etag = None;
        Ok(())
    }

    /// Asks for what is missing and appends what comes.
    async fn request(&self, part: &mut Part) -> Result<(), Cut> {
        let mut headers = HeaderMap::new();
        if part.len > 0 {
            let range = HeaderValue::try_from(format!("bytes={}-", part.len));
            headers.insert(header::RANGE, range.expect("digits are a header's value"));
            if let Some(etag) = &part.etag {
                headers.insert(header::IF_MATCH, etag.clone());
            }
        }
        let url = self.http.file_url(self.subject);
        let answer = self.http.send(Method::GET, url, &headers, self.subject).await;
        let answer = answer.map_err(|error| match error.is_cut {
            true => Cut::Body(error.message),
            false => Cut::Final(error),
        })?;
        match answer.status() {
            StatusCode::OK if part.len == 0 => {}
            // The host knows no ranges, or has another content: what is here is of no use.
            StatusCode::OK => self.start_over(part).await.map_err(Cut::Final)?,
            StatusCode::PARTIAL_CONTENT if starts_at(&answer, part.len) => {}
            StatusCode::PARTIAL_CONTENT
            | StatusCode::PRECONDITION_FAILED
            | StatusCode::RANGE_NOT_SATISFIABLE => {
                self.start_over(part).await.map_err(Cut::Final)?;
                return Err(Cut::Body("the content changed".into()));
            }
            _ => return Err(Cut::Final(self.http.refusal(&answer, self.subject))),
        }
        let etag = answer.headers().get(header::ETAG);
        part.etag = etag.filter(|etag| !etag.as_bytes().starts_with(b"W/")).cloned();
        let appended = self.append(part, answer).await;
        part.file.flush().await.map_err(|error| Cut::Final(self.storage(&error)))?;
        appended
    }

    async fn append(&self, part: &mut Part, answer: Response) -> Result<(), Cut> {
        let limits = &self.http.options.limits;
        let name = self.subject.file.unwrap_or_default();
        let size = self.wanted.size;
        let sender = host(answer.url());
        let mut body = answer.bytes_stream();
        let (mut deadline, mut in_window) = (Instant::now() + limits.progress_window, 0);
        loop {
            let chunk = match timeout_at(deadline, body.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(Ok(chunk))) => chunk,
                // The message of a broken body says no more than that; it may name a signed address.
                Ok(Some(Err(_))) => {
                    return Err(Cut::Body(format!("{sender} closed the connection")));
                }
                Err(_) => {
                    let window = limits.progress_window.as_secs();
                    return Err(Cut::Final(HubError::unavailable(format!(
                        "{}: {sender} sent {in_window} bytes in {window} s, at {} of {size}",
                        self.subject, part.len
                    ))));
                }
            };
            let len = chunk.len() as u64;
            if part.len + len > size {
                self.start_over(part).await.map_err(Cut::Final)?;
                return Err(Cut::Final(HubError::unavailable(format!(
                    "{}: {sender} sends more than the {size} bytes that it announced",
                    self.subject
                ))));
            }
            part.file.write_all(&chunk).await.map_err(|error| Cut::Final(self.storage(&error)))?;
            part.hasher.update(&chunk);
            part.len += len;
            self.progress.file(name, part.len, size);
            in_window += len;
            if in_window >= limits.progress_bytes {
                (deadline, in_window) = (Instant::now() + limits.progress_window, 0);
            }
        }
    }

    fn storage(&self, error: &std::io::Error) -> HubError {
        HubError::storage(format!("cannot write {}", self.path.display()), error)
    }
}

/// Whether a partial answer begins at `offset`.
fn starts_at(answer: &Response, offset: u64) -> bool {
    let range = answer.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok())
        == Some(offset)
}
