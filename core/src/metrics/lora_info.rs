//! `vllm:lora_requests_info`: which adapters run and wait now. Collected from a snapshot, so old sets leave no series.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::adapter::Adapter;

/// The current sets; nothing before the first request that names an adapter.
#[derive(Debug)]
pub(super) struct LoraInfo {
    max_loras: usize,
    snapshot: ArcSwapOption<Snapshot>,
}

#[derive(Debug)]
struct Snapshot {
    running: String,
    waiting: String,
    updated: f64,
}

impl LoraInfo {
    pub(super) fn new(max_loras: usize) -> Self {
        Self { max_loras, snapshot: ArcSwapOption::empty() }
    }

    pub(super) fn set<'a>(
        &self,
        running: impl Iterator<Item = &'a Adapter>,
        waiting: impl Iterator<Item = &'a Adapter>,
    ) {
        let updated = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.snapshot.store(Some(Arc::new(Snapshot {
            running: join(running),
            waiting: join(waiting),
            updated: updated.as_secs_f64(),
        })));
    }
}

fn join<'a>(adapters: impl Iterator<Item = &'a Adapter>) -> String {
    let names: BTreeSet<&str> = adapters.map(Adapter::name).collect();
    names.into_iter().collect::<Vec<_>>().join(",")
}

#[derive(Debug)]
pub(super) struct LoraInfoCollector(pub(super) Arc<LoraInfo>);

impl Collector for LoraInfoCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(snapshot) = self.0.snapshot.load_full() else { return Ok(()) };
        let max_loras = self.0.max_loras.to_string();
        let labels = [
            ("max_lora", max_loras.as_str()),
            ("running_lora_adapters", snapshot.running.as_str()),
            ("waiting_lora_adapters", snapshot.waiting.as_str()),
        ];
        let mut metric = encoder.encode_descriptor(
            "vllm:lora_requests_info",
            "Running stats on lora requests",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(snapshot.updated).encode(metric.encode_family(&labels)?)
    }
}
