//! The suite passes a sound resolver and names the rule that a broken one breaks.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Adapter, CONFIG, Fixture, contract};
use crate::{ErrorKind, LoraRequest, LoraResolver, ResolveError, async_trait};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    JoinsAnything,
    TrimsNames,
    TellsHostileApart,
    FindsEverything,
    RelativePath,
    IgnoresBaseModel,
    RemembersForEver,
    StuckOnceDropped,
    MatchesPrefixes,
    FlatOnly,
}

#[derive(Debug)]
struct Folders {
    root: PathBuf,
    fault: Fault,
    memory: std::sync::Mutex<std::collections::BTreeMap<String, PathBuf>>,
    busy: AtomicUsize,
}

impl Folders {
    fn find(&self, name: &str) -> Result<Option<PathBuf>, ResolveError> {
        let plain = |segment: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
            !segment.is_empty() && segment.chars().all(fits)
        };
        let name = if self.fault == Fault::TrimsNames { name.trim() } else { name };
        let fits =
            name.split('/').all(plain) && !(self.fault == Fault::FlatOnly && name.contains('/'));
        if !fits && self.fault == Fault::TellsHostileApart {
            return Err(ResolveError::new(ErrorKind::NotFound, "a bad name"));
        }
        if !fits && self.fault != Fault::JoinsAnything {
            return Ok(None);
        }
        let mut folder = self.root.join(name);
        if self.fault == Fault::FindsEverything {
            return Ok(Some(folder));
        }
        if self.fault == Fault::MatchesPrefixes && !folder.exists() {
            let entries = std::fs::read_dir(&self.root).unwrap().map(|entry| entry.unwrap());
            let starts =
                |path: &PathBuf| path.to_string_lossy().starts_with(&*folder.to_string_lossy());
            if let Some(longer) = entries.map(|entry| entry.path()).find(starts) {
                folder = longer;
            }
        }
        let Ok(config) = std::fs::read(folder.join(CONFIG)) else { return Ok(None) };
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        let trained_for = config["base_model_name_or_path"].as_str().unwrap();
        if trained_for != "base" && self.fault != Fault::IgnoresBaseModel {
            let why = format!("`{name}` is for {trained_for}");
            return Err(ResolveError::new(ErrorKind::NotFound, why));
        }
        Ok(Some(folder))
    }

    /// A copy that later changes of the source do not reach.
    fn copy(&self, folder: PathBuf) -> PathBuf {
        let to = tempfile::Builder::new().prefix(".copy-").tempdir_in(&self.root).unwrap().keep();
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        to
    }
}

#[async_trait]
impl LoraResolver for Folders {
    async fn resolve_lora(
        &self,
        _base_model: &str,
        name: &str,
    ) -> Result<Option<LoraRequest>, ResolveError> {
        if self.fault == Fault::StuckOnceDropped && name.contains("dropped") {
            if self.busy.fetch_add(1, Ordering::Relaxed) > 0 {
                return Err(ResolveError::internal("a call is under way"));
            }
            tokio::task::yield_now().await;
            self.busy.store(0, Ordering::Relaxed);
        }
        let mut path = self.find(name)?;
        if self.fault == Fault::RemembersForEver {
            let mut memory = self.memory.lock().unwrap();
            if let Some(folder) = path.take() {
                memory.entry(name.to_owned()).or_insert_with(|| self.copy(folder));
            }
            path = memory.get(name).cloned();
        }
        if self.fault == Fault::RelativePath {
            path = path.map(|path| path.strip_prefix("/").unwrap().to_owned());
        }
        Ok(path.map(|path| LoraRequest::new(name, path)))
    }
}

struct Source {
    root: tempfile::TempDir,
    fault: Fault,
}

#[async_trait]
impl Fixture for Source {
    async fn resolver(&self) -> Arc<dyn LoraResolver> {
        Arc::new(Folders {
            root: self.root.path().to_owned(),
            fault: self.fault,
            memory: Default::default(),
            busy: AtomicUsize::new(0),
        })
    }

    async fn put(&self, adapter: &Adapter) {
        adapter.install(self.root.path()).unwrap();
    }

    async fn remove(&self, name: &str) {
        std::fs::remove_dir_all(self.root.path().join(name)).unwrap();
    }
}

/// The first words of the panic, or nothing when all rules hold.
async fn verdict(fault: Fault) -> Option<String> {
    let mut run = tokio::task::JoinSet::new();
    run.spawn(async move {
        contract(&Source { root: tempfile::tempdir().unwrap(), fault }).await;
    });
    let error = run.join_next().await.unwrap().err()?;
    let panic = error.into_panic();
    let text = panic.downcast_ref::<String>().cloned().unwrap();
    Some(text.split(':').next().unwrap().to_owned())
}

#[tokio::test]
async fn a_sound_resolver_passes() {
    assert_eq!(verdict(Fault::None).await, None);
}

#[tokio::test]
async fn a_broken_rule_is_named() {
    for (fault, rule) in [
        (Fault::JoinsAnything, "hostile-is-unknown"),
        (Fault::TrimsNames, "hostile-is-unknown"),
        (Fault::TellsHostileApart, "hostile-is-unknown"),
        (Fault::FindsEverything, "unknown-is-not-found"),
        (Fault::RelativePath, "finds-what-is-there"),
        (Fault::IgnoresBaseModel, "other-base-models"),
        (Fault::RemembersForEver, "a-dropped-call-does-no-harm"),
        (Fault::StuckOnceDropped, "a-dropped-call-does-no-harm"),
        (Fault::MatchesPrefixes, "prefixes-are-told-apart"),
        (Fault::FlatOnly, "nested-names"),
    ] {
        assert_eq!(verdict(fault).await.as_deref(), Some(rule), "{fault:?}");
    }
}
