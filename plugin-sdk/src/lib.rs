//! What the author of a LoRA resolver sees: [`LoraResolver`], [`LoraRequest`], [`ResolveError`].
//!
//! A resolver turns the name in a request's `model` field into files on this machine. The host asks its resolvers in
//! the operator's order; the first that knows the name wins.
//!
//! What this crate must never do: know the engine, HTTP, or an async runtime.

mod error;
mod request;
mod resolver;

pub use error::{ErrorKind, ResolveError};
pub use request::LoraRequest;
pub use resolver::LoraResolver;
