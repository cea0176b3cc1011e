//! Arguments to configuration to server.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use loraplex_server::args::{Cli, Command, Settings};
use loraplex_server::bench::bench;
use loraplex_server::config::ServerConfig;
use loraplex_server::config::env::Environment;
use loraplex_server::demo;
use loraplex_server::run::run;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    if std::env::args_os().len() < 2 {
        // Nobody is left to tell when stdout is closed.
        let _ = Cli::command().print_help();
        return ExitCode::SUCCESS;
    }
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> Result<()> {
    let environment = Environment::from_process();
    let filter = environment.log.as_deref().unwrap_or(match cli.command {
        // A line for each request would break the progress bar.
        Some(Command::Bench(_)) => "warn",
        _ => "info",
    });
    let filter = EnvFilter::try_new(filter).with_context(|| format!("RUST_LOG={filter}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .init();
    let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
    let result = match cli.command {
        None => runtime.block_on(serve(*cli.settings, &environment)),
        Some(Command::Serve(settings)) => runtime.block_on(serve(*settings, &environment)),
        Some(Command::Demo(settings)) => runtime.block_on(demo(*settings, &environment)),
        Some(Command::Bench(args)) => runtime.block_on(bench(*args, &environment)),
    };
    // A load that a signal has interrupted may still hold a thread.
    runtime.shutdown_background();
    result
}

async fn serve(settings: Settings, environment: &Environment) -> Result<()> {
    run(ServerConfig::resolve(settings, environment)?, |_| {}).await
}

async fn demo(mut settings: Settings, environment: &Environment) -> Result<()> {
    let _folder = demo::unpack(&mut settings)?;
    let config = ServerConfig::resolve(settings, environment)?;
    let (name, with_key) = (config.served_model_names[0].clone(), config.http.guard.has_user_key());
    run(config, |address| {
        let _ = stdout().write_all(demo::welcome(address, &name, with_key).as_bytes());
    })
    .await
}
