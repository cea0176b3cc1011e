//! The routes of the Hugging Face Hub and the layout of its cache folder, which is shared with Python's
//! `huggingface_hub`.
//!
//! | module | holds |
//! |---|---|
//! | [`options`] | `HF_*` variables to one [`HubOptions`] |
//! | [`names`] | what a repository, a revision and a file may be called |
//! | [`client`] | [`HubClient`]: list a repository, fetch its files |
//! | `http` | one request: credentials, redirects, refusals |
//! | `workers` | how much is asked for at once |
//! | `download` | one file into the cache: resume, limits, digest |
//! | [`cache`] | `models--org--name/{blobs,refs,snapshots}` |
//! | [`error`] | what failed, without secrets |
//!
//! What this crate must never do: read the environment, show a token to another host, or believe a name, a link or a
//! content that it has not checked.
#![forbid(unsafe_code)]

pub mod cache;
pub mod client;
mod digest;
mod download;
pub mod error;
mod http;
pub mod names;
pub mod options;
mod progress;
mod workers;

pub use client::{HubClient, Listing, RepoFile};
pub use error::{HubError, HubErrorKind};
pub use names::{Address, RepoId, Revision};
pub use options::{HubOptions, Limits};
pub use progress::{Progress, Silent};
