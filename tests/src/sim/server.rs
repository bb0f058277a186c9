//! The listener, its connections, and the thread they live on.
//!
//! It decides which part serves a path and when connections are accepted. While
//! it does not listen it keeps the port bound, so that nothing else gets it and
//! connecting is refused, as with an upstream that is down.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::clock::UnixMs;
use super::config::SimConfig;
use super::record::{Open, Outcome, Seen};
use super::state::{Shared, State};
use super::wire::{Answer, Call, Gone, Line, Payload, Reply, Socket, text};
use super::{backend, control, issuer, login, strict};

/// The largest body read, as on the wire.
const MAX_WIRE: usize = 32 << 20;

/// The largest body after decompression.
const MAX_BODY: u64 = 64 << 20;

/// Connections at once; more are closed.
const MAX_CONNECTIONS: usize = 4096;

/// So that the answer to a pause arrives before the pause.
const LEAD: Duration = Duration::from_millis(50);

/// How long a port that was given up may take to be free.
const BIND_AGAIN: Duration = Duration::from_secs(2);

/// What the serving thread is told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Command {
    Pause,
    PauseFor(Duration),
    Resume,
    Stop,
}

#[derive(Debug)]
struct Order {
    command: Command,
    done: Option<SyncSender<io::Result<()>>>,
}

/// Tells the serving thread what to do.
///
/// Unbounded, since each order comes from a call of the test and most of those
/// wait for it; a bounded one would have to block or fail.
#[derive(Debug, Clone)]
pub(super) struct Commands(UnboundedSender<Order>);

impl Commands {
    /// Orders something and waits until it is done.
    pub(super) fn ask(&self, command: Command) -> io::Result<()> {
        let (done, wait) = sync_channel(1);
        let gone = |_| io::Error::other("the simulated upstream has stopped");
        self.0
            .send(Order { command, done: Some(done) })
            .map_err(|error| gone(error.to_string()))?;
        wait.recv().map_err(|error| gone(error.to_string()))?
    }

    /// Orders something.
    pub(super) fn tell(&self, command: Command) {
        // Without a receiver it has stopped already, and nothing is to be done.
        self.0.send(Order { command, done: None }).ok();
    }

    pub(super) fn stop(&self) {
        self.tell(Command::Stop);
    }
}

/// Binds and starts the serving thread.
pub(super) fn start(config: SimConfig) -> io::Result<(Arc<Shared>, JoinHandle<()>)> {
    let listen = config.listen;
    if !listen.ip().is_loopback() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "only loopback is served"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _inside = runtime.enter();
        bind(listen)?.listen(1024)?
    };
    let (sender, orders) = unbounded_channel();
    let shared = Arc::new(Shared {
        addr: listener.local_addr()?,
        commands: Commands(sender),
        tls: config.tls.clone(),
        leaving: tokio::sync::watch::Sender::new(0),
        state: Mutex::new(State::new(config)),
    });
    let serving = Server {
        shared: Arc::clone(&shared),
        door: Door::Open(listener),
        lines: JoinSet::new(),
        resume_at: None,
    };
    let thread = std::thread::Builder::new()
        .name("cma-sim".to_owned())
        .spawn(move || runtime.block_on(serving.run(orders)))?;
    Ok((shared, thread))
}

fn bind(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

#[derive(Debug)]
enum Door {
    Open(TcpListener),
    /// Bound but not listening.
    Shut(TcpSocket),
    /// Only for the moment between the two.
    Gone,
}

impl Door {
    /// Cancel-safe, as `accept` is.
    async fn accept(&self) -> io::Result<TcpStream> {
        match self {
            Self::Open(listener) => listener.accept().await.map(|(stream, _)| stream),
            Self::Shut(_) | Self::Gone => std::future::pending().await,
        }
    }
}

#[derive(Debug)]
struct Server {
    shared: Arc<Shared>,
    door: Door,
    lines: JoinSet<()>,
    resume_at: Option<Instant>,
}

impl Server {
    async fn run(mut self, mut orders: UnboundedReceiver<Order>) {
        loop {
            let resume_at = self.resume_at.unwrap_or_else(Instant::now);
            tokio::select! {
                accepted = self.door.accept() => match accepted {
                    Ok(stream) => self.admit(stream),
                    // Out of descriptors: some will come back.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                },
                order = orders.recv() => {
                    let Some(order) = order else { return };
                    if matches!(order.command, Command::Stop) {
                        return;
                    }
                    let result = self.obey(order.command).await;
                    if let Some(done) = order.done {
                        done.send(result).ok();
                    }
                },
                Some(_) = self.lines.join_next() => {},
                () = tokio::time::sleep_until(resume_at), if self.resume_at.is_some() => {
                    self.resume().ok();
                },
            }
        }
    }

    fn admit(&mut self, stream: TcpStream) {
        self.shared.state.lock().record.connection();
        if self.lines.len() < MAX_CONNECTIONS && stream.set_nodelay(true).is_ok() {
            self.lines.spawn(converse(Arc::clone(&self.shared), stream));
        }
    }

    async fn obey(&mut self, command: Command) -> io::Result<()> {
        match command {
            Command::Pause => self.pause().await,
            Command::PauseFor(span) => {
                tokio::time::sleep(LEAD).await;
                self.pause().await?;
                self.resume_at = Some(Instant::now() + span);
                Ok(())
            },
            Command::Resume => self.resume(),
            Command::Stop => Ok(()),
        }
    }

    async fn pause(&mut self) -> io::Result<()> {
        self.resume_at = None;
        if matches!(self.door, Door::Shut(_)) {
            return Ok(());
        }
        self.door = Door::Gone;
        self.door = Door::Shut(bind_again(self.shared.addr).await?);
        self.lines.shutdown().await;
        Ok(())
    }

    fn resume(&mut self) -> io::Result<()> {
        self.resume_at = None;
        let socket = match std::mem::replace(&mut self.door, Door::Gone) {
            Door::Open(listener) => {
                self.door = Door::Open(listener);
                return Ok(());
            },
            Door::Shut(socket) => socket,
            Door::Gone => bind(self.shared.addr)?,
        };
        self.door = Door::Open(socket.listen(1024)?);
        Ok(())
    }
}

/// Binds a port that was ours a moment ago. A child that another thread has forked and that has not
/// become its program yet holds a copy of our listener for an instant.
async fn bind_again(addr: SocketAddr) -> io::Result<TcpSocket> {
    let begun = Instant::now();
    loop {
        match bind(addr) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < BIND_AGAIN =>
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            },
            bound => return bound,
        }
    }
}

async fn converse(shared: Arc<Shared>, stream: TcpStream) {
    let line = Arc::new(Line::default());
    let socket = Socket::new(stream, Arc::clone(&line));
    let Some(tls) = shared.tls.clone() else { return plain(shared, line, socket).await };
    // A client that doesn't trust us goes, and that is all.
    let Ok(stream) = TlsAcceptor::from(tls).accept(socket).await else { return };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        many(shared, stream).await;
    } else {
        plain(shared, line, stream).await;
    }
}

/// HTTP/2: each stream has a line of its own, whose end is a reset.
async fn many(shared: Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let mut leaving = shared.leaving.subscribe();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (shared, line) = (Arc::clone(&shared), Arc::new(Line::default()));
        // What HTTP/1.1 says in a header.
        let host = request.uri().authority().and_then(|host| host.as_str().parse().ok());
        if let Some(host) = host {
            request.headers_mut().insert(http::header::HOST, host);
        }
        async move {
            let answer = Box::pin(serve(shared, Arc::clone(&line), request)).await;
            answer.map_err(|_gone| match line.refused.load(Ordering::Relaxed) {
                true => h2::Error::from(h2::Reason::REFUSED_STREAM),
                false => h2::Error::from(h2::Reason::INTERNAL_ERROR),
            })
        }
    });
    let http = http2::Builder::new(TokioExecutor::new());
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ended = connection.as_mut() => return,
        _told = leaving.changed() => connection.as_mut().graceful_shutdown(),
    }
    connection.await.ok();
}

async fn plain(
    shared: Arc<Shared>,
    line: Arc<Line>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let io = TokioIo::new(stream);
    let own = Arc::clone(&line);
    let service = service_fn(move |request| {
        let (shared, line) = (Arc::clone(&shared), Arc::clone(&line));
        async move { Box::pin(serve(shared, line, request)).await }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    // Ends with an error whenever a fault or the client ended it; both are recorded.
    http.serve_connection(io, service).with_upgrades().await.ok();
    if let Some(later) = own.later() {
        later.await;
    }
}

async fn serve(shared: Arc<Shared>, line: Arc<Line>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let raw = match Limited::new(body, MAX_WIRE).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Ok(Reply::json(413, &json!({ "detail": "Too large" })).into_response());
        },
        Err(_) => return Err(Gone),
    };
    if let Some(path) = head.uri.path().strip_prefix("/__sim/") {
        let query = head.uri.query().unwrap_or_default();
        return Ok(control::serve(&shared, &head.method, (path, query), &raw).into_response());
    }
    let wire_bytes = raw.len();
    let body = Payload::decode(&head.headers, raw);
    let number = record(&shared, &head, &body, wire_bytes);
    let open = Open::new(Arc::clone(&shared), number);
    let mut call = Call { shared, line, open, head, body };
    strict::check_any(&call);
    let path = call.head.uri.path();
    if let Some(path) = path.strip_prefix("/backend-api/") {
        let path = format!("/{path}");
        return Box::pin(backend::serve(call, path)).await;
    }
    if login::serves(path) {
        return Box::pin(login::serve(call)).await;
    }
    if path.starts_with("/oauth/") {
        return Box::pin(issuer::serve(call)).await;
    }
    call.breach("no such path on the issuer or the backend");
    Ok(Reply::json(404, &json!({ "detail": "Not Found" })).send(&mut call.open))
}

fn record(
    shared: &Arc<Shared>,
    head: &http::request::Parts,
    body: &Payload,
    wire_bytes: usize,
) -> u64 {
    let state = &mut *shared.state.lock();
    let kept = if body.bytes.len() > state.config.keep_body { 0 } else { body.bytes.len() };
    let shown = match &body.json {
        _ if kept == 0 => Value::Null,
        Some(json) => json.clone(),
        None => Value::from(String::from_utf8_lossy(&body.bytes).into_owned()),
    };
    let headers = head.headers.iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.as_str().to_owned(), value)
    });
    // Not a header: how it came.
    let version = (head.version == http::Version::HTTP_2)
        .then(|| (":version".to_owned(), "HTTP/2".to_owned()));
    let headers = headers.chain(version);
    let seen = Seen {
        number: 0,
        at_unix_ms: UnixMs::now().0,
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: headers.collect(),
        account: None,
        body: shown,
        wire_bytes,
        status: None,
        outcome: Outcome::Open,
        tokens: None,
    };
    state.record.begin(seen, kept)
}

impl Payload {
    fn decode(headers: &HeaderMap, raw: Bytes) -> Self {
        let bytes = match text(headers, CONTENT_ENCODING.as_str()) {
            None | Some("identity") => raw,
            Some("zstd") => match unzstd(&raw) {
                Ok(bytes) => bytes,
                Err(error) => return Self::broken(raw, format!("not zstd: {error}")),
            },
            Some(_) => {
                return Self::broken(raw, "a content-encoding the CLI does not use".to_owned());
            },
        };
        let json = serde_json::from_slice(&bytes).ok();
        Self { bytes, json, broken: None }
    }

    fn broken(bytes: Bytes, why: String) -> Self {
        Self { bytes, json: None, broken: Some(why) }
    }
}

fn unzstd(raw: &[u8]) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    zstd::Decoder::new(raw)?.take(MAX_BODY).read_to_end(&mut bytes)?;
    Ok(Bytes::from(bytes))
}
