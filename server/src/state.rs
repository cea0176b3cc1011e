//! What every handler sees.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use loraplex_core::adapter::Floor;
use loraplex_core::{Adapter, AdapterManager, EngineHandle, ErrorKind, Llm, UpdatePolicy};
use loraplex_hub_client::HubClient;
use tokio::sync::Semaphore;

use crate::auth::Guard;
use crate::chat_template::ChatTemplate;
use crate::control::paths::PathPolicy;
use crate::convert::Converter;
use crate::error::{ApiError, ApiResult};

/// Uploads of adapters that are read at once.
const UPLOADS: usize = 2;

/// Shared by all handlers.
pub type App = Arc<AppState>;

/// Bytes of a model's name at most; a longer one exists nowhere.
const MAX_NAME_BYTES: usize = 256;

/// Handles and settings that handlers see.
#[derive(Debug)]
pub struct AppState {
    pub(crate) engine: EngineHandle,
    pub(crate) adapters: Arc<AdapterManager>,
    pub(crate) metrics: Arc<loraplex_core::metrics::Metrics>,
    pub(crate) converter: Converter,
    /// Names of the base; the first is the one in answers.
    pub(crate) served: Vec<String>,
    /// Where the base comes from, as cards say it.
    pub(crate) root: String,
    pub(crate) guard: Guard,
    /// Requests come over the loopback interface alone, so that a foreign `Host` is a web page's doing.
    pub(crate) loopback: bool,
    /// Which local paths the control routes may name.
    pub(crate) paths: PathPolicy,
    /// Whether there are control routes.
    pub(crate) updating: bool,
    /// What requests do that say nothing when their adapter is replaced.
    pub(crate) update_policy: UpdatePolicy,
    /// How long a request waits for a newer generation.
    pub(crate) adapter_wait: Duration,
    /// Largest rank and how many adapters of it the device has room for; `None` where adapters are off.
    pub(crate) lora_limits: Option<(usize, usize)>,
    /// Where adapters come from that are named as repositories; `None` takes such names for paths.
    pub(crate) hub: Option<HubClient>,
    /// Uploads at once: each is in memory as a whole.
    pub(crate) uploads: Semaphore,
    /// The pause that is, if there is one, is a sleep.
    pub(crate) asleep: AtomicBool,
    /// Requests that are parsed and tokenised at once: more than cores would only hold memory.
    work: Arc<Semaphore>,
}

/// How a model is served.
#[derive(Debug)]
pub struct Serving {
    /// Names of the base, at least one.
    pub served: Vec<String>,
    /// Where it comes from.
    pub root: String,
    /// Who may call.
    pub guard: Guard,
    /// Whether only this machine can connect.
    pub loopback: bool,
    /// Outputs of one call at most.
    pub max_outputs: usize,
    /// Whether adapters may come and go while the server runs.
    pub updating: bool,
    /// Which local paths the control routes may name.
    pub paths: PathPolicy,
    /// What requests do that say nothing when their adapter is replaced.
    pub update_policy: UpdatePolicy,
    /// How long a request waits for a newer generation.
    pub adapter_wait: Duration,
    /// Largest rank and how many adapters of it the device has room for; `None` where adapters are off.
    pub lora_limits: Option<(usize, usize)>,
    /// Where adapters come from that are named as repositories; `None` takes such names for paths.
    pub hub: Option<HubClient>,
}

impl AppState {
    /// The state of a server for `llm`.
    pub fn new(llm: &Llm, serving: Serving) -> Self {
        let model = llm.info().clone();
        let template = match &model.chat_template {
            Some(source) => ChatTemplate::new(source, model.special_tokens.clone())
                .map_err(|reason| format!("the model's chat template cannot be used: {reason}")),
            None => Err("the model has no chat template".to_owned()),
        };
        if let Err(reason) = &template {
            tracing::warn!("{reason}: chat requests will be refused");
        }
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Self {
            engine: llm.engine().clone(),
            adapters: llm.adapters().clone(),
            metrics: llm.metrics().clone(),
            converter: Converter {
                tokenizer: llm.tokenizer().clone(),
                model,
                template,
                max_outputs: serving.max_outputs,
            },
            served: serving.served,
            root: serving.root,
            guard: serving.guard,
            loopback: serving.loopback,
            updating: serving.updating,
            paths: serving.paths,
            update_policy: serving.update_policy,
            adapter_wait: serving.adapter_wait,
            lora_limits: serving.lora_limits,
            hub: serving.hub,
            uploads: Semaphore::new(UPLOADS),
            asleep: AtomicBool::new(false),
            work: Arc::new(Semaphore::new(cores)),
        }
    }

    /// Why chats are refused, if they are.
    pub fn chat_template(&self) -> Result<(), &str> {
        self.converter.template.as_ref().map(|_| ()).map_err(String::as_str)
    }

    /// Runs what takes a processor for a while, away from the threads that serve connections.
    pub(crate) async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Converter) -> ApiResult<T> + Send + 'static,
    ) -> ApiResult<T> {
        let permit = self.work.clone().acquire_owned().await.expect("nobody closes it");
        let app = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            // Held until the work is done, also when the client has gone.
            let _permit = permit;
            work(&app.converter)
        });
        done.await.map_err(|error| ApiError::internal(format!("a request's work died: {error}")))?
    }

    /// The adapter that `model` names; `None` for the base.
    pub(crate) async fn adapter(&self, model: Option<&str>) -> ApiResult<Option<Arc<Adapter>>> {
        self.adapter_at_least(model, Floor::default()).await
    }

    /// As [`AppState::adapter`]; waits for weights that `floor` allows.
    pub(crate) async fn adapter_at_least(
        &self,
        model: Option<&str>,
        floor: Floor,
    ) -> ApiResult<Option<Arc<Adapter>>> {
        let name = match model {
            None | Some("") => return self.base(floor),
            Some(name) if self.served.iter().any(|served| served == name) => {
                return self.base(floor);
            }
            Some(name) => name,
        };
        if name.len() > MAX_NAME_BYTES {
            let start: String = name.chars().take(32).collect();
            return Err(ApiError::unknown_model(&format!("{start}…"), &self.served, ""));
        }
        let found = match floor == Floor::default() {
            true => self.adapters.get(name).await,
            false => {
                let deadline = Instant::now() + self.adapter_wait;
                self.adapters.get_at_least(name, floor, deadline).await
            }
        };
        match found {
            Ok(adapter) => Ok(Some(adapter)),
            Err(error) if error.kind == ErrorKind::NotFound => {
                Err(ApiError::unknown_model(name, &self.served, &error.message))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a pause or a sleep, if there is one.
    pub(crate) async fn resume(&self) -> ApiResult<()> {
        self.engine.resume().await?;
        self.asleep.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The base has no generations to wait for.
    fn base(&self, floor: Floor) -> ApiResult<Option<Arc<Adapter>>> {
        match floor == Floor::default() {
            true => Ok(None),
            false => Err(ApiError::param(
                "model",
                "`min_generation` and `min_policy_version` are an adapter's; `model` names the base",
            )),
        }
    }

    /// The name that answers carry.
    pub(crate) fn answer_name(&self, adapter: Option<&Adapter>) -> String {
        adapter.map_or(&*self.served[0], Adapter::name).to_owned()
    }
}
