//! The real binary on a free port of the loopback, ended with its guard.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Client;

/// A running server. Dropping it ends the process.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    client: Client,
    /// What the server writes, for tests that read it.
    pub log: PathBuf,
    _folder: tempfile::TempDir,
}

/// Longest wait for a start: reading a model in an unoptimised build on a busy machine.
const START: Duration = Duration::from_secs(300);

impl ServerProcess {
    /// Starts `server` with these arguments and waits until it listens.
    pub async fn start<S: AsRef<str>>(args: &[S]) -> Self {
        Self::start_with(args, &[]).await
    }

    /// As [`ServerProcess::start`], with variables of the environment.
    pub async fn start_with<S: AsRef<str>>(args: &[S], env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let output = std::fs::File::create(&log).unwrap();
        let child = Command::new(binary())
            .args(args.iter().map(AsRef::as_ref))
            // A free one, which no other can take before it does.
            .args(["--host", "127.0.0.1", "--port", "0"])
            // Whose log these suites read.
            .env_remove("RUST_LOG")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let mut server = Self { child, client: Client::new(String::new()), log, _folder: folder };
        server.client = Client::new(server.listens().await);
        server
    }

    /// Talks to it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Everything that it has written.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for the process to end by itself.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it says where it listens.
    async fn listens(&mut self) -> String {
        let start = Instant::now();
        loop {
            let log = self.logged();
            let address = log.lines().find_map(|line| line.split_once("listening on ")?.1.into());
            if let Some(address) = address.filter(|_| log.ends_with('\n')) {
                return address.trim().to_owned();
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended with {status}:\n{log}");
            }
            assert!(start.elapsed() < START, "the server does not start:\n{log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `server` to its end, for starts that are refused: exit code and everything it wrote. One that serves instead is
/// ended, without a code.
pub fn run_to_end(args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let output = std::fs::File::create(&log).unwrap();
    let mut child = Command::new(binary())
        .args(args)
        .env_remove("RUST_LOG")
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let written = || std::fs::read_to_string(&log).unwrap_or_default();
    while child.try_wait().unwrap().is_none() {
        if written().contains("listening on") {
            child.kill().unwrap();
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    (child.wait().unwrap().code(), written())
}

/// Where cargo has put the plugins that these suites depend on.
pub fn plugin_dir() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path
}

/// The binary beside the test's own, which cargo has built with it, or the one that `LORAPLEX_SERVER` names.
fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("LORAPLEX_SERVER") {
        return PathBuf::from(path);
    }
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.push("server");
    assert!(path.exists(), "{} is missing: cargo build --package loraplex-server", path.display());
    path
}
