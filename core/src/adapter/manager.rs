//! Names to generations: every change of a name, and every way to one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures::StreamExt as _;
use loraplex_kernels::{AdapterMemory, AdapterPacker};
use loraplex_plugin_sdk::{AdapterChange, LoraRequest};
use moka::sync::Cache;
use tokio::sync::watch;
use tokio::time::{timeout, timeout_at};
use tokio_util::task::TaskTracker;

use super::entry::Entry;
use super::journal::{Journal, Record};
use super::load::{Builder, Built};
use super::loader::Loader;
use super::names::{self, NameGuard, NameLocks};
use super::peft::{self, PeftLimits};
use super::registry::Registry;
use super::resolve::Flights;
use super::resolvers::{CallLimits, GuardedResolver};
use super::store::HostStore;
use super::{
    Adapter, AdapterStatus, LoadRequest, LoadTimings, Loaded, LoadedAdapter, Origin,
    ResolverRegistry, ResolverStatus,
};
use crate::config::LoraConfig;
use crate::engine::EngineHandle;
use crate::error::{Error, ErrorKind, Result};
use crate::model::ModelConfig;

/// Operation ids that are remembered.
const OPERATIONS: u64 = 1024;
/// Adapters that are brought back at once: enough for the loaders to have one to read while they pack another.
const RESTORES: usize = 4;

/// Finds adapters by name and changes what names point to.
///
/// Invariants: a failed load changes nothing; after an acknowledged load no later request sees an older generation;
/// changes of one name follow each other. Loads run on threads of their own and go on when their caller leaves.
#[derive(Debug)]
pub struct AdapterManager {
    config: LoraConfig,
    builder: Builder,
    loader: Loader,
    engine: Option<EngineHandle>,
    next_generation: AtomicU64,
    registry: Registry,
    locks: NameLocks,
    store: HostStore,
    flights: Flights,
    resolvers: OnceLock<ResolverRegistry>,
    journal: OnceLock<Arc<Journal>>,
    operations: Cache<(String, String), Loaded>,
    /// Changes with every flip.
    flips: watch::Sender<u64>,
    tasks: TaskTracker,
}

/// The oldest content that a request is content with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Floor {
    /// Generation at least.
    pub generation: Option<u64>,
    /// Policy version at least; an adapter without one is below every floor.
    pub policy_version: Option<u64>,
}

impl Floor {
    fn allows(&self, adapter: &Adapter) -> bool {
        self.generation.is_none_or(|least| adapter.generation >= least)
            && self.policy_version.is_none_or(|least| adapter.policy_version >= Some(least))
    }
}

impl AdapterManager {
    /// An empty registry for adapters of `model`, packed by `packer`; `engine` is told of replacements.
    pub fn new(
        config: LoraConfig,
        model: ModelConfig,
        packer: Arc<dyn AdapterPacker>,
        engine: Option<EngineHandle>,
    ) -> Result<Self> {
        // Above every generation of an earlier run, as long as that made fewer than a million a second.
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let limits = PeftLimits::new(config.max_rank);
        Ok(Self {
            builder: Builder {
                model: Arc::new(model),
                packer,
                limits,
                memory: AdapterMemory::keeping()?,
            },
            loader: Loader::start()?,
            engine,
            next_generation: AtomicU64::new(started << 20),
            registry: Registry::default(),
            locks: NameLocks::default(),
            store: HostStore::new(config.max_host_adapters, config.host_memory),
            flights: Flights::new(config.negative_ttl),
            resolvers: OnceLock::new(),
            journal: OnceLock::new(),
            operations: Cache::new(OPERATIONS),
            flips: watch::Sender::new(0),
            tasks: TaskTracker::new(),
            config,
        })
    }

    /// Sets who is asked for unknown names, once, and starts to take the changes that they report.
    pub fn install_resolvers(self: &Arc<Self>, resolvers: ResolverRegistry) {
        for resolver in resolvers.iter() {
            let (this, resolver) = (self.clone(), resolver.clone());
            self.tasks.spawn(async move {
                while let Some(change) = resolver.next_change(&this.tasks).await {
                    this.take_change(&resolver, change).await;
                }
            });
        }
        if self.resolvers.set(resolvers).is_err() {
            tracing::error!("resolvers are installed once; the second set is ignored");
        }
    }

    /// Loads what `journal` holds and notes every later load and unload in it; called once. What cannot be loaded now is
    /// logged, and stays in the journal for the next start. Returns how many are back and how many are not.
    pub async fn restore(self: &Arc<Self>, journal: Journal) -> (usize, usize) {
        let journal = Arc::new(journal);
        self.next_generation.fetch_max(journal.first_generation(), Ordering::Relaxed);
        let records = journal.records();
        let names: Vec<String> = records.iter().map(|record| record.request.name.clone()).collect();
        let loads = futures::stream::iter(records).map(|record| {
            let journal = journal.clone();
            async move {
                let name = record.request.name.clone();
                let restored = self.restore_one(record, &journal).await;
                if let Err(error) = &restored {
                    tracing::error!(name, %error, "an adapter of the last run cannot be loaded");
                }
                restored.is_ok()
            }
        });
        let restored: Vec<bool> = loads.buffered(RESTORES).collect().await;
        self.registry.sort(&names);
        if self.journal.set(journal).is_err() {
            tracing::error!("a journal is installed once; the second is ignored");
        }
        let back = restored.iter().filter(|&&back| back).count();
        (back, restored.len() - back)
    }

    async fn restore_one(self: &Arc<Self>, record: Record, journal: &Arc<Journal>) -> Result<()> {
        let content = match record.upload.clone() {
            None => super::Content::Folder,
            Some(digest) => {
                let journal = journal.clone();
                self.loader.run(move || journal.upload(&digest)).await?
            }
        };
        let ask = LoadRequest {
            content,
            pinned: Some(record.pinned),
            policy_version: record.policy_version,
            // Over what the command line has given the name.
            ..LoadRequest::new(record.request).in_place()
        };
        self.load(ask).await?;
        Ok(())
    }

    /// The newest generation of `name`; not found carries what resolvers had to say, which may be nothing. One that nobody loaded is asked of the resolvers, one that is out of memory is
    /// read again; both go on when the caller's patience (`resolver_timeout`) is at its end, and the next call joins.
    pub async fn get(self: &Arc<Self>, name: &str) -> Result<Arc<Adapter>> {
        let entry = self.registry.get(name);
        if let Some(entry) = &entry {
            entry.count_request();
            if let Some(adapter) = entry.current() {
                return Ok(adapter);
            }
        } else if self.resolvers().is_none() || !names::is_valid(name) {
            return Err(Error::not_found(""));
        }
        let flight = self.flights.join(name, || {
            let (this, name) = (self.clone(), name.to_owned());
            Flights::of_task(self.tasks.spawn(async move { this.fetch(&name).await }))
        })?;
        let Ok(fetched) = timeout(self.config.resolver_timeout, flight).await else {
            return Err(Error::unavailable(format!(
                "LoRA adapter '{name}' is still being fetched; try again"
            )));
        };
        if entry.is_none()
            && let Some(entry) = self.registry.peek(name)
        {
            entry.count_request();
        }
        fetched
    }

    /// As [`AdapterManager::get`], and waits until `deadline` for a generation that `floor` allows.
    pub async fn get_at_least(
        self: &Arc<Self>,
        name: &str,
        floor: Floor,
        deadline: Instant,
    ) -> Result<Arc<Adapter>> {
        // Listens before the first look, so that no flip is missed between.
        let mut flips = self.flips.subscribe();
        loop {
            let adapter = self.get(name).await?;
            if floor.allows(&adapter) {
                return Ok(adapter);
            }
            flips.mark_unchanged();
            if self
                .registry
                .peek(name)
                .and_then(|entry| entry.current())
                .is_some_and(|newest| floor.allows(&newest))
            {
                continue;
            }
            if timeout_at(deadline.into(), flips.changed()).await.is_err() {
                let version = adapter.policy_version;
                return Err(Error::unavailable(format!(
                    "LoRA adapter '{name}' is at generation {} (policy version {version:?}), the request asks for at least {floor:?}",
                    adapter.generation
                )));
            }
        }
    }

    /// All adapters, in order of registration.
    pub fn list(&self) -> Vec<AdapterStatus> {
        self.registry.entries().iter().map(|entry| entry.status()).collect()
    }

    /// One adapter.
    pub fn status(&self, name: &str) -> Option<AdapterStatus> {
        self.registry.peek(name).map(|entry| entry.status())
    }

    /// How the resolvers fare, in the order in which they are asked.
    pub fn resolvers_status(&self) -> Vec<ResolverStatus> {
        self.resolvers.get().map(ResolverRegistry::status).unwrap_or_default()
    }

    /// Generations and bytes in host memory.
    pub fn host_usage(&self) -> (usize, usize) {
        (self.store.adapters(), self.store.bytes())
    }

    /// Bytes of weights that an adapter can have at most.
    pub fn max_upload(&self) -> usize {
        let most = peft::largest_file(&self.builder.model, &self.builder.limits);
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// Loads an adapter. Ends at the step boundary at which the engine has taken it.
    pub async fn load(self: &Arc<Self>, ask: impl Into<LoadRequest>) -> Result<Loaded> {
        let ask = ask.into();
        let origin = match ask.content {
            super::Content::Folder => Origin::Operator,
            super::Content::Bytes { .. } => Origin::Upload,
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
            let operation = (name, id);
            if let Some(done) = this.operations.get(&operation) {
                return Ok(Loaded { repeated: true, ..done });
            }
            let (_, loaded) = this.load_locked(ask, origin, &guard, arrived).await?;
            this.operations.insert(operation, loaded.clone());
            Ok(loaded)
        });
        task.await.unwrap_or_else(|error| Err(Error::internal(format!("a load died: {error}"))))
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

    /// Takes a name out: from here on it is unknown. Requests under way finish on their generation; with `wait` the call
    /// ends when all generations of the name have left memory. Returns the generation that it pointed to.
    pub async fn unload(self: &Arc<Self>, name: &str, wait: bool) -> Result<Option<u64>> {
        let guard = self.locks.lock(name).await;
        self.registry.peek(name).ok_or_else(|| unknown(name))?;
        if let Some(journal) = self.journal.get().cloned() {
            let name = name.to_owned();
            self.loader.run(move || journal.unloaded(&name)).await?;
        }
        let entry = self.registry.remove(name).ok_or_else(|| unknown(name))?;
        drop(guard);
        self.flights.forget(name);
        let generations = entry.alive();
        let last = entry.current().map(|adapter| adapter.generation);
        entry.clear();
        drop(entry);
        if wait {
            let gone = || generations.iter().all(|generation| generation.strong_count() == 0);
            self.store.wait_until(gone).await;
        }
        self.release().await?;
        Ok(last)
    }

    /// Keeps an adapter in host memory, or lets it go when memory is short.
    pub async fn set_pinned(&self, name: &str, pinned: bool) -> Result<()> {
        let _guard = self.locks.lock(name).await;
        let entry = self.registry.peek(name).ok_or_else(|| unknown(name))?;
        if let Some(journal) = self.journal.get().cloned() {
            let name = name.to_owned();
            self.loader.run(move || journal.pinned(&name, pinned)).await?;
        }
        entry.set_pinned(pinned);
        Ok(())
    }

    /// Waits for loads and fetches under way; new ones may still come.
    pub async fn drain(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }

    #[cfg(test)]
    pub(super) fn locks_in_use(&self) -> usize {
        self.locks.len()
    }

    fn resolvers(&self) -> Option<&ResolverRegistry> {
        self.resolvers.get().filter(|resolvers| !resolvers.is_empty())
    }

    /// Brings a name's weights into memory and ends its flight.
    async fn fetch(self: &Arc<Self>, name: &str) -> Result<Arc<Adapter>> {
        let mut landing = self.flights.landing(name);
        let fetched = match self.registry.peek(name) {
            Some(entry) => self.refill(name, &entry).await,
            None => self.resolve(name).await,
        };
        landing.error = fetched.as_ref().err().cloned();
        fetched
    }

    /// Reads a registered adapter again whose weights had to leave memory.
    async fn refill(self: &Arc<Self>, name: &str, entry: &Entry) -> Result<Arc<Adapter>> {
        let arrived = Instant::now();
        let guard = self.locks.lock(name).await;
        if let Some(adapter) = entry.current() {
            return Ok(adapter);
        }
        let (request, origin, policy_version) = entry.source();
        let ask = LoadRequest { policy_version, ..LoadRequest::new(request).in_place() };
        Ok(self.load_locked(ask, origin, &guard, arrived).await?.0)
    }

    /// Asks the resolvers in order and loads what the first of them finds that can be loaded.
    async fn resolve(self: &Arc<Self>, name: &str) -> Result<Arc<Adapter>> {
        let mut failures = Vec::new();
        for resolver in self.resolvers().into_iter().flat_map(ResolverRegistry::iter) {
            match self.ask(resolver, name).await {
                Ok(Some(request)) => match self.load_found(resolver, request).await {
                    Ok(adapter) => return Ok(adapter),
                    Err(mut error) => {
                        // The resolver has found it: files that are missing are the adapter's fault.
                        if error.kind == ErrorKind::NotFound {
                            error.kind = ErrorKind::InvalidRequest;
                        }
                        let error = error.context(format_args!(
                            "LoRA adapter '{name}' was found but could not be loaded"
                        ));
                        failures.push((resolver.name().clone(), error));
                    }
                },
                Ok(None) => {}
                Err(error) => failures.push((resolver.name().clone(), error)),
            }
        }
        for (resolver, error) in &failures {
            tracing::warn!(%resolver, name, error = %error.message, "not resolved");
        }
        Err(verdict(name, failures))
    }

    async fn ask(&self, resolver: &GuardedResolver, name: &str) -> Result<Option<LoraRequest>> {
        let limits = CallLimits {
            stall: 2 * self.config.resolver_timeout,
            total: self.config.resolver_limit,
        };
        let base_model = &self.config.base_model;
        Ok(resolver.call((base_model, name), limits, &self.tasks).await?)
    }

    async fn load_found(
        &self,
        resolver: &GuardedResolver,
        request: LoraRequest,
    ) -> Result<Arc<Adapter>> {
        let arrived = Instant::now();
        let name = request.name.clone();
        let guard = self.locks.lock(&name).await;
        // Somebody may have loaded the name while the resolver looked for it: theirs is newer.
        if let Some(adapter) = self.registry.peek(&name).and_then(|entry| entry.current()) {
            return Ok(adapter);
        }
        let origin = Origin::Resolver(resolver.name().clone());
        let ask = LoadRequest::new(request).in_place();
        Ok(self.load_locked(ask, origin, &guard, arrived).await?.0)
    }

    /// An adapter's source has changed: loads it again, if it is this resolver's. A failure leaves what is there.
    async fn take_change(self: &Arc<Self>, resolver: &GuardedResolver, change: AdapterChange) {
        let name = &change.name;
        self.flights.forget(name);
        let ours = Origin::Resolver(resolver.name().clone());
        let entry = self.registry.peek(name).filter(|entry| entry.source().1 == ours);
        let Some(entry) = entry else { return };
        let reloaded = async {
            let Some(request) = self.ask(resolver, name).await? else {
                return Err(unknown(name));
            };
            let arrived = Instant::now();
            let guard = self.locks.lock(name).await;
            let ask = LoadRequest::new(request).in_place();
            self.load_locked(ask, ours, &guard, arrived).await
        };
        match reloaded.await {
            Ok((adapter, _)) => {
                let generation = adapter.generation;
                tracing::info!(name, generation, "an adapter's files have changed: reloaded");
            }
            Err(error) => {
                let generation = entry.current().map(|adapter| adapter.generation);
                tracing::warn!(name, ?generation, error = %error.message, "an adapter's files have changed and cannot be loaded: the old generation stays");
            }
        }
    }

    /// The one place where a name gets a new generation. The caller holds the name's lock.
    async fn load_locked(
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
        let old = self.registry.peek(&name);
        self.check(&ask, old.as_deref())?;
        let was_pinned = old.as_deref().is_some_and(Entry::is_pinned);
        let old = old.and_then(|entry| entry.current());
        let (builder, path, content) =
            (self.builder.clone(), ask.request.path.clone(), ask.content.clone());
        let started = Instant::now();
        let Built { peft, packed, read, pack } =
            self.loader.run(move || builder.build(&path, &content)).await?;
        let waited = started.elapsed().saturating_sub(read + pack) + (started - arrived);

        let room = self.store.take(packed.bytes.len());
        let spare = old.as_ref().map_or((0, 0), |old| (1, old.bytes()));
        let is_full = || self.store.is_over(spare);
        if is_full() {
            self.registry.evict(&name, || !is_full());
            self.release().await?;
            // An answer is out before its step ends and its adapter is let go; that step has ended since.
            if is_full() {
                self.registry.evict(&name, || !is_full());
            }
            if is_full() {
                drop(room);
                return Err(Error::exhausted(self.store.describe()));
            }
        }
        let generation = self.next_generation.fetch_add(1, Ordering::Relaxed);
        if let Some(journal) = self.journal.get().cloned()
            && !matches!(origin, Origin::Resolver(_))
        {
            let record = Record {
                upload: (origin == Origin::Upload).then(|| peft.digest.clone()),
                pinned: ask.pinned.unwrap_or(was_pinned),
                policy_version: ask.policy_version,
                request: ask.request.clone(),
            };
            let content = ask.content;
            self.loader.run(move || journal.loaded(record, &content, generation)).await?;
        }
        let flip = Instant::now();
        let unchanged = old.as_ref().is_some_and(|old| old.digest == peft.digest);
        let adapter = Arc::new(Adapter {
            generation,
            digest: peft.digest,
            rank: peft.rank,
            modules: peft.modules,
            policy_version: ask.policy_version,
            loaded_at: SystemTime::now(),
            packed: Arc::new(packed),
            request: ask.request,
            _room: room,
        });
        self.registry.put(adapter.clone(), origin, ask.pinned);
        self.flights.forget(&name);
        let replaced = old.map(|old| old.generation);
        if let Some(engine) = &self.engine
            && replaced.is_some()
        {
            engine.replace(adapter.clone()).await?;
        }
        self.flips.send_modify(|flips| *flips += 1);
        let timings = LoadTimings { wait: waited, read, pack, flip: flip.elapsed() };
        let said = LoadedAdapter::from(&*adapter);
        Ok((adapter, Loaded { adapter: said, replaced, unchanged, timings, repeated: false }))
    }

    fn check(&self, ask: &LoadRequest, old: Option<&Entry>) -> Result<()> {
        let name = &ask.request.name;
        if !names::is_valid(name) {
            return Err(Error::invalid(format!(
                "{name:?} cannot be an adapter's name: at most 256 bytes, no control characters, no `..`, no leading `/`"
            )));
        }
        if old.is_some() && !ask.in_place {
            return Err(Error::invalid(format!(
                "The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True."
            )));
        }
        let found = old.and_then(Entry::current).map_or(0, |adapter| adapter.generation);
        match ask.expected_generation {
            Some(expected) if expected != found => Err(Error::new(
                ErrorKind::Conflict,
                format!("The lora adapter '{name}' is at generation {found}, expected {expected}."),
            )),
            _ => Ok(()),
        }
    }

    /// Lets the engine give back what it holds of generations that nobody uses any more.
    async fn release(&self) -> Result<()> {
        match &self.engine {
            Some(engine) => engine.release_adapters().await,
            None => Ok(()),
        }
    }
}

fn unknown(name: &str) -> Error {
    Error::not_found(format!("The lora adapter '{name}' cannot be found."))
}

/// What a client learns when no resolver brought the adapter: the most telling failure. Found but unusable comes first,
/// then sources that could not be asked, then faults; `not found` alone remains where all have said so.
fn verdict(name: &str, failures: Vec<(Arc<str>, Error)>) -> Error {
    let weight = |error: &Error| match error.kind {
        ErrorKind::InvalidRequest | ErrorKind::Conflict => 6,
        ErrorKind::Exhausted => 5,
        ErrorKind::Unavailable | ErrorKind::Cancelled => 4,
        ErrorKind::PermissionDenied => 3,
        ErrorKind::Internal => 2,
        ErrorKind::NotFound => 1,
    };
    let reasons: Vec<String> =
        failures.iter().map(|(resolver, error)| format!("{resolver}: {}", error.message)).collect();
    // The first of equals: the operator's order.
    let worst = failures.into_iter().rev().map(|(_, error)| error).max_by_key(weight);
    let mut error = worst.unwrap_or_else(|| Error::not_found(""));
    error.message = match (error.kind, reasons.is_empty()) {
        // The caller says that the name is unknown; here is why, if anybody knows.
        (ErrorKind::NotFound, _) => reasons.join("; "),
        _ => format!("LoRA adapter '{name}' cannot be had: {}", reasons.join("; ")),
    };
    error
}
