//! One adapter into the cache, as it was at one moment.
//!
//! Its configuration is read, its weights are pinned by their ETag and brought in pieces, then the configuration must
//! still be what it was: so both were in the store together.

use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use loraplex_plugin_sdk::{Progress, ResolveError, ResolverConfig};
use loraplex_resolver_cache::{Cache, CacheError, Claim, Claimed, Entry, FileSpec, Staging};
use tokio::time::{Duration, Instant, sleep};

use crate::adapter::{CONFIG, MAX_CONFIG, WEIGHTS, fits};
use crate::failure::{Cause, Failure};
use crate::objects::{Meta, Objects, Piece};
use crate::workers::Workers;

/// How often a download by somebody else is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Brings adapters of one bucket into one cache.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) objects: Objects,
    pub(crate) cache: Cache,
    pub(crate) base: ResolverConfig,
    pub(crate) max_bytes: u64,
    pub(crate) workers: Workers,
}

/// An adapter that is here.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) entry: Entry,
    pub(crate) base_model: Option<String>,
}

/// An adapter in the store, as it is now.
struct Pinned {
    config: (Meta, Vec<u8>),
    weights: Meta,
    base_model: Option<String>,
}

impl Pinned {
    /// Both ETags: what tells this state of the adapter from every other.
    fn version(&self) -> String {
        format!("{} {}", self.config.0.etag, self.weights.etag)
    }
}

/// What is asked for.
struct Subject<'a> {
    name: &'a str,
    /// Of its folder.
    key: &'a str,
    /// What the cache knows it by.
    source: String,
    progress: &'a Progress,
}

impl Subject<'_> {
    fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.key)
    }
}

impl Fetch {
    /// The adapter `name` whose folder is `key`; `None` where there is none.
    pub(crate) async fn find(
        &self,
        name: &str,
        key: &str,
        progress: &Progress,
    ) -> Result<Option<Found>, ResolveError> {
        let source = format!("{}/{key}", self.objects.store.identity);
        let subject = Subject { name, key, source, progress };
        let limit = self.objects.limits.total;
        let found = match tokio::time::timeout(limit, self.current(&subject)).await {
            Ok(found) => found,
            Err(_) => {
                let limit = limit.as_secs_f32();
                let message = format!("it did not arrive within {limit} s");
                Err(Failure::new(Cause::Broken, message).about(key).into())
            }
        };
        match found.map_err(|refusal| refusal.seen_by_client(name, key)) {
            Err(Refusal::Unasked(failure)) => {
                self.objects.outage.begin(&failure, self.objects.limits.outage);
                self.kept(&subject, failure).await.map(Some)
            }
            Err(Refusal::Source(failure)) => {
                self.objects.outage.begin(&failure, self.objects.limits.outage);
                Err(failure.into())
            }
            Err(Refusal::Misfit(error)) => Err(error),
            Ok(found) => Ok(found),
        }
    }

    /// The adapter as the store has it: from the cache, else downloaded, and read again while it changes.
    async fn current(&self, subject: &Subject<'_>) -> Result<Option<Found>, Refusal> {
        let asking = self.workers.ask().await;
        self.objects.outage.check().map_err(Refusal::Unasked)?;
        let Some(mut pinned) = self.pin(subject).await? else { return Ok(None) };
        if let Some(entry) = self.cached(subject, &pinned.version()).await? {
            return Ok(Some(Found { entry, base_model: pinned.base_model }));
        }
        drop(asking);
        let _downloading = self.workers.download(subject.progress).await;
        let mut rounds = self.objects.limits.changes;
        loop {
            match self.bring(subject, &pinned).await {
                Ok(entry) => {
                    return Ok(Some(Found { entry, base_model: pinned.base_model }));
                }
                Err(failure)
                    if rounds > 0 && [Cause::Changed, Cause::Damaged].contains(&failure.cause) =>
                {
                    rounds -= 1;
                    tracing::info!(adapter = subject.name, %failure, "reading it again");
                }
                Err(failure) => return Err(failure.into()),
            }
            let Some(changed) = self.pin(subject).await? else { return Ok(None) };
            pinned = changed;
        }
    }

    async fn pin(&self, subject: &Subject<'_>) -> Result<Option<Pinned>, Refusal> {
        let read = self.objects.read(&subject.file(CONFIG), MAX_CONFIG, subject.progress).await;
        let config = match read {
            Err(failure) if failure.cause == Cause::Missing => return Ok(None),
            other => other.map_err(asking)?,
        };
        let base_model = fits(subject.name, &config.1, &self.base).map_err(Refusal::Misfit)?;
        let weights = match self.objects.head(&subject.file(WEIGHTS), self.max_bytes).await {
            Err(failure) if failure.cause == Cause::Missing => {
                let reason = format!("adapter {:?} has no {WEIGHTS} yet", subject.name);
                return Err(Refusal::Misfit(ResolveError::not_found(reason)));
            }
            other => other.map_err(asking)?,
        };
        subject.progress.advance(1);
        Ok(Some(Pinned { config, weights, base_model }))
    }

    /// Downloads what is pinned.
    async fn bring(&self, subject: &Subject<'_>, pinned: &Pinned) -> Result<Entry, Failure> {
        let version = pinned.version();
        let claimed = self.claim(subject).await?;
        // Whoever had the claim before may have brought it.
        if let Some(entry) = self.cached(subject, &version).await? {
            return Ok(entry);
        }
        let (config, weights) = (&pinned.config.0, &pinned.weights);
        let files = [
            FileSpec { name: CONFIG, len: config.len, md5: config.md5.clone() },
            FileSpec { name: WEIGHTS, len: weights.len, md5: weights.md5.clone() },
        ];
        let staging = Arc::new(blocking(move || claimed.stage(&files)).await?);
        let (to, text) = (staging.clone(), pinned.config.1.clone());
        blocking(move || to.write(0, 0, &text)).await?;
        self.weights(subject, weights, &staging).await?;
        if self.objects.head(&subject.file(CONFIG), MAX_CONFIG).await? != *config {
            return Err(Failure::new(Cause::Changed, "it has changed").about(subject.file(CONFIG)));
        }
        let staging = Arc::into_inner(staging).ok_or_else(|| {
            Failure::new(Cause::Storage, "a write goes on after the last piece".to_owned())
        })?;
        blocking(move || staging.publish(&version)).await
    }

    /// The weights, in pieces side by side.
    async fn weights(
        &self,
        subject: &Subject<'_>,
        pinned: &Meta,
        staging: &Arc<Staging>,
    ) -> Result<(), Failure> {
        let (key, piece) = (subject.file(WEIGHTS), self.objects.limits.piece.max(1));
        let ranges =
            (0..pinned.len.div_ceil(piece)).map(|i| i * piece..((i + 1) * piece).min(pinned.len));
        let pieces: Vec<_> = ranges
            .map(|range| self.piece(self.objects.piece(&key, pinned, range), subject, staging))
            .collect();
        stream::iter(pieces).buffer_unordered(self.objects.limits.pieces.max(1)).try_collect().await
    }

    async fn piece(
        &self,
        mut piece: Piece<'_>,
        subject: &Subject<'_>,
        staging: &Arc<Staging>,
    ) -> Result<(), Failure> {
        while let Some((offset, bytes)) = piece.next().await? {
            subject.progress.advance(bytes.len() as u64);
            self.workers.moved();
            let to = staging.clone();
            blocking(move || to.write(1, offset, &bytes)).await?;
        }
        Ok(())
    }

    /// Waits for the claim. Whoever holds it is believed as long as it gets somewhere.
    async fn claim(&self, subject: &Subject<'_>) -> Result<Claimed, Failure> {
        let patience = self.objects.limits.progress_window * 3;
        let (mut seen, mut since) = (None, Instant::now());
        loop {
            let (cache, source) = (self.cache.clone(), subject.source.clone());
            let at = match blocking(move || cache.claim(&source)).await? {
                Claim::Mine(claimed) => return Ok(claimed),
                Claim::Others(at) => at,
            };
            if seen != Some(at) {
                (seen, since) = (Some(at), Instant::now());
                subject.progress.advance(1);
                self.workers.moved();
            } else if since.elapsed() > patience {
                let message = format!("another download of it stands still at {at} bytes");
                return Err(Failure::new(Cause::Broken, message).about(subject.key));
            }
            sleep(POLL).await;
        }
    }

    async fn cached(&self, subject: &Subject<'_>, version: &str) -> Result<Option<Entry>, Failure> {
        let (cache, source) = (self.cache.clone(), subject.source.clone());
        let version = version.to_owned();
        blocking(move || cache.of_version(&source, &version)).await
    }

    /// What an earlier call has brought serves while the store does not.
    async fn kept(&self, subject: &Subject<'_>, failure: Failure) -> Result<Found, ResolveError> {
        let (cache, source) = (self.cache.clone(), subject.source.clone());
        let latest = blocking(move || cache.latest(&source)).await;
        let Ok(Some(entry)) = latest else { return Err(failure.into()) };
        let path = entry.folder.join(CONFIG);
        let Ok(text) = tokio::fs::read(path).await else { return Err(failure.into()) };
        let base_model = fits(subject.name, &text, &self.base)?;
        tracing::warn!(adapter = subject.name, %failure, "served from the cache");
        Ok(Found { entry, base_model })
    }
}

/// Why there is no adapter.
#[derive(Debug)]
enum Refusal {
    /// The store could not be asked what it has. Once it has said so, nothing older serves.
    Unasked(Failure),
    /// The store or the cache.
    Source(Failure),
    /// The adapter itself.
    Misfit(ResolveError),
}

impl Refusal {
    /// A client is told of the name that it asked for, not of the operator's prefix.
    fn seen_by_client(self, name: &str, key: &str) -> Self {
        let (failure, kind): (Failure, fn(Failure) -> Self) = match self {
            Self::Misfit(_) => return self,
            Self::Unasked(failure) => (failure, Self::Unasked),
            Self::Source(failure) => (failure, Self::Source),
        };
        let Some(about) = &failure.about else { return kind(failure) };
        let file = about.strip_prefix(key).unwrap_or(about).trim_start_matches('/');
        let shown = match file {
            "" => format!("adapter {name:?}"),
            file => format!("{file} of adapter {name:?}"),
        };
        kind(failure.about(shown))
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Source(failure)
    }
}

/// A failure to find out what the store has.
fn asking(failure: Failure) -> Refusal {
    match failure.cause {
        Cause::Unreachable | Cause::Overloaded => Refusal::Unasked(failure),
        _ => Refusal::Source(failure),
    }
}

/// Runs work on files off the threads that wait for sockets.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CacheError> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| Failure::new(Cause::Storage, format!("work died: {error}")))?;
    done.map_err(Failure::from)
}
