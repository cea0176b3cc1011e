//! Plugins and hosts whose SDKs differ: a minor version apart they work together, with another layout they do not.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use loraplex_tests::{ServerProcess, plugin_dir, root, run_to_end};
use serde_json::json;

/// What a minor version may add: a field of the request, a method of the resolver with a default.
const NEXT: &[(&str, &str, &str)] = &[
    ("Cargo.toml", "version = \"1.0.0\"", "version = \"1.1.0\""),
    (
        "src/request.rs",
        "    pub metadata: BTreeMap<String, String>,",
        "    pub metadata: BTreeMap<String, String>,\n    /// New.\n    #[serde(default)]\n    pub weight: Option<u32>,",
    ),
    ("src/request.rs", "metadata: BTreeMap::new(),", "metadata: BTreeMap::new(), weight: Some(7),"),
    (
        "src/resolver.rs",
        "    /// Waits for the next change",
        "    /// New.\n    async fn describe(&self) -> Option<String> {\n        Some(\"new\".into())\n    }\n\n    /// Waits for the next change",
    ),
    (
        "src/abi/interface.rs",
        "fn next_change(&self) -> FfiFuture<ROption<RString>>;",
        "fn next_change(&self) -> FfiFuture<ROption<RString>>;\n\n    /// New.\n    fn describe(&self) -> FfiFuture<ROption<RString>> {\n        async_ffi::FutureExt::into_ffi(async { ROption::RNone })\n    }",
    ),
    (
        "src/abi/shim.rs",
        "    fn next_change(&self)",
        "    fn describe(&self) -> FfiFuture<ROption<RString>> {\n        let resolver = self.0.clone();\n        async move { resolver.describe().await.map(RString::from).into() }.into_ffi()\n    }\n\n    fn next_change(&self)",
    ),
    (
        "src/abi/foreign.rs",
        "    async fn next_change(&self)",
        "    async fn describe(&self) -> Option<String> {\n        self.resolver.describe().await.map(String::from).into()\n    }\n\n    async fn next_change(&self)",
    ),
];

/// What no version within 1 may do.
const CHANGED: &[(&str, &str, &str)] = &[(
    "src/abi/interface.rs",
    "    /// Writes a line to the host's log.",
    "    /// New, and in front.\n    pub limit: u64,\n    /// Writes a line to the host's log.",
)];

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Builds the plugin of these tests, and the host if the SDK has what that calls, against a changed copy of the SDK; the
/// folder with both.
fn build(name: &str, changes: &[(&str, &str, &str)], host: bool) -> PathBuf {
    let folder = root().join("target/third-party").join(name);
    // What an earlier run left may be of another version.
    let _ = std::fs::remove_dir_all(&folder);
    copy(&root().join("plugin-sdk"), &folder.join("plugin-sdk"));
    copy(&root().join("tests/plugins/misbehaving"), &folder.join("plugin"));
    for (file, from, to) in changes {
        let path = folder.join("plugin-sdk").join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} has no {from:?}");
        std::fs::write(path, text.replacen(from, to, 1)).unwrap();
    }
    let text = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let shared = &text[text.find("[workspace.package]").unwrap()..];
    let members =
        if host { r#""plugin-sdk", "plugin", "host""# } else { r#""plugin-sdk", "plugin""# };
    let workspace = format!("[workspace]\nresolver = \"3\"\nmembers = [{members}]\n\n{shared}");
    let workspace = &workspace[..workspace.find("[profile.").unwrap()];
    std::fs::write(folder.join("Cargo.toml"), workspace).unwrap();
    std::fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    if host {
        copy(&root().join("tests/third_party/host"), &folder.join("host"));
    }
    // Both tests build files of one name.
    static BUILDS: Mutex<()> = Mutex::new(());
    let _one = BUILDS.lock().unwrap_or_else(PoisonError::into_inner);
    let target = root().join("target/third-party");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--workspace", "--manifest-path"])
        .arg(folder.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .unwrap();
    assert!(built.success());
    let out = folder.join("built");
    std::fs::create_dir_all(&out).unwrap();
    let files = if host { &["libmisbehaving.so", "host"][..] } else { &["libmisbehaving.so"] };
    for file in files {
        std::fs::copy(target.join("debug").join(file), out.join(file)).unwrap();
    }
    out
}

fn run(host: &Path, plugin: &Path) -> Vec<String> {
    let output = Command::new(host).arg(plugin).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_minor_version_apart_both_sides_work() {
    let next = build("sdk-next", NEXT, true);
    let host = next.join("host");
    let (old, new) = (plugin_dir().join("libmisbehaving.so"), next.join("libmisbehaving.so"));
    let found = "/nonexistent/adapter";
    assert_eq!(run(&host, &new), ["None", &format!("{found} Some(7)"), "Some(\"new\")"]);
    // The older plugin lacks the field and the method.
    assert_eq!(run(&host, &old), ["None", &format!("{found} None"), "None"]);

    // The newer plugin in this server, which is the older side.
    let model = root().join("examples/demo/model").display().to_string();
    let dir = next.display().to_string();
    let env =
        [("ALLOW_RUNTIME_LORA_UPDATING", "1"), ("PLUGINS", "misbehaving"), ("PLUGIN_DIR", &*dir)];
    let server = ServerProcess::start_with(&[&*model], &env).await;
    for (name, status) in [("nobody", 404), ("absent", 400), ("panic", 500)] {
        let body = json!({"model": name, "prompt": "Once", "max_tokens": 4});
        let answer = server.client().post("/v1/completions", &body).await;
        assert_eq!(answer.status, status, "{}", answer.text);
    }
}

#[test]
fn another_layout_is_refused_in_one_line() {
    let changed = build("sdk-changed", CHANGED, false).display().to_string();
    let model = root().join("examples/demo/model").display().to_string();
    let (code, output) = run_to_end(
        &[&*model, "--port", "0"],
        &[
            ("ALLOW_RUNTIME_LORA_UPDATING", "1"),
            ("PLUGINS", "misbehaving"),
            ("PLUGIN_DIR", &changed),
        ],
    );
    assert_eq!(code, Some(1), "{output}");
    let errors: Vec<&str> = output.lines().filter(|line| line.contains("laid out")).collect();
    assert_eq!(errors.len(), 1, "{output}");
    assert!(errors[0].contains("libmisbehaving.so") && errors[0].len() < 400, "{output}");
    assert!(output.lines().count() < 20, "{output}");
}
