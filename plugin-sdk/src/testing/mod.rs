//! The contract suite: what every resolver must do, as one call in an author's test.
//!
//! An author says how to put adapters into a source and how to make a resolver over it, and the suite does the rest:
//!
//! ```
//! # use std::sync::Arc;
//! # use loraplex_plugin_sdk::{LoraRequest, LoraResolver, ResolveError, async_trait};
//! use loraplex_plugin_sdk::testing::{Adapter, Fixture, contract};
//!
//! # #[derive(Debug)]
//! # struct Mine(std::path::PathBuf);
//! # #[async_trait]
//! # impl LoraResolver for Mine {
//! #     async fn resolve_lora(&self, _: &str, name: &str) -> Result<Option<LoraRequest>, ResolveError> {
//! #         let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
//! #         let folder = self.0.join(name);
//! #         let found = name.starts_with(plain) && name.chars().all(plain) && folder.is_dir();
//! #         Ok(found.then(|| LoraRequest::new(name, folder)))
//! #     }
//! # }
//! struct Folder(tempfile::TempDir);
//!
//! #[async_trait]
//! impl Fixture for Folder {
//!     async fn resolver(&self) -> Arc<dyn LoraResolver> {
//!         Arc::new(Mine(self.0.path().to_owned()))
//!     }
//!     async fn put(&self, adapter: &Adapter) {
//!         adapter.install(self.0.path()).unwrap();
//!     }
//!     async fn remove(&self, name: &str) {
//!         std::fs::remove_dir_all(self.0.path().join(name)).unwrap();
//!     }
//!     fn nested(&self) -> bool {
//!         false
//!     }
//!     fn checks_base_model(&self) -> bool {
//!         false
//!     }
//! }
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! contract(&Folder(tempfile::tempdir().unwrap())).await;
//! # });
//! ```
//!
//! A rule that does not hold is a panic that starts with its name. The suite needs tokio with timers, of either flavour.

mod adapter;
mod names;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::{LoraResolver, async_trait};

pub use adapter::{Adapter, CONFIG, WEIGHTS};
pub use names::hostile_names;

/// A source of adapters that the suite may change, and the resolver over it.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// A resolver over the source, with nothing remembered.
    async fn resolver(&self) -> Arc<dyn LoraResolver>;

    /// Puts an adapter into the source, or replaces the one of that name. From its return on, a resolver answers it.
    async fn put(&self, adapter: &Adapter);

    /// Takes an adapter out of the source.
    async fn remove(&self, name: &str);

    /// The base model that calls and adapters name. The resolver's configuration must know it.
    fn base_model(&self) -> &str {
        "base"
    }

    /// How the source calls an adapter that the suite calls `plain`: letters, digits and `-`, and with
    /// [`nested`](Self::nested) also `/`. A resolver that knows names below `me/repository` alone puts that in front.
    fn name(&self, plain: &str) -> String {
        plain.to_owned()
    }

    /// Names that reach something real which is no part of the source, if a resolver is careless: the absolute path of a
    /// folder beside it, a link out of it. Tried with the hostile names.
    async fn outside(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether names with `/` reach adapters.
    fn nested(&self) -> bool {
        true
    }

    /// Whether the resolver reads what an adapter was trained for.
    fn checks_base_model(&self) -> bool {
        true
    }

    /// Whether an adapter that is taken out of the source is no longer answered.
    fn forgets_removed(&self) -> bool {
        true
    }
}

/// Runs every rule. Panics with the name of the first that is broken.
pub async fn contract<F: Fixture + ?Sized>(fixture: &F) {
    rules::finds_what_is_there(fixture).await;
    rules::unknown_is_not_found(fixture).await;
    rules::hostile_is_unknown(fixture).await;
    rules::prefixes_are_told_apart(fixture).await;
    rules::nested_names(fixture).await;
    rules::other_base_models(fixture).await;
    rules::concurrent_calls_agree(fixture).await;
    rules::dropped_calls(fixture).await;
    rules::changes_are_seen(fixture).await;
}
