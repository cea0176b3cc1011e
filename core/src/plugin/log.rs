//! Lines that plugins write, in the host's log.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loraplex_plugin_sdk::abi::abi_stable::std_types::RStr;

/// Characters of a line that are kept.
const MAX_CHARS: usize = 4096;

/// Takes a line. Called from any thread of any plugin; it must not unwind into one.
pub(super) extern "C" fn line(level: u8, plugin: RStr<'_>, target: RStr<'_>, message: RStr<'_>) {
    let written = catch_unwind(AssertUnwindSafe(|| {
        let message: String =
            message.chars().take(MAX_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let (plugin, target) = (plugin.as_str(), target.as_str());
        match level {
            0 | 1 => tracing::error!(plugin, target, "{message}"),
            2 => tracing::warn!(plugin, target, "{message}"),
            3 => tracing::info!(plugin, target, "{message}"),
            4 => tracing::debug!(plugin, target, "{message}"),
            _ => tracing::trace!(plugin, target, "{message}"),
        }
    }));
    // A subscriber that panics has nowhere to say so.
    drop(written);
}
