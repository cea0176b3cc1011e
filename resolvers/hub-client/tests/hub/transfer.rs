//! What arrives damaged, cut, changed, endless or not at all; and what lies in the cache already.

use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use loraplex_hub_client::{HubClient, HubErrorKind, Progress, Revision, Silent};

use crate::stub::{Access, Fault, Stub};
use crate::{fetch, listing, options, tree};

fn weights() -> Vec<u8> {
    (0..100_000u32).flat_map(u32::to_le_bytes).collect()
}

#[tokio::test]
async fn a_cut_transfer_goes_on_where_it_was_cut() {
    let weights = weights();
    for at in [0, 1, 7, 8, 9, weights.len() / 2, weights.len() - 1] {
        let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
        stub.push("o/n", Access::Public, &[("w.safetensors", &weights)]);
        let client = HubClient::new(options(&stub, folder.path(), None)).unwrap();
        stub.fail(Fault::Cut(at, 1));
        assert_eq!(fetch(&client, "o/n", &["w.safetensors"]).await.unwrap()[0], weights);
        let seen = stub.seen();
        let content: Vec<_> = seen.iter().filter(|request| request.host == "cdn").collect();
        assert_eq!(content.len(), 2, "cut at {at}");
        // What the first connection brought before it broke is up to the network; it is not asked for again.
        if let Some(range) = &content[1].range {
            let offset: usize = range["bytes=".len()..].trim_end_matches('-').parse().unwrap();
            assert!(offset <= at, "cut at {at}, continued at {offset}");
            assert_eq!(content[1].if_match.as_deref(), Some("\"cdn\""));
        }
    }
}

#[tokio::test]
async fn what_an_earlier_process_left_is_continued_or_replaced() {
    let weights = weights();
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    stub.push("o/n", Access::Public, &[("w.safetensors", &weights)]);
    let digest = {
        let client = HubClient::new(options(&stub, folder.path(), None)).unwrap();
        fetch(&client, "o/n", &["w.safetensors"]).await.unwrap();
        fs::read_dir(folder.path().join("models--o--n/blobs")).unwrap().next().unwrap().unwrap()
    };
    let digest = digest.file_name().into_string().unwrap();
    let mut wrong = weights.clone();
    wrong[3] ^= 1;
    let longer = [&weights[..], b"more"].concat();
    for (left, fault, offset) in [
        (&weights[..1000], None, Some(1000)),
        (&weights[..1000], Some(Fault::NoRanges), Some(1000)),
        (&wrong[..1000], None, Some(1000)),
        (&weights[..], None, None),
        (&wrong[..], None, None),
        (&longer[..], None, None),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let blobs = folder.path().join("models--o--n/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{digest}.incomplete")), left).unwrap();
        let client = HubClient::new(options(&stub, folder.path(), None)).unwrap();
        stub.fail(fault);
        stub.seen();
        assert_eq!(fetch(&client, "o/n", &["w.safetensors"]).await.unwrap()[0], weights);
        let seen = stub.seen();
        let first = seen.iter().find(|request| request.host == "cdn");
        let range = first.and_then(|request| request.range.clone());
        assert_eq!(range, offset.map(|offset: usize| format!("bytes={offset}-")));
    }
}

#[tokio::test]
async fn damaged_and_endless_bodies_leave_nothing_that_counts() {
    let weights = weights();
    for (fault, part) in [
        (Fault::Flip, "arrived damaged"),
        (Fault::Endless, "sends more than the 400000 bytes that it announced"),
        (Fault::Cut(0, 99), "0 of 400000 bytes arrived"),
    ] {
        let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
        stub.push("o/n", Access::Public, &[("w.safetensors", &weights)]);
        let client = HubClient::new(options(&stub, folder.path(), None)).unwrap();
        stub.fail(fault.clone());
        let error = fetch(&client, "o/n", &["w.safetensors"]).await.unwrap_err();
        assert_eq!(error.kind, HubErrorKind::Unavailable);
        assert!(error.message.contains(part) && !error.message.contains("secret"), "{error}");
        let left = tree(folder.path());
        assert!(left.iter().all(|path| path.ends_with(".incomplete")), "{fault:?}: {left:?}");
        stub.fail(None);
        assert_eq!(fetch(&client, "o/n", &["w.safetensors"]).await.unwrap()[0], weights);
    }
}

#[tokio::test]
async fn every_bit_of_a_small_file_counts() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    stub.push("o/n", Access::Public, &[("a.json", b"{\"peft_type\":\"LORA\"}")]);
    let client = HubClient::new(options(&stub, folder.path(), None)).unwrap();
    stub.fail(Fault::Flip);
    let error = fetch(&client, "o/n", &["a.json"]).await.unwrap_err();
    assert!(error.message.contains("a.json of o/n arrived damaged"), "{error}");
}

#[tokio::test]
async fn a_slow_body_and_a_silent_host_are_given_up() {
    for (fault, part) in [
        (Fault::Stall(100), "sent 100 bytes in 1 s, at 100 of 400000"),
        (Fault::Hang, "did not answer"),
    ] {
        let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
        stub.push("o/n", Access::Public, &[("w.safetensors", &weights())]);
        let mut options = options(&stub, folder.path(), None);
        // What answers does so with the usual limits.
        let listing = listing(&HubClient::new(options.clone()).unwrap(), "o/n").await.unwrap();
        options.limits.progress_window = Duration::from_secs(1);
        options.limits.answer = Duration::from_secs(2);
        let client = HubClient::new(options).unwrap();
        stub.fail(fault);
        let names = ["w.safetensors".to_owned()];
        let error = client.fetch(&listing, &names, u64::MAX, &Silent).await.unwrap_err();
        assert_eq!(error.kind, HubErrorKind::Unavailable);
        assert!(error.message.contains(part), "{error}");
    }
}

#[tokio::test]
async fn files_of_two_commits_are_never_mixed() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    let first = stub.push("o/n", Access::Public, &[("a.json", b"{}"), ("w.safetensors", b"one")]);
    let client = HubClient::new(options(&stub, folder.path(), None)).unwrap();
    let old = listing(&client, "o/n").await.unwrap();
    assert_eq!(old.commit, first);
    // The branch moves between the two files; what was listed is what is fetched.
    client.fetch(&old, &["a.json".into()], 100, &Silent).await.unwrap();
    let second = stub.push("o/n", Access::Public, &[("a.json", b"[]"), ("w.safetensors", b"two")]);
    let path = client.fetch(&old, &["w.safetensors".into()], 100, &Silent).await.unwrap();
    assert_eq!(fs::read(path.join("w.safetensors")).unwrap(), b"one");
    let new = listing(&client, "o/n").await.unwrap();
    assert_eq!(new.commit, second);
    let path = client.fetch(&new, &["w.safetensors".into()], 100, &Silent).await.unwrap();
    assert_eq!(fs::read(path.join("w.safetensors")).unwrap(), b"two");

    stub.fail(Fault::OtherCommit);
    let error = client.fetch(&new, &["a.json".into()], 100, &Silent).await.unwrap_err();
    assert!(error.message.contains(&"f".repeat(40)), "{error}");
    assert!(!path.join("a.json").exists());
}

#[tokio::test]
async fn what_is_there_is_not_asked_for_and_serves_offline() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    stub.push("o/n", Access::Public, &[("x/a.json", b"{}"), ("w.safetensors", b"w"), ("b", b"b")]);
    let client = HubClient::new(options(&stub, folder.path(), None)).unwrap();
    fetch(&client, "o/n", &["x/a.json", "w.safetensors"]).await.unwrap();
    stub.seen();
    fetch(&client, "o/n", &["x/a.json", "w.safetensors"]).await.unwrap();
    let seen = stub.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].path, "info o/n main");

    let mut offline = options(&stub, folder.path(), None);
    offline.offline = true;
    let client = HubClient::new(offline).unwrap();
    let files = fetch(&client, "o/n", &["x/a.json", "w.safetensors"]).await.unwrap();
    assert_eq!(files, [b"{}".to_vec(), b"w".to_vec()]);
    for (repo, name) in [("o/n", "b"), ("o/other", "a.json")] {
        let error = fetch(&client, repo, &[name]).await.unwrap_err();
        assert_eq!(error.kind, HubErrorKind::Offline);
        assert!(error.message.contains("HF_HUB_OFFLINE is set"), "{error}");
    }
    assert!(stub.seen().is_empty(), "offline asks nobody");
}

#[tokio::test]
async fn a_tampered_cache_is_mended() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    stub.push("o/n", Access::Public, &[("a.json", b"{}"), ("w.safetensors", &weights())]);
    let client = HubClient::new(options(&stub, folder.path(), None)).unwrap();
    let names = ["a.json", "w.safetensors"];
    let good = fetch(&client, "o/n", &names).await.unwrap();
    let root = folder.path().join("models--o--n");
    let blobs: Vec<_> =
        fs::read_dir(root.join("blobs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(blobs.len(), 2);
    let outside = folder.path().join("outside");
    fs::write(&outside, "outside").unwrap();
    for blob in &blobs {
        fs::write(blob, "short").unwrap();
        assert_eq!(fetch(&client, "o/n", &names).await.unwrap(), good);
        fs::remove_file(blob).unwrap();
        std::os::unix::fs::symlink(&outside, blob).unwrap();
        assert_eq!(fetch(&client, "o/n", &names).await.unwrap(), good);
        fs::remove_file(blob).unwrap();
        std::os::unix::fs::symlink(&outside, blob.with_added_extension("incomplete")).unwrap();
        assert_eq!(fetch(&client, "o/n", &names).await.unwrap(), good);
    }
    let commit = listing(&client, "o/n").await.unwrap().commit;
    let link = root.join("snapshots").join(commit).join("a.json");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    assert_eq!(fetch(&client, "o/n", &names).await.unwrap(), good);
    assert_eq!(fs::read_to_string(&outside).unwrap(), "outside");
}

#[tokio::test]
async fn two_clients_of_one_cache_download_once() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    stub.push("o/n", Access::Public, &[("w.safetensors", &weights())]);
    let client = || HubClient::new(options(&stub, folder.path(), None)).unwrap();
    let (a, b) = (client(), client());
    let names = ["w.safetensors"];
    let (a, b) = tokio::join!(fetch(&a, "o/n", &names), fetch(&b, "o/n", &names));
    assert_eq!(a.unwrap(), b.unwrap());
    assert_eq!(stub.seen().iter().filter(|request| request.host == "cdn").count(), 1);
}

#[tokio::test]
async fn sizes_are_known_before_anything_is_fetched() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    stub.push("o/n", Access::Public, &[("w.safetensors", &weights())]);
    let client = HubClient::new(options(&stub, folder.path(), None)).unwrap();
    let listing = listing(&client, "o/n").await.unwrap();
    assert_eq!(listing.file("w.safetensors").unwrap().size, Some(400_000));
    let names = ["w.safetensors".to_owned()];
    let error = client.fetch(&listing, &names, 399_999, &Silent).await.unwrap_err();
    assert_eq!(error.message, "w.safetensors of o/n has 400000 bytes, the limit is 399999");
    assert!(stub.seen().iter().all(|request| request.host == "hub"));
    let evil = ["../../w.safetensors".to_owned()];
    let error = client.fetch(&listing, &evil, u64::MAX, &Silent).await.unwrap_err();
    assert_eq!(error.kind, HubErrorKind::Invalid);
}

#[tokio::test]
async fn progress_reaches_the_end() {
    #[derive(Debug, Default)]
    struct Last(Mutex<(u64, u64)>);
    impl Progress for Last {
        fn file(&self, file: &str, done: u64, total: u64) {
            assert_eq!(file, "w.safetensors");
            *self.0.lock().unwrap() = (done, total);
        }
    }
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    stub.push("o/n", Access::Public, &[("w.safetensors", &weights())]);
    let client = HubClient::new(options(&stub, folder.path(), None)).unwrap();
    let listing = client.listing(&"o/n".parse().unwrap(), &Revision::default()).await.unwrap();
    let last = Last::default();
    client.fetch(&listing, &["w.safetensors".into()], u64::MAX, &last).await.unwrap();
    assert_eq!(*last.0.lock().unwrap(), (400_000, 400_000));
}
