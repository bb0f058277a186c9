//! A request's body on its way up: forwarded while it is read, kept for a replay, undecoded.
//!
//! The client's body is read once. What was read is kept up to a limit, so that a second attempt
//! starts with the kept part and goes on reading where the first stopped. Over the limit it streams
//! on and loses its failover. A superseded attempt gets nothing more: two attempts never read the
//! same client.

use crate::clock;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::time::Instant;

/// Kept of one request for a replay.
pub(crate) const REPLAY_LIMIT: usize = 16 * 1024 * 1024;
/// Kept of all requests together.
const REPLAY_TOTAL: usize = 128 * 1024 * 1024;
/// Read of one request before anybody wants it.
const AHEAD: usize = REPLAY_LIMIT / 2;
/// A larger request is refused: no context window is that long.
pub(crate) const BODY_LIMIT: u64 = 256 * 1024 * 1024;

static KEPT: AtomicUsize = AtomicUsize::new(0);

/// What is sent upstream.
#[derive(Debug)]
pub(crate) enum UpBody {
    /// A Responses request.
    Replay(Replay),
    /// A small request of the auxiliary routes, read whole; empty for most.
    Whole(Bytes),
}

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The client's connection broke.
    #[error("the client's body ended early")]
    Client,
    /// The client sent more than [`BODY_LIMIT`].
    #[error("the body is too large")]
    TooLarge,
    /// Another attempt took over.
    #[error("superseded by another attempt")]
    Superseded,
}

/// The client's body, shared by the attempts of one request.
#[derive(Debug, Clone)]
pub(crate) struct Source(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    incoming: Option<Incoming>,
    /// Read to its end. It is let go with the rest: that wakes its connection, which would be polled for
    /// nothing while the answer is waited for.
    ended: bool,
    hint: SizeHint,
    kept: Vec<Bytes>,
    kept_len: usize,
    /// Bytes read.
    came: u64,
    /// More came than may be kept.
    overflow: bool,
    failed: Option<bool>,
    done_at: Option<Instant>,
    /// When upstream last took a piece of it, or could first, if the client hasn't kept it waiting since.
    taken_at: Option<Instant>,
    attempt: u32,
}

/// One attempt's reading of it.
#[derive(Debug)]
pub(crate) struct Replay {
    source: Arc<Mutex<Inner>>,
    next: usize,
    attempt: u32,
}

impl Source {
    pub(crate) fn new(incoming: Incoming) -> Self {
        let hint = incoming.size_hint();
        let ended = incoming.is_end_stream();
        Self(Arc::new(Mutex::new(Inner {
            incoming: (!ended).then_some(incoming),
            ended,
            hint,
            kept: Vec::new(),
            kept_len: 0,
            came: 0,
            overflow: false,
            failed: None,
            done_at: ended.then(clock::mono),
            taken_at: Some(clock::mono()),
            attempt: 0,
        })))
    }

    /// A body that was read to its end before.
    #[cfg(test)]
    pub(crate) fn read_before(bytes: &Bytes) -> Self {
        let mut inner = Inner {
            incoming: None,
            ended: true,
            hint: SizeHint::with_exact(bytes.len() as u64),
            kept: Vec::new(),
            kept_len: 0,
            came: bytes.len() as u64,
            overflow: false,
            failed: None,
            done_at: Some(clock::mono()),
            taken_at: None,
            attempt: 0,
        };
        inner.keep(bytes);
        Self(Arc::new(Mutex::new(inner)))
    }

    /// A body of which the client has sent a part and keeps upstream waiting for the rest.
    #[cfg(test)]
    pub(crate) fn half_sent() -> Self {
        let source = Self::read_before(&Bytes::from_static(b"a part"));
        let mut inner = source.0.lock();
        (inner.ended, inner.done_at) = (false, None);
        drop(inner);
        source
    }

    /// A body for the next attempt; the one before gets nothing more. `None` when too much went by
    /// to be sent again.
    pub(crate) fn attempt(&self) -> Option<Replay> {
        let mut inner = self.0.lock();
        if inner.overflow || inner.failed.is_some() {
            return None;
        }
        inner.attempt += 1;
        inner.taken_at = Some(clock::mono());
        Some(Replay { source: Arc::clone(&self.0), next: 0, attempt: inner.attempt })
    }

    /// Whether another attempt could be made.
    pub(crate) fn repeatable(&self) -> bool {
        let inner = self.0.lock();
        !inner.overflow && inner.failed.is_none()
    }

    /// Reads on while no attempt does, as far as it is kept, and ends when the client breaks off. A
    /// connection of which a piece waits unread is not looked at, so that nobody would see it go.
    pub(crate) async fn broken_off(&self) {
        std::future::poll_fn(|context| {
            let mut inner = self.0.lock();
            while inner.failed.is_none() {
                // What can't be kept is left where it is: it may still go up once.
                let full = KEPT.load(Ordering::Relaxed) >= REPLAY_TOTAL / 2;
                if inner.overflow || inner.kept_len >= AHEAD || full {
                    return Poll::Pending;
                }
                match inner.read(context) {
                    Poll::Pending | Poll::Ready(None) => return Poll::Pending,
                    Poll::Ready(Some(_)) => {},
                }
            }
            Poll::Ready(())
        })
        .await;
    }

    /// The whole body, read to its end. `None` when that is more than is kept, or when it doesn't
    /// come. One that says that it is longer is not begun with: it can go up as it is.
    pub(crate) async fn whole(&self) -> Option<Bytes> {
        if self.is_oversized() {
            return None;
        }
        let read = Limited::new(self.attempt()?, REPLAY_LIMIT).collect().await.ok()?;
        Some(read.to_bytes())
    }

    /// Whether it says that it is too large to be kept.
    pub(crate) fn is_oversized(&self) -> bool {
        self.0.lock().hint.lower() > REPLAY_LIMIT as u64
    }

    /// When the client's body was read to its end.
    pub(crate) fn done_at(&self) -> Option<Instant> {
        self.0.lock().done_at
    }

    /// Since when nothing is to be waited for but upstream, of the last attempt: the whole body is here, or
    /// what the client would give is left unread. `None` while the client is waited for.
    pub(crate) fn upstreams_since(&self) -> Option<Instant> {
        let inner = self.0.lock();
        inner.taken_at.max(inner.done_at)
    }

    /// Bytes kept for another attempt.
    pub(crate) fn kept(&self) -> usize {
        self.0.lock().kept_len
    }

    /// Whether the client sent more than is allowed.
    pub(crate) fn too_large(&self) -> bool {
        self.0.lock().failed == Some(true)
    }

    /// Whether the client itself broke off.
    pub(crate) fn client_failed(&self) -> bool {
        self.0.lock().failed.is_some()
    }
}

impl Inner {
    /// Reads the next piece from the client, and keeps it as far as that goes.
    fn read(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            let Some(incoming) = self.incoming.as_mut().filter(|_| !self.ended) else {
                return Poll::Ready(None);
            };
            match Pin::new(incoming).poll_frame(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    self.ended = true;
                    self.done_at = Some(clock::mono());
                    return Poll::Ready(None);
                },
                Poll::Ready(Some(Err(_broken))) => {
                    self.incoming = None;
                    self.failed = Some(false);
                    return Poll::Ready(Some(Err(BodyError::Client)));
                },
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers have no meaning here and are dropped.
                    let Ok(data) = frame.into_data() else { continue };
                    self.came += data.len() as u64;
                    if self.came > BODY_LIMIT {
                        self.incoming = None;
                        self.failed = Some(true);
                        return Poll::Ready(Some(Err(BodyError::TooLarge)));
                    }
                    if self.incoming.as_ref().is_some_and(Body::is_end_stream) {
                        self.ended = true;
                        self.done_at = Some(clock::mono());
                    }
                    self.keep(&data);
                    return Poll::Ready(Some(Ok(data)));
                },
            }
        }
    }

    fn keep(&mut self, data: &Bytes) {
        if self.overflow {
            return;
        }
        let total = KEPT.fetch_add(data.len(), Ordering::Relaxed) + data.len();
        self.kept_len += data.len();
        if self.kept_len > REPLAY_LIMIT || total > REPLAY_TOTAL {
            self.overflow = true;
            self.forget();
        } else {
            self.kept.push(data.clone());
        }
    }

    fn forget(&mut self) {
        KEPT.fetch_sub(self.kept_len, Ordering::Relaxed);
        self.kept_len = 0;
        self.kept = Vec::new();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Body for Replay {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut inner = this.source.lock();
        if inner.attempt != this.attempt {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        // A body that is here whole has its time from the attempt's beginning on, however it is taken.
        if inner.done_at.is_none() {
            inner.taken_at = Some(clock::mono());
        }
        if let Some(data) = inner.kept.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        let read = inner.read(context);
        if matches!(read, Poll::Ready(Some(Ok(_)))) {
            this.next += 1;
        }
        if read.is_pending() {
            inner.taken_at = None;
        }
        read.map(|read| read.map(|read| read.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        let inner = self.source.lock();
        (inner.ended || inner.incoming.is_none())
            && inner.failed.is_none()
            && inner.attempt == self.attempt
            && self.next >= inner.kept.len()
    }

    fn size_hint(&self) -> SizeHint {
        if self.next == 0 { self.source.lock().hint } else { SizeHint::default() }
    }
}

impl Body for UpBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Replay(replay) => Pin::new(replay).poll_frame(context),
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Replay(replay) => replay.is_end_stream(),
            Self::Whole(bytes) => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Replay(replay) => replay.size_hint(),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}
