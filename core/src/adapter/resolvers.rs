//! Who is asked for a name that nobody loaded: resolvers in the operator's order, each call guarded.
//!
//! What this module must never do: let a resolver take the server with it. A call that panics is an error, one that
//! hangs is given up, and one resolver's trouble does not keep the next from being asked.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use loraplex_plugin_sdk::{
    AdapterChange, ErrorKind, LoraRequest, LoraResolver, Progress, ResolveError,
};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// Calls to one resolver at once; more names wait their turn. A resolver that hangs holds these and nothing else.
const CALLS: usize = 64;
/// Failures in a row after which a resolver counts as degraded.
const DEGRADED_AFTER: u32 = 3;

/// Resolvers in the order in which they are asked.
#[derive(Debug, Clone, Default)]
pub struct ResolverRegistry {
    resolvers: Vec<Arc<GuardedResolver>>,
}

/// A resolver as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolverStatus {
    /// The plugin's name.
    pub name: String,
    /// Its last calls failed, one after the other.
    pub degraded: bool,
    /// Calls that ended with an answer: found, or not there.
    pub answered: u64,
    /// Calls that ended with an error, a panic or no answer at all.
    pub failed: u64,
}

/// How long a call may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallLimits {
    /// Without progress.
    pub(super) stall: Duration,
    /// In all.
    pub(super) total: Duration,
}

/// A resolver and how it has fared.
#[derive(Debug)]
pub(super) struct GuardedResolver {
    name: Arc<str>,
    resolver: Arc<dyn LoraResolver>,
    calls: Semaphore,
    /// Calls that have given their place back.
    ended: AtomicU64,
    failures_in_a_row: AtomicU32,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl ResolverRegistry {
    /// Nobody to ask.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a resolver behind those before it.
    pub fn push(&mut self, name: impl Into<Arc<str>>, resolver: Arc<dyn LoraResolver>) {
        self.resolvers.push(Arc::new(GuardedResolver {
            name: name.into(),
            resolver,
            calls: Semaphore::new(CALLS),
            ended: AtomicU64::new(0),
            failures_in_a_row: AtomicU32::new(0),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }));
    }

    /// Whether there is nobody to ask.
    pub fn is_empty(&self) -> bool {
        self.resolvers.is_empty()
    }

    /// How the resolvers fare, in order.
    pub fn status(&self) -> Vec<ResolverStatus> {
        self.resolvers.iter().map(|resolver| resolver.status()).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<GuardedResolver>> {
        self.resolvers.iter()
    }
}

/// A place among the calls to a resolver.
struct Turn<'a> {
    _permit: SemaphorePermit<'a>,
    ended: &'a AtomicU64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl GuardedResolver {
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Waits for the next change that the resolver sees; `None` ends the watch. A panic ends it too.
    pub(super) async fn next_change(&self, tasks: &TaskTracker) -> Option<AdapterChange> {
        let resolver = self.resolver.clone();
        let change = tasks.spawn(async move { resolver.next_change().await });
        match AbortOnDropHandle::new(change).await {
            Ok(change) => change,
            Err(error) => {
                tracing::error!(resolver = %self.name, %error, "watching for changes ended");
                None
            }
        }
    }

    /// Asks for `name`, within the limits.
    pub(super) async fn call(
        &self,
        (base_model, name): (&str, &str),
        limits: CallLimits,
        tasks: &TaskTracker,
    ) -> Result<Option<LoraRequest>, ResolveError> {
        let answer = self.guarded((base_model, name), limits, tasks).await;
        let failed = match &answer {
            Ok(_) => false,
            // The resolver works; the adapter or its source does not.
            Err(error) => !matches!(
                error.kind,
                ErrorKind::NotFound | ErrorKind::InvalidRequest | ErrorKind::PermissionDenied
            ),
        };
        self.note(failed);
        match answer {
            Ok(found) => Ok(found.map(|mut request| {
                // The name is the client's, whatever the resolver says.
                name.clone_into(&mut request.name);
                request
            })),
            Err(error) => Err(error),
        }
    }

    async fn guarded(
        &self,
        (base_model, name): (&str, &str),
        limits: CallLimits,
        tasks: &TaskTracker,
    ) -> Result<Option<LoraRequest>, ResolveError> {
        let end = Instant::now() + limits.total;
        let _turn = self.turn(limits.stall, end).await?;
        let progress = Progress::default();
        let (resolver, base_model, name) =
            (self.resolver.clone(), base_model.to_owned(), name.to_owned());
        // A task of its own, so that a panic ends the task and becomes an error here.
        let call =
            progress.clone().scope(async move { resolver.resolve_lora(&base_model, &name).await });
        let mut call = AbortOnDropHandle::new(tasks.spawn(call));
        loop {
            let before = progress.total();
            let left = end.saturating_duration_since(Instant::now());
            match timeout(limits.stall.min(left), &mut call).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) => {
                    return Err(ResolveError::internal(match error.is_panic() {
                        true => "the resolver panicked".to_owned(),
                        false => format!("the call ended without an answer: {error}"),
                    }));
                }
                Err(_) if progress.total() == before => {
                    let seconds = limits.stall.as_secs_f32();
                    let message = format!("no progress for {seconds} s; the call was given up");
                    return Err(ResolveError::unavailable(message, None));
                }
                Err(_) if Instant::now() >= end => {
                    let seconds = limits.total.as_secs_f32();
                    let message = format!("no end after {seconds} s; the call was given up");
                    return Err(ResolveError::unavailable(message, None));
                }
                Err(_) => {}
            }
        }
    }

    /// Waits for a place, as long as calls before this one end.
    async fn turn(&self, stall: Duration, end: Instant) -> Result<Turn<'_>, ResolveError> {
        let mut place = pin!(self.calls.acquire());
        loop {
            let before = self.ended.load(Ordering::Relaxed);
            let left = end.saturating_duration_since(Instant::now());
            if let Ok(permit) = timeout(stall.min(left), &mut place).await {
                let _permit = permit.expect("it is never closed");
                return Ok(Turn { _permit, ended: &self.ended });
            }
            if self.ended.load(Ordering::Relaxed) == before || Instant::now() >= end {
                let message = format!("{CALLS} calls are under way, none has ended");
                return Err(ResolveError::unavailable(message, None));
            }
        }
    }

    fn note(&self, failed: bool) {
        if !failed {
            self.answered.fetch_add(1, Ordering::Relaxed);
            if self.failures_in_a_row.swap(0, Ordering::Relaxed) >= DEGRADED_AFTER {
                tracing::info!(resolver = %self.name, "the resolver answers again");
            }
            return;
        }
        self.failed.fetch_add(1, Ordering::Relaxed);
        let failures = self.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        if failures == DEGRADED_AFTER {
            tracing::error!(resolver = %self.name, failures, "the resolver keeps failing: degraded");
        }
    }

    fn status(&self) -> ResolverStatus {
        ResolverStatus {
            name: self.name.to_string(),
            degraded: self.failures_in_a_row.load(Ordering::Relaxed) >= DEGRADED_AFTER,
            answered: self.answered.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}
