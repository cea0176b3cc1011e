//! Plugins that panic, hang, lie, or do not fit: the server stays up, answers others and names the culprit (rows P1, P3
//! to P5 of the catalogue of tests).

use std::path::{Path, PathBuf};

use loraplex_tests::{ServerProcess, plugin_dir, run_to_end};
use serde_json::{Value, json};

use super::resolving::place;
use super::{completion, demo};

const PLUGIN: &str = "misbehaving";

/// A server that asks the file system first, then the plugin that misbehaves, and whose clients wait for so many seconds.
async fn serve(root: &Path, misbehave: &str, patience: &str) -> ServerProcess {
    let (dir, root) = (plugin_dir().display().to_string(), root.display().to_string());
    ServerProcess::start_with(
        &[
            &*demo("model"),
            "--served-model-name",
            "base",
            "--resolver-timeout",
            patience,
            "--resolver-negative-ttl",
            "0",
        ],
        &[
            ("ALLOW_RUNTIME_LORA_UPDATING", "1"),
            ("PLUGINS", "lora_filesystem_resolver,misbehaving"),
            ("PLUGIN_DIR", &dir),
            ("LORA_RESOLVER_CACHE_DIR", &root),
            ("LORA_RESOLVER_MISBEHAVE", misbehave),
        ],
    )
    .await
}

async fn ask(server: &ServerProcess, model: &str) -> (u16, String) {
    let answer = server.client().post("/v1/completions", &completion(model, json!({}))).await;
    (answer.status, answer.text)
}

/// The plugin's line of the health details.
async fn health(server: &ServerProcess) -> Value {
    assert_eq!(server.client().get("/health").await.status, 200);
    let details = server.client().get("/health?details=1").await.json();
    assert_eq!(details["resolvers"][1]["name"], PLUGIN);
    details["resolvers"][1].clone()
}

#[tokio::test]
async fn panics_and_lies_are_errors_with_a_name() {
    let root = tempfile::tempdir().unwrap();
    let server = serve(root.path(), "watch", "60").await;
    for turn in 0..50 {
        for kind in ["panic", "later", "grenade"] {
            let (status, text) = ask(&server, &format!("{kind}-{turn}")).await;
            assert_eq!(status, 500, "{text}");
            assert!(text.contains(PLUGIN) && text.contains("panicked"), "{text}");
        }
    }
    assert_eq!(health(&server).await["degraded"], true);
    let metrics = server.client().get("/metrics").await.text;
    let line = "loraplex:resolver_degraded{resolver=\"misbehaving\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    for (kind, part) in [
        ("relative", "absolute"),
        ("parent", "absolute"),
        ("nul", "absolute"),
        ("empty", "absolute"),
        ("huge", "the limit is"),
        ("bytes", "passed on"),
        ("absent", "no adapter found"),
        ("file", "no adapter found"),
        ("long", "adapter_config.json"),
        ("novel", "chapter"),
    ] {
        let (status, text) = ask(&server, kind).await;
        assert!([400, 500].contains(&status), "{kind}: {status} {text}");
        assert!(text.to_lowercase().contains(part), "{kind}: {text}");
        assert!(text.len() < 4096, "{kind}: {} bytes", text.len());
    }
    assert_eq!(ask(&server, "nobody").await.0, 404);
    assert_eq!(health(&server).await["degraded"], false, "an answer ends it");
    assert_eq!(ask(&server, "base").await.0, 200);
    assert!(server.logged().contains("no changes today"), "{}", server.logged());
}

#[tokio::test]
async fn calls_that_never_end_cost_nobody_else_anything() {
    let root = tempfile::tempdir().unwrap();
    place(root.path(), "poet", "poet", "base");
    let server = serve(root.path(), "", "1").await;
    for kind in ["hang", "block"] {
        let names: Vec<String> = (0..32).map(|index| format!("{kind}-{index}")).collect();
        let stuck = names.iter().map(|name| ask(&server, name));
        let others = async {
            for _ in 0..8 {
                assert_eq!(ask(&server, "base").await.0, 200);
                // A busy machine may take longer to load it than a client waits; that goes on.
                let (mut status, mut text) = ask(&server, "poet").await;
                while text.contains("is still being fetched") {
                    (status, text) = ask(&server, "poet").await;
                }
                assert_eq!(status, 200, "another resolver's: {text}");
            }
        };
        let (answers, ()) = tokio::join!(futures::future::join_all(stuck), others);
        for (status, text) in answers {
            assert_eq!(status, 503, "{text}");
        }
    }
    while health(&server).await["degraded"] == false {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(ask(&server, "poet").await.0, 200);
}

/// A copy of the plugin with bytes changed, as `lib<name>.so` in `folder`.
fn patched(folder: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>, usize)) {
    let mut bytes = std::fs::read(plugin_dir().join("libmisbehaving.so")).unwrap();
    // The declaration lies in the data that the loader relocates; the same text in code would be a constant to compare.
    let magic = b"loraplex plugin\0\x01\0\0\0\x01\0\0\0\0\0";
    let at = bytes.windows(magic.len()).position(|window| window == magic);
    change(&mut bytes, at.expect("the plugin declares itself"));
    std::fs::write(folder.join(format!("lib{name}.so")), bytes).unwrap();
}

/// Any library of the system that is no plugin.
fn foreign_library() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libraries = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    libraries
        .map(PathBuf::from)
        .find(|path| path.display().to_string().contains("libc.so"))
        .unwrap()
}

#[test]
fn what_does_not_fit_is_refused_before_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    // Offsets in the declaration: magic 0, interface 16, version 20.
    patched(dir, "magic", |bytes, at| bytes[at] = b'L');
    patched(dir, "interface", |bytes, at| bytes[at + 16] = 2);
    patched(dir, "newer", |bytes, at| bytes[at + 20] = 2);
    patched(dir, "older", |bytes, at| bytes[at + 20] = 0);
    patched(dir, "half", |bytes, at| bytes.truncate(at));
    patched(dir, "machine", |bytes, _| bytes[18] = 0xb7);
    patched(dir, "zeros", |bytes, _| bytes[64..4096].fill(0));
    std::fs::copy(foreign_library(), dir.join("libforeign.so")).unwrap();
    std::fs::create_dir(dir.join("libfolder.so")).unwrap();
    let plugins = plugin_dir();
    for (folder, name, misbehave, parts) in [
        (dir, "magic", "", ["not a plugin for this server"; 2]),
        (dir, "interface", "", ["built with plugin SDK 1.0.0", "the server is older"]),
        (dir, "newer", "", ["built with plugin SDK 2.0.0", "the server is older"]),
        (dir, "older", "", ["built with plugin SDK 0.0.0", "the plugin is older"]),
        (dir, "half", "", ["cut off"; 2]),
        (dir, "machine", "", ["cannot load"; 2]),
        (dir, "zeros", "", ["cannot load"; 2]),
        (dir, "foreign", "", ["exports no resolver"; 2]),
        (dir, "folder", "", ["no such file"; 2]),
        (&*plugins, PLUGIN, "construct", ["the resolver panicked: no resolver today"; 2]),
        (&*plugins, PLUGIN, "refuse", ["it does not like its configuration"; 2]),
    ] {
        let (code, output) = run_to_end(
            &[&demo("model"), "--port", "0"],
            &[
                ("ALLOW_RUNTIME_LORA_UPDATING", "1"),
                ("PLUGINS", name),
                ("PLUGIN_DIR", &folder.display().to_string()),
                ("LORA_RESOLVER_MISBEHAVE", misbehave),
            ],
        );
        assert_eq!(code, Some(1), "{name}: {output}");
        let error = output.lines().find(|line| line.starts_with("error")).unwrap_or_default();
        let file = format!("lib{name}.so");
        assert!(error.contains(&file), "{name}: {output}");
        assert!(parts.iter().all(|part| error.contains(part)), "{name}: {output}");
    }
}

#[tokio::test]
async fn a_newer_minor_version_is_welcome() {
    let folder = tempfile::tempdir().unwrap();
    patched(folder.path(), PLUGIN, |bytes, at| bytes[at + 22] = 9);
    let dir = folder.path().display().to_string();
    let env = [("ALLOW_RUNTIME_LORA_UPDATING", "1"), ("PLUGINS", PLUGIN), ("PLUGIN_DIR", &*dir)];
    let server = ServerProcess::start_with(&[&*demo("model")], &env).await;
    let body = completion("nobody", json!({}));
    assert_eq!(server.client().post("/v1/completions", &body).await.status, 404);
}
