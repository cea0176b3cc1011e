//! What can be typed after `server bench`.

use std::path::PathBuf;

use clap::Args;

use crate::args::Settings;

/// The load, whom it is put on, and where the results go.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Benchmark")]
pub struct BenchArgs {
    /// Server to measure, such as http://127.0.0.1:8000 (default: one that is started for it, of MODEL or the demo model)
    #[arg(long)]
    pub url: Option<String>,
    /// With --url: name of the base model (default: the first of /v1/models without a parent)
    #[arg(long, value_name = "NAME", requires = "url")]
    pub base_model: Option<String>,
    /// With --url: names of adapters (default: those of /v1/models with a parent)
    #[arg(long, value_name = "NAME", num_args = 1.., requires = "url")]
    pub adapter_models: Vec<String>,
    /// More members for the body of each request to a model, such as 'a0={"lora": [{"id": 0, "scale": 1}]}' for a server that chooses adapters so
    #[arg(long, value_name = "NAME=JSON", num_args = 1..)]
    pub body: Vec<String>,
    /// Who is asked: base, one, distinct:N (request i asks adapter i mod N), uniform:N, zipf:N, reload:SECONDS (as one, while another adapter is replaced in place that often), push:SECONDS (the same, while that one is); the base is always measured too
    #[arg(long, value_name = "MIX", num_args = 1.., default_values = ["one", "distinct:2", "distinct:8", "uniform:8", "zipf:8"])]
    pub mix: Vec<String>,
    /// How long prompts and outputs are: even (64 in, 64 out), prefill (256, 8), decode (16, 128), mixed (16 to 128 each), or IN/OUT
    #[arg(long, value_name = "SHAPE", default_value = "even")]
    pub shape: String,
    /// Instead of mixes, in this process: how the time of a step grows with distinct adapters, registered adapters, context and batch
    #[arg(long, conflicts_with_all = ["url", "mix", "shape", "request_rate"])]
    pub growth: bool,
    /// Requests of one round of one mix
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub requests: usize,
    /// Rounds; in each, every mix runs once, one after the other
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub rounds: usize,
    /// Requests in flight at most (default: 8, or no limit with --request-rate); as many as --requests is a backlog
    #[arg(long, value_name = "N")]
    pub concurrency: Option<usize>,
    /// Requests a second, arriving at random (Poisson), whether earlier ones are done or not
    #[arg(long, value_name = "RATE")]
    pub request_rate: Option<f64>,
    /// Rank of the random adapters that are made where none are given; of several, adapters take them in turn
    #[arg(long, value_name = "RANK", num_args = 1.., default_values_t = [16])]
    pub adapter_rank: Vec<usize>,
    /// Prompts as random words, for servers that take no token ids
    #[arg(long)]
    pub text_prompts: bool,
    /// With --url: prompts are drawn from token ids below this
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub prompt_vocab: u32,
    /// Seed of prompts, lengths, arrivals and the choice of adapters
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub bench_seed: u64,
    /// Measure what all cores of this machine read from memory a second, before and after each round of each mix
    #[arg(long)]
    pub read_bandwidth: bool,
    /// File for the results as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// File for a picture of the results
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// The server that is started, where there is no --url
    #[command(flatten, next_help_heading = "Server")]
    pub settings: Settings,
}
