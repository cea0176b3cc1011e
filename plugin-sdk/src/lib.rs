//! What the author of a LoRA resolver sees: [`LoraResolver`], [`LoraRequest`], [`ResolveError`], [`ResolverConfig`].
//!
//! A resolver turns the name in a request's `model` field into files on this machine. The host asks its resolvers in
//! the operator's order; the first that knows the name wins.
//!
//! What this crate must never do: know the engine or HTTP.

mod change;
pub mod config;
mod error;
mod progress;
mod request;
mod resolver;

pub use async_trait::async_trait;

pub use change::AdapterChange;
pub use config::ResolverConfig;
pub use error::{ErrorKind, ResolveError};
pub use progress::Progress;
pub use request::LoraRequest;
pub use resolver::LoraResolver;
