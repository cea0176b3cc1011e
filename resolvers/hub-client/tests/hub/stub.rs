//! A Hub of three routes, with a second host for large files, that misbehaves when it is told to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::{StreamExt, stream};
use serde_json::json;
use sha1::Digest as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Who may read a repository.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Access {
    Public,
    /// With this token; the Hub answers 401 otherwise.
    Private(&'static str),
    /// Nobody who has not accepted the terms.
    Gated,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Each route answers this, with these headers.
    Status(u16, Vec<(&'static str, &'static str)>),
    /// A body ends after so many bytes of what it should be, as often as the second number says.
    Cut(usize, usize),
    /// One bit is another.
    Flip,
    /// A body never ends.
    Endless,
    /// So many bytes of a body come, then none.
    Stall(usize),
    /// `resolve` redirects there.
    Redirect(String),
    /// `resolve` says that it answers for another commit.
    OtherCommit,
    /// Ranges are not known.
    NoRanges,
    /// No answer.
    Hang,
}

/// A request that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// `hub` or `cdn`.
    pub(crate) host: &'static str,
    pub(crate) path: String,
    pub(crate) token: Option<String>,
    pub(crate) range: Option<String>,
    pub(crate) if_match: Option<String>,
}

type Files = BTreeMap<String, Vec<u8>>;

#[derive(Debug)]
struct Repo {
    access: Access,
    /// The last is `main`.
    commits: Vec<Files>,
}

#[derive(Debug, Default)]
struct Shared {
    repos: Mutex<BTreeMap<String, Repo>>,
    fault: Mutex<Option<Fault>>,
    seen: Mutex<Vec<Seen>>,
    cdn: Mutex<String>,
}

/// Serves until it is dropped.
#[derive(Debug)]
pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Stub {
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        let cdn = Router::new().route("/{digest}", get(content)).with_state(shared.clone());
        let cdn = serve(&mut tasks, cdn).await;
        *shared.cdn.lock().unwrap() = format!("http://{cdn}");
        let hub = Router::new()
            .route("/api/models/{org}/{name}", get(info))
            .route("/api/models/{org}/{name}/revision/{revision}", get(info))
            .route("/{org}/{name}/resolve/{revision}/{*file}", get(resolve))
            .with_state(shared.clone());
        let address = serve(&mut tasks, hub).await;
        Self { address, shared, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a commit, and the repository if need be; returns its name.
    pub(crate) fn push(&self, repo: &str, access: Access, files: &[(&str, &[u8])]) -> String {
        let files =
            files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let mut repos = self.shared.repos.lock().unwrap();
        let entry = repos
            .entry(repo.to_owned())
            .or_insert_with(|| Repo { access: Access::Public, commits: Vec::new() });
        entry.access = access;
        entry.commits.push(files);
        commit(entry.commits.len() - 1)
    }

    pub(crate) fn fail(&self, fault: impl Into<Option<Fault>>) {
        *self.shared.fault.lock().unwrap() = fault.into();
    }

    /// Takes what arrived since the last call.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }
}

async fn serve(tasks: &mut JoinSet<()>, router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

fn commit(index: usize) -> String {
    format!("{:040x}", index + 1)
}

/// Git's digest of a small file, SHA-256 of a large one.
fn digest(name: &str, bytes: &[u8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    if is_large(name) {
        return hex(&<sha2::Sha256 as sha2::Digest>::digest(bytes));
    }
    let mut hasher = sha1::Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex(&hasher.finalize())
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

impl Shared {
    fn note(&self, host: &'static str, path: String, headers: &HeaderMap) {
        let text = |name| Some(headers.get(name)?.to_str().ok()?.to_owned());
        self.seen.lock().unwrap().push(Seen {
            host,
            path,
            token: text(header::AUTHORIZATION),
            range: text(header::RANGE),
            if_match: text(header::IF_MATCH),
        });
    }

    fn fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap().clone()
    }

    /// The files of `revision`, or the Hub's refusal.
    fn files(
        &self,
        repo: &str,
        revision: &str,
        headers: &HeaderMap,
    ) -> Result<(String, Files), Box<Response>> {
        let refuse = |status: u16, code: &'static str| {
            Box::new(
                (StatusCode::from_u16(status).unwrap(), [("x-error-code", code)]).into_response(),
            )
        };
        let token = headers.get(header::AUTHORIZATION).and_then(|token| token.to_str().ok());
        let repos = self.repos.lock().unwrap();
        let Some(found) = repos.get(repo) else {
            // The Hub does not tell a stranger what is private and what is not there.
            return Err(refuse(if token.is_some() { 404 } else { 401 }, "RepoNotFound"));
        };
        match &found.access {
            Access::Public => {}
            Access::Private(wanted) if token == Some(&format!("Bearer {wanted}")) => {}
            Access::Private(_) => return Err(refuse(401, "RepoNotFound")),
            Access::Gated => return Err(refuse(403, "GatedRepo")),
        }
        let last = found.commits.len() - 1;
        let index = match revision {
            "main" => Some(last),
            "v1" => Some(0),
            other => (0..=last).find(|&index| commit(index) == other),
        };
        let Some(index) = index else { return Err(refuse(404, "RevisionNotFound")) };
        Ok((commit(index), found.commits[index].clone()))
    }
}

async fn broken(fault: Option<&Fault>) -> Option<Response> {
    match fault? {
        Fault::Status(status, headers) => {
            let mut answer = StatusCode::from_u16(*status).unwrap().into_response();
            for (name, value) in headers {
                answer.headers_mut().insert(*name, HeaderValue::from_static(value));
            }
            Some(answer)
        }
        Fault::Hang => std::future::pending().await,
        _ => None,
    }
}

async fn info(
    State(shared): State<Arc<Shared>>,
    Path(path): Path<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let repo = format!("{}/{}", path["org"], path["name"]);
    let revision = path.get("revision").map_or("main", |revision| revision);
    shared.note("hub", format!("info {repo} {revision}"), &headers);
    if let Some(answer) = broken(shared.fault().as_ref()).await {
        return answer;
    }
    let (commit, files) = match shared.files(&repo, revision, &headers) {
        Ok(found) => found,
        Err(refusal) => return *refusal,
    };
    let siblings: Vec<_> =
        files.iter().map(|(name, bytes)| json!({"rfilename": name, "size": bytes.len()})).collect();
    let body = json!({"id": repo, "modelId": repo, "sha": commit, "siblings": siblings});
    axum::Json(body).into_response()
}

async fn resolve(
    State(shared): State<Arc<Shared>>,
    method: Method,
    Path(path): Path<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let repo = format!("{}/{}", path["org"], path["name"]);
    let name = &path["file"];
    shared.note("hub", format!("{repo} {} {name}", path["revision"]), &headers);
    let fault = shared.fault();
    if let Some(answer) = broken(fault.as_ref()).await {
        return answer;
    }
    if let Some(Fault::Redirect(to)) = &fault {
        return (StatusCode::FOUND, [(header::LOCATION, to.clone())]).into_response();
    }
    let (mut commit, files) = match shared.files(&repo, &path["revision"], &headers) {
        Ok(found) => found,
        Err(refusal) => return *refusal,
    };
    let Some(bytes) = files.get(name) else {
        return (StatusCode::NOT_FOUND, [("x-error-code", "EntryNotFound")]).into_response();
    };
    if let Some(Fault::OtherCommit) = fault {
        commit = "f".repeat(40);
    }
    let etag = format!("\"{}\"", digest(name, bytes));
    if is_large(name) {
        let to = format!("{}/{}?signature=secret", shared.cdn.lock().unwrap(), digest(name, bytes));
        let size = bytes.len().to_string();
        let headers = [
            ("location", to),
            ("x-repo-commit", commit),
            ("x-linked-etag", etag),
            ("x-linked-size", size),
        ];
        return (StatusCode::FOUND, headers).into_response();
    }
    let mut answer = ranged(&shared, &method, bytes, &headers, &etag);
    answer.headers_mut().insert("x-repo-commit", commit.parse().unwrap());
    answer
}

/// The host of the large files.
async fn content(
    State(shared): State<Arc<Shared>>,
    method: Method,
    Path(wanted): Path<String>,
    headers: HeaderMap,
) -> Response {
    shared.note("cdn", wanted.clone(), &headers);
    let bytes = {
        let repos = shared.repos.lock().unwrap();
        let mut files = repos.values().flat_map(|repo| &repo.commits).flatten();
        files.find(|(name, bytes)| digest(name, bytes) == wanted).map(|(_, bytes)| bytes.clone())
    };
    match bytes {
        Some(bytes) => ranged(&shared, &method, &bytes, &headers, "\"cdn\""),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn ranged(
    shared: &Shared,
    method: &Method,
    bytes: &[u8],
    headers: &HeaderMap,
    etag: &str,
) -> Response {
    let fault = shared.fault();
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let offset: usize = range
        .filter(|_| !matches!(fault, Some(Fault::NoRanges)))
        .map_or(0, |range| range["bytes=".len()..].trim_end_matches('-').parse().unwrap());
    if offset > 0 && offset >= bytes.len() {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let mut rest = bytes[offset..].to_vec();
    let mut answer = Response::builder()
        .header(header::ETAG, etag)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_LENGTH, rest.len());
    if offset > 0 {
        let range = format!("bytes {offset}-{}/{}", bytes.len() - 1, bytes.len());
        answer = answer.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, range);
    }
    if method == Method::HEAD {
        return answer.body(Body::empty()).unwrap();
    }
    let body = match fault {
        Some(Fault::Cut(at, times)) if times > 0 => {
            *shared.fault.lock().unwrap() = Some(Fault::Cut(at, times - 1));
            rest.truncate(at);
            // The error ends the connection before the announced length.
            let cut = Err(std::io::Error::other("cut"));
            Body::from_stream(stream::iter([Ok(Bytes::from(rest)), cut]))
        }
        Some(Fault::Stall(at)) => {
            rest.truncate(at);
            let first = stream::iter([Ok::<_, Infallible>(Bytes::from(rest))]);
            Body::from_stream(first.chain(stream::pending()))
        }
        Some(Fault::Endless) => {
            answer.headers_mut().unwrap().remove(header::CONTENT_LENGTH);
            Body::from_stream(stream::repeat(Ok::<_, Infallible>(Bytes::from(vec![0; 4096]))))
        }
        Some(Fault::Flip) => {
            if let Some(byte) = rest.last_mut() {
                *byte ^= 1;
            }
            Body::from(rest)
        }
        _ => Body::from(rest),
    };
    answer.body(body).unwrap()
}
