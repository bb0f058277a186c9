//! A turn over HTTP behind a client's WebSocket: server-sent events as they come, one text each.
//!
//! The same bytes give the same texts for every way of splitting them. An event is bounded; comments,
//! names and the closing `[DONE]` are left out.

use super::link::{Came, MAX_EVENT};
use crate::upstream::{Driven, Upstream};
use bytes::{Buf as _, BytesMut};
use futures_util::FutureExt as _;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio_tungstenite::tungstenite::Utf8Bytes;

/// An answer that is read as events.
#[derive(Debug)]
pub(super) struct Stream {
    body: Driven,
    events: Events,
}

impl Stream {
    pub(super) fn new(body: Driven) -> Self {
        Self { body, events: Events::default() }
    }

    /// Puts an event in front.
    pub(super) fn begin_with(&mut self, event: Utf8Bytes) {
        self.events.ready.push_front(Ok(event));
    }

    /// The next event.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Came> {
        loop {
            if let Some(event) = self.events.next() {
                return Poll::Ready(event.map_or_else(Came::End, Came::Text));
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

/// See the module's documentation.
#[derive(Debug, Default)]
struct Events {
    /// The line that isn't whole yet.
    line: BytesMut,
    /// Bytes of it in which no line end was found.
    searched: usize,
    /// The event that isn't whole yet.
    data: Vec<u8>,
    /// Events that nobody took yet.
    ready: VecDeque<Result<Utf8Bytes, &'static str>>,
}

impl Events {
    fn next(&mut self) -> Option<Result<Utf8Bytes, &'static str>> {
        self.ready.pop_front()
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.line.extend_from_slice(bytes);
        while let Some(end) = memchr::memchr(b'\n', self.line.get(self.searched..).unwrap_or(&[])) {
            let line = self.line.split_to(self.searched + end);
            self.line.advance(1);
            self.searched = 0;
            self.line(line.strip_suffix(b"\r").unwrap_or(&line));
        }
        self.searched = self.line.len();
        if self.line.len() + self.data.len() > MAX_EVENT {
            self.line.clear();
            self.data.clear();
            self.searched = 0;
            self.ready.push_back(Err("an event was too large"));
        }
    }

    fn line(&mut self, line: &[u8]) {
        if let Some(data) = line.strip_prefix(b"data:") {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
        } else if line.is_empty() && !self.data.is_empty() {
            let data = std::mem::take(&mut self.data);
            if data != b"[DONE]" {
                let text = String::from_utf8(data).map(Utf8Bytes::from);
                self.ready.push_back(text.map_err(|_not_text| "an event is not text"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = concat!(
        ": a comment\n\nevent: response.created\ndata: {\"type\":\"response.created\"}\n\n",
        "data:{\"delta\":\"ö\"}\r\n\r\nid: 7\ndata: {\ndata: }\n\n",
        "data: [DONE]\n\ndata: never ended",
    );

    fn events(parts: &[&[u8]]) -> Vec<Result<String, &'static str>> {
        let mut events = Events::default();
        let mut all = Vec::new();
        for part in parts {
            events.feed(part);
            while let Some(event) = events.next() {
                all.push(event.map(|text| text.as_str().to_owned()));
            }
        }
        all
    }

    #[test]
    fn events_are_told_apart() {
        let wanted = ["{\"type\":\"response.created\"}", "{\"delta\":\"ö\"}", "{\n}"];
        let wanted: Vec<_> = wanted.into_iter().map(|text| Ok(text.to_owned())).collect();
        assert_eq!(events(&[STREAM.as_bytes()]), wanted);
        assert_eq!(events(&[b"data: \xff\n\n"]), [Err("an event is not text")]);
    }

    #[test]
    fn an_event_without_an_end_is_not_kept_for_ever() {
        let part = vec![b'x'; MAX_EVENT / 2];
        let parts = [b"data: ".as_slice(), &part, &part, &part];
        assert_eq!(events(&parts), [Err("an event was too large")]);
    }

    proptest! {
        #[test]
        fn every_split_says_the_same(cuts in proptest::collection::vec(0..STREAM.len(), 0..12)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let (mut parts, mut from) = (Vec::new(), 0);
            for cut in cuts.into_iter().chain([STREAM.len()]) {
                parts.push(&STREAM.as_bytes()[from..cut]);
                from = cut;
            }
            prop_assert_eq!(events(&parts), events(&[STREAM.as_bytes()]));
        }

        #[test]
        fn any_bytes_do_no_harm(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            drop(events(&parts));
        }
    }
}
