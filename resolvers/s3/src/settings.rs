//! What the operator sets.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use loraplex_plugin_sdk::config::flag;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::Value;

/// Settings: the keys of `[plugins.lora_s3_resolver]`, or `LORA_RESOLVER_*`.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Settings {
    /// `LORA_RESOLVER_S3_URI`: where an adapter's folder lies, with `{lora_name}` and, if wanted, `{base_model}`.
    #[serde(default)]
    pub s3_uri: String,
    /// `LORA_RESOLVER_S3_CACHE_DIR`: the folder of downloads. Several servers may share it.
    #[serde(default)]
    pub s3_cache_dir: Option<PathBuf>,
    /// `LORA_RESOLVER_S3_CACHE_BYTES`: bytes that the folder holds at most; 32 GiB.
    #[serde(default = "cache_bytes", deserialize_with = "number")]
    pub s3_cache_bytes: u64,
    /// `LORA_RESOLVER_S3_MAX_BYTES`: bytes of an adapter's weights at most; 16 GiB.
    #[serde(default = "max_bytes", deserialize_with = "number")]
    pub s3_max_bytes: u64,
    /// `LORA_RESOLVER_S3_DOWNLOADS`: adapters that are downloaded at once, beside as many names that are asked for; 4.
    #[serde(default = "downloads", deserialize_with = "number")]
    pub s3_downloads: usize,
    /// `LORA_RESOLVER_S3_VERIFY_ETAG`: an ETag that looks like an MD5 must be that of the content; on. Off for stores
    /// that make ETags of another kind look so.
    #[serde(default = "on", deserialize_with = "flag")]
    pub s3_verify_etag: bool,
}

fn cache_bytes() -> u64 {
    32 << 30
}

fn max_bytes() -> u64 {
    16 << 30
}

fn downloads() -> usize {
    4
}

fn on() -> bool {
    true
}

/// A number, as one or as text, which is what the environment has.
fn number<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    let text = match Value::deserialize(deserializer)? {
        Value::String(text) => text,
        other => other.to_string(),
    };
    text.parse().map_err(|error| D::Error::custom(format!("{text:?} is no number: {error}")))
}

/// What bounds a transfer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// To reach the host.
    pub connect: Duration,
    /// From a request to its answer's headers.
    pub answer: Duration,
    /// A body that brings fewer than `progress_bytes` in this time is given up and asked for again.
    pub progress_window: Duration,
    /// See `progress_window`; the end of a body may be smaller.
    pub progress_bytes: u64,
    /// For one adapter, all in all.
    pub total: Duration,
    /// Requests for one piece, the first included.
    pub attempts: u32,
    /// Before the second attempt; each further one waits twice as long.
    pub backoff: Duration,
    /// For how long a store that could not be reached is not asked again.
    pub outage: Duration,
    /// Bytes of a piece.
    pub piece: u64,
    /// Pieces of one adapter in transfer at once.
    pub pieces: usize,
    /// How often an adapter that changes while it is read is read again.
    pub changes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            // Four attempts fit the time that the host believes a call that gets nowhere.
            answer: Duration::from_secs(10),
            progress_window: Duration::from_secs(10),
            progress_bytes: 64 << 10,
            total: Duration::from_secs(840),
            attempts: 4,
            backoff: Duration::from_millis(200),
            outage: Duration::from_secs(5),
            piece: 8 << 20,
            pieces: 4,
            changes: 3,
        }
    }
}
