//! Changes of folders that have been answered.
//!
//! What the system tells is taken for a hint to look: an adapter has changed when its files' version is another one than
//! was answered, both files are there, and nothing has moved for a moment. So it does not matter whether a writer
//! renames a folder, links another one, or writes in place.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use loraplex_plugin_sdk::ResolveError;
use notify::{Config, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::find::{Found, Root, Version};

/// How long files must lie still.
const QUIET: Duration = Duration::from_millis(300);
/// Adapters that are watched; a system has a limit of its own that is not much larger.
const MAX_WATCHED: usize = 4096;

/// Looks after adapters that have been answered.
pub(crate) struct Watch {
    state: Mutex<State>,
    /// Something may have changed.
    hint: Arc<Notify>,
    /// Looks this often, told or not.
    poll: Option<Duration>,
}

struct State {
    /// `None` where looking often takes its place.
    watcher: Option<RecommendedWatcher>,
    answered: HashMap<String, Version>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("answered", &self.state().answered.len())
            .finish_non_exhaustive()
    }
}

impl Watch {
    /// Waits for the system to tell, or looks every `poll`: notify's own polling watcher compares times in whole seconds, and
    /// so misses the second of two changes within one.
    pub(crate) fn start(poll: Option<Duration>) -> Result<Self, ResolveError> {
        let hint = Arc::<Notify>::default();
        let told = hint.clone();
        let tell = move |_: notify::Result<notify::Event>| told.notify_one();
        let watcher = match poll {
            Some(_) => Ok(None),
            None => RecommendedWatcher::new(tell, Config::default()).map(Some),
        };
        let watcher = watcher.map_err(|error| {
            ResolveError::invalid(format!("changes cannot be watched: {error}; unset LORA_RESOLVER_WATCH, or set watch_poll_seconds"))
        })?;
        Ok(Self { state: Mutex::new(State { watcher, answered: HashMap::new() }), hint, poll })
    }

    /// `found` has been answered for `name`.
    pub(crate) fn add(&self, name: &str, found: &Found) {
        let mut state = self.state();
        if state.answered.len() >= MAX_WATCHED && !state.answered.contains_key(name) {
            tracing::warn!("{MAX_WATCHED} adapters are watched, the limit: {name:?} is not");
            return;
        }
        state.answered.insert(name.to_owned(), found.version);
        // A folder that was replaced has the old one's watch; the parents tell of replacements and of moved links.
        if let Some(watcher) = &mut state.watcher {
            let _ = watcher.unwatch(&found.folder);
        }
        state.watch(&found.folder);
        for parent in [found.folder.parent(), found.place.parent()].into_iter().flatten() {
            state.watch(parent);
        }
    }

    /// The next adapter whose files have changed and lie still.
    pub(crate) async fn next(&self, root: &Arc<Root>) -> Option<String> {
        loop {
            let Some((name, version)) = self.look(root).await else {
                match self.poll {
                    Some(interval) => sleep(interval).await,
                    None => self.hint.notified().await,
                }
                continue;
            };
            sleep(QUIET).await;
            let (root, asked) = (root.clone(), name.clone());
            let now = tokio::task::spawn_blocking(move || root.version(&asked)).await.ok()?;
            if now == Some(version) {
                self.state().answered.insert(name.clone(), version);
                return Some(name);
            }
        }
    }

    /// An adapter whose files are complete and not those that were answered.
    async fn look(&self, root: &Arc<Root>) -> Option<(String, Version)> {
        let answered = self.state().answered.clone();
        let root = root.clone();
        let look = move || {
            answered.into_iter().find_map(|(name, old)| {
                let version = root.version(&name)?;
                (version != old).then_some((name, version))
            })
        };
        tokio::task::spawn_blocking(look).await.ok()?
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a single call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn watch(&mut self, folder: &Path) {
        let Some(watcher) = &mut self.watcher else { return };
        if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
            let folder = folder.display();
            tracing::warn!("{folder} cannot be watched: {error}; its changes may go unseen");
        }
    }
}
