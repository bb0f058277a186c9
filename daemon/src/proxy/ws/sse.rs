//! A turn over HTTP behind a client's WebSocket: server-sent events as they come, one text each
//! ([`cma_core::sse`]).

use super::{
    link::{Came, MAX_EVENT},
    socket::Text,
};
use crate::upstream::{Driven, Upstream};
use cma_core::sse::Events;
use futures_util::FutureExt as _;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// An answer that is read as events.
#[derive(Debug)]
pub(super) struct Stream {
    body: Driven,
    events: Events,
    /// Events of ours that go first.
    front: VecDeque<Text>,
}

impl Stream {
    pub(super) fn new(body: Driven) -> Self {
        Self { body, events: Events::new(MAX_EVENT), front: VecDeque::new() }
    }

    /// Puts an event in front.
    pub(super) fn begin_with(&mut self, event: Text) {
        self.front.push_front(event);
    }

    /// The next event.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Came> {
        loop {
            if let Some(event) = self.front.pop_front() {
                return Poll::Ready(Came::Text(event));
            }
            if let Some(event) = self.events.next_event() {
                return Poll::Ready(event.map_or_else(Came::End, |text| Came::Text(text.into())));
            }
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.events.feed(&data);
                    }
                },
                Poll::Ready(Some(Err(_cut))) => {
                    return Poll::Ready(Came::End("the stream was cut"));
                },
                Poll::Ready(None) => return Poll::Ready(Came::End("the stream ended early")),
            }
        }
    }

    /// Keeps the connection if the answer is over.
    pub(super) fn finish(mut self, upstream: &Arc<Upstream>) {
        if let Some(None) = self.body.frame().now_or_never() {
            upstream.give_back(self.body.into_connection());
        }
    }
}
