//! The plugin's side: an author's resolver behind the interface.
//!
//! What this module must never do: let a panic cross. Calls run as tasks of the plugin's own runtime, and what crosses is
//! a future that waits for the task.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};

use abi_stable::std_types::{RArc, ROption, RResult, RStr, RString};
use async_ffi::{FfiFuture, FutureExt};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinError, JoinHandle};

use super::interface::{AbiResolver, Answer};
use super::wire;
use crate::{LoraResolver, Progress, ResolveError};

/// An author's resolver, as it crosses.
#[derive(Debug)]
pub(super) struct Shim<R>(pub(super) Arc<R>);

impl<R: LoraResolver> AbiResolver for Shim<R> {
    fn resolve_lora(
        &self,
        base_model: RStr<'_>,
        lora_name: RStr<'_>,
        progress: RArc<AtomicUsize>,
    ) -> FfiFuture<Answer> {
        let (resolver, base_model, name) =
            (self.0.clone(), base_model.to_string(), lora_name.to_string());
        let call = Progress::of(progress)
            .scope(async move { resolver.resolve_lora(&base_model, &name).await });
        let answer = spawn(call);
        async move {
            let found = match answer.await {
                Ok(Ok(found)) => found.map(|request| wire::encode_request(&request)).transpose(),
                Ok(Err(error)) => Err(error),
                Err(died) => Err(died),
            };
            match found {
                Ok(found) => RResult::ROk(found.into()),
                Err(error) => RResult::RErr(wire::encode_error(&error)),
            }
        }
        .into_ffi()
    }

    fn next_change(&self) -> FfiFuture<ROption<RString>> {
        let resolver = self.0.clone();
        let change = spawn(async move { resolver.next_change().await });
        async move {
            match change.await {
                Ok(Some(change)) => ROption::RSome(wire::encode_change(&change)),
                // A watch that has died is over; its panic is in the log.
                Ok(None) | Err(_) => ROption::RNone,
            }
        }
        .into_ffi()
    }
}

/// Runs `call` on the plugin's runtime. The future that comes back may be polled anywhere; dropping it ends the call.
fn spawn<T: Send + 'static>(
    call: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = Result<T, ResolveError>> + Send + 'static {
    let started = catch_unwind(AssertUnwindSafe(|| runtime().spawn(call)));
    async move {
        let mut call = match started {
            Ok(call) => AbortOnDrop(call),
            Err(panic) => return Err(panicked(panic)),
        };
        (&mut call.0).await.map_err(died)
    }
}

/// Threads of a plugin's runtime. A call that blocks one without end takes it along; the others go on.
const WORKERS: usize = 4;

/// Its own, since tokio's state belongs to each library: a task that the host polled would find no reactor.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(WORKERS).enable_all().thread_name("lora-plugin");
        builder.build().expect("the system gives a plugin its threads")
    })
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn died(error: JoinError) -> ResolveError {
    match error.try_into_panic() {
        Ok(panic) => panicked(panic),
        Err(error) => ResolveError::internal(format!("the resolver's call ended early: {error}")),
    }
}

/// The error that a panic becomes.
pub(super) fn panicked(panic: Box<dyn Any + Send>) -> ResolveError {
    let message = panic.downcast_ref::<&str>().copied();
    let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let error = ResolveError::internal(match message {
        Some(message) => format!("the resolver panicked: {message}"),
        None => "the resolver panicked".to_owned(),
    });
    // A payload may panic once more when it is dropped, where nothing catches it.
    std::mem::forget(panic);
    error
}
