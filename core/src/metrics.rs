//! Every metric, once, under vLLM's names, so that dashboards and routers made for it work unchanged.
//!
//! Labels are closed sets. Adapter names occur in `lora_requests_info` alone, which shows the current sets and no others.

mod lora_info;
mod resolvers;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use loraplex_kernels::OpCounters;
use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::adapter::{Adapter, ResolverRegistry};
use crate::kv_cache::BlockStats;
use crate::request::FinishReason;
use crate::scheduler::{PoolStats, Sequence};

use lora_info::{LoraInfo, LoraInfoCollector};
use resolvers::ResolverCollector;

type Ratio = Gauge<f64, AtomicU64>;

/// What the engine and its server count.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests_running: Gauge,
    requests_waiting: Gauge,
    kv_cache_usage: Ratio,
    prefix_queries: Counter,
    prefix_hits: Counter,
    preemptions: Counter,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    request_success: Family<Vec<(&'static str, &'static str)>, Counter>,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    request_latency: Histogram,
    queue_time: Histogram,
    iteration_tokens: Histogram,
    steps_ahead: Counter,
    lora_operations: Counter,
    pool_adapters: Gauge,
    pool_bytes: Gauge,
    pool_limit: Gauge,
    pool_evictions: Counter,
    paused: Gauge,
    lora: Arc<LoraInfo>,
    resolvers: Arc<OnceLock<ResolverRegistry>>,
    seen: Mutex<Seen>,
}

/// Totals of other owners at the last report; the differences go into counters.
#[derive(Debug, Default)]
struct Seen {
    prefix: BlockStats,
    operations: OpCounters,
    evictions: u64,
}

/// The state of the engine after a step.
#[derive(Debug, Clone, Copy)]
pub struct StepReport {
    /// Rows that the step ran.
    pub rows: usize,
    /// Sequences that gave their blocks back.
    pub preempted: usize,
    /// Sequences that hold blocks.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Blocks in use.
    pub blocks_used: usize,
    /// Blocks of the pool.
    pub blocks: usize,
    /// Prefix lookups since the start.
    pub prefix: BlockStats,
    /// Operations of the backend since the start.
    pub operations: OpCounters,
    /// What the device holds of adapters.
    pub pool: PoolStats,
    /// Whether the engine is paused.
    pub paused: bool,
}

/// Upper edges, in seconds, of vLLM's histograms.
const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const INTER_TOKEN: [f64; 19] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0,
];
const REQUEST: [f64; 20] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0,
];
const TOKENS: [f64; 13] =
    [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

impl Metrics {
    /// `model_name` labels every metric but `lora_requests_info`; `max_loras` is shown there.
    pub fn new(model_name: &str, max_loras: usize) -> Self {
        let mut registry = Registry::default();
        let lora = Arc::new(LoraInfo::new(max_loras));
        registry.register_collector(Box::new(LoraInfoCollector(lora.clone())));
        let resolvers = Arc::new(OnceLock::new());
        registry.register_collector(Box::new(ResolverCollector(resolvers.clone())));
        let labels = [("engine", "0"), ("model_name", model_name)];
        let labels = labels.map(|(key, value)| (key.into(), value.to_owned().into()));
        let mut model = Registrar(registry.sub_registry_with_labels(labels.into_iter()));
        Self {
            requests_running: model
                .plain("vllm:num_requests_running", "Requests in the running batch"),
            requests_waiting: model.plain("vllm:num_requests_waiting", "Requests waiting to run"),
            kv_cache_usage: model
                .plain("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 1 is all"),
            prefix_queries: model
                .plain("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache"),
            prefix_hits: model
                .plain("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache"),
            preemptions: model.plain(
                "vllm:num_preemptions",
                "Requests that gave their KV blocks back before their end",
            ),
            prompt_tokens: model.plain("vllm:prompt_tokens", "Prompt tokens of admitted requests"),
            generation_tokens: model.plain("vllm:generation_tokens", "Tokens generated"),
            request_success: model.plain("vllm:request_success", "Requests ended, by reason"),
            time_to_first_token: model.histogram(
                "vllm:time_to_first_token_seconds",
                "From arrival to the first token",
                &FIRST_TOKEN,
            ),
            inter_token_latency: model.histogram(
                "vllm:inter_token_latency_seconds",
                "Between neighbouring tokens of a request",
                &INTER_TOKEN,
            ),
            request_latency: model.histogram(
                "vllm:e2e_request_latency_seconds",
                "From arrival to the end",
                &REQUEST,
            ),
            queue_time: model.histogram(
                "vllm:request_queue_time_seconds",
                "From arrival to admission",
                &REQUEST,
            ),
            steps_ahead: model
                .plain("loraplex:steps_ahead", "Steps queued before the one before had ended"),
            iteration_tokens: model.histogram("vllm:iteration_tokens", "Rows of a step", &TOKENS),
            lora_operations: model
                .plain("loraplex:lora_operations", "LoRA shrinks and expands issued"),
            pool_adapters: model
                .plain("loraplex:lora_pool_adapters", "Generations of adapters on the device"),
            pool_bytes: model.plain("loraplex:lora_pool_bytes", "Their bytes"),
            pool_limit: model
                .plain("loraplex:lora_pool_limit_bytes", "Bytes that adapters may take there"),
            pool_evictions: model
                .plain("loraplex:lora_pool_evictions", "Generations that gave way to others"),
            paused: model.plain("loraplex:paused", "1 while the engine is paused"),
            lora,
            resolvers,
            seen: Mutex::default(),
            registry,
        }
    }

    /// All metrics in OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }

    /// A step was queued before the one before had ended.
    pub(crate) fn ran_ahead(&self) {
        self.steps_ahead.inc();
    }

    /// Shrinks and expands issued since the start.
    pub fn lora_operations(&self) -> u64 {
        self.lora_operations.get()
    }

    /// Shows how `resolvers` fare from now on; set once.
    pub(crate) fn watch_resolvers(&self, resolvers: ResolverRegistry) {
        // A second set is refused, and said, where resolvers are installed.
        let _ = self.resolvers.set(resolvers);
    }

    pub(crate) fn admitted(&self, sequence: &Sequence, now: Instant) {
        if sequence.preemptions == 0 {
            self.prompt_tokens.inc_by(sequence.prompt_len as u64);
            self.queue_time.observe((now - sequence.arrival).as_secs_f64());
        }
    }

    pub(crate) fn token(&self, sequence: &Sequence, gap: Option<Duration>, now: Instant) {
        self.generation_tokens.inc();
        match gap {
            Some(gap) => self.inter_token_latency.observe(gap.as_secs_f64()),
            None => self.time_to_first_token.observe((now - sequence.arrival).as_secs_f64()),
        }
    }

    pub(crate) fn finished(&self, sequence: &Sequence, reason: FinishReason, now: Instant) {
        let reason = match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Abort => "abort",
        };
        self.request_success.get_or_create(&vec![("finished_reason", reason)]).inc();
        self.request_latency.observe((now - sequence.arrival).as_secs_f64());
    }

    pub(crate) fn adapters_in_use<'a>(
        &self,
        running: impl Iterator<Item = &'a Adapter>,
        waiting: impl Iterator<Item = &'a Adapter>,
    ) {
        self.lora.set(running, waiting);
    }

    pub(crate) fn step(&self, report: &StepReport) {
        self.requests_running.set(report.running as i64);
        self.requests_waiting.set(report.waiting as i64);
        self.kv_cache_usage.set(report.blocks_used as f64 / report.blocks.max(1) as f64);
        self.preemptions.inc_by(report.preempted as u64);
        self.pool_adapters.set(report.pool.residents as i64);
        self.pool_bytes.set(report.pool.bytes as i64);
        self.pool_limit.set(report.pool.limit as i64);
        self.paused.set(i64::from(report.paused));
        if report.rows > 0 {
            self.iteration_tokens.observe(report.rows as f64);
        }
        let mut seen = self.seen.lock();
        self.prefix_queries.inc_by(report.prefix.queried_tokens - seen.prefix.queried_tokens);
        self.prefix_hits.inc_by(report.prefix.hit_tokens - seen.prefix.hit_tokens);
        let operations = |c: &OpCounters| c.lora_shrinks + c.lora_expands;
        self.lora_operations.inc_by(operations(&report.operations) - operations(&seen.operations));
        self.pool_evictions.inc_by(report.pool.evictions - seen.evictions);
        *seen = Seen {
            prefix: report.prefix,
            operations: report.operations,
            evictions: report.pool.evictions,
        };
    }
}

/// Registers a metric and hands a clone of it back.
struct Registrar<'a>(&'a mut Registry);

impl Registrar<'_> {
    fn plain<M: Default + Clone + Metric>(&mut self, name: &str, help: &str) -> M {
        self.keep(name, help, M::default())
    }

    fn histogram(&mut self, name: &str, help: &str, edges: &[f64]) -> Histogram {
        self.keep(name, help, Histogram::new(edges.iter().copied()))
    }

    fn keep<M: Clone + Metric>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_vllm() {
        let metrics = Metrics::new("base", 8);
        metrics.lora.set([].into_iter(), [].into_iter());
        let text = metrics.encode();
        for name in [
            "vllm:num_requests_running{engine=\"0\",model_name=\"base\"} 0",
            "vllm:prompt_tokens_total{engine=\"0\",model_name=\"base\"} 0",
            "vllm:lora_requests_info{",
        ] {
            assert!(text.contains(name), "{name} in\n{text}");
        }
    }
}
