//! R10: a trainer that loads, asks and unloads version after version for days leaves nothing behind.

use std::fs;

use crate::answer::Ask;
use crate::world::{Way, World, number};

/// Bytes that the process has in memory.
fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn a_thousand_versions_leave_no_memory_and_no_series_behind() {
    let versions = number("ORACLE_VERSIONS", 1000);
    // A cache that the first hundred have written all over: its memory is touched as it is used.
    let cache = ["--kv-cache-memory-bytes", "1MiB", "--max-model-len", "128"];
    let world = World::start(&cache).await;
    let series = async || {
        let text = world.client().get("/metrics").await.text;
        text.lines().filter(|line| !line.starts_with('#')).count()
    };
    let mut settled = None;
    for version in 0..versions {
        let name = format!("policy-step-{version}");
        let way = if version % 2 == 0 { Way::Upload } else { Way::NewPath };
        let generation = world.operator.load(&name, way).await;
        let answer = world.ask(Ask::new(&name, &[version as u32; 40], 2)).await;
        assert_eq!(world.explain(&answer).generations, [generation]);
        world.operator.unload(&name, true).await;
        if version == 99 {
            settled = Some((resident(world.server.id()), series().await));
        }
    }
    let (bytes, lines) = settled.expect("over a hundred versions");
    let list = world.client().get("/v1/lora_adapters").await.json();
    assert_eq!(list["data"].as_array().map(Vec::len), Some(0));
    world.reaches("loraplex:lora_pool_bytes", 0.0).await;
    assert_eq!(series().await, lines, "metrics grow with the versions");
    let grown = resident(world.server.id()).saturating_sub(bytes);
    println!(
        "{versions} versions: {grown} bytes over the {bytes} of the first 100, {lines} series"
    );
    assert!(grown < bytes / 20, "memory grew from {bytes} by {grown} bytes");
}
