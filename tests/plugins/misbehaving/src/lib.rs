//! A resolver that does what resolvers must not do. The name that it is asked for says what.

use std::panic::panic_any;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use loraplex_plugin_sdk::{
    AdapterChange, LoraRequest, LoraResolver, ResolveError, ResolverConfig, async_trait,
};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Options {
    /// `construct` or `watch`: where to panic beside calls.
    #[serde(default)]
    misbehave: String,
}

#[derive(Debug)]
struct Misbehaving {
    options: Options,
    lock: Mutex<()>,
}

impl Misbehaving {
    #[expect(clippy::panic, reason = "what it is for")]
    fn from_config(config: ResolverConfig) -> Result<Self, ResolveError> {
        let options: Options = config.parse()?;
        match &*options.misbehave {
            "construct" => panic!("no resolver today"),
            "refuse" => Err(ResolveError::invalid("it does not like\nits configuration")),
            _ => Ok(Self { options, lock: Mutex::default() }),
        }
    }
}

/// Its payload panics once more when it is dropped.
struct Grenade;

impl Drop for Grenade {
    #[expect(clippy::panic, reason = "what it is for")]
    fn drop(&mut self) {
        panic!("again");
    }
}

#[async_trait]
impl LoraResolver for Misbehaving {
    #[expect(clippy::panic, reason = "what it is for")]
    async fn resolve_lora(
        &self,
        _: &str,
        lora_name: &str,
    ) -> Result<Option<LoraRequest>, ResolveError> {
        let found = |path: &str| Ok(Some(LoraRequest::new(lora_name, path)));
        match lora_name.split('-').next().unwrap_or_default() {
            "panic" => panic!("the name was {lora_name}"),
            "later" => {
                tokio::time::sleep(Duration::from_millis(1)).await;
                panic!("after an await");
            }
            "grenade" => panic_any(Grenade),
            "hang" => std::future::pending().await,
            "block" => {
                // The first holds the lock for good, the rest wait for it; each takes a thread along.
                let _lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
                loop {
                    std::thread::park();
                }
            }
            "relative" => found("adapters/x"),
            "parent" => found("/tmp/../etc"),
            "nul" => found("/tmp/a\0b"),
            "empty" => found(""),
            "absent" => found("/nonexistent/adapter"),
            "file" => found("/proc/self/status"),
            "huge" => found(&format!("/{}", "x".repeat(2 << 20))),
            "long" => found(&format!("/{}", "x".repeat(10_000))),
            "novel" => Err(ResolveError::internal("chapter\n".repeat(1 << 16))),
            "bytes" => {
                use std::os::unix::ffi::OsStrExt;
                let path = std::ffi::OsStr::from_bytes(b"/tmp/\xff\xfe");
                Ok(Some(LoraRequest::new(lora_name, path)))
            }
            _ => Ok(None),
        }
    }

    #[expect(clippy::panic, reason = "what it is for")]
    async fn next_change(&self) -> Option<AdapterChange> {
        match &*self.options.misbehave {
            "watch" => panic!("no changes today"),
            _ => None,
        }
    }
}

loraplex_plugin_sdk::export_resolver!("misbehaving", Misbehaving::from_config);
