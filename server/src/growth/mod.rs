//! `server bench --growth`: how the time of a step grows with distinct adapters, registered adapters, context and batch.
//!
//! An engine in this process, without HTTP. A point is a batch of sequences that start together; its figure is the median
//! time between tokens of the last of them, which is the time of a step once all of them decode. A round takes every
//! point of every curve once; a point's figure is the median over rounds.
//!
//! What this module must never do: name a bound. What is too slow depends on the model and the machine.

mod curve;
mod picture;
mod runner;

use std::fs;
use std::io::{Write, stdout};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use loraplex_core::{EngineConfig, Llm, PoolSize, Quiet};
use tempfile::TempDir;

use crate::args::Settings;
use crate::bench::args::BenchArgs;
use crate::bench::limits;
use crate::config::ServerConfig;
use crate::config::env::Environment;
use crate::demo;
use curve::{CURVES, Curve, MOST_ROWS, Report, largest};
use runner::Runner;

/// Measures the curves of the model that `args` name, or of the demo model, and writes them.
pub async fn growth(args: BenchArgs, environment: &Environment) -> Result<()> {
    ensure!((1..=1000).contains(&args.rounds), "--rounds {}: it is 1 to 1000", args.rounds);
    let mut settings = args.settings.clone();
    let _demo = unpack_demo(&mut settings)?;
    let config = ServerConfig::resolve(settings, environment)?;
    ensure!(config.hub_model.is_none(), "--growth measures a model that lies on this machine");
    let engine = sized(config.engine, args.adapter_rank[0])?;
    let model = engine.model.clone();
    let folder = TempDir::with_prefix("loraplex-growth-").context("no place for adapters")?;
    let llm = tokio::task::spawn_blocking(move || Llm::load(engine, &Quiet)).await??;
    let mut runner = Runner::new(llm, folder.path(), &model, args.adapter_rank[0]).await?;
    let curves: Vec<Curve> =
        CURVES.iter().map(|kind| Curve::new(*kind, runner.max_model_len())).collect();
    let report = measure(&args, &mut runner, curves).await?;
    let _ = stdout().write_all(report.table().as_bytes());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.svg {
        let picture = picture::svg(&report);
        fs::write(path, picture).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The demo model's folder where `settings` name no model.
fn unpack_demo(settings: &mut Settings) -> Result<Option<TempDir>> {
    if settings.model.is_some() || settings.model_argument.is_some() || settings.config.is_some() {
        return Ok(None);
    }
    let folder = demo::unpack(settings)?;
    settings.lora_modules.clear();
    Ok(Some(folder))
}

/// The engine with room for the largest point of each curve.
fn sized(mut engine: EngineConfig, rank: usize) -> Result<EngineConfig> {
    ensure!((1..=1024).contains(&rank), "--adapter-rank {rank}: it is 1 to 1024");
    let (distinct, registered) = (largest(curve::Kind::Distinct), largest(curve::Kind::Registered));
    engine.scheduler.max_num_seqs = engine.scheduler.max_num_seqs.max(MOST_ROWS);
    engine.scheduler.max_waiting = engine.scheduler.max_waiting.max(MOST_ROWS);
    engine.lora.enabled = true;
    engine.lora.max_rank = engine.lora.max_rank.max(rank);
    engine.lora.pool = PoolSize::Adapters(distinct);
    engine.lora.max_host_adapters = distinct + registered;
    // So that a long context is computed once, and its rounds decode alone.
    engine.cache.prefix_caching = true;
    Ok(engine)
}

async fn measure(args: &BenchArgs, runner: &mut Runner, mut curves: Vec<Curve>) -> Result<Report> {
    let points: usize = curves.iter().map(|curve| curve.points.len()).sum();
    let bar = ProgressBar::new(((args.rounds + 1) * points) as u64);
    let style = "{msg:<24} [{bar:40}] {pos}/{len} points, {eta} left";
    bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
    let mut probe = args.read_bandwidth.then(limits::probe).transpose()?;
    let mut read_gb_s = Vec::new();
    // Round 0 computes contexts and touches memory; it is not counted.
    for round in 0..=args.rounds {
        for curve in &mut curves {
            read_gb_s.extend(limits::read(&mut probe)?.filter(|_| round > 0));
            for point in &mut curve.points {
                bar.set_message(format!("{} {}", curve.kind.name(), point.at));
                let took = runner.step_ms(curve.kind, point.at, round == 0).await;
                let took = took.with_context(|| format!("{} {}", curve.kind.name(), point.at))?;
                if round > 0 {
                    point.rounds.push(took);
                }
                bar.inc(1);
            }
            runner.forget_registered().await?;
        }
    }
    bar.finish_and_clear();
    Ok(Report {
        schema: 1,
        model: runner.model(),
        device: runner.device(),
        rank: args.adapter_rank[0],
        rounds: args.rounds,
        read_gb_s,
        curves: curves.into_iter().map(Curve::summed).collect(),
    })
}
