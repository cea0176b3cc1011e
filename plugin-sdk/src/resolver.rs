//! The trait that a resolver implements.

use std::fmt::Debug;

use crate::{LoraRequest, ResolveError};

/// Finds adapters that nobody has loaded.
#[async_trait::async_trait]
pub trait LoraResolver: Debug + Send + Sync + 'static {
    /// Makes the files of `lora_name` present and says where they are.
    ///
    /// `Ok(None)` means "not mine, or not there": the next resolver is asked. An error is remembered and the next
    /// resolver is asked all the same; the client sees it only when nobody knows the name.
    async fn resolve_lora(
        &self,
        base_model: &str,
        lora_name: &str,
    ) -> Result<Option<LoraRequest>, ResolveError>;
}
