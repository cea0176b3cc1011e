//! What crosses between a plugin and its host: the only place that knows `abi_stable` and `async-ffi`.
//!
//! | module | side | holds |
//! |---|---|---|
//! | `interface` | both | the types that cross, and the declaration that a plugin exports |
//! | `wire` | both | requests and errors as JSON, so that either side may know fields that the other does not |
//! | `shim` | plugin | a [`LoraResolver`](crate::LoraResolver) behind the interface: panics end here |
//! | `bridge` | plugin | log lines and panics on their way to the host |
//! | `foreign` | host | the interface as a [`LoraResolver`](crate::LoraResolver) |
//! | `export` | plugin | `export_resolver!` |
//!
//! Nothing here is part of the SDK's public interface: authors see [`export_resolver!`](crate::export_resolver) alone.
//!
//! What crosses is three kinds of value: strings, futures that wait for a task of the plugin's own runtime, and one
//! counter. Types of tokio, `tracing` or the standard library's collections never do: each side has its own copy.

mod bridge;
mod export;
pub mod foreign;
pub mod interface;
mod shim;
mod wire;

pub use abi_stable;
pub use export::{create, module};
pub use interface::{Declaration, HostServices, PluginModuleRef, ResolverBox};
