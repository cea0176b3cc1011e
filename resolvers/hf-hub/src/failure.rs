//! The Hub's failures in the words of resolvers.

use loraplex_hub_client::{HubError, HubErrorKind};
use loraplex_plugin_sdk::{ErrorKind, ResolveError};

pub(crate) fn from(error: HubError) -> ResolveError {
    let code = error.code();
    let message = error.message;
    let failure = match error.kind {
        HubErrorKind::Unauthorized | HubErrorKind::Gated => ResolveError::denied(message),
        HubErrorKind::NotFound | HubErrorKind::Offline => {
            ResolveError::new(ErrorKind::NotFound, message)
        }
        HubErrorKind::Unavailable | HubErrorKind::StorageFull => {
            ResolveError::unavailable(message, error.retry_after)
        }
        HubErrorKind::Invalid => ResolveError::invalid(message),
        HubErrorKind::Storage => ResolveError::internal(message),
    };
    match code {
        Some(code) => failure.with_code(code),
        None => failure,
    }
}
