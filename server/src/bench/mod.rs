//! `server bench`: what an adapter costs, as a share of the base's speed in the same run.
//!
//! Every figure is taken on the client's side, per request that succeeded, defined as in vLLM's `vllm bench serve`
//! (`vllm/benchmarks/serve.py`), so that figures can be laid side by side:
//!
//! | figure | is |
//! |---|---|
//! | TTFT | from sending the request to the first chunk of the stream that holds a choice |
//! | ITL | between such chunks after the first |
//! | E2E | from sending to the last such chunk |
//! | TPOT | (E2E - TTFT) / (output tokens - 1); requests of one token are left out |
//! | output tokens/s | output tokens of all requests / time from the first one's turn to the last one's end |
//! | total tokens/s | prompt and output tokens of all requests / the same time |
//!
//! Tokens are counted by the server's `usage`. Percentiles are linear between ranks, as numpy's.
//!
//! A round runs the base and every other mix once, one after the other, and there are several rounds (A B A B), so that a
//! machine that drifts slows all of them. A ratio is the median over rounds against the base's median; beside it stand the
//! smallest and the largest ratio within one round. Before the first round each adapter is asked once, unmeasured.
//!
//! What this module must never do: know the engine. It measures over HTTP, its own server as well as any other.

pub(crate) mod adapters;
pub mod args;
pub mod client;
pub mod drive;
pub(crate) mod limits;
pub mod picture;
pub mod report;
pub mod stats;
pub mod workload;

use std::fs;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::args::Settings;
use crate::config::ServerConfig;
use crate::config::env::Environment;
use crate::{demo, run};
use args::BenchArgs;
use client::{Client, bodies};
use drive::{Outcome, Target};
use report::Report;
use workload::{Load, Mix, Planned, Shape};

/// Measures as `args` say, and writes what was found.
pub async fn bench(args: BenchArgs, environment: &Environment) -> Result<()> {
    if args.growth {
        return crate::growth::growth(args, environment).await;
    }
    let plan = Plan::new(&args)?;
    let Some(url) = args.url.clone() else { return with_own_server(args, plan, environment).await };
    let key = args.settings.api_key.first().map(|key| key.expose().to_owned());
    let client = Client::new(&url, key, args.text_prompts, bodies(&args.body)?);
    let (mut base, mut adapters) = (args.base_model.clone(), args.adapter_models.clone());
    if base.is_none() || adapters.is_empty() && plan.adapters() > 0 {
        let (bases, found) = client.models().await?;
        base = base.or_else(|| bases.into_iter().next());
        if adapters.is_empty() {
            adapters = found;
        }
    }
    let base = base.context("the server lists no base model; name it with --base-model")?;
    measure(&args, &plan, Target { client, base, adapters, concurrency: plan.concurrency }).await
}

/// What will be measured, checked.
#[derive(Debug)]
struct Plan {
    mixes: Vec<Mix>,
    load: Load,
    concurrency: usize,
    limited: bool,
}

impl Plan {
    fn new(args: &BenchArgs) -> Result<Self> {
        let mut mixes = vec![Mix::Base];
        for text in &args.mix {
            let mix = Mix::parse(text)?;
            if !mixes.contains(&mix) {
                mixes.push(mix);
            }
        }
        for (flag, count) in [("--requests", args.requests), ("--rounds", args.rounds)] {
            ensure!((1..=100_000).contains(&count), "{flag} {count}: it is 1 to 100000");
        }
        if let Some(rate) = args.request_rate {
            ensure!(rate.is_finite() && rate >= 1e-3, "--request-rate {rate}: it is 0.001 or more");
        }
        for path in [&args.json, &args.svg].into_iter().flatten() {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let is_there = folder.is_none_or(Path::is_dir);
            ensure!(is_there, "cannot write {}: there is no such folder", path.display());
        }
        let concurrency = args.concurrency.or(args.request_rate.is_none().then_some(8));
        let at_once = concurrency.unwrap_or(args.requests);
        ensure!((1..=100_000).contains(&at_once), "--concurrency {at_once}: it is 1 to 100000");
        Ok(Self {
            mixes,
            load: Load {
                shape: Shape::parse(&args.shape)?,
                requests: args.requests,
                rate: args.request_rate,
                vocab: args.prompt_vocab,
                seed: args.bench_seed,
            },
            concurrency: at_once,
            limited: concurrency.is_some(),
        })
    }

    /// Adapters that the largest mix needs.
    fn adapters(&self) -> usize {
        self.mixes.iter().map(|mix| mix.adapters()).max().unwrap_or(0)
    }
}

/// Starts a server on a free port of the loopback, measures it, and ends it.
async fn with_own_server(args: BenchArgs, mut plan: Plan, environment: &Environment) -> Result<()> {
    let mut settings = args.settings.clone();
    let _demo = if settings.model.is_none()
        && settings.model_argument.is_none()
        && settings.config.is_none()
    {
        let folder = demo::unpack(&mut settings)?;
        settings.lora_modules.clear();
        Some(folder)
    } else {
        None
    };
    settings.host = Some("127.0.0.1".into());
    settings.port = Some(0);
    let key = settings.api_key.first().map(|key| key.expose().to_owned());
    let folder = TempDir::with_prefix("loraplex-bench-").context("no place for adapters")?;
    let bodies = bodies(&args.body)?;
    let made = fill(&mut settings, &plan, &args, &folder, environment)?;
    let config = ServerConfig::resolve(settings, environment)?;
    let base = config.served_model_names[0].clone();
    let adapters = config.lora_modules.iter().map(|module| module.name.clone()).collect();
    plan.load.vocab = made.unwrap_or(plan.load.vocab);
    let (ready, started) = oneshot::channel();
    let measured = async {
        let address: std::net::SocketAddr = started.await.context("the server did not start")?;
        let url = format!("http://{address}");
        let client = Client::new(&url, key, args.text_prompts, bodies);
        measure(&args, &plan, Target { client, base, adapters, concurrency: plan.concurrency })
            .await
    };
    tokio::select! {
        // Its reason is told, rather than that nobody listens.
        biased;
        ended = run::run(config, |address| { let _ = ready.send(address); }) => {
            ended.and_then(|()| anyhow::bail!("stopped before the end of the benchmark"))
        }
        result = measured => result,
    }
}

/// Adds random adapters to those of `settings` until the largest mix has enough. Returns the size of the vocabulary, where
/// the model's shapes are known.
fn fill(
    settings: &mut Settings,
    plan: &Plan,
    args: &BenchArgs,
    folder: &TempDir,
    environment: &Environment,
) -> Result<Option<u32>> {
    let config = ServerConfig::resolve(settings.clone(), environment)?;
    let (given, needed) = (config.lora_modules.len(), plan.adapters());
    let shapes = adapters::shapes(&config.engine.model);
    if given < needed {
        let rank = |index: usize| args.adapter_rank[index % args.adapter_rank.len()];
        for rank in &args.adapter_rank {
            ensure!((1..=1024).contains(rank), "--adapter-rank {rank}: it is 1 to 1024");
        }
        let model = shapes.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        // Of the file and the environment too: a list replaces the list below it.
        settings.lora_modules = config
            .lora_modules
            .iter()
            .map(|module| format!("{}={}", module.name, module.path.display()))
            .collect();
        for index in given..needed {
            let path: PathBuf = adapters::write(folder.path(), model, rank(index), index)?;
            settings.lora_modules.push(format!("random-{index}={}", path.display()));
        }
    }
    Ok(shapes.ok().map(|model| model.vocab_size as u32))
}

async fn measure(args: &BenchArgs, plan: &Plan, target: Target) -> Result<()> {
    let (needed, found) = (plan.adapters(), target.adapters.len());
    ensure!(needed <= found, "the mixes need {needed} adapters and there are {found}");
    if let Some((replaced, _)) = plan.mixes.iter().find_map(|mix| mix.replaces()) {
        let name = &target.adapters[replaced];
        let reloaded = target.client.reload(name).await;
        reloaded.with_context(|| {
            format!("{name} cannot be replaced; the server needs ALLOW_RUNTIME_LORA_UPDATING=1")
        })?;
    }
    let total = args.rounds * plan.mixes.len() * args.requests;
    let bar = ProgressBar::new(total as u64);
    let style = "{msg:<24} [{bar:40}] {pos}/{len} requests, {eta} left";
    bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
    bar.set_message("warming up");
    warm_up(plan, &target).await?;
    let mut probe = args.read_bandwidth.then(limits::probe).transpose()?;
    let mut outcomes: Vec<(Mix, Vec<Outcome>)> =
        plan.mixes.iter().map(|&mix| (mix, Vec::new())).collect();
    for round in 0..args.rounds {
        for (place, (mix, outcomes)) in outcomes.iter_mut().enumerate() {
            bar.set_message(format!("round {}: {}", round + 1, mix.name()));
            let planned = plan.load.plan(*mix, place, round);
            let before = limits::read(&mut probe)?;
            let mut outcome = target.drive(*mix, planned, &bar).await;
            outcome.read_gb_s = before.zip(limits::read(&mut probe)?);
            outcomes.push(outcome);
        }
    }
    bar.finish_and_clear();
    let report = Report {
        schema: 1,
        server: args.url.clone().unwrap_or_else(|| "a server of its own".into()),
        base_model: target.base,
        shape: args.shape.clone(),
        requests: args.requests,
        rounds: args.rounds,
        concurrency: plan.limited.then_some(plan.concurrency),
        request_rate: args.request_rate,
        seed: args.bench_seed,
        mixes: report::mixes(outcomes),
    };
    write(args, &report)
}

/// Asks the base and every adapter once, so that no first use is measured; fails with the first refusal.
async fn warm_up(plan: &Plan, target: &Target) -> Result<()> {
    let mut random = workload::Random::new(plan.load.seed, 0);
    let adapters = (0..plan.adapters()).map(Some);
    for adapter in std::iter::once(None).chain(adapters) {
        let name = adapter.map_or(&target.base, |index: usize| &target.adapters[index]);
        let prompt = vec![10 + (random.next() % 64) as u32; 4];
        let planned = Planned { at: std::time::Duration::ZERO, adapter, prompt, output: 2 };
        let answer = target.client.complete(name, &planned).await;
        answer.with_context(|| format!("{name} does not answer"))?;
    }
    Ok(())
}

fn write(args: &BenchArgs, report: &Report) -> Result<()> {
    // Nobody is left to tell when stdout is closed.
    let _ = stdout().write_all(report.table().as_bytes());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(report)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.svg {
        fs::write(path, picture::svg(report))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let done: usize = report.mixes.iter().map(|mix| mix.all.completed).sum();
    ensure!(done > 0, "no request succeeded");
    Ok(())
}
