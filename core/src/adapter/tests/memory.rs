//! Host memory: what gives way, what never does, and that weights come back as they were.

use super::*;
use crate::config::{Device, EngineConfig};
use crate::error::ErrorKind;
use crate::llm::{Llm, Quiet};
use crate::request::SamplingParams;

#[tokio::test]
async fn the_least_recently_used_gives_way_and_is_read_again() {
    let manager = manager(|config| config.max_host_adapters = 2);
    manager.load(named("a", "poet")).await.unwrap();
    let first = manager.get("a").await.unwrap();
    let bytes = first.packed.bytes.to_f32s();
    let generation = first.generation;
    drop(first);
    manager.load(named("b", "shout")).await.unwrap();
    manager.get("b").await.unwrap();
    manager.load(named("c", "pirate")).await.unwrap();
    assert_eq!(manager.host_usage().0, 2);
    assert!(manager.status("a").unwrap().adapter.is_none(), "a was used least recently");
    assert_eq!(manager.list().len(), 3, "an operator's adapter stays listed");
    let again = manager.get("a").await.unwrap();
    assert_eq!(again.generation, generation, "it is what it was");
    assert_eq!(again.packed.bytes.to_f32s(), bytes, "scaled once, not twice");
    assert!(manager.status("b").unwrap().adapter.is_none());
    assert_eq!(manager.host_usage().0, 2);
}

#[tokio::test]
async fn out_of_memory_a_name_points_to_what_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let manager = manager(|config| config.max_host_adapters = 1);
    let files = |adapter: &str| {
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(demo("adapters").join(adapter).join(file), folder.path().join(file))
                .unwrap();
        }
    };
    files("poet");
    let version = |policy_version| LoadRequest {
        policy_version: Some(policy_version),
        ..LoadRequest::new(LoraRequest::new("a", folder.path())).in_place()
    };
    let first = manager.load(version(7)).await.unwrap().adapter;
    let newest = || {
        let status = manager.status("a").unwrap();
        (status.newest.generation, status.newest.policy_version, status.adapter.is_some())
    };
    manager.load(named("b", "shout")).await.unwrap();
    assert_eq!(newest(), (first.generation, Some(7), false));
    for expected in [0, first.generation + 1] {
        let ask = LoadRequest { expected_generation: Some(expected), ..version(8) };
        assert_eq!(manager.load(ask).await.unwrap_err().kind, ErrorKind::Conflict);
    }
    manager.get("a").await.unwrap();
    assert_eq!(newest(), (first.generation, Some(7), true));
    manager.get("b").await.unwrap();
    // Somebody writes other weights there: they are not the version that the trainer loaded.
    files("pirate");
    manager.get("a").await.unwrap();
    let (second, version_of_second, _) = newest();
    assert!(second > first.generation && version_of_second.is_none());
    manager.get("b").await.unwrap();
    let ask = LoadRequest { expected_generation: Some(second), ..version(8) };
    let third = manager.load(ask).await.unwrap();
    assert_eq!((third.replaced, third.unchanged), (Some(second), true));
    assert_eq!(third.adapter.policy_version, Some(8));
}

#[tokio::test]
async fn what_is_held_or_pinned_stays() {
    let manager = manager(|config| config.max_host_adapters = 2);
    manager.load(named("a", "poet")).await.unwrap();
    let held = manager.get("a").await.unwrap();
    manager.load(named("b", "shout")).await.unwrap();
    manager.set_pinned("b", true).await.unwrap();
    let full = manager.load(named("c", "pirate")).await.unwrap_err();
    assert_eq!(full.kind, ErrorKind::Exhausted);
    assert!(full.message.contains("2 of 2 adapters"), "{full}");
    assert_eq!(manager.list().len(), 2);
    // A replacement takes the place of what it replaces.
    let new = LoadRequest::new(named("b", "pirate")).in_place();
    manager.load(new).await.unwrap();
    drop(held);
    manager.load(named("c", "pirate")).await.unwrap();
    assert!(manager.status("a").unwrap().adapter.is_none());
    assert!(manager.status("b").unwrap().pinned);
}

#[tokio::test]
async fn a_limit_in_bytes_counts_what_memory_holds() {
    let size = manager(|_| {}).load(named("a", "poet")).await.unwrap().adapter.bytes;
    let manager = manager(|config| config.host_memory = Some(size));
    manager.load(named("a", "poet")).await.unwrap();
    let larger = manager.load(named("b", "shout")).await;
    let expected = if larger.is_ok() { vec!["b"] } else { Vec::new() };
    let list = manager.list();
    let resident = list.iter().filter(|status| status.adapter.is_some());
    let resident: Vec<&str> = resident.map(|status| &*status.request.name).collect();
    assert_eq!(resident, expected);
    assert!(manager.host_usage().1 <= size);
}

#[tokio::test]
async fn thousands_of_versions_leave_nothing_behind() {
    let manager = manager(|_| {});
    for version in 0..300 {
        let name = format!("policy-v{version}");
        manager.load(named(&name, "poet")).await.unwrap();
        manager.unload(&name, true).await.unwrap();
    }
    assert_eq!(manager.host_usage(), (0, 0));
    assert_eq!(manager.list().len(), 0);
    assert_eq!(manager.locks_in_use(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_gave_way_has_left_the_engine_too_when_the_load_ends() {
    let mut config = EngineConfig::new(demo("model"));
    config.device = Device::Cpu;
    config.lora.max_host_adapters = 1;
    let llm = Llm::load(config, &Quiet).unwrap();
    let params = SamplingParams { max_tokens: 1, ..SamplingParams::default() };
    let mut gone = std::sync::Weak::new();
    for name in ["a", "b", "c", "d"] {
        llm.adapters().load(named(name, "poet")).await.unwrap();
        assert_eq!(gone.strong_count(), 0, "memory that nobody counts, before {name}");
        let adapter = llm.adapters().get(name).await.unwrap();
        gone = Arc::downgrade(&adapter.packed);
        // An answer is out before its step ends: the next load meets either.
        llm.generate(&[("Once", Some(adapter))], &params).await.unwrap();
    }
}
