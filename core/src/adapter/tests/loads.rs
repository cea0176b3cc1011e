//! Loads, replacements, unloads: a failed one changes nothing, an acknowledged one is seen by everybody after it.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use loraplex_kernels::{AdapterMemory, AdapterPacker, KernelError, LoraWeights};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::*;
use crate::config::{Device, EngineConfig};
use crate::error::ErrorKind;
use crate::llm::{Llm, Quiet};
use crate::request::SamplingParams;

#[tokio::test]
async fn a_replacement_rises_and_the_old_one_lives_as_long_as_somebody_holds_it() {
    let manager = manager(|_| {});
    let first = manager.load(named("a", "poet")).await.unwrap();
    assert_eq!(first.replaced, None);
    let old = manager.get("a").await.unwrap();
    let second = manager.load(LoadRequest::new(named("a", "shout")).in_place()).await.unwrap();
    assert_eq!(second.replaced, Some(old.generation));
    assert!(second.adapter.generation > old.generation);
    assert!(!second.unchanged && second.adapter.digest != old.digest);
    assert_eq!(manager.get("a").await.unwrap().generation, second.adapter.generation);
    assert_eq!(manager.list().len(), 1);
    assert_eq!((manager.list()[0].old_generations, manager.host_usage().0), (1, 2));
    drop((first, old));
    assert_eq!((manager.list()[0].old_generations, manager.host_usage().0), (0, 1));
    let third = manager.load(LoadRequest::new(named("a", "shout")).in_place()).await.unwrap();
    assert!(third.unchanged, "the same bytes are a new generation, and the answer says so");
    assert!(third.adapter.generation > second.adapter.generation);
}

#[tokio::test]
async fn a_failed_load_changes_nothing() {
    let manager = manager(|config| config.max_rank = 8);
    let before = manager.load(named("a", "poet")).await.unwrap().adapter;
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    let config = std::fs::read(demo("adapters/poet/adapter_config.json")).unwrap();
    std::fs::write(broken.join("adapter_config.json"), config).unwrap();
    std::fs::write(broken.join("adapter_model.safetensors"), b"nothing like it").unwrap();
    for (request, kind) in [
        (LoraRequest::new("a", folder.path().join("absent")), ErrorKind::NotFound),
        (LoraRequest::new("a", &broken), ErrorKind::InvalidRequest),
    ] {
        let error = manager.load(LoadRequest::new(request).in_place()).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert_eq!(manager.get("a").await.unwrap().generation, before.generation);
        assert_eq!(manager.host_usage(), (1, before.bytes));
    }
    let taken = manager.load(named("a", "shout")).await.unwrap_err();
    assert!(taken.message.contains("load_inplace"), "{taken}");
    for bad in ["", "/a", "a/../b", "a\0"] {
        let error = manager.load(named(bad, "poet")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidRequest);
    }
}

#[tokio::test]
async fn a_load_can_expect_a_generation() {
    let manager = manager(|_| {});
    let expecting = |expected| LoadRequest {
        expected_generation: Some(expected),
        ..LoadRequest::new(named("a", "poet")).in_place()
    };
    assert_eq!(manager.load(expecting(7)).await.unwrap_err().kind, ErrorKind::Conflict);
    let first = manager.load(expecting(0)).await.unwrap().adapter.generation;
    assert_eq!(manager.load(expecting(0)).await.unwrap_err().kind, ErrorKind::Conflict);
    assert!(manager.load(expecting(first)).await.unwrap().adapter.generation > first);
}

#[tokio::test]
async fn a_repeated_operation_is_done_once() {
    let manager = manager(|_| {});
    let ask = LoadRequest {
        operation_id: Some("push-1".into()),
        ..LoadRequest::new(named("a", "poet")).in_place()
    };
    let first = manager.load(ask.clone()).await.unwrap();
    let again = manager.load(ask).await.unwrap();
    assert!(again.repeated && !first.repeated);
    assert_eq!(again.adapter.generation, first.adapter.generation);
    for push in 2..6 {
        let ask = LoadRequest {
            operation_id: Some(format!("push-{push}")),
            ..LoadRequest::new(named("a", "shout")).in_place()
        };
        assert!(!manager.load(ask).await.unwrap().repeated);
    }
    assert_eq!(manager.host_usage().0, 1, "what is remembered keeps no weights");
}

#[tokio::test]
async fn an_operation_is_one_of_its_content_and_is_over_with_an_unload() {
    let manager = manager(|_| {});
    let push = |adapter: &str| LoadRequest {
        operation_id: Some("push".into()),
        ..LoadRequest::new(named("a", adapter)).in_place()
    };
    let first = manager.load(push("poet")).await.unwrap();
    let other = manager.load(push("shout")).await.unwrap_err();
    assert_eq!(other.kind, ErrorKind::Conflict);
    assert!(other.message.contains("'push'"), "{other}");
    manager.unload("a", false).await.unwrap();
    let again = manager.load(push("poet")).await.unwrap();
    assert!(!again.repeated && again.adapter.generation > first.adapter.generation);

    let bytes = |adapter: &str| {
        let read = |file| std::fs::read(demo("adapters").join(adapter).join(file)).unwrap().into();
        let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
        LoadRequest {
            content: Content::Bytes { config, weights },
            operation_id: Some("upload".into()),
            ..LoadRequest::new(LoraRequest::new("b", "")).in_place()
        }
    };
    assert!(!manager.load(bytes("poet")).await.unwrap().repeated);
    assert!(manager.load(bytes("poet")).await.unwrap().repeated);
    assert_eq!(manager.load(bytes("shout")).await.unwrap_err().kind, ErrorKind::Conflict);
}

#[tokio::test]
async fn bytes_are_as_good_as_a_folder() {
    let manager = manager(|_| {});
    manager.load(named("a", "poet")).await.unwrap();
    let folder = manager.get("a").await.unwrap();
    let read = |file| Bytes::from(std::fs::read(demo("adapters/poet").join(file)).unwrap());
    let content = Content::Bytes {
        config: read("adapter_config.json"),
        weights: read("adapter_model.safetensors"),
    };
    let ask = LoadRequest { content, ..LoadRequest::new(LoraRequest::new("b", "")) };
    manager.load(ask).await.unwrap();
    let bytes = manager.get("b").await.unwrap();
    assert_eq!(bytes.digest, folder.digest);
    assert_eq!(bytes.packed.bytes.to_f32s(), folder.packed.bytes.to_f32s());
    assert_eq!(manager.status("b").unwrap().origin, Origin::Upload);
}

#[tokio::test]
async fn an_unload_frees_and_can_wait_for_the_last_holder() {
    let manager = manager(|_| {});
    let unknown = manager.unload("a", true).await.unwrap_err();
    assert_eq!(unknown.message, "The lora adapter 'a' cannot be found.");
    manager.load(named("a", "poet")).await.unwrap();
    let held = manager.get("a").await.unwrap();
    let mut unload = Box::pin(manager.unload("a", true));
    assert!(futures::poll!(&mut unload).is_pending(), "somebody holds it");
    assert_eq!(manager.get("a").await.unwrap_err().kind, ErrorKind::NotFound);
    // The name is free before the old weights are.
    let next = manager.load(named("a", "shout")).await.unwrap().adapter;
    assert!(futures::poll!(&mut unload).is_pending());
    drop(held);
    unload.await.unwrap();
    assert_eq!(manager.host_usage(), (1, next.bytes));
}

#[tokio::test]
async fn a_request_can_wait_for_a_newer_policy() {
    let manager = manager(|_| {});
    let version = |version| LoadRequest {
        policy_version: Some(version),
        ..LoadRequest::new(named("a", "poet")).in_place()
    };
    manager.load(version(1)).await.unwrap();
    let floor = Floor { policy_version: Some(2), ..Floor::default() };
    let deadline = |seconds| Instant::now() + Duration::from_secs(seconds);
    let late = manager.get_at_least("a", floor, deadline(0)).await.unwrap_err();
    assert_eq!(late.kind, ErrorKind::Unavailable);
    let waiting = manager.get_at_least("a", floor, deadline(3600));
    let (found, pushed) = tokio::join!(waiting, manager.load(version(2)));
    assert_eq!(found.unwrap().generation, pushed.unwrap().adapter.generation);
}

/// Packs when it is told to.
#[derive(Debug)]
struct Held {
    packer: Arc<dyn AdapterPacker>,
    entered: mpsc::Sender<()>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl AdapterPacker for Held {
    fn pack(
        &self,
        layers: usize,
        weights: &LoraWeights,
        memory: &AdapterMemory,
    ) -> Result<PackedAdapter, KernelError> {
        self.entered.send(()).unwrap();
        self.go.lock().recv().unwrap();
        self.packer.pack(layers, weights, memory)
    }
}

/// No step waits for a load: with one that stands still in the middle, requests run from their first token to their last.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_flow_while_a_load_stands_still() {
    let mut config = EngineConfig::new(demo("model"));
    config.device = Device::Cpu;
    let llm = Llm::load(config, &Quiet).unwrap();
    let (entered, has_entered) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let packer = ReferenceBackend::new().packer();
    let packer = Arc::new(Held { packer, entered, go: Mutex::new(may_go) });
    let model = Checkpoint::open(&demo("model")).unwrap().config;
    let engine = Some(llm.engine().clone());
    let manager = AdapterManager::new(LoraConfig::default(), model, packer, engine).unwrap();
    let manager = Arc::new(manager);
    go.send(()).unwrap();
    let old = manager.load(named("a", "poet")).await.unwrap().adapter;
    has_entered.recv().unwrap();
    let mut reload = JoinSet::new();
    reload.spawn({
        let manager = manager.clone();
        let ask = LoadRequest::new(named("a", "shout")).in_place();
        async move { manager.load(ask).await.unwrap() }
    });
    has_entered.recv().unwrap();
    let params = SamplingParams { max_tokens: 32, ignore_eos: true, ..SamplingParams::default() };
    for _ in 0..4 {
        let outputs = llm.generate(&[("Once", None), ("upon", None)], &params).await.unwrap();
        assert!(outputs.iter().all(|output| output.tokens.len() == 32));
    }
    assert!(reload.try_join_next().is_none());
    assert_eq!(manager.get("a").await.unwrap().generation, old.generation);
    go.send(()).unwrap();
    assert_eq!(reload.join_next().await.unwrap().unwrap().replaced, Some(old.generation));
}

#[tokio::test]
async fn a_storm_of_reloads_ends_in_the_last_one_and_leaves_nothing() {
    let manager = manager(|_| {});
    manager.load(named("a", "poet")).await.unwrap();
    let pushes = (0..100).map(|turn| {
        let source = ["poet", "shout", "pirate"][turn % 3];
        let load = manager.load(LoadRequest::new(named("a", source)).in_place());
        let manager = &manager;
        async move {
            let generation = load.await.map(|loaded| loaded.adapter.generation);
            // R5: what is replaced, what replaces it, and one that an answer may still hold.
            assert!(manager.host_usage().0 <= 3, "{:?} in memory", manager.host_usage());
            generation
        }
    });
    let generations: Vec<u64> = futures::future::join_all(pushes)
        .await
        .into_iter()
        .map(|generation| generation.unwrap())
        .collect();
    let newest = *generations.iter().max().unwrap();
    assert_eq!(manager.get("a").await.unwrap().generation, newest);
    let distinct: std::collections::BTreeSet<u64> = generations.iter().copied().collect();
    assert_eq!(distinct.len(), 100);
    assert_eq!(manager.host_usage().0, 1);
}
