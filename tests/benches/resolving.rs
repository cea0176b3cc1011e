//! What a name costs: one that is registered (goal: under 1 µs in the request path), and a call of a resolver that
//! crosses the plugins' interface (goal: under 20 µs beside the resolver's own work).

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use loraplex_core::{EngineConfig, Llm, LoraRequest, Quiet, plugin};
use loraplex_plugin_sdk::ResolverConfig;
use loraplex_tests::{plugin_dir, root};
use tokio::runtime::Runtime;

fn names(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();
    let demo = root().join("examples/demo");
    let llm = Llm::load(EngineConfig::new(demo.join("model")), &Quiet).unwrap();
    for index in 0..1000 {
        let request = LoraRequest::new(format!("poet-{index}"), demo.join("adapters/poet"));
        runtime.block_on(llm.adapters().load(request)).unwrap();
    }
    c.bench_function("a registered name, one of 1000", |b| {
        b.iter(|| runtime.block_on(llm.adapters().get(black_box("poet-500"))).unwrap());
    });
    let resolver = plugin::open(&plugin_dir(), "misbehaving", &ResolverConfig::default()).unwrap();
    c.bench_function("a call that crosses the interface and finds nothing", |b| {
        b.iter(|| runtime.block_on(resolver.resolve_lora("base", black_box("nobody"))).unwrap());
    });
}

criterion_group!(benches, names);
criterion_main!(benches);
