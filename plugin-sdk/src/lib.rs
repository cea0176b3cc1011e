//! What the author of a LoRA resolver sees: [`LoraResolver`], [`LoraRequest`], [`ResolveError`], [`ResolverConfig`].
//!
//! A resolver turns the name in a request's `model` field into files on the server's machine. The server asks its
//! resolvers in the operator's order; the first that knows the name wins, the server loads the adapter, and from then on
//! the name needs no resolving. A resolver is a library of its own that the server loads when it starts:
//!
//! ```toml
//! [lib]
//! crate-type = ["cdylib"]
//!
//! [dependencies]
//! loraplex-plugin-sdk = "1"
//! serde = { version = "1", features = ["derive"] }
//! ```
//!
//! This is a whole one. It answers for the folders below a root that its operator names, in the config file or as
//! `LORA_RESOLVER_ROOT`:
//!
//! ```
//! use std::path::PathBuf;
//!
//! use loraplex_plugin_sdk::{
//!     LoraRequest, LoraResolver, ResolveError, ResolverConfig, async_trait, export_resolver,
//! };
//!
//! #[derive(Debug, serde::Deserialize)]
//! struct Folders {
//!     root: PathBuf,
//! }
//!
//! impl Folders {
//!     fn from_config(config: ResolverConfig) -> Result<Self, ResolveError> {
//!         config.parse()
//!     }
//! }
//!
//! #[async_trait]
//! impl LoraResolver for Folders {
//!     async fn resolve_lora(
//!         &self,
//!         _base_model: &str,
//!         lora_name: &str,
//!     ) -> Result<Option<LoraRequest>, ResolveError> {
//!         // A name is what a client typed. This resolver knows plain ones alone.
//!         if !lora_name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
//!             return Ok(None);
//!         }
//!         let folder = self.root.join(lora_name);
//!         Ok(folder.is_dir().then(|| LoraRequest::new(lora_name, folder)))
//!     }
//! }
//!
//! export_resolver!("folders", Folders::from_config);
//! # fn main() {}
//! ```
//!
//! Built as `libfolders.so` into the server's folder, it is switched on with
//! `ALLOW_RUNTIME_LORA_UPDATING=1 PLUGINS=folders LORA_RESOLVER_ROOT=/adapters server MODEL`.
//!
//! # What a resolver can rely on
//!
//! - Its futures run on a tokio runtime of the plugin's own: timers, sockets and `spawn_blocking` work.
//! - One call at a time for one name, however many requests wait for it; calls for different names run side by side.
//! - A panic is an error of that call. `abort`, a stack overflow or a fault of `unsafe` code is not contained: a plugin is
//!   trusted code in the server's process.
//! - `tracing` events and panics go to the server's log.
//! - Plugins and servers of one major version of this crate work together, whichever is newer. Neither the compiler's
//!   version nor the profile need be the same.
//!
//! # What the server expects
//!
//! - Nothing that a name contains leads out of where adapters live.
//! - The folder stays as it is while it is read; a resolver that writes puts files in place by renaming.
//! - Errors say what an operator must know and never hold a secret; they are shown to clients.
//!
//! What this crate must never do: know the engine or HTTP.

#[cfg(not(panic = "unwind"))]
compile_error!(
    "a plugin must be built with panic = \"unwind\": with abort, one panic would end the server"
);

#[doc(hidden)]
pub mod abi;
mod change;
pub mod config;
mod error;
mod progress;
mod request;
mod resolver;
#[cfg(feature = "testing")]
pub mod testing;

pub use async_trait::async_trait;

pub use change::AdapterChange;
pub use config::ResolverConfig;
pub use error::{ErrorKind, ResolveError};
pub use progress::Progress;
pub use request::LoraRequest;
pub use resolver::LoraResolver;
