//! The way into the engine's thread, for everybody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::ahead::Flight;
use super::command::{Command, Drain};
use super::mailbox::mailbox;
use super::outputs::Sink;
use super::pause::{Pause, PauseMode, PauseState};
use super::stream::OutputStream;
use super::{Engine, Outputs};
use crate::adapter::Adapter;
use crate::config::SchedulerConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::kv_cache::BlockManager;
use crate::metrics::Metrics;
use crate::request::GenerateRequest;
use crate::runner::Runner;
use crate::scheduler::{AdapterPool, Scheduler, SeqId, StepPlan};
use crate::tokenizer::Tokenizer;

/// What the engine's thread is started with.
#[derive(Debug)]
pub struct EngineOptions {
    /// Bounds of steps and of the queue.
    pub scheduler: SchedulerConfig,
    /// Longest prompt plus output; a sequence of this length fits the pool.
    pub max_model_len: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// The pool of KV blocks.
    pub blocks: BlockManager,
    /// Tokens that end an output.
    pub end_tokens: Arc<[u32]>,
    /// Seeds requests that bring none.
    pub seed: u64,
    /// Bytes that adapters take on the device at most.
    pub adapter_pool: usize,
    /// Where the engine counts.
    pub metrics: Arc<Metrics>,
}

/// Submits requests. Clones share one engine, which stops when the last of them is gone.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    commands: Mutex<Sender<Command>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    tokenizer: Arc<Tokenizer>,
    next_id: AtomicU64,
    /// Requests submitted and not ended.
    open: Arc<AtomicUsize>,
    max_open: usize,
    max_model_len: usize,
    vocab_size: usize,
    adapter_pool: usize,
    paused: Arc<AtomicBool>,
    /// Replacements that are about to come.
    expected: Arc<AtomicUsize>,
}

/// A replacement that is about to come, until this is dropped.
#[derive(Debug)]
pub(crate) struct Expected(Arc<AtomicUsize>);

impl Drop for Expected {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One of the places that [`SchedulerConfig`] allows; given back on drop.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl EngineHandle {
    /// Starts the engine's thread.
    pub fn start(
        runner: Box<dyn Runner>,
        tokenizer: Arc<Tokenizer>,
        options: EngineOptions,
    ) -> Result<Self> {
        let (sender, commands) = channel();
        let max_open = options.scheduler.max_waiting + options.scheduler.max_num_seqs;
        let (max_model_len, vocab_size) = (options.max_model_len, options.vocab_size);
        let paused = Arc::<AtomicBool>::default();
        let expected = Arc::<AtomicUsize>::default();
        // A device that adapters are copied to computes beside the engine.
        let ahead = options.scheduler.run_ahead.unwrap_or(runner.copies_adapters());
        let pool = AdapterPool::new(options.adapter_pool).with_copies(runner.copies_adapters());
        let engine = Engine {
            scheduler: Scheduler::new(options.scheduler, max_model_len, pool),
            pause: PauseState::default(),
            paused: paused.clone(),
            blocks: options.blocks,
            runner,
            outputs: Outputs::default(),
            metrics: options.metrics,
            commands,
            end_tokens: options.end_tokens,
            seed: options.seed,
            plan: StepPlan::default(),
            flight: Flight::new(ahead, expected.clone()),
            held: None,
            results: Default::default(),
            arrived: Vec::new(),
            stopping: false,
            adapters_moved: false,
        };
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || engine.run())
            .map_err(|error| Error::internal(format!("cannot start the engine: {error}")))?;
        Ok(Self {
            shared: Arc::new(Shared {
                commands: Mutex::new(sender),
                thread: Mutex::new(Some(thread)),
                tokenizer,
                next_id: AtomicU64::new(0),
                open: Arc::default(),
                max_open,
                max_model_len,
                vocab_size,
                adapter_pool: options.adapter_pool,
                paused,
                expected,
            }),
        })
    }

    /// Queues a request. Fails at once when the queue is full or the engine is gone; never waits.
    pub fn submit(&self, request: GenerateRequest) -> Result<OutputStream> {
        let shared = &self.shared;
        self.check(&request)?;
        let place = Place(shared.open.clone());
        let open = shared.open.fetch_add(1, Ordering::Relaxed);
        if open >= shared.max_open {
            return Err(Error::exhausted(format!("{open} requests are in the queue, the limit")));
        }
        let id = SeqId(shared.next_id.fetch_add(1, Ordering::Relaxed));
        let (outbox, inbox) = mailbox();
        let stream = OutputStream::new(self.clone(), id, place, inbox, &request);
        let sink = Sink::new(outbox);
        let request = Box::new(request);
        self.send(Command::Submit { id, request, arrival: Instant::now(), sink })?;
        Ok(stream)
    }

    /// The bounds that the engine relies on; a server has checked them with better words.
    fn check(&self, request: &GenerateRequest) -> Result<()> {
        let vocab = self.shared.vocab_size;
        let limit = self.shared.max_model_len;
        if request.prompt.is_empty() {
            return Err(Error::invalid("the prompt is empty").with_param("prompt"));
        }
        if let Some(token) = request.prompt.iter().find(|&&token| token as usize >= vocab) {
            let message = format!("token id {token} is not in the vocabulary of {vocab}");
            return Err(Error::invalid(message).with_param("prompt"));
        }
        let wanted = request.prompt.len() + request.params.max_tokens as usize;
        if request.params.max_tokens == 0 || wanted > limit {
            return Err(Error::invalid(format!(
                "prompt of {} tokens and max_tokens of {} exceed the model's length of {limit}",
                request.prompt.len(),
                request.params.max_tokens
            ))
            .with_param("max_tokens"));
        }
        match &request.adapter {
            Some(adapter) => self.check_room(adapter.name(), adapter.bytes()),
            None => Ok(()),
        }
    }

    /// Whether an adapter of so many bytes can ever be on the device.
    pub(crate) fn check_room(&self, name: &str, bytes: usize) -> Result<()> {
        let pool = self.shared.adapter_pool;
        if bytes > pool {
            return Err(Error::invalid(format!(
                "LoRA adapter '{name}' has {bytes} bytes, the device's room for adapters is {pool} (--max-loras, --lora-pool-memory)"
            )));
        }
        Ok(())
    }

    pub(super) fn abort(&self, id: SeqId) {
        // An engine that is gone has nothing to abort.
        let _ = self.send(Command::Abort(id));
    }

    /// Forgets cached prefixes that nobody uses. True when none remains.
    pub async fn reset_prefix_cache(&self) -> Result<bool> {
        self.ask(Command::ResetPrefixCache).await
    }

    /// Says that a call of [`EngineHandle::replace`] is a few milliseconds away: it is not to wait for a step that ran ahead.
    pub(crate) fn expect_replacement(&self) -> Expected {
        self.shared.expected.fetch_add(1, Ordering::Relaxed);
        Expected(self.shared.expected.clone())
    }

    /// A name points to `new` from here on. Ends at a step boundary; sequences under way finish on what they have,
    /// unless they follow: these take it at their next token.
    pub async fn replace(&self, new: Arc<Adapter>) -> Result<()> {
        self.ask(|done| Command::Replace(new, done)).await
    }

    /// Stops the flow of tokens. Ends when the mode's condition holds: nothing runs (`Abort`, `Wait`) or nothing moves
    /// (`Keep`). The engine goes on by itself after `lease`, if there is one.
    pub async fn pause(
        &self,
        mode: PauseMode,
        clear_cache: bool,
        lease: Option<Duration>,
    ) -> Result<()> {
        let until = lease.map(|lease| Instant::now() + lease);
        let pause = Pause { mode, clear_cache, until };
        match self.ask(|done| Command::Pause(pause, done)).await? {
            true => Ok(()),
            false => {
                let message = "the pause was ended or changed before it held";
                Err(Error::new(ErrorKind::Conflict, message))
            }
        }
    }

    /// Ends a pause, if there is one.
    pub async fn resume(&self) -> Result<()> {
        self.ask(Command::Resume).await
    }

    /// Whether the engine is paused.
    pub fn is_paused(&self) -> bool {
        self.shared.paused.load(Ordering::Relaxed)
    }

    /// Ends the requests with these ids, or all; their streams get the tokens so far and
    /// [`FinishReason::Abort`](crate::FinishReason::Abort). Returns how many sequences ended.
    pub async fn abort_requests(&self, requests: Option<Vec<String>>) -> Result<usize> {
        self.ask(|done| Command::AbortRequests(requests, done)).await
    }

    /// Gives back what the device holds of generations that nobody uses any more. Ends at a step boundary.
    pub async fn release_adapters(&self) -> Result<()> {
        self.ask(Command::ReleaseAdapters).await
    }

    /// Gives back what the device holds of adapters that no sequence has a lease on; a step that needs one brings it back
    /// from host memory. Returns the bytes.
    pub async fn evict_adapters(&self) -> Result<usize> {
        self.ask(Command::EvictAdapters).await
    }

    /// Whether the engine's thread runs.
    pub fn is_alive(&self) -> bool {
        self.shared.thread.lock().as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Requests that have been submitted and have not ended.
    pub fn open_requests(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    pub(super) fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.shared.tokenizer
    }

    /// Takes nothing new; what runs finishes (`finish`) or ends now with the tokens that it has. Returns at once.
    pub fn stop(&self, finish: bool) {
        let drain = if finish { Drain::Finish } else { Drain::Abort };
        // An engine that is gone has stopped.
        let _ = self.send(Command::Stop(drain));
    }

    /// Waits for the engine's thread to end; [`EngineHandle::stop`] comes first. Blocks.
    pub fn join(&self) {
        let thread = self.shared.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread has panicked");
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (done, answer) = oneshot::channel();
        self.send(command(done))?;
        answer.await.map_err(|_| gone())
    }

    fn send(&self, command: Command) -> Result<()> {
        self.shared.commands.lock().send(command).map_err(|_| gone())
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "the engine has stopped")
}
