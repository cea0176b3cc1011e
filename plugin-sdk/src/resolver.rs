//! The trait that a resolver implements.

use std::fmt::Debug;

use crate::{AdapterChange, LoraRequest, ResolveError};

/// Finds adapters that nobody has loaded.
#[async_trait::async_trait]
pub trait LoraResolver: Debug + Send + Sync + 'static {
    /// Makes the files of `lora_name` present and says where they are.
    ///
    /// `base_model` is the first served name of the host's model. `Ok(None)` means "not mine, or not there": the next
    /// resolver is asked. An error is remembered and the next resolver is asked all the same; the client sees it only
    /// when nobody knows the name. `lora_name` is what a client typed: never trust it as a path.
    ///
    /// The call may be dropped at any await when the host gives it up; long work reports [`Progress`](crate::Progress).
    async fn resolve_lora(
        &self,
        base_model: &str,
        lora_name: &str,
    ) -> Result<Option<LoraRequest>, ResolveError>;

    /// Waits for the next change of an adapter that this resolver has answered; `None` when it watches nothing, which
    /// ends the asking. The host then loads the adapter again and replaces it in place.
    async fn next_change(&self) -> Option<AdapterChange> {
        None
    }
}
