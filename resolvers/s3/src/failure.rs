//! What goes wrong between the store and the cache, and what resolvers call it.

use std::error::Error;
use std::time::Duration;

use loraplex_plugin_sdk::{ErrorKind, ResolveError};
use loraplex_resolver_cache::{CacheError, CacheErrorKind};
use object_store::client::{HttpError, HttpErrorKind};

/// Why an adapter did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// No such object.
    Missing,
    /// No such bucket.
    NoBucket,
    /// The object is not the one that was seen before.
    Changed,
    /// The store wants other credentials.
    Denied,
    /// The store, or the file, is wrong and stays wrong.
    Invalid,
    /// Nobody answers.
    Unreachable,
    /// The store says: later.
    Overloaded,
    /// An answer broke off, stood still, or was not what was asked for.
    Broken,
    /// What arrived is not what the store says that it has.
    Damaged,
    /// The cache's disk or its limit is full.
    Full,
    /// The cache cannot be read or written.
    Storage,
}

/// A failure; what it says never holds a secret.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) cause: Cause,
    /// What was asked for, where it is one thing.
    pub(crate) about: Option<String>,
    pub(crate) message: String,
    /// When the store said that it may be asked again.
    pub(crate) retry_after: Option<Duration>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.about {
            Some(about) => write!(f, "{about}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl Error for Failure {}

impl Failure {
    pub(crate) fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, about: None, message: message.into(), retry_after: None }
    }

    /// The same failure, of this object.
    pub(crate) fn about(self, object: impl Into<String>) -> Self {
        Self { about: Some(object.into()), ..self }
    }

    /// Whether asking again soon may help.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(
            self.cause,
            Cause::Unreachable | Cause::Overloaded | Cause::Broken | Cause::Damaged
        )
    }

    /// The failure behind an error of the store's client, which has no answer.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        let (mut link, mut last, mut unreachable) = (Some(error), String::new(), false);
        while let Some(error) = link {
            if let Some(failure) = error.downcast_ref::<Self>() {
                return failure.clone();
            }
            if let Some(error) = error.downcast_ref::<HttpError>() {
                unreachable |= matches!(
                    error.kind(),
                    HttpErrorKind::Connect
                        | HttpErrorKind::Request
                        | HttpErrorKind::Timeout
                        | HttpErrorKind::Interrupted
                );
            }
            last = error.to_string();
            link = error.source();
        }
        match unreachable {
            true => Self::new(Cause::Unreachable, format!("the store cannot be reached: {last}")),
            false => Self::new(Cause::Broken, last),
        }
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        let cause = match error.kind {
            CacheErrorKind::Full => Cause::Full,
            CacheErrorKind::TooLarge => Cause::Invalid,
            CacheErrorKind::Damaged => Cause::Damaged,
            CacheErrorKind::Storage => Cause::Storage,
        };
        let next = match error.kind {
            CacheErrorKind::Full | CacheErrorKind::TooLarge => {
                "; LORA_RESOLVER_S3_CACHE_BYTES is the cache's limit, LORA_RESOLVER_S3_CACHE_DIR its folder"
            }
            _ => "",
        };
        Self::new(cause, format!("{}{next}", error.message))
    }
}

impl From<Failure> for ResolveError {
    fn from(failure: Failure) -> Self {
        let (message, retry_after) = (failure.to_string(), failure.retry_after);
        match failure.cause {
            Cause::Missing | Cause::NoBucket => Self::not_found(message),
            Cause::Denied => Self::denied(message).with_code("adapter_source_unauthorized"),
            Cause::Invalid => Self::invalid(message),
            Cause::Unreachable
            | Cause::Overloaded
            | Cause::Broken
            | Cause::Damaged
            | Cause::Changed
            | Cause::Full => Self::unavailable(message, retry_after),
            Cause::Storage => Self::new(ErrorKind::Internal, message),
        }
    }
}
