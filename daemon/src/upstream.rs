//! Connections to the backend: one pool per account, HTTP/1.1, TLS by rustls.
//!
//! No connection ever serves two accounts, so nothing about one can be told from another's
//! connection state. No redirect is followed, nothing is decoded. Nagle is off on every socket: an
//! answer's head and first event are two small writes, and waiting for an acknowledgement between
//! them costs 40 ms.
//!
//! A connection is driven by the task that uses it, not by one of its own: an answer that arrives in
//! one read leaves in one write, and no wake-up crosses tasks on its way (docs/performance.md).
//!
//! This module tells how far an attempt got (nothing sent, sent and cut, not HTTP), because only
//! that decides whether it may be repeated. It never decides itself, but for one case: a kept
//! connection that the host closed while it was idle is replaced without a word.

use crate::{app::Tasks, clock, config::Endpoint, proxy::body::UpBody};
use bytes::Bytes;
use cma_core::{
    identity::AccountId,
    time::{Span, Wall},
};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{self, SendRequest},
    },
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_platform_verifier::ConfigVerifierExt as _;
use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Hosts close idle connections after a minute or more; ours go before that.
const IDLE: Duration = Duration::from_secs(30);
const IDLE_WALL: Span = Span::from_secs(30);
/// Idle connections kept for one account.
const KEPT: usize = 64;
/// A head of an answer is a few kilobytes; more is not one of this upstream.
const MAX_HEAD: usize = 256 * 1024;

/// A stream to the backend.
pub(crate) type Dialled = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// How an attempt failed before a head came.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing was sent.
    Connect(String),
    /// The connection ended.
    Cut,
    /// What came is not HTTP.
    Garbage,
    /// The client's own body ended early; not upstream's fault.
    ClientBody,
}

/// The backend, and the connections to it.
pub(crate) struct Upstream {
    pub(crate) endpoint: Endpoint,
    tls: OnceLock<TlsConnector>,
    idle: Mutex<BTreeMap<AccountId, Vec<Idle>>>,
    sweeping: AtomicBool,
    tasks: Tasks,
}

struct Idle {
    connection: Connection,
    since: Instant,
    /// The same by the wall clock: the other one stands still while the machine sleeps, and what
    /// was open before a sleep of hours is dead without a word.
    since_wall: Wall,
}

impl Idle {
    fn of(connection: Connection) -> Self {
        Self { connection, since: Instant::now(), since_wall: clock::wall() }
    }

    fn is_fresh(&self) -> bool {
        self.since.elapsed() < IDLE && clock::wall().since(self.since_wall) < IDLE_WALL
    }
}

/// A connection and the work on it. Given back by [`Upstream::give_back`] when its answer was read to
/// the end; dropped, it closes.
pub(crate) struct Connection {
    sender: SendRequest<UpBody>,
    driver: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>,
    ended: bool,
    account: AccountId,
}

/// An answer's body, driving its connection while it is read.
#[derive(Debug)]
pub(crate) struct Driven {
    incoming: Incoming,
    connection: Connection,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("account", &self.account).finish_non_exhaustive()
    }
}

impl Connection {
    fn drive(&mut self, context: &mut Context<'_>) {
        if !self.ended && self.driver.as_mut().poll(context).is_ready() {
            // Why it ended reaches whoever waits on the sender or the body.
            self.ended = true;
        }
    }

    /// Whether a kept connection can take a request right now: it was read to its end, its own
    /// request was sent whole, and the host has not closed it.
    async fn ready(&mut self) -> bool {
        std::future::poll_fn(|context| {
            self.drive(context);
            Poll::Ready(
                !self.ended && matches!(self.sender.poll_ready(context), Poll::Ready(Ok(()))),
            )
        })
        .await
    }

    /// Sends, and drives until the head is there.
    async fn exchange(
        &mut self,
        request: Request<UpBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<UpBody>>> {
        let mut answer = std::pin::pin!(self.sender.try_send_request(request));
        let (driver, ended) = (&mut self.driver, &mut self.ended);
        std::future::poll_fn(|context| {
            if let Poll::Ready(sent) = answer.as_mut().poll(context) {
                return Poll::Ready(sent);
            }
            if !*ended && driver.as_mut().poll(context).is_ready() {
                *ended = true;
            }
            answer.as_mut().poll(context)
        })
        .await
    }
}

impl Connection {
    fn answered(self, response: Response<Incoming>) -> Response<Driven> {
        response.map(|incoming| Driven { incoming, connection: self })
    }
}

impl Driven {
    /// The connection, once the body has been read.
    pub(crate) fn into_connection(self) -> Connection {
        self.connection
    }
}

impl Body for Driven {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { incoming, connection } = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(context) {
            return Poll::Ready(frame);
        }
        connection.drive(context);
        Pin::new(incoming).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Makes ring the process's TLS provider, once.
pub(crate) fn install_tls_provider() {
    // An error means that it is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("base", &self.endpoint.base).finish_non_exhaustive()
    }
}

impl Upstream {
    pub(crate) fn new(endpoint: Endpoint, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self {
            endpoint,
            tls: OnceLock::new(),
            idle: Mutex::new(BTreeMap::new()),
            sweeping: AtomicBool::new(false),
            tasks,
        })
    }

    /// Sends a request on a connection of that account and waits for the head.
    ///
    /// `again` makes the request once more for a fresh connection, when a kept one turns out to
    /// have been closed by the host; it gives `None` when the body can't be sent twice.
    pub(crate) async fn send(
        &self,
        account: &AccountId,
        request: Request<UpBody>,
        again: impl FnOnce() -> Option<Request<UpBody>>,
    ) -> Result<Response<Driven>, Failure> {
        let mut request = request;
        while let Some(mut connection) = self.take(account) {
            if !connection.ready().await {
                continue;
            }
            match connection.exchange(request).await {
                Ok(response) => return Ok(connection.answered(response)),
                Err(mut error) => {
                    if let Some(unsent) = error.take_message() {
                        request = unsent;
                        continue;
                    }
                    let failure = failure(error.error());
                    let Failure::Cut = failure else { return Err(failure) };
                    let Some(repeated) = again() else { return Err(failure) };
                    request = repeated;
                    break;
                },
            }
        }
        // Boxed: what a handshake needs would otherwise be moved with every request.
        let mut connection = Box::pin(self.connect(account)).await?;
        let response =
            connection.exchange(request).await.map_err(|error| failure(error.error()))?;
        Ok(connection.answered(response))
    }

    /// Keeps a connection whose answer was read to its end.
    pub(crate) fn give_back(self: &Arc<Self>, connection: Connection) {
        if connection.ended {
            return;
        }
        let mut idle = self.idle.lock();
        if let Some(kept) = idle.get_mut(&connection.account) {
            if kept.len() < KEPT {
                kept.push(Idle::of(connection));
            }
        } else {
            let account = connection.account.clone();
            idle.insert(account, vec![Idle::of(connection)]);
        }
        drop(idle);
        if !self.sweeping.swap(true, Ordering::AcqRel) {
            let upstream = Arc::clone(self);
            self.tasks.spawn_idle("upstream sweep", async move { upstream.sweep().await });
        }
    }

    /// Closes all idle connections.
    pub(crate) fn close_idle(&self) {
        self.idle.lock().clear();
    }

    fn take(&self, account: &AccountId) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let kept = idle.get_mut(account)?;
        while let Some(idle) = kept.pop() {
            if idle.is_fresh() {
                return Some(idle.connection);
            }
        }
        None
    }

    /// Runs while there is anything idle, then ends: an idle daemon has no timer.
    async fn sweep(&self) {
        loop {
            tokio::time::sleep(IDLE / 2).await;
            let mut idle = self.idle.lock();
            for kept in idle.values_mut() {
                kept.retain(Idle::is_fresh);
                kept.shrink_to_fit();
            }
            idle.retain(|_account, kept| !kept.is_empty());
            if idle.is_empty() {
                self.sweeping.store(false, Ordering::Release);
                drop(idle);
                crate::sys::release_memory();
                return;
            }
        }
    }

    async fn connect(&self, account: &AccountId) -> Result<Connection, Failure> {
        let dial = async {
            let stream = self.tcp().await?;
            if !self.endpoint.tls {
                return Ok(handshake(stream, account).await);
            }
            let stream = self.encrypted(stream).await?;
            Ok(handshake(stream, account).await)
        };
        in_time(dial).await?.map_err(|error| Failure::Connect(error.to_string()))
    }

    /// A stream to the backend that nothing was said on: for a protocol of its own.
    pub(crate) async fn dial(&self) -> Result<Dialled, Failure> {
        in_time(async {
            let stream = self.tcp().await?;
            if !self.endpoint.tls {
                return Ok(Either::Left(stream));
            }
            self.encrypted(stream).await.map(Either::Right)
        })
        .await
    }

    fn host(&self) -> &str {
        self.endpoint.host.trim_start_matches('[').trim_end_matches(']')
    }

    async fn tcp(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((self.host(), self.endpoint.port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn encrypted(&self, stream: TcpStream) -> io::Result<Box<TlsStream<TcpStream>>> {
        let name = rustls::pki_types::ServerName::try_from(self.host().to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.tls()?.connect(name, stream).await.map(Box::new)
    }

    /// TLS is set up at the first use: roots cost memory that an idle daemon doesn't need.
    fn tls(&self) -> io::Result<&TlsConnector> {
        if let Some(tls) = self.tls.get() {
            return Ok(tls);
        }
        install_tls_provider();
        let config = rustls::ClientConfig::with_platform_verifier().map_err(io::Error::other)?;
        Ok(self.tls.get_or_init(|| TlsConnector::from(Arc::new(config))))
    }
}

/// Within the time for a connection.
async fn in_time<T>(dial: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
    tokio::time::timeout(CONNECT_TIMEOUT, dial)
        .await
        .map_err(|_elapsed| Failure::Connect("no connection in time".to_owned()))?
        .map_err(|error| Failure::Connect(error.to_string()))
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    account: &AccountId,
) -> hyper::Result<Connection> {
    let (sender, driver) =
        http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
    Ok(Connection { sender, driver: Box::pin(driver), ended: false, account: account.clone() })
}

fn failure(error: &hyper::Error) -> Failure {
    if error.is_parse() || error.is_parse_too_large() {
        Failure::Garbage
    } else if error.is_user() {
        Failure::ClientBody
    } else {
        Failure::Cut
    }
}
