//! A configuration to a server that serves until a signal.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use loraplex_core::adapter::{Journal, ResolverRegistry};
use loraplex_core::{EngineHandle, Llm, LoraRequest, plugin};
use loraplex_hub_client::HubClient;
use tokio::net::{TcpListener, TcpSocket};

use crate::config::{HttpConfig, RuntimeConfig, ServerConfig};
use crate::hub::{self, HubModel};
use crate::lora_modules::LoraModule;
use crate::progress::{Downloads, Stderr};
use crate::routes;
use crate::serve::Connections;
use crate::shutdown::Signals;
use crate::state::{AppState, Serving};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// For clients to read that their answers were cut off.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Loads, listens, calls `ready` with the address, and serves until a signal; requests that run then may finish.
pub async fn run(config: ServerConfig, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let mut signals = Signals::new()?;
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    let socket = bind(&config.http).await?;
    tokio::select! {
        () = signals.next() => {
            tracing::info!("stopped before the model was loaded");
            return Ok(());
        }
        started = start(&config) => {
            let (llm, app) = started?;
            let listener = socket.listen(BACKLOG).with_context(|| address(&config.http))?;
            let address = listener.local_addr()?;
            announce(&config, &llm, address);
            ready(address);
            serve(&config.http, llm.engine(), listener, app, &mut signals).await;
            // Blocks until the engine's thread has ended.
            tokio::task::spawn_blocking(move || llm.shutdown(false)).await?;
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Takes the address before the model is loaded, so that a taken one is known at once; nobody can connect yet.
async fn bind(http: &HttpConfig) -> Result<TcpSocket> {
    let host = http.host.trim_start_matches('[').trim_end_matches(']');
    let mut found = tokio::net::lookup_host((host, http.port))
        .await
        .with_context(|| format!("--host {}: there is no such address", http.host))?;
    let found = found.next().with_context(|| format!("--host {}: no address", http.host))?;
    let socket = if found.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(found).with_context(|| address(http))?;
    Ok(socket)
}

fn address(http: &HttpConfig) -> String {
    format!("cannot listen on {}:{}; another --port may be free", http.host, http.port)
}

async fn start(config: &ServerConfig) -> Result<(Llm, axum::Router)> {
    // Before a large model is read: a plugin that does not fit stops the start, as does a state folder in use.
    let resolvers = resolvers(&config.runtime)?;
    let journal = config.runtime.state_dir.as_deref().map(Journal::open).transpose()?;
    let mut engine = config.engine.clone();
    let model = engine.model.display().to_string();
    if let Some(wanted) = &config.hub_model {
        let fetched = fetch(config, wanted).await;
        engine.model = fetched.with_context(|| format!("cannot serve {model}"))?;
    }
    let llm = tokio::task::spawn_blocking(move || Llm::load(engine, &Stderr::new()))
        .await
        .map_err(|error| anyhow!("loading died: {error}"))?
        .with_context(|| format!("cannot serve {model}"))?;
    for module in &config.lora_modules {
        load(&llm, module).await?;
    }
    if let Some(journal) = journal {
        let (back, lost) = llm.adapters().restore(journal).await;
        tracing::info!("{back} adapters of the last run are back, {lost} cannot be loaded");
    }
    llm.install_resolvers(resolvers);
    let lora = &config.engine.lora;
    let state = AppState::new(
        &llm,
        Serving {
            served: config.served_model_names.clone(),
            root: model,
            guard: config.http.guard.clone(),
            loopback: config.http.is_loopback(),
            max_outputs: config.engine.scheduler.max_waiting,
            updating: config.runtime.updating,
            paths: config.runtime.paths.clone(),
            update_policy: config.runtime.update_policy,
            adapter_wait: config.engine.scheduler.adapter_wait,
            lora_limits: lora.enabled.then(|| (lora.max_rank, lora.max_loras())),
            hub: Some(HubClient::new(config.hub.clone())?),
        },
    );
    if config.engine.chat_template.is_some()
        && let Err(reason) = state.chat_template()
    {
        return Err(anyhow!("--chat-template: {reason}"));
    }
    Ok((llm, routes::router(Arc::new(state))))
}

/// Opens the plugins, in the order in which they are asked.
fn resolvers(runtime: &RuntimeConfig) -> Result<ResolverRegistry> {
    let mut resolvers = ResolverRegistry::new();
    if runtime.plugins.is_empty() {
        return Ok(resolvers);
    }
    let folder = match &runtime.plugin_dir {
        Some(folder) => folder.clone(),
        None => {
            let executable = std::env::current_exe().context("where this executable is")?;
            executable.parent().map(Into::into).unwrap_or_default()
        }
    };
    for (name, config) in runtime.plugins.iter().zip(&runtime.plugin_configs) {
        resolvers.push(name.as_str(), plugin::open(&folder, name, config)?);
        tracing::info!("resolver {name} is ready");
    }
    Ok(resolvers)
}

async fn fetch(config: &ServerConfig, wanted: &HubModel) -> Result<PathBuf> {
    let client = HubClient::new(config.hub.clone())?;
    let with_weights = !config.engine.dummy_weights;
    hub::fetch_model(&client, wanted, with_weights, &Downloads::new()).await.with_context(|| {
        let host = config.hub.endpoint.host_str().unwrap_or_default();
        format!("there is no such folder here, and as a repository of {host}")
    })
}

async fn load(llm: &Llm, module: &LoraModule) -> Result<()> {
    let mut request = LoraRequest::new(&module.name, &module.path);
    if let Some(base) = &module.base_model_name {
        request = request.with_base_model(base);
    }
    let loaded = llm
        .adapters()
        .load(request)
        .await
        .with_context(|| format!("--lora-modules {}={}", module.name, module.path.display()))?;
    let adapter = loaded.adapter;
    tracing::info!(name = ?adapter.name, rank = adapter.rank, "adapter loaded");
    Ok(())
}

fn announce(config: &ServerConfig, llm: &Llm, address: SocketAddr) {
    let info = llm.info();
    tracing::info!(
        "serving {} ({}, {} tokens of context) with {} adapters on {}",
        config.served_model_names[0],
        info.architecture,
        info.max_model_len,
        config.lora_modules.len(),
        info.device
    );
    if !config.http.is_loopback() && !config.http.guard.has_user_key() {
        tracing::warn!("whoever reaches {address} can use this server: there is no --api-key");
    }
    tracing::info!("listening on http://{address}");
}

async fn serve(
    http: &HttpConfig,
    engine: &EngineHandle,
    listener: TcpListener,
    app: axum::Router,
    signals: &mut Signals,
) {
    let connections = Connections::default();
    tokio::select! {
        () = connections.accept(listener, app) => {}
        () = signals.next() => {}
    }
    connections.drain();
    let (open, limit) = (connections.open(), http.shutdown_timeout);
    if open > 0 {
        tracing::info!("stopping; {open} connections have {} s to finish", limit.as_secs());
    }
    tokio::select! {
        () = connections.drained() => return,
        () = tokio::time::sleep(limit) => {
            tracing::warn!("{} connections did not finish", connections.open());
            // Their clients get what there is, and hear that it is not all.
            if engine.abort_requests(None).await.is_ok() {
                let _ = tokio::time::timeout(LAST_WORDS, connections.drained()).await;
            }
        }
        () = signals.next() => tracing::warn!("stopping at once"),
    }
    connections.abort();
    connections.drained().await;
}
