//! How the resolvers fare. Collected from their own counters when somebody asks.

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::adapter::ResolverRegistry;

#[derive(Debug)]
pub(super) struct ResolverCollector(pub(super) Arc<OnceLock<ResolverRegistry>>);

impl Collector for ResolverCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(resolvers) = self.0.get().filter(|resolvers| !resolvers.is_empty()) else {
            return Ok(());
        };
        let status = resolvers.status();
        let mut degraded = encoder.encode_descriptor(
            "loraplex:resolver_degraded",
            "1 while a resolver's last calls failed, one after the other",
            None,
            MetricType::Gauge,
        )?;
        for resolver in &status {
            let labels = [("resolver", resolver.name.as_str())];
            let value = ConstGauge::new(i64::from(resolver.degraded));
            value.encode(degraded.encode_family(&labels)?)?;
        }
        let mut calls = encoder.encode_descriptor(
            "loraplex:resolver_calls",
            "Calls of a resolver, by how they ended",
            None,
            MetricType::Counter,
        )?;
        for resolver in &status {
            for (outcome, count) in [("answered", resolver.answered), ("failed", resolver.failed)] {
                let labels = [("resolver", resolver.name.as_str()), ("outcome", outcome)];
                ConstCounter::new(count).encode(calls.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
