//! An answer on its way down: passed on untouched, read along, and accounted for at its end.
//!
//! Whatever way it ends — whole, cut by upstream, client gone — the lease is given back exactly once
//! and the trace gets its outcome. A cut stream is never ended cleanly: the error goes to hyper,
//! which breaks the connection, and the CLI's own retry sees the truth.

use super::{
    Proxy,
    sniff::{End, Sniffer},
    trace::Trace,
};
use crate::{actor::Lease, upstream::Connection};
use bytes::Bytes;
use cma_core::{pool::Release, verdict::Mark};
use http::Response;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

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
    incoming: Incoming,
    sniffer: Option<Sniffer>,
    end: Option<Accounts>,
}

/// What has to be settled at the end.
#[derive(Debug)]
pub(crate) struct Accounts {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) lease: Lease,
    pub(crate) connection: Option<Connection>,
    pub(crate) trace: Trace,
}

impl Relay {
    pub(crate) fn new(incoming: Incoming, sniffer: Option<Sniffer>, end: Accounts) -> Self {
        Self { incoming, sniffer, end: Some(end) }
    }

    fn ended(&mut self, whole: bool) {
        if let Some(end) = self.end.take() {
            let said = self.sniffer.as_mut().map(Sniffer::said).unwrap_or_default();
            end.settle(whole, said);
        }
    }
}

impl Accounts {
    fn settle(self, whole: bool, said: super::sniff::Said) {
        let Self { proxy, lease, connection, mut trace } = self;
        if let Some(connection) = connection.filter(|_| whole) {
            proxy.upstream.give_back(connection);
        }
        let failed = matches!(said.end, Some(End::Failed(_)));
        let good = (200..300).contains(&trace.status);
        trace.usage = said.usage;
        trace.outcome = match (whole, failed || !good) {
            (true, false) => "complete",
            (true, true) => "failed",
            (false, _) => "cut",
        };
        lease.quota_seen(said.windows);
        let mark = if whole { Mark::Fine } else { Mark::Shaky };
        let model = trace.model.clone();
        lease.finish(Release { mark, served: whole && !failed && good, model });
        proxy.traces.counters.active.fetch_sub(1, Ordering::Relaxed);
        proxy.traces.end(trace);
    }

    /// The client went away before the end.
    fn abandon(self) {
        let Self { proxy, lease, connection: _closed, mut trace } = self;
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
        match ready!(Pin::new(&mut this.incoming).poll_frame(context)) {
            Some(Ok(frame)) => {
                if let (Some(sniffer), Some(data)) = (this.sniffer.as_mut(), frame.data_ref()) {
                    sniffer.feed(data);
                }
                // hyper doesn't poll again once the body has said that it is at its end.
                if this.incoming.is_end_stream() {
                    this.ended(true);
                }
                Poll::Ready(Some(Ok(frame)))
            },
            Some(Err(error)) => {
                this.ended(false);
                Poll::Ready(Some(Err(error)))
            },
            None => {
                this.ended(true);
                Poll::Ready(None)
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            // A body that is empty from the start is never polled.
            if self.incoming.is_end_stream() {
                end.settle(true, super::sniff::Said::default());
            } else {
                end.abandon();
            }
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
