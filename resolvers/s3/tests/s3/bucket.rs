//! A bucket in a folder, behind an S3 server that checks signatures, and that misbehaves when it is told to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub(crate) const BUCKET: &str = "adapters";
pub(crate) const KEY: &str = "AKIAEXAMPLE";
pub(crate) const SECRET: &str = "a/secret+that=signs";

/// What goes wrong with a request.
pub(crate) enum Fault {
    /// It is answered so, with this code in XML and these headers.
    Status(u16, &'static str, Vec<(&'static str, String)>),
    /// The body ends after so many bytes of what it should be.
    Cut(usize),
    /// One bit of the byte there is another.
    Flip(usize),
    /// So many bytes of the body come, then none.
    Stall(usize),
    /// So many bytes at a time, each after so many milliseconds.
    Trickle(usize, u64),
    /// A refusal whose body never ends.
    EndlessRefusal,
    /// This header is another.
    Header(header::HeaderName, String),
    /// Ranges are not known: what comes calls itself the whole object.
    NoRanges,
    /// No answer.
    Hang,
    /// Done before it is answered.
    Before(Box<dyn Fn() + Send + Sync>),
}

/// Which requests it happens to.
struct Rule {
    /// End of the path.
    file: &'static str,
    left: usize,
    fault: Arc<Fault>,
}

/// A request that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
}

struct Shared {
    s3: S3Service,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Seen>>,
    is_deaf: Mutex<bool>,
    /// Requests that hang, and the most that ever did at once.
    hanging: Mutex<(usize, usize)>,
}

/// One that hangs, until its client goes.
struct Hanging(Arc<Shared>);

impl Hanging {
    fn new(shared: Arc<Shared>) -> Self {
        {
            let mut hanging = shared.hanging.lock().unwrap();
            hanging.0 += 1;
            hanging.1 = hanging.1.max(hanging.0);
        }
        Self(shared)
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.hanging.lock().unwrap().0 -= 1;
    }
}

/// Serves until it is dropped.
pub(crate) struct Bucket {
    pub(crate) address: SocketAddr,
    folder: tempfile::TempDir,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Bucket {
    pub(crate) async fn start() -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub(crate) fn start_on(listener: TcpListener) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let shared = Arc::new(Shared {
            s3: service.build(),
            rules: Mutex::default(),
            seen: Mutex::default(),
            is_deaf: Mutex::default(),
            hanging: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, folder, shared, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The environment of somebody who may read it.
    pub(crate) fn vars(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", self.url().as_str()),
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_REGION", "us-east-1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// Where the objects below a key lie.
    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join(key)
    }

    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        put(&self.path(key), bytes);
    }

    /// Lets `fault` happen to the next `times` requests for `file`.
    pub(crate) fn fail(&self, file: &'static str, times: usize, fault: Fault) {
        let rule = Rule { file, left: times, fault: Arc::new(fault) };
        self.shared.rules.lock().unwrap().push(rule);
    }

    /// Lets the next request for `file` through, before what was told later.
    pub(crate) fn pass(&self, file: &'static str) {
        self.fail(file, 1, Fault::Before(Box::new(|| {})));
    }

    pub(crate) fn heal(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    /// Whether If-Match means nothing to it.
    pub(crate) fn is_deaf_to_if_match(&self, is_deaf: bool) {
        *self.shared.is_deaf.lock().unwrap() = is_deaf;
    }

    /// Takes what arrived since the last call.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }

    /// Requests that hang, and the most that ever did at once.
    pub(crate) fn hanging(&self) -> (usize, usize) {
        *self.shared.hanging.lock().unwrap()
    }
}

/// Replaces an object as S3 does: at once.
pub(crate) fn put(path: &std::path::Path, bytes: &[u8]) {
    let folder = path.parent().unwrap();
    std::fs::create_dir_all(folder).unwrap();
    let fresh = tempfile::Builder::new().prefix(".fresh-").tempfile_in(folder).unwrap();
    std::fs::write(fresh.path(), bytes).unwrap();
    fresh.persist(path).unwrap();
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let range = request.headers().get(header::RANGE);
    let range = range.map(|range| range.to_str().unwrap().to_owned());
    let method = request.method().to_string();
    shared.seen.lock().unwrap().push(Seen { method, path: path.clone(), range });
    let if_match = request.headers().get(header::IF_MATCH).cloned();
    let fault = {
        let mut rules = shared.rules.lock().unwrap();
        let rule = rules.iter_mut().find(|rule| rule.left > 0 && path.ends_with(rule.file));
        rule.map(|rule| {
            rule.left -= 1;
            rule.fault.clone()
        })
    };
    match fault.as_deref() {
        Some(Fault::Before(act)) => act(),
        Some(Fault::Hang) => {
            let _hanging = Hanging::new(shared.clone());
            return std::future::pending().await;
        }
        Some(Fault::Status(status, code, headers)) => {
            let text = format!("<Error><Code>{code}</Code><Message>x</Message></Error>");
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().unwrap());
            }
            return (StatusCode::from_u16(*status).unwrap(), map, text).into_response();
        }
        Some(Fault::EndlessRefusal) => {
            let body =
                stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 4096])));
            return (StatusCode::BAD_REQUEST, Body::from_stream(body)).into_response();
        }
        _ => {}
    }
    let answer = shared.s3.call(request.map(|_| s3s::Body::empty())).await.unwrap();
    let (mut parts, body) = answer.into_parts();
    let differs = if_match.is_some() && if_match.as_ref() != parts.headers.get(header::ETAG);
    if differs && parts.status.is_success() && !*shared.is_deaf.lock().unwrap() {
        return StatusCode::PRECONDITION_FAILED.into_response();
    }
    let body = match fault.as_deref() {
        Some(Fault::Header(name, value)) => {
            parts.headers.insert(name, value.parse().unwrap());
            Body::new(body)
        }
        Some(Fault::NoRanges) => {
            parts.status = StatusCode::OK;
            parts.headers.remove(header::CONTENT_RANGE);
            Body::new(body)
        }
        Some(fault) if parts.status.is_success() => broken(Body::new(body), fault).await,
        _ => Body::new(body),
    };
    Response::from_parts(parts, body)
}

/// A body with its fault.
async fn broken(body: Body, fault: &Fault) -> Body {
    let mut bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
    match *fault {
        Fault::Cut(at) if at < bytes.len() => {
            bytes.truncate(at);
            // What came before is on its way by then.
            let end = stream::once(async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(std::io::Error::other("cut"))
            });
            Body::from_stream(stream::iter([Ok(Bytes::from(bytes))]).chain(end))
        }
        Fault::Flip(at) if at < bytes.len() => {
            bytes[at] ^= 1;
            Body::from(bytes)
        }
        Fault::Stall(at) if at < bytes.len() => {
            bytes.truncate(at);
            let start = stream::iter([Ok::<_, Infallible>(Bytes::from(bytes))]);
            Body::from_stream(start.chain(stream::pending()))
        }
        Fault::Trickle(size, pause) => {
            let pieces: Vec<_> = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
            Body::from_stream(stream::iter(pieces).then(move |piece| async move {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                Ok::<_, Infallible>(piece)
            }))
        }
        _ => Body::from(bytes),
    }
}
