//! Arguments to configuration to server.

use std::io::{Write, stderr};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use loraplex_server::args::{Cli, Command, Settings};
use loraplex_server::config::ServerConfig;
use loraplex_server::config::env::Environment;
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
    let filter = environment.log.as_deref().unwrap_or("info");
    let filter = EnvFilter::try_new(filter).with_context(|| format!("RUST_LOG={filter}"))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(stderr).init();
    let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
    let result = match cli.command {
        None => runtime.block_on(serve(*cli.settings, &environment)),
        Some(Command::Serve(settings)) => runtime.block_on(serve(*settings, &environment)),
        Some(Command::Demo(_)) => anyhow::bail!("the demo is not built in yet"),
    };
    // A load that a signal has interrupted may still hold a thread.
    runtime.shutdown_background();
    result
}

async fn serve(settings: Settings, environment: &Environment) -> Result<()> {
    run(ServerConfig::resolve(settings, environment)?, |_| {}).await
}
