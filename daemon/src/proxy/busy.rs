//! Whether a client connection has an answer on its way: after a hand-over an idle one may be closed,
//! one with an answer on its way lets its client ask once more and says then that it is the last time.

use super::{
    keys::Shown,
    relay::{Broken, Out},
};
use crate::proxy::Proxy;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

/// What belongs to one client connection.
pub(super) struct Caller {
    pub(super) proxy: Arc<Proxy>,
    pub(super) shown: Shown,
    requests: AtomicU32,
    busy: AtomicBool,
}

impl Caller {
    pub(super) fn new(proxy: Arc<Proxy>) -> Self {
        let (requests, busy) = (AtomicU32::new(0), AtomicBool::new(false));
        Self { proxy, shown: Shown::default(), requests, busy }
    }

    /// A request came; until its body is dropped there is something on its way.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.busy.store(true, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// How many requests came, when nothing is on its way.
    pub(super) fn idle_after(&self) -> Option<u32> {
        let busy = self.busy.load(Ordering::Relaxed);
        (!busy).then(|| self.requests.load(Ordering::Relaxed))
    }
}

/// Something is on its way.
pub(super) struct Busy(Arc<Caller>);

impl Drop for Busy {
    fn drop(&mut self) {
        // One at a time: HTTP/1.1 answers in turn.
        self.0.busy.store(false, Ordering::Relaxed);
    }
}

/// An answer's body on its way.
pub(super) struct Outgoing {
    pub(super) body: Out,
    pub(super) _busy: Busy,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
