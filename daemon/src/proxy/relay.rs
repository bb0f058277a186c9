//! An answer on its way down: passed on untouched, read along, and accounted for at its end.
//!
//! An answer that is whole is accounted for beside its connection and not in it: its last bytes are
//! not on their way yet when its end is seen.
//!
//! Whatever way it ends — whole, cut by upstream, client gone — the lease is given back exactly once
//! and the trace gets its outcome. A cut stream is never ended cleanly: the error goes to hyper,
//! which breaks the connection, and the CLI's own retry sees the truth.

use super::{
    Proxy,
    sniff::{End, Sniffer},
    trace::Trace,
};
use crate::{
    actor::Lease,
    app::{Phase, Phases},
    upstream::Driven,
};
use bytes::Bytes;
use cma_core::{pool::Release, verdict::Mark};
use http::Response;
use http_body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};
use tokio::sync::mpsc;

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
    /// `None` once it was read to its end.
    body: Option<Driven>,
    ending: Option<Box<Ending>>,
}

/// What is left to do at an answer's end.
#[derive(Debug)]
pub(crate) struct Ending {
    sniffer: Option<Sniffer>,
    accounts: Accounts,
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
    pub(crate) fn new(body: Driven, sniffer: Option<Sniffer>, accounts: Accounts) -> Self {
        Self { body: Some(body), ending: Some(Box::new(Ending { sniffer, accounts })) }
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

    fn cut(&mut self) {
        self.body = None;
        if let Some(ending) = self.ending.take() {
            ending.settle(false);
        }
    }
}

impl Ending {
    fn settle(self: Box<Self>, whole: bool) {
        let said = self.sniffer.map(Sniffer::said).unwrap_or_default();
        self.accounts.settle(whole, said);
    }
}

impl Accounts {
    fn settle(self, whole: bool, said: super::sniff::Said) {
        let Self { proxy, lease, mut trace } = self;
        let failed = matches!(said.end, Some(End::Failed(_)));
        let good = (200..300).contains(&trace.status);
        trace.usage = said.usage;
        trace.outcome = match (whole, failed || !good) {
            (true, false) => "complete",
            (true, true) => "failed",
            (false, _) => "cut",
        };
        super::shown::warmed(&lease, &trace);
        lease.quota_seen(said.windows);
        let mark = if whole { Mark::Fine } else { Mark::Shaky };
        let model = trace.model.clone();
        lease.finish(Release { mark, served: whole && !failed && good, model });
        proxy.traces.counters.active.fetch_sub(1, Ordering::Relaxed);
        proxy.traces.end(trace);
    }

    /// The client went away before the end.
    fn abandon(self) {
        let Self { proxy, lease, mut trace } = self;
        trace.outcome = "abandoned";
        drop(lease);
        proxy.traces.counters.active.fetch_sub(1, Ordering::Relaxed);
        proxy.traces.end(trace);
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some(body) = this.body.as_mut() else { return Poll::Ready(None) };
        match ready!(Pin::new(&mut *body).poll_frame(context)) {
            Some(Ok(frame)) => {
                // hyper doesn't poll again once the body has said that it is at its end.
                let last = body.is_end_stream();
                let sniffer = this.ending.as_mut().and_then(|ending| ending.sniffer.as_mut());
                if let (Some(sniffer), Some(data)) = (sniffer, frame.data_ref()) {
                    sniffer.feed(data);
                }
                if last {
                    this.whole();
                }
                Poll::Ready(Some(Ok(frame)))
            },
            Some(Err(error)) => {
                this.cut();
                Poll::Ready(Some(Err(error)))
            },
            None => {
                this.whole();
                Poll::Ready(None)
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A body that is empty from the start is never polled.
        if self.body.as_ref().is_some_and(Body::is_end_stream) {
            self.whole();
        } else if let Some(ending) = self.ending.take() {
            ending.accounts.abandon();
        }
    }
}

impl Body for Out {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
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
