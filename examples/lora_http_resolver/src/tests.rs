//! The contract, and what each status means, against a small service of our own.

use std::path::PathBuf;
use std::sync::Arc;

use loraplex_plugin_sdk::testing::{Adapter, CONFIG, Fixture, contract};
use loraplex_plugin_sdk::{ErrorKind, LoraResolver, ResolverConfig, async_trait};
use reqwest::Url;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::HttpResolver;

const TOKEN: &str = "planted-secret";

/// Answers for the folders below its root, by their whole names. Ends with the test.
struct Service {
    root: tempfile::TempDir,
    url: String,
    _running: JoinSet<()>,
}

impl Service {
    async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (mut running, folder) = (JoinSet::new(), root.path().to_owned());
        running.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer(stream, folder.clone()));
            }
        });
        Self { root, url, _running: running }
    }

    fn resolver(&self, token: &str) -> HttpResolver {
        let table = json!({"http_url": self.url, "http_token": token});
        let config: ResolverConfig = serde_json::from_value(json!({"table": table})).unwrap();
        HttpResolver::from_config(config).unwrap()
    }
}

/// One request a connection.
async fn answer(stream: TcpStream, root: PathBuf) {
    let mut stream = BufReader::new(stream);
    let (mut target, mut allowed) = (String::new(), false);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        if line.trim().is_empty() {
            break;
        }
        if target.is_empty() {
            target = line.split(' ').nth(1).unwrap().to_owned();
        }
        allowed |= line.trim().eq_ignore_ascii_case(&format!("authorization: Bearer {TOKEN}"));
    }
    let url = Url::parse(&format!("http://service{target}")).unwrap();
    let name = url.query_pairs().find(|(key, _)| key == "lora_name").unwrap().1.into_owned();
    let plain = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let folder = root.join(&name);
    let (status, body) = match name.as_str() {
        _ if !allowed => ("401 Unauthorized", String::new()),
        "busy" => ("503 Service Unavailable\r\nretry-after: 7", String::new()),
        "relative" => ("200 OK", json!({"path": "here"}).to_string()),
        "moved" => ("302 Found\r\nlocation: http://127.0.0.1:1/", String::new()),
        "garbage" => ("200 OK", "{".to_owned()),
        _ if name.split('/').all(plain) && folder.join(CONFIG).is_file() => {
            let body = json!({
                "path": folder, "revision": "r1", "metadata": {"owner": "me"}, "later": true,
            });
            ("200 OK", body.to_string())
        }
        _ => ("404 Not Found", String::new()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all((head + &body).as_bytes()).await;
}

#[async_trait]
impl Fixture for Service {
    async fn resolver(&self) -> Arc<dyn LoraResolver> {
        Arc::new(Service::resolver(self, TOKEN))
    }

    async fn put(&self, adapter: &Adapter) {
        adapter.install(self.root.path()).unwrap();
    }

    async fn remove(&self, name: &str) {
        std::fs::remove_dir_all(self.root.path().join(name)).unwrap();
    }

    // The service's own affair.
    fn checks_base_model(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn the_contract_holds() {
    contract(&Service::start().await).await;
}

#[tokio::test]
async fn each_status_has_its_kind() {
    let service = Service::start().await;
    let resolver = service.resolver(TOKEN);
    for (name, kind, seconds) in [
        ("busy", ErrorKind::Unavailable, Some(7)),
        ("moved", ErrorKind::Unavailable, None),
        ("relative", ErrorKind::Internal, None),
        ("garbage", ErrorKind::Internal, None),
    ] {
        let error = resolver.resolve_lora("base", name).await.unwrap_err();
        assert_eq!((error.kind, error.retry_after.map(|t| t.as_secs())), (kind, seconds), "{name}");
    }
    let denied = service.resolver("wrong").resolve_lora("base", "x").await.unwrap_err();
    assert_eq!(denied.kind, ErrorKind::PermissionDenied);
    assert!(!format!("{resolver:?}").contains(TOKEN));
}

#[tokio::test]
async fn a_service_that_is_gone_is_unavailable() {
    let service = Service::start().await;
    let resolver = service.resolver(TOKEN);
    drop(service);
    let error = resolver.resolve_lora("base", "x").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn what_the_service_says_is_passed_on() {
    let service = Service::start().await;
    service.put(&Adapter::new("team/one", "base", 1)).await;
    let found = service.resolver(TOKEN).resolve_lora("base", "team/one").await.unwrap().unwrap();
    assert_eq!(found.revision.as_deref(), Some("r1"));
    assert_eq!(found.metadata["owner"], "me");
}
