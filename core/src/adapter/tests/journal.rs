//! Run-time loads over restarts: what comes back, and that no cut of the file breaks it.

use std::fs;

use bytes::Bytes;

use super::*;
use crate::error::ErrorKind;

fn upload(name: &str, demo_adapter: &str) -> LoadRequest {
    let read =
        |file: &str| Bytes::from(fs::read(demo("adapters").join(demo_adapter).join(file)).unwrap());
    let content = Content::Bytes {
        config: read("adapter_config.json"),
        weights: read("adapter_model.safetensors"),
    };
    LoadRequest { content, ..LoadRequest::new(LoraRequest::new(name, "")).in_place() }
}

/// A server's next start with the same state folder.
async fn start(folder: &Path) -> (Arc<AdapterManager>, (usize, usize)) {
    let manager = manager(|_| {});
    let restored = manager.restore(Journal::open(folder).unwrap()).await;
    (manager, restored)
}

fn digests(manager: &AdapterManager) -> Vec<(String, String)> {
    let digest = |status: &AdapterStatus| status.adapter.as_ref().unwrap().digest.clone();
    manager.list().iter().map(|status| (status.request.name.clone(), digest(status))).collect()
}

#[tokio::test]
async fn what_was_loaded_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let (first, restored) = start(folder.path()).await;
    assert_eq!(restored, (0, 0));
    first.load(named("a", "poet")).await.unwrap();
    first.load(named("gone", "poet")).await.unwrap();
    first.load(upload("b", "shout")).await.unwrap();
    first.load(upload("twin", "shout")).await.unwrap();
    let newer = LoadRequest { policy_version: Some(7), ..upload("b", "pirate") };
    first.load(newer).await.unwrap();
    first.set_pinned("a", true).await.unwrap();
    first.unload("gone", false).await.unwrap();
    let before = digests(&first);
    let highest = first.status("b").unwrap().adapter.unwrap().generation;
    drop(first);

    let (second, restored) = start(folder.path()).await;
    assert_eq!(restored, (3, 0));
    assert_eq!(digests(&second), before);
    assert!(second.status("a").unwrap().pinned);
    let b = second.status("b").unwrap();
    assert_eq!(b.origin, Origin::Upload);
    let b = b.adapter.unwrap();
    assert_eq!(b.policy_version, Some(7));
    assert!(b.generation > highest, "{} after {highest}", b.generation);
    let uploads = || fs::read_dir(folder.path().join("uploads")).unwrap().count();
    assert_eq!(uploads(), 2);
    second.unload("twin", false).await.unwrap();
    assert_eq!(uploads(), 1);
}

#[tokio::test]
async fn a_file_cut_anywhere_tells_of_a_moment_that_was() {
    let folder = tempfile::tempdir().unwrap();
    let (manager, _) = start(folder.path()).await;
    let mut moments = vec![Vec::new()];
    for (name, adapter) in [("a", "poet"), ("b", "shout"), ("a", "pirate")] {
        manager.load(LoadRequest::new(named(name, adapter)).in_place()).await.unwrap();
        moments.push(digests(&manager));
    }
    manager.unload("b", false).await.unwrap();
    moments.push(digests(&manager));
    drop(manager);
    let file = folder.path().join("adapters.journal");
    let whole = fs::read(&file).unwrap();
    let mut seen = 0;
    for len in (0..whole.len()).step_by(37).chain([whole.len()]) {
        fs::write(&file, &whole[..len]).unwrap();
        let (manager, (_, lost)) = start(folder.path()).await;
        assert_eq!(lost, 0);
        let found = moments.iter().position(|moment| *moment == digests(&manager));
        let found = found.unwrap_or_else(|| panic!("cut at {len}: {:?}", digests(&manager)));
        assert!(found >= seen, "cut at {len}");
        seen = found;
    }
    assert_eq!(seen, moments.len() - 1);
}

#[tokio::test]
async fn a_damaged_line_costs_its_own_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let (manager, _) = start(folder.path()).await;
    for name in ["a", "b", "c"] {
        manager.load(named(name, "poet")).await.unwrap();
    }
    drop(manager);
    let file = folder.path().join("adapters.journal");
    let text = fs::read_to_string(&file).unwrap().replace("\"name\":\"b\"", "\"nam\u{0}\":\"b\"");
    fs::write(&file, &text).unwrap();
    let (manager, restored) = start(folder.path()).await;
    assert_eq!((restored, manager.list().len()), ((2, 0), 2));
    assert_eq!(fs::read_to_string(file.with_extension("damaged")).unwrap(), text);
}

#[tokio::test]
async fn what_cannot_be_noted_is_not_done() {
    let folder = tempfile::tempdir().unwrap();
    let (manager, _) = start(folder.path()).await;
    manager.load(upload("a", "poet")).await.unwrap();
    let before = digests(&manager);
    // In the way of the next upload, as a full disk would be.
    fs::write(folder.path().join("uploads/staging"), "").unwrap();
    for name in ["a", "new"] {
        let error = manager.load(upload(name, "shout")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains("nothing was changed"), "{error}");
    }
    assert_eq!(digests(&manager), before);
    let taken = Journal::open(folder.path()).unwrap_err();
    assert!(taken.message.contains("another server uses this folder"), "{taken}");
}

#[tokio::test]
async fn a_source_that_is_away_is_asked_for_again_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let source = tempfile::tempdir().unwrap();
    let (place, away) = (source.path().join("x"), source.path().join("away"));
    fs::create_dir(&place).unwrap();
    for entry in fs::read_dir(demo("adapters/poet")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), place.join(entry.file_name())).unwrap();
    }
    let (manager, _) = start(folder.path()).await;
    manager.load(LoraRequest::new("x", &place)).await.unwrap();
    drop(manager);
    fs::rename(&place, &away).unwrap();
    assert_eq!(start(folder.path()).await.1, (0, 1));
    fs::rename(&away, &place).unwrap();
    assert_eq!(start(folder.path()).await.1, (1, 0));
}
