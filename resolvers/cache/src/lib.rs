//! A folder of downloaded adapters, by content digest.
//!
//! ```text
//! v1/entries/DIGEST/    the files of an adapter and `manifest.json`; DIGEST is the SHA-256 of the manifest
//! v1/refs/KEY           which entry a source had when somebody last looked; KEY is the SHA-256 of the source
//! v1/staging/KEY/       a download under way, by whoever holds the lock of KEY
//! v1/locks/KEY          a file whose lock says that KEY's download is somebody's; it goes with the lock
//! v1/trash/             what is being removed
//! v1/index.lock         shared to hand an entry out, exclusive to add or remove one
//! ```
//!
//! An entry appears by one rename and goes by one, so whatever ends a process leaves a valid cache. Several processes may
//! share the folder; its file system must have locks.
//!
//! | module | holds |
//! |---|---|
//! | [`cache`] | [`Cache`]: open, look up, begin a download |
//! | `staging` | a download until it is published |
//! | `entry` | what an entry says of itself, and whether that is so |
//! | `room` | how much lies here, and what goes first |
//! | `lock` | locks that go with their process |
//! | [`disk`] | each operation on a file, with a place for tests to let it fail |
//! | [`error`] | what failed |
//!
//! What this crate must never do: hand out what it has not checked, follow a link, or block on another process's download.
#![forbid(unsafe_code)]

pub mod cache;
pub mod disk;
mod entry;
pub mod error;
mod lock;
mod room;
mod staging;

pub use cache::{Cache, CacheOptions, Claim, Claimed, Entry};
pub use disk::{Disk, Operation};
pub use entry::md5_of;
pub use error::{CacheError, CacheErrorKind};
pub use staging::{FileSpec, Staging};
