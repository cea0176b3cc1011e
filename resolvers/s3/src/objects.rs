//! Objects of one bucket: what they are, and their bytes, asked for again where they broke off.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use loraplex_plugin_sdk::Progress;
use loraplex_resolver_cache::md5_of;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload};
use tokio::time::{Instant, sleep, timeout_at};

use crate::failure::{Cause, Failure};
use crate::outage::Outage;
use crate::settings::Limits;
use crate::store::Store;
use crate::transport::Headers;

/// A bucket that is asked within limits.
#[derive(Debug)]
pub(crate) struct Objects {
    pub(crate) store: Store,
    pub(crate) limits: Limits,
    pub(crate) outage: Outage,
    pub(crate) verify_etag: bool,
}

/// What an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    /// As the store writes it.
    pub(crate) etag: String,
    pub(crate) len: u64,
    /// What its content hashes to, where the ETag says so.
    pub(crate) md5: Option<String>,
}

/// How often and when a request is made again.
#[derive(Debug)]
struct Tries<'a> {
    objects: &'a Objects,
    left: u32,
    next: Duration,
}

impl Objects {
    /// A small object, whole.
    pub(crate) async fn read(
        &self,
        key: &str,
        max: u64,
        progress: &Progress,
    ) -> Result<(Meta, Vec<u8>), Failure> {
        let mut tries = self.tries();
        loop {
            match self.read_once(key, max, progress).await {
                Ok(found) => return Ok(found),
                Err(failure) => tries.wait(failure).await?,
            }
        }
    }

    async fn read_once(
        &self,
        key: &str,
        max: u64,
        progress: &Progress,
    ) -> Result<(Meta, Vec<u8>), Failure> {
        let answer = self.get(key, GetOptions::default()).await?;
        let meta = self.meta(key, &answer)?;
        if meta.len > max {
            return Err(too_large(key, meta.len, max));
        }
        let mut body = Body::new(answer, meta.len, &self.limits);
        let mut text = Vec::new();
        while let Some(bytes) = body.next(key).await? {
            progress.advance(bytes.len() as u64);
            text.extend_from_slice(&bytes);
        }
        // It is judged before it is in the cache, which checks what it lets in.
        if let Some(wanted) = &meta.md5
            && md5_of(&text) != *wanted
        {
            let message = format!("it arrived with another MD5 than {wanted}, its ETag");
            return Err(Failure::new(Cause::Damaged, message).about(key));
        }
        Ok((meta, text))
    }

    /// What an object is, of `max` bytes at most.
    pub(crate) async fn head(&self, key: &str, max: u64) -> Result<Meta, Failure> {
        let mut tries = self.tries();
        loop {
            let options = GetOptions { head: true, ..GetOptions::default() };
            let answer = self.get(key, options).await;
            match answer.and_then(|answer| self.meta(key, &answer)) {
                Ok(meta) if meta.len > max => return Err(too_large(key, meta.len, max)),
                Ok(meta) => return Ok(meta),
                Err(failure) => tries.wait(failure).await?,
            }
        }
    }

    /// A range of the object that `pinned` is.
    pub(crate) fn piece<'a>(
        &'a self,
        key: &'a str,
        pinned: &'a Meta,
        range: Range<u64>,
    ) -> Piece<'a> {
        Piece { objects: self, key, pinned, range, body: None, tries: self.tries() }
    }

    async fn get(&self, key: &str, options: GetOptions) -> Result<GetResult, Failure> {
        let path = Path::parse(key)
            .map_err(|error| Failure::new(Cause::Missing, error.to_string()).about(key))?;
        let answer = self.store.objects.get_opts(&path, options).await;
        let answer = answer.map_err(|error| Failure::of(&error).about(key));
        if answer.as_ref().err().is_none_or(|failure| !failure.is_transient()) {
            self.outage.end();
        }
        answer
    }

    fn meta(&self, key: &str, answer: &GetResult) -> Result<Meta, Failure> {
        let Some(etag) = answer.meta.e_tag.clone() else {
            return Err(Failure::new(Cause::Invalid, "the store names no ETag").about(key));
        };
        let headers = answer.extensions.get::<Headers>();
        let header = |name: &str| headers.and_then(|Headers(headers)| headers.get(name));
        // An object that is encrypted with a key of its owner's has another ETag that looks the same.
        let is_plain = header("x-amz-server-side-encryption").is_none_or(|kind| kind == "AES256")
            && header("x-amz-server-side-encryption-customer-algorithm").is_none();
        let text = etag.trim_matches('"');
        let is_md5 = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let md5 = (self.verify_etag && is_plain && is_md5).then(|| text.to_ascii_lowercase());
        Ok(Meta { etag, len: answer.meta.size, md5 })
    }

    fn tries(&self) -> Tries<'_> {
        // A store that could not be reached is knocked at once, not asked as if nothing had been.
        let left = if self.outage.is_recent() { 1 } else { self.limits.attempts.max(1) };
        Tries { objects: self, left, next: self.limits.backoff }
    }
}

/// A range of an object on its way.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    objects: &'a Objects,
    key: &'a str,
    pinned: &'a Meta,
    /// What is still to come.
    range: Range<u64>,
    body: Option<Body>,
    tries: Tries<'a>,
}

impl Piece<'_> {
    /// The next bytes, and where in the object they stand.
    pub(crate) async fn next(&mut self) -> Result<Option<(u64, Bytes)>, Failure> {
        while !self.range.is_empty() {
            match self.step().await {
                Ok(Some(bytes)) => {
                    let at = self.range.start;
                    self.range.start += bytes.len() as u64;
                    return Ok(Some((at, bytes)));
                }
                Ok(None) => self.body = None,
                Err(failure) => {
                    self.body = None;
                    self.tries.wait(failure).await?;
                }
            }
        }
        Ok(None)
    }

    async fn step(&mut self) -> Result<Option<Bytes>, Failure> {
        let Self { objects, key, pinned, range, body, .. } = self;
        let body = match body {
            Some(body) => body,
            None => {
                let options = GetOptions {
                    if_match: Some(pinned.etag.clone()),
                    range: Some(GetRange::Bounded(range.clone())),
                    ..GetOptions::default()
                };
                let answer = objects.get(key, options).await?;
                // Some stores do not know If-Match.
                if objects.meta(key, &answer)? != **pinned {
                    return Err(Failure::new(Cause::Changed, "it has changed").about(*key));
                }
                body.insert(Body::new(answer, range.end - range.start, &objects.limits))
            }
        };
        body.next(key).await
    }
}

/// An answer of a known length, each part of which comes within the limits.
struct Body {
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    len: u64,
    done: u64,
    window: Duration,
    window_bytes: u64,
    deadline: Instant,
    in_window: u64,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("len", &self.len).field("done", &self.done).finish()
    }
}

impl Body {
    fn new(answer: GetResult, len: u64, limits: &Limits) -> Self {
        Self {
            stream: stream(answer),
            len,
            done: 0,
            window: limits.progress_window,
            window_bytes: limits.progress_bytes,
            deadline: Instant::now() + limits.progress_window,
            in_window: 0,
        }
    }

    /// The next bytes; `None` when all have come.
    async fn next(&mut self, key: &str) -> Result<Option<Bytes>, Failure> {
        let Self { len, done, in_window, .. } = *self;
        let broken = |what: String| Err(Failure::new(Cause::Broken, what).about(key));
        let bytes = match timeout_at(self.deadline, self.stream.next()).await {
            Ok(None) if done == len => return Ok(None),
            Ok(None) => return broken(format!("the answer ended at {done} of {len} bytes")),
            Ok(Some(Ok(bytes))) => bytes,
            Ok(Some(Err(_))) => {
                return broken(format!("the answer broke off at {done} of {len} bytes"));
            }
            Err(_) => {
                let window = self.window.as_secs_f32();
                return broken(format!("{in_window} bytes in {window} s, at {done} of {len}"));
            }
        };
        let arrived = bytes.len() as u64;
        if done + arrived > len {
            return broken(format!("more than the {len} bytes that were announced"));
        }
        self.done += arrived;
        self.in_window += arrived;
        if self.in_window >= self.window_bytes {
            (self.deadline, self.in_window) = (Instant::now() + self.window, 0);
        }
        Ok(Some(bytes))
    }
}

impl Tries<'_> {
    /// Waits until the next attempt; the failure itself where there is none.
    async fn wait(&mut self, failure: Failure) -> Result<(), Failure> {
        self.left -= 1;
        if self.left == 0 || !failure.is_transient() {
            return Err(failure);
        }
        let limits = &self.objects.limits;
        let wait = failure.retry_after.unwrap_or(self.next);
        if wait > limits.answer {
            return Err(failure);
        }
        tracing::debug!(%failure, ?wait, "trying again");
        sleep(wait).await;
        self.next *= 2;
        Ok(())
    }
}

fn stream(answer: GetResult) -> BoxStream<'static, object_store::Result<Bytes>> {
    match answer.payload {
        GetResultPayload::Stream(stream) => stream,
        // Stores over HTTP answer with streams.
        #[allow(
            unreachable_patterns,
            reason = "the other kind exists where the client has a feature for files"
        )]
        _ => futures::stream::empty().boxed(),
    }
}

fn too_large(key: &str, len: u64, max: u64) -> Failure {
    Failure::new(Cause::Invalid, format!("it has {len} bytes, the limit is {max}")).about(key)
}
