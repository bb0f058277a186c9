//! An answer on its way down: passed on untouched, read along, and accounted for at its end.
//!
//! An answer that is whole is accounted for beside its connection and not in it: its last bytes are
//! not on their way yet when its end is seen.
//!
//! Whatever way it ends — whole, cut by upstream, silent for too long, client gone — the lease is given
//! back exactly once and the trace gets its outcome. A cut stream is never ended cleanly: the error goes
//! to hyper, which breaks the connection, and the CLI's own retry sees the truth. What fails here was
//! shown in part and can't be hidden any more; what it says of the account counts all the same.

use super::{Proxy, trace::Trace};
use crate::{
    actor::Lease,
    app::{Phase, Phases},
    clock,
    upstream::Driven,
};
use bytes::Bytes;
use cma_core::{
    pool::Release,
    sniff::{self, End, Sniffer},
    verdict::Mark,
};
use http::Response;
use http_body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep},
};

/// A silent stream is given up after this many ticks without a byte: the setting's time, and half as
/// much more at most.
const TICKS: u32 = 2;

/// What the client gets.
pub(crate) type Answer = Response<Out>;

/// Its body.
#[derive(Debug)]
pub(crate) enum Out {
    /// Made here, or read whole.
    Whole(Bytes),
    /// Passed on.
    Relay(Box<Relay>),
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Relay {
    /// What was held back, in its order; goes first.
    held: std::vec::IntoIter<Bytes>,
    /// Upstream's connection broke behind what was held.
    broken: Option<hyper::Error>,
    /// `None` once it was read to its end.
    body: Option<Driven>,
    ending: Option<Box<Ending>>,
    silence: Option<Silence>,
    early: Early,
}

/// Whether a stream ended too early, so that this is left to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Early {
    No,
    Found,
    /// What came before is on its way: an error at once would take it along.
    Flushed,
}

/// Why a stream that was shown in part is broken off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// Upstream's connection broke.
    #[error(transparent)]
    Upstream(#[from] hyper::Error),
    /// Nothing came for too long.
    #[error("upstream fell silent")]
    Silent,
    /// It ended as HTTP wants it, without the event that ends a response.
    #[error("upstream's stream ended early")]
    Early,
}

/// Looks for silence in ticks, so that an event costs one flag and no move of a timer.
#[derive(Debug)]
struct Silence {
    tick: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    heard: bool,
    silent: u32,
}

impl Silence {
    fn new(limit: Duration) -> Self {
        Self { tick: limit / TICKS, timer: None, heard: false, silent: 0 }
    }

    /// Whether it has lasted too long; to be asked when nothing has come.
    fn lasts(&mut self, context: &mut Context<'_>) -> bool {
        let tick = self.tick;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(tick)));
        while timer.as_mut().poll(context).is_ready() {
            self.silent = if std::mem::take(&mut self.heard) { 0 } else { self.silent + 1 };
            if self.silent >= TICKS {
                return true;
            }
            timer.as_mut().reset(Instant::now() + tick);
        }
        false
    }
}

/// What is left to do at an answer's end.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) sniffer: Option<Sniffer>,
    pub(crate) accounts: Accounts,
}

/// What has to be settled at the end.
#[derive(Debug)]
pub(crate) struct Accounts {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) lease: Lease,
    pub(crate) trace: Trace,
}

/// Settles answers that were delivered whole, until the daemon flushes.
pub(crate) async fn settle(mut ended: mpsc::UnboundedReceiver<Box<Ending>>, phases: Phases) {
    let mut flushing = std::pin::pin!(phases.reached(Phase::Flushing));
    loop {
        tokio::select! {
            biased;
            Some(ending) = ended.recv() => ending.settle(true),
            () = &mut flushing => return,
        }
    }
}

impl Relay {
    /// Passes an answer on of which nothing was read.
    pub(crate) fn new(body: Driven, ending: Ending) -> Self {
        Self::begun(body, (Vec::new(), None), ending)
    }

    /// Passes an answer on; what goes down first is what was held of it, and then, if the connection
    /// broke behind that, the break.
    pub(crate) fn begun(
        body: Driven,
        (held, broken): (Vec<Bytes>, Option<hyper::Error>),
        ending: Ending,
    ) -> Self {
        let stall = ending.accounts.proxy.config.streams.stall;
        let silence = ending.sniffer.is_some().then(|| Silence::new(stall));
        Self {
            held: held.into_iter(),
            broken,
            body: Some(body),
            ending: Some(Box::new(ending)),
            silence,
            early: Early::No,
        }
    }

    fn whole(&mut self) {
        let body = self.body.take();
        let Some(ending) = self.ending.take() else { return };
        let proxy = &ending.accounts.proxy;
        if let Some(body) = body {
            proxy.upstream.give_back(body.into_connection());
        }
        let ended = proxy.ended.clone();
        if let Err(mpsc::error::SendError(ending)) = ended.send(ending) {
            // The daemon flushes: nobody else settles it.
            ending.settle(true);
        }
    }

    /// Whether a stream of events has been read to its end without the one that ends a response: it
    /// was cut, however clean its end is.
    fn is_early(&mut self) -> bool {
        let Some(ending) = &mut self.ending else { return false };
        let good = (200..300).contains(&ending.accounts.trace.status);
        let early = good && ending.sniffer.as_mut().is_some_and(|sniffer| !sniffer.has_ended());
        if early && self.early == Early::No {
            self.early = Early::Found;
        }
        early
    }

    /// Whether what came before a break is on its way; if not, it is sent first.
    fn is_flushed(&mut self, context: &Context<'_>) -> bool {
        let flushed = self.early == Early::Flushed;
        if !flushed {
            self.early = Early::Flushed;
            context.waker().wake_by_ref();
        }
        flushed
    }

    fn cut(&mut self) {
        self.body = None;
        if let Some(ending) = self.ending.take() {
            ending.settle(false);
        }
    }
}

impl Ending {
    fn settle(self: Box<Self>, whole: bool) {
        let stream = self.sniffer.is_some();
        let said = self.sniffer.map(Sniffer::said).unwrap_or_default();
        self.accounts.settle(whole, stream, said);
    }

    /// The client went away before the end as HTTP wants it. The CLI does so at the final event: what
    /// the stream said by then counts.
    fn left(self: Box<Self>) {
        let stream = self.sniffer.is_some();
        let said = self.sniffer.map(Sniffer::said).unwrap_or_default();
        if said.end.is_some() {
            self.accounts.settle(true, stream, said);
        } else {
            self.accounts.abandon(said);
        }
    }
}

impl Accounts {
    fn settle(self, ended: bool, stream: bool, said: sniff::Said) {
        let Self { proxy, mut lease, mut trace } = self;
        let good = (200..300).contains(&trace.status);
        // An end as HTTP wants it is not the stream's own: without a final event it was cut.
        let whole = ended && !(stream && good && said.end.is_none() && !said.unclear);
        let fault = match said.end {
            Some(End::Failed(fault)) => Some(fault),
            Some(End::Completed | End::Incomplete) | None => None,
        };
        trace.usage = said.usage;
        trace.model = trace.model.or(said.model);
        trace.outcome = match (whole, fault.is_some() || !good) {
            (true, false) => "complete",
            (true, true) => "failed",
            (false, _) => "cut",
        };
        super::shown::warmed(&mut lease, &trace);
        lease.quota_seen(said.windows);
        let mark = match &fault {
            Some(fault) => {
                let verdict = fault.verdict(clock::wall());
                trace
                    .attempts
                    .push(format!("{}: failed inside the stream: {fault}", lease.account));
                verdict.mark
            },
            None if whole => Mark::Fine,
            None => Mark::Shaky,
        };
        let model = trace.model.clone();
        lease.finish(Release { mark, served: whole && fault.is_none() && good, model });
        proxy.traces.counters.active.fetch_sub(1, Ordering::Relaxed);
        proxy.traces.end(trace);
    }

    /// The client went away before the end.
    fn abandon(self, said: sniff::Said) {
        let Self { proxy, lease, mut trace } = self;
        lease.quota_seen(said.windows);
        trace.outcome = "abandoned";
        drop(lease);
        proxy.traces.counters.active.fetch_sub(1, Ordering::Relaxed);
        proxy.traces.end(trace);
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        if let Some(data) = this.held.next() {
            // hyper doesn't poll again once the body has said that it is at its end.
            if this.is_end_stream() && !this.is_early() {
                this.whole();
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if this.broken.is_some() && !this.is_flushed(context) {
            return Poll::Pending;
        }
        if let Some(broken) = this.broken.take() {
            this.cut();
            return Poll::Ready(Some(Err(broken.into())));
        }
        let Some(body) = this.body.as_mut() else { return Poll::Ready(None) };
        match Pin::new(&mut *body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let last = body.is_end_stream();
                let sniffer = this.ending.as_mut().and_then(|ending| ending.sniffer.as_mut());
                if let (Some(sniffer), Some(data)) = (sniffer, frame.data_ref()) {
                    sniffer.feed(data);
                }
                if let Some(silence) = &mut this.silence {
                    silence.heard = true;
                }
                if last && !this.is_early() {
                    this.whole();
                }
                Poll::Ready(Some(Ok(frame)))
            },
            Poll::Ready(Some(Err(error))) => {
                this.broken = Some(error);
                this.early = Early::Flushed;
                context.waker().wake_by_ref();
                Poll::Pending
            },
            Poll::Ready(None) if this.is_early() => {
                if !this.is_flushed(context) {
                    return Poll::Pending;
                }
                this.cut();
                Poll::Ready(Some(Err(Broken::Early)))
            },
            Poll::Ready(None) => {
                this.whole();
                Poll::Ready(None)
            },
            Poll::Pending if this.silence.as_mut().is_some_and(|one| one.lasts(context)) => {
                this.cut();
                Poll::Ready(Some(Err(Broken::Silent)))
            },
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.as_slice().is_empty()
            && self.broken.is_none()
            && self.early == Early::No
            && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.body.as_ref().map(Body::size_hint).unwrap_or_default();
        let held: u64 = self.held.as_slice().iter().map(|data| data.len() as u64).sum();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(held));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A body that is empty from the start is never polled.
        if self.body.is_some() && self.is_end_stream() {
            self.whole();
        } else if let Some(ending) = self.ending.take() {
            ending.left();
        }
    }
}

impl Body for Out {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Relay(relay) => Pin::new(&mut **relay).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Relay(relay) => relay.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Relay(relay) => relay.size_hint(),
        }
    }
}
