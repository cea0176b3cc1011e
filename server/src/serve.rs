//! Connections: accepted up to a number, with time limits on silent clients, drained at the end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How much of a server one client may hold, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; more wait in the listener's queue.
    pub connections: usize,
    /// For a request's head to arrive, and for an idle connection.
    pub head: Duration,
    /// For a client to read something of what waits for it.
    pub write: Duration,
    /// Bytes of a request's head; a longer one gets 431. Of an answer, what waits for a client before the engine's output
    /// does.
    pub buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            head: Duration::from_secs(30),
            write: Duration::from_secs(60),
            buffer: 64 << 10,
        }
    }
}

/// After a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Open connections and how to end them.
#[derive(Debug, Default)]
pub struct Connections {
    limits: Limits,
    tasks: TaskTracker,
    drain: CancellationToken,
    abort: CancellationToken,
}

impl Connections {
    /// None yet, and never beyond `limits`.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Accepts until [`Connections::drain`], then closes the listener.
    pub async fn accept(&self, listener: TcpListener, app: Router) {
        let permits = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            let permit = permits.clone().acquire_owned();
            let accepted = async { (permit.await, listener.accept().await) };
            let (permit, stream) = tokio::select! {
                () = self.drain.cancelled() => return,
                (permit, accepted) = accepted => match accepted {
                    Ok((stream, _)) => (permit, stream),
                    Err(error) => {
                        tracing::warn!("cannot accept a connection: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            // Small chunks of a stream must not wait for one another.
            let _ = stream.set_nodelay(true);
            let (app, drain, abort) = (app.clone(), self.drain.clone(), self.abort.clone());
            let limits = self.limits;
            self.tasks.spawn(async move {
                let _permit = permit;
                tokio::select! {
                    () = abort.cancelled() => {}
                    () = connection(stream, app, drain, limits) => {}
                }
            });
        }
    }

    /// Lets running requests finish and takes no more.
    pub fn drain(&self) {
        self.drain.cancel();
        self.tasks.close();
    }

    /// Waits until every connection has ended.
    pub async fn drained(&self) {
        self.tasks.wait().await;
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.tasks.len()
    }

    /// Ends every connection now, which aborts their requests.
    pub fn abort(&self) {
        self.abort.cancel();
    }
}

async fn connection(stream: TcpStream, app: Router, drain: CancellationToken, limits: Limits) {
    let io = TokioIo::new(Impatient { stream, patience: limits.write, waiting: None });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.buffer)
        .serve_connection(io, TowerToHyperService::new(app));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // A client that went away, or spoke no HTTP.
        tracing::debug!("a connection ended: {error}");
    }
}

/// A stream whose writes fail when the other side has read nothing for as long as `patience`.
#[derive(Debug)]
struct Impatient {
    stream: TcpStream,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn or_timeout<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.waiting = None;
            return poll;
        }
        let patience = self.patience;
        let sleep = || Box::pin(tokio::time::sleep(patience));
        match self.waiting.get_or_insert_with(sleep).as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.or_timeout(context, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(context);
        self.or_timeout(context, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_shutdown(context);
        self.or_timeout(context, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.or_timeout(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
