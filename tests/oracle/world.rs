//! The server with the oracle's model, and the operator who changes its adapters.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use loraplex_tests::oracle::{AdapterFiles, Label, write_model};
use loraplex_tests::{Client, ServerProcess};
use reqwest::Method;
use serde_json::{Value, json};

use crate::answer::{Answer, Ask};
use crate::explain::{Explained, Record};
use crate::history::History;

/// A number from the environment: how much a test does, or a seed to repeat.
#[allow(
    clippy::disallowed_methods,
    reason = "a knob of the suite, no configuration of the product"
)]
pub(crate) fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// How often suites go through their rounds: `ORACLE_TIMES`.
pub(crate) fn times() -> usize {
    number("ORACLE_TIMES", 2) as usize
}

/// How weights reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The folder that this name has had before, with new files.
    SamePath,
    /// A folder of its own.
    NewPath,
    /// In the request.
    Upload,
}

/// A server under test.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) server: ServerProcess,
    pub(crate) operator: Operator,
    _folder: tempfile::TempDir,
}

/// Loads and unloads, and writes both into the history.
#[derive(Debug, Clone)]
pub(crate) struct Operator {
    client: Client,
    pub(crate) history: Arc<History>,
    folder: PathBuf,
    folders: Arc<AtomicUsize>,
    /// Names that have a folder of their own: what a name says is no file name.
    named: Arc<Mutex<Vec<String>>>,
}

impl World {
    /// Starts the server. `flags` come beside the model.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        write_model(&model);
        let model = model.display().to_string();
        let mut args = vec![model.as_str(), "--served-model-name", "base"];
        args.extend(flags);
        let env = [("ALLOW_RUNTIME_LORA_UPDATING", "1")];
        let server = ServerProcess::start_with(&args, &env).await;
        let operator = Operator {
            client: server.client().clone(),
            history: Arc::new(History::new()),
            folder: folder.path().to_owned(),
            folders: Arc::default(),
            named: Arc::default(),
        };
        Self { server, operator, _folder: folder }
    }

    pub(crate) fn client(&self) -> &Client {
        self.server.client()
    }

    /// Sends `ask`.
    pub(crate) async fn ask(&self, ask: Ask) -> Answer {
        ask.send(self.client(), &self.operator.history).await
    }

    /// What `answer` turned out to be; panics where nothing explains it.
    pub(crate) fn explain(&self, answer: &Answer) -> Explained {
        let record = Record::new(self.operator.history.changes());
        record.explain(answer).unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// The value of a metric, summed over the labels that the name does not choose.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.client().get("/metrics").await.text;
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let values: Vec<f64> =
            lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(!values.is_empty(), "no metric {name}:\n{text}");
        values.iter().sum()
    }

    /// Has the server do what `path` says.
    pub(crate) async fn post(&self, path: &str) {
        let answer = self.client().request(Method::POST, path).send().await.unwrap();
        answer.error_for_status().unwrap();
    }

    /// Waits until a metric has a value that it then keeps. The engine reports a step after its answers are out.
    pub(crate) async fn reaches(&self, name: &str, value: f64) {
        while self.metric(name).await != value {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until `count` requests are in the queue. The engine is paused, so that none of them leaves it.
    pub(crate) async fn queued(&self, count: usize) {
        self.reaches("vllm:num_requests_waiting", count as f64).await;
    }

    /// Waits until no request is left and nothing is held for one.
    pub(crate) async fn quiet(&self) {
        for metric in ["vllm:num_requests_running", "vllm:num_requests_waiting"] {
            self.reaches(metric, 0.0).await;
        }
        assert_eq!(self.metric("vllm:kv_cache_usage_perc").await, 0.0, "blocks are held");
        let list = self.client().get("/v1/lora_adapters").await.json();
        for card in list["data"].as_array().unwrap() {
            let held = (&card["old_generations"], &card["leases"]);
            assert_eq!(held, (&json!(0), &json!(0)), "{card}");
        }
    }
}

impl Operator {
    /// Loads the next label under `name`; what the name pointed to before is replaced. Returns the new generation.
    pub(crate) async fn load(&self, name: &str, way: Way) -> u64 {
        // Every label has a rank of its own, so that neighbours in a batch differ in it.
        self.load_ranked(name, way, |label| 1 << (label % 4)).await
    }

    /// The same with the rank that `rank` chooses.
    pub(crate) async fn load_ranked<F>(&self, name: &str, way: Way, rank: F) -> u64
    where
        F: FnOnce(Label) -> usize,
    {
        let (ticket, label) = self.history.begin_load(name);
        let files = AdapterFiles::new(label, rank(label));
        let answer = match way {
            Way::Upload => self.upload(name, label, &files).await,
            Way::SamePath | Way::NewPath => self.load_folder(name, label, (way, &files)).await,
        };
        assert_eq!(answer.0, 200, "{name}: {}", answer.1);
        let generation = answer.1["generation"].as_u64().unwrap();
        self.history.end(ticket, Some(generation));
        generation
    }

    async fn load_folder(
        &self,
        name: &str,
        label: Label,
        (way, files): (Way, &AdapterFiles),
    ) -> (u16, Value) {
        let path = match way {
            Way::SamePath => self.folder.join(format!("same-{}", self.number_of(name))),
            _ => self.folder.join(format!("new-{}", self.folders.fetch_add(1, Ordering::Relaxed))),
        };
        files.write(&path);
        let body = json!({
            "lora_name": name, "lora_path": path, "load_inplace": true, "policy_version": label,
        });
        let request = self.client.request(Method::POST, "/v1/load_lora_adapter").json(&body);
        let answer = send(request).await;
        if way == Way::NewPath {
            std::fs::remove_dir_all(&path).unwrap();
        }
        answer
    }

    fn number_of(&self, name: &str) -> usize {
        let mut named = self.named.lock().unwrap();
        named.iter().position(|known| known == name).unwrap_or_else(|| {
            named.push(name.to_owned());
            named.len() - 1
        })
    }

    async fn upload(&self, name: &str, label: Label, files: &AdapterFiles) -> (u16, Value) {
        const BOUNDARY: &str = "a-line-that-no-file-has";
        let mut form = Vec::new();
        for (part, bytes) in [("config", &files.config), ("weights", &files.weights)] {
            let head =
                format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{part}\"\r\n\r\n");
            form.extend_from_slice(head.as_bytes());
            form.extend_from_slice(bytes);
            form.extend_from_slice(b"\r\n");
        }
        form.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        let path = format!("/v1/lora_adapters/{name}?policy_version={label}");
        let media = format!("multipart/form-data; boundary={BOUNDARY}");
        let request = self.client.request(Method::PUT, &path).header("content-type", media);
        send(request.body(form)).await
    }

    /// Takes `name` out.
    pub(crate) async fn unload(&self, name: &str, wait: bool) {
        let ticket = self.history.begin_unload(name);
        let path = format!("/v1/lora_adapters/{name}?wait={wait}");
        let (status, body) = send(self.client.request(Method::DELETE, &path)).await;
        assert_eq!(status, 200, "{name}: {body}");
        self.history.end(ticket, None);
    }
}

async fn send(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.header("accept", "application/json").send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}
