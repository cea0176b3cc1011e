//! A name gets a new generation, or a failed load changes nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use loraplex_plugin_sdk::LoraRequest;

use super::{AdapterManager, Operation};
use crate::adapter::entry::Entry;
use crate::adapter::journal::Record;
use crate::adapter::load::Built;
use crate::adapter::names::{self, NameGuard};
use crate::adapter::{
    Adapter, Content, LoadRequest, LoadTimings, Loaded, LoadedAdapter, Origin, peft,
};
use crate::error::{Error, ErrorKind, Result};

impl AdapterManager {
    /// Loads an adapter. Ends at the step boundary at which the engine has taken it.
    pub async fn load(self: &Arc<Self>, ask: impl Into<LoadRequest>) -> Result<Loaded> {
        let ask = ask.into();
        let origin = match ask.content {
            Content::Folder => Origin::Operator,
            Content::Bytes { .. } => Origin::Upload,
        };
        let this = self.clone();
        // A task of its own: a client that leaves does not leave a half-done load behind.
        let task = self.tasks.spawn(async move {
            let name = ask.request.name.clone();
            let arrived = Instant::now();
            let guard = this.locks.lock(&name).await;
            let Some(id) = ask.operation_id.clone() else {
                return Ok(this.load_locked(ask, origin, &guard, arrived).await?.1);
            };
            if let Some(done) = this.repeated(&id, &ask).await? {
                return Ok(Loaded { repeated: true, ..done });
            }
            let path = ask.request.path.clone();
            let (_, loaded) = this.load_locked(ask, origin, &guard, arrived).await?;
            this.operations.insert((name, id), Operation { path, loaded: loaded.clone() });
            Ok(loaded)
        });
        task.await.unwrap_or_else(|error| Err(Error::internal(format!("a load died: {error}"))))
    }

    /// What an operation has done already. One whose adapter was unloaded since is to be done again.
    async fn repeated(&self, id: &str, ask: &LoadRequest) -> Result<Option<Loaded>> {
        let name = &ask.request.name;
        let Some(done) = self.operations.get(&(name.clone(), id.to_owned())) else {
            return Ok(None);
        };
        if self.registry.peek(name).is_none() {
            return Ok(None);
        }
        let same = match ask.content.clone() {
            Content::Folder => ask.request.path == done.path,
            Content::Bytes { config, weights } => {
                let digest =
                    self.loader.run(move || Ok(peft::digest_of(&config, &weights))).await?;
                digest == done.loaded.adapter.digest
            }
        };
        if !same {
            let message = format!(
                "The operation '{id}' has loaded other content of the lora adapter '{name}'; a new load wants an id of its own."
            );
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        Ok(Some(done.loaded))
    }

    /// As [`AdapterManager::load`] of a new name, for callers without a runtime. Blocks.
    pub fn load_blocking(&self, request: LoraRequest) -> Result<Arc<Adapter>> {
        futures::executor::block_on(async {
            let name = request.name.clone();
            let guard = self.locks.lock(&name).await;
            let ask = LoadRequest::new(request);
            Ok(self.load_locked(ask, Origin::Operator, &guard, Instant::now()).await?.0)
        })
    }

    /// The one place where a name gets a new generation. The caller holds the name's lock.
    pub(super) async fn load_locked(
        &self,
        ask: LoadRequest,
        origin: Origin,
        _guard: &NameGuard<'_>,
        arrived: Instant,
    ) -> Result<(Arc<Adapter>, Loaded)> {
        if !self.config.enabled {
            return Err(Error::invalid("LoRA is not enabled. Use --enable-lora to enable LoRA."));
        }
        let name = ask.request.name.clone();
        let entry = self.registry.peek(&name);
        let newest = entry.as_deref().map(Entry::newest);
        check(&ask, newest.as_ref())?;
        let was_pinned = entry.as_deref().is_some_and(Entry::is_pinned);
        let old = entry.and_then(|entry| entry.current());
        let (builder, path, content) =
            (self.builder.clone(), ask.request.path.clone(), ask.content.clone());
        // A journal is written first, which may take long.
        let writes = self.journal.get().is_some() && !matches!(origin, Origin::Resolver(_));
        let replaces = self.engine.clone().filter(|_| old.is_some() && !writes);
        let started = Instant::now();
        let build = move || {
            let mut expected = None;
            let read_all = || expected = replaces.map(|engine| engine.expect_replacement());
            Ok((builder.build(&path, &content, read_all)?, expected))
        };
        let (Built { peft, packed, read, pack }, _expected) = self.loader.run(build).await?;
        let waited = started.elapsed().saturating_sub(read + pack) + (started - arrived);
        if let Some(engine) = &self.engine {
            engine.check_room(&name, packed.bytes.len())?;
        }
        let unchanged = newest.as_ref().is_some_and(|newest| newest.digest == peft.digest);
        let back = ask.again.as_ref().filter(|_| unchanged);
        if let Some(last) = &ask.again
            && back.is_none()
        {
            tracing::warn!(
                name, generation = last.generation, policy_version = ?last.policy_version,
                "an adapter's files have changed since it was loaded: what is read now is another generation, without a policy version"
            );
        }
        let policy_version = back.map_or(ask.policy_version, |last| last.policy_version);
        let known = back.map(|last| last.generation);

        let spare = old.as_ref().map_or((0, 0), |old| (1, old.bytes()));
        let room = self.make_room(&name, packed.bytes.len(), spare).await?;
        let generation =
            known.unwrap_or_else(|| self.next_generation.fetch_add(1, Ordering::Relaxed));
        if let Some(journal) = self.journal.get().cloned()
            && known.is_none()
            && !matches!(origin, Origin::Resolver(_))
        {
            let record = Record {
                upload: (origin == Origin::Upload).then(|| peft.digest.clone()),
                pinned: ask.pinned.unwrap_or(was_pinned),
                policy_version,
                request: ask.request.clone(),
            };
            let content = ask.content;
            self.loader.run(move || journal.loaded(record, &content, generation)).await?;
        }
        let flip = Instant::now();
        let adapter = Arc::new(Adapter {
            generation,
            digest: peft.digest,
            rank: peft.rank,
            modules: peft.modules,
            policy_version,
            loaded_at: SystemTime::now(),
            packed: Arc::new(packed),
            request: ask.request,
            _room: room,
        });
        self.registry.put(adapter.clone(), origin, ask.pinned);
        self.flights.forget(&name);
        let replaced = newest.map(|newest| newest.generation);
        if let Some(engine) = &self.engine
            && old.is_some()
        {
            drop(old);
            engine.replace(adapter.clone()).await?;
        }
        self.flips.send_modify(|flips| *flips += 1);
        let timings = LoadTimings { wait: waited, read, pack, flip: flip.elapsed() };
        let said = LoadedAdapter::from(&*adapter);
        Ok((adapter, Loaded { adapter: said, replaced, unchanged, timings, repeated: false }))
    }
}

/// Whether the load may take the place of what the name points to now.
fn check(ask: &LoadRequest, newest: Option<&LoadedAdapter>) -> Result<()> {
    let name = &ask.request.name;
    if !names::is_valid(name) {
        return Err(Error::invalid(format!(
            "{name:?} cannot be an adapter's name: at most 256 bytes, no control characters, no `..`, no leading `/`"
        )));
    }
    if newest.is_some() && !ask.in_place {
        return Err(Error::invalid(format!(
            "The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True."
        )));
    }
    let found = newest.map_or(0, |newest| newest.generation);
    match ask.expected_generation {
        Some(expected) if expected != found => Err(Error::new(
            ErrorKind::Conflict,
            format!("The lora adapter '{name}' is at generation {found}, expected {expected}."),
        )),
        _ => Ok(()),
    }
}
