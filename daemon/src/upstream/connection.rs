//! A connection upstream: one of HTTP/1.1 that a request has for itself, or a seat on one of HTTP/2.
//!
//! The first is driven by the task that uses it: an answer that arrives in one read leaves in one
//! write, and what its two halves have to tell each other wakes nobody. The second is shared by many requests of one account and has a task of its own.
//! What became of an attempt is told as far as the protocol tells it: a stream that the host refused,
//! or that a GOAWAY left out, was never processed (RFC 9113, sections 6.8 and 8.7).

use super::{
    Outbound,
    joined::{Begins, Joined},
};
use crate::{app::Tasks, clock, config::Endpoint, proxy::body::UpBody};
use bytes::Bytes;
use cma_core::identity::AccountId;
use futures_util::task::AtomicWaker;
use http::{HeaderValue, Uri, header, uri};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{self, SendRequest},
        http2,
    },
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

/// A head of an answer is a few kilobytes; more is not one of this upstream.
const MAX_HEAD: usize = 256 * 1024;
/// Seats of one HTTP/2 connection, where the host allows as many. RFC 9113 advises hosts to allow 100
/// at least; with fewer here a slow reader keeps few others from the connection's window.
const SEATS: usize = 64;
/// What one stream may have on its way: 2.5 MB/s at a round trip of 100 ms.
const STREAM_WINDOW: u32 = 256 * 1024;
/// All seats' windows: a client that doesn't read stops nobody but itself.
const CONNECTION_WINDOW: u32 = 64 * STREAM_WINDOW;
/// Kept of a stream's body before the host takes it.
const SEND_BUFFER: usize = 64 * 1024;
/// How often a connection with open streams is asked whether it lives, and how long it may think:
/// a stream that is silent for minutes looks like a dead one otherwise.
///
/// Twice this is below the time that a head is waited for: a dead connection is found before its requests
/// are taken for silences.
const PING: Duration = Duration::from_secs(10);

/// How an exchange failed.
pub(super) enum Lost {
    /// Nothing of it left; here it is again.
    Unsent(Outbound),
    /// The host says that it did nothing with it.
    Refused,
    /// It may have been processed.
    Failed(hyper::Error),
}

/// A connection and the work on it. Given back by [`super::Upstream::give_back`] when its answer was
/// read to the end; dropped, it closes (a seat: it is free again).
pub(crate) struct Connection {
    pub(super) account: AccountId,
    pub(super) born: Instant,
    /// It is to another host than the backend's own.
    pub(super) other: bool,
    link: Link,
}

enum Link {
    Own { sender: SendRequest<UpBody>, driver: Driver, begins: Begins },
    Seat(Seat),
}

/// Drives a connection of its own, for whoever uses that at the time.
struct Driver {
    protocol: Protocol,
    bell: Arc<Bell>,
    /// That of the bell.
    waker: Waker,
}

/// The protocol's side of a connection: it reads and writes when it is driven.
struct Protocol {
    future: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>,
    ended: bool,
}

/// Wakes the task that drives a connection, but for what happens while it does. The connection and whoever
/// reads from it wake each other all the time and are looked at in turn anyway: for every request its task
/// was run once more, for nothing.
#[derive(Debug, Default)]
struct Bell {
    /// One of the three below.
    state: AtomicU8,
    task: AtomicWaker,
}

/// Nobody drives it now: the task is woken.
const AWAY: u8 = 0;
/// It is being driven.
const AT_IT: u8 = 1;
/// And was rung meanwhile.
const RUNG: u8 = 2;

/// How often it is driven within one poll before other tasks have theirs: a connection that leaves off to let
/// others go first rings as well.
const ROUNDS: u32 = 4;

/// A place on a shared connection.
pub(super) struct Seat(Arc<Shared>);

/// A connection of HTTP/2.
pub(super) struct Shared {
    sender: http2::SendRequest<UpBody>,
    born: Instant,
    taken: AtomicUsize,
    /// As many as the host allows.
    allowed: Arc<AtomicUsize>,
    /// No new request gets a seat.
    retired: AtomicBool,
    /// Since when nobody has a seat.
    free_since: Mutex<Instant>,
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

/// Runs the parts of a shared connection.
#[derive(Clone)]
struct Spawner(Tasks);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, part: F) {
        self.0.spawn_idle("http2", part);
    }
}

impl Shared {
    /// Greets over a stream that has agreed on HTTP/2.
    pub(super) async fn greet(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        tasks: &Tasks,
    ) -> hyper::Result<Arc<Self>> {
        let (sender, mut driver) = http2::Builder::new(Spawner(tasks.clone()))
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .handshake(TokioIo::new(stream))
            .await?;
        let allowed = Arc::new(AtomicUsize::new(SEATS));
        let told = Arc::clone(&allowed);
        tasks.spawn_idle("http2 connection", async move {
            // Why it ended reaches whoever waits for an answer on it.
            let _ended = std::future::poll_fn(|context| {
                let polled = Pin::new(&mut driver).poll(context);
                told.store(driver.current_max_send_streams(), Ordering::Relaxed);
                polled
            })
            .await;
        });
        Ok(Arc::new(Self {
            sender,
            born: Instant::now(),
            taken: AtomicUsize::new(0),
            allowed,
            retired: AtomicBool::new(false),
            free_since: Mutex::new(Instant::now()),
        }))
    }

    /// A seat, when there is one.
    pub(super) fn seat(self: &Arc<Self>) -> Option<Seat> {
        // A host that allows none for now still gets one request, which waits there.
        let allowed = self.allowed.load(Ordering::Relaxed).clamp(1, SEATS);
        // Seats are given out under the pool's lock; they only get fewer beside it.
        if self.taken.load(Ordering::Acquire) >= allowed {
            return None;
        }
        self.taken.fetch_add(1, Ordering::AcqRel);
        Some(Seat(Arc::clone(self)))
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Whether it takes new requests.
    pub(super) fn serves(&self, max_age: Duration) -> bool {
        !self.retired.load(Ordering::Acquire)
            && !self.sender.is_closed()
            && clock::since(self.born) < max_age
    }

    /// Whether nobody has had a seat for that long.
    pub(super) fn is_free_for(&self, span: Duration) -> bool {
        self.taken.load(Ordering::Acquire) == 0 && self.free_since.lock().elapsed() >= span
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.0.taken.fetch_sub(1, Ordering::AcqRel) == 1 {
            *self.0.free_since.lock() = Instant::now();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let rung = self.state.compare_exchange(AT_IT, RUNG, Ordering::AcqRel, Ordering::Acquire);
        if rung == Err(AWAY) {
            self.task.wake();
        }
    }
}

impl Protocol {
    fn drive(&mut self, context: &mut Context<'_>) {
        if !self.ended && self.future.as_mut().poll(context).is_ready() {
            // Why it ended reaches whoever waits on the sender or the body.
            self.ended = true;
        }
    }
}

impl Driver {
    fn new(future: impl Future<Output = hyper::Result<()>> + Send + 'static) -> Self {
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        let protocol = Protocol { future: Box::pin(future), ended: false };
        Self { protocol, bell, waker }
    }

    /// Looks for what the connection brings, and drives it as long as that can help. Who looks is woken by
    /// nothing but the connection: a bell that was rung before the last look is not heard.
    fn bring<T>(
        &mut self,
        context: &mut Context<'_>,
        mut look: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let Self { protocol, bell, waker } = self;
        let mut own = Context::from_waker(waker);
        bell.task.register(context.waker());
        bell.state.store(AT_IT, Ordering::Release);
        let mut rounds = 0;
        let found = loop {
            let found = look(&mut own);
            let rung = || bell.state.load(Ordering::Acquire) == RUNG;
            if found.is_ready() || rounds == ROUNDS || (rounds > 0 && !rung()) {
                break found;
            }
            bell.state.store(AT_IT, Ordering::Release);
            protocol.drive(&mut own);
            rounds += 1;
        };
        let rung = bell.state.swap(AWAY, Ordering::AcqRel) == RUNG;
        if rung && found.is_pending() {
            context.waker().wake_by_ref();
        }
        found
    }
}

impl Connection {
    /// Greets over a stream for HTTP/1.1.
    pub(super) async fn greet(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        account: AccountId,
    ) -> hyper::Result<Self> {
        let (stream, begins) = Joined::new(stream);
        let (sender, driver) =
            http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
        let link = Link::Own { sender, driver: Driver::new(driver), begins };
        Ok(Self { account, born: Instant::now(), other: false, link })
    }

    pub(super) fn seated(seat: Seat, account: AccountId) -> Self {
        Self { account, born: seat.0.born, other: false, link: Link::Seat(seat) }
    }

    pub(super) const fn is_shared(&self) -> bool {
        matches!(self.link, Link::Seat(_))
    }

    /// Whether it is worth keeping for the next request.
    pub(super) const fn is_open(&self) -> bool {
        matches!(&self.link, Link::Own { driver, .. } if !driver.protocol.ended)
    }

    /// The connection that this is a seat on.
    pub(super) fn shared(&self) -> Option<Arc<Shared>> {
        match &self.link {
            Link::Own { .. } => None,
            Link::Seat(seat) => Some(Arc::clone(&seat.0)),
        }
    }

    /// Whether it can take a request right now. A kept one: it was read to its end, its own request
    /// was sent whole, and the host has not closed it.
    pub(super) fn is_ready(&mut self) -> bool {
        // Nobody is to be woken: the request that is sent next would wake its own task, for nothing.
        let mut context = Context::from_waker(Waker::noop());
        match &mut self.link {
            Link::Own { sender, driver: Driver { protocol, .. }, .. } => {
                protocol.drive(&mut context);
                !protocol.ended && matches!(sender.poll_ready(&mut context), Poll::Ready(Ok(())))
            },
            Link::Seat(seat) => !seat.0.sender.is_closed(),
        }
    }

    /// Sends, and waits until the head is there.
    pub(super) async fn exchange(
        &mut self,
        mut request: Outbound,
        endpoint: &Endpoint,
    ) -> Result<Response<Incoming>, Lost> {
        match &mut self.link {
            Link::Own { sender, driver, begins } => {
                own_form(&mut request, endpoint);
                begins.tell();
                let mut answer = std::pin::pin!(sender.try_send_request(*request));
                let answered = std::future::poll_fn(|context| {
                    driver.bring(context, |context| answer.as_mut().poll(context))
                });
                answered.await.map_err(lost)
            },
            // Boxed: what is not used costs every other request nothing.
            Link::Seat(seat) => Box::pin(seat.0.exchange(request, endpoint)).await,
        }
    }

    pub(super) fn answered(self, response: Response<Incoming>) -> Response<Driven> {
        response.map(|incoming| Driven { incoming, connection: self })
    }
}

impl Shared {
    async fn exchange(
        &self,
        mut request: Outbound,
        endpoint: &Endpoint,
    ) -> Result<Response<Incoming>, Lost> {
        shared_form(&mut request, endpoint);
        let mut sender = self.sender.clone();
        if sender.ready().await.is_err() {
            self.retire();
            return Err(Lost::Unsent(request));
        }
        sender.try_send_request(*request).await.map_err(|error| {
            let lost = lost(error);
            let connection = match &lost {
                Lost::Failed(error) => !is_reset(error),
                Lost::Unsent(_) | Lost::Refused => true,
            };
            if connection {
                // It is on its way out: the next request is better off elsewhere.
                self.retire();
            }
            lost
        })
    }
}

fn lost(mut error: TrySendError<Request<UpBody>>) -> Lost {
    match error.take_message() {
        Some(unsent) => Lost::Unsent(Box::new(unsent)),
        None if is_unprocessed(error.error()) => Lost::Refused,
        None => Lost::Failed(error.into_error()),
    }
}

fn h2_cause(error: &hyper::Error) -> Option<&h2::Error> {
    let mut cause = std::error::Error::source(error);
    while let Some(known) = cause {
        if let Some(h2) = known.downcast_ref() {
            return Some(h2);
        }
        cause = known.source();
    }
    None
}

fn is_unprocessed(error: &hyper::Error) -> bool {
    h2_cause(error).is_some_and(|cause| {
        cause.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (cause.is_go_away() && cause.is_remote())
    })
}

/// Whether it ended one stream only.
pub(super) fn is_reset(error: &hyper::Error) -> bool {
    h2_cause(error).is_some_and(h2::Error::is_reset)
}

/// Whether what came was not HTTP/2 as it should be.
pub(super) fn is_nonsense(error: &hyper::Error) -> bool {
    h2_cause(error).is_some_and(|cause| cause.is_library() && !cause.is_io())
}

/// HTTP/2 names scheme and host with the target, and has no header for the host.
fn shared_form(request: &mut Request<UpBody>, endpoint: &Endpoint) {
    request.headers_mut().remove(header::HOST);
    if request.uri().authority().is_none() {
        let mut parts = uri::Parts::default();
        parts.scheme = Some(uri::Scheme::HTTPS);
        parts.authority = endpoint.authority.parse().ok();
        parts.path_and_query = request.uri().path_and_query().cloned();
        // Its parts are valid ones.
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    }
}

/// The other way round, for a request that goes over to a connection of its own.
fn own_form(request: &mut Request<UpBody>, endpoint: &Endpoint) {
    if request.uri().authority().is_some() {
        let mut parts = uri::Parts::default();
        parts.path_and_query = request.uri().path_and_query().cloned();
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        if let Ok(host) = HeaderValue::try_from(endpoint.authority.as_str()) {
            request.headers_mut().insert(header::HOST, host);
        }
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
        let mut look = |context: &mut Context<'_>| Pin::new(&mut *incoming).poll_frame(context);
        match &mut connection.link {
            Link::Own { driver, .. } => driver.bring(context, look),
            Link::Seat(_) => look(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
