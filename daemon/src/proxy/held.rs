//! A stream's beginning, held back until it shows something.
//!
//! Upstream answers 200 and then says inside the stream that it can't serve. While nothing but the
//! protocol's preamble came, such an answer may still be thrown away and the request served by another
//! account: no client shows a preamble. So head and preamble wait for the first event of the answer,
//! within bounds of time and bytes, and leave with it in one write, joined: for each piece of its own an
//! answer's encoding costs more than the copy.
//!
//! It runs in the request's own task and decides nothing about accounts: it says how the beginning
//! ended, `turn` does the rest.

use super::{
    error_body::{ERROR_TIMEOUT, MAX_ERROR},
    headers,
    moved::Said,
    surface::standing::Instead,
};
use crate::{clock, config::streams::Streams, upstream::Driven};
use bytes::Bytes;
use cma_core::{
    event::Fault,
    sniff::Sniffer,
    stream::{Beginning, Found},
};
use http::{HeaderMap, HeaderValue, Response, header, response};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// A compaction is held this many times as long: it says nothing while it works.
const COMPACTION: u32 = 3;
/// Silences of one request that are given up, before a head or behind it. A model that thinks for that
/// long thinks elsewhere as well, and each attempt costs quota.
pub(super) const MAX_SILENCES: u32 = 2;

/// How much longer the head of an answer is waited for after that: with the silences before, it stays
/// below the five minutes after which the CLI gives a silent WebSocket up. Over HTTP it waits for ever
/// (0.169.0).
const PATIENT: u32 = 6;

/// Pieces that a short answer comes in.
const PIECES: usize = 8;

/// What has come along with the first part of an answer leaves with it, up to this.
const TOGETHER: usize = 16 * 1024;

/// An answer that may be shown, with what came of it so far.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) parts: response::Parts,
    pub(crate) body: Driven,
    /// Read from the body already.
    pub(crate) held: Vec<Bytes>,
    /// It broke behind what is held.
    pub(crate) broken: Option<hyper::Error>,
    /// For a stream of events.
    pub(crate) sniffer: Option<Sniffer>,
    /// What its head is to say of windows.
    pub(crate) instead: Instead,
}

/// Whether an answer is JSON that can be read.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/json"))
        && !headers.contains_key(header::CONTENT_ENCODING)
}

/// How the beginning ended.
#[derive(Debug)]
pub(crate) enum End {
    /// It shows something, or it was held for long enough.
    Shows,
    /// It failed by its own word.
    Fault(Fault),
    /// The connection broke.
    Cut,
    /// It ended as HTTP wants it, with nothing to show.
    Empty,
    /// Nothing came for too long.
    Silent,
    /// What came is no stream of events.
    Garbage,
}

impl End {
    /// For the trace, when the attempt is given up.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Shows => String::new(),
            Self::Fault(fault) => {
                format!("failed inside the stream before anything was shown: {fault}")
            },
            Self::Cut => "the stream was cut before anything was shown".to_owned(),
            Self::Empty => "the stream ended before anything was shown".to_owned(),
            Self::Silent => "the stream fell silent before anything was shown".to_owned(),
            Self::Garbage => "what came was no stream of events".to_owned(),
        }
    }
}

/// Bounds of one hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(super) time: Duration,
    pub(super) bytes: usize,
    pub(super) silence: Option<Duration>,
}

impl Bounds {
    /// The settings' own, longer for a compaction, which is one event at the end of its work. A
    /// request that met `silences` of them so far is believed to take its time.
    pub(crate) fn of(streams: &Streams, compacts: bool, silences: u32) -> Self {
        let factor = if compacts { COMPACTION } else { 1 };
        let silence = (silences < MAX_SILENCES).then_some(streams.hold_silence * factor);
        Self { time: streams.hold * factor, bytes: streams.hold_bytes, silence }
    }
}

/// How long the first word of an attempt is waited for, where that is `limit` at first.
pub(super) fn first_word(limit: Duration, silences: u32) -> Duration {
    if silences < MAX_SILENCES { limit } else { limit * PATIENT }
}

impl Ready {
    /// An answer of which nothing was read yet. Its head is made ready for the client while nothing has
    /// come that is waited for.
    pub(crate) fn new(response: Response<Driven>) -> Self {
        let (mut parts, body) = response.into_parts();
        headers::downwards(&mut parts.headers);
        let plain = !parts.headers.contains_key(header::CONTENT_ENCODING);
        let sniffer = (plain && is_stream(&parts.headers)).then(|| Sniffer::new(clock::wall()));
        let held = Vec::with_capacity(PIECES);
        Self { parts, body, held, broken: None, sniffer, instead: Instead::default() }
    }

    /// Whether it is a stream that can be read along.
    pub(crate) fn can_be_held(&self) -> bool {
        self.sniffer.is_some()
    }

    /// Whether it is JSON where a stream was asked for.
    pub(crate) fn is_json(&self) -> bool {
        is_json(&self.parts.headers)
    }

    /// Reads an answer that is JSON in a stream's place: an error, a response after all, or nothing
    /// that anybody asked for. What is larger than any error is passed on.
    pub(crate) async fn hold_json(&mut self) -> End {
        let read = async {
            let mut bytes = 0;
            while let Some(frame) = self.body.frame().await {
                let Ok(frame) = frame else { return Some(End::Cut) };
                let Ok(data) = frame.into_data() else { continue };
                bytes += data.len();
                self.held.push(data);
                if bytes > MAX_ERROR {
                    return Some(End::Shows);
                }
            }
            None
        };
        match tokio::time::timeout(ERROR_TIMEOUT, read).await {
            Ok(Some(end)) => return end,
            Ok(None) => {},
            Err(_elapsed) => return End::Silent,
        }
        let bytes = self.bytes();
        let said: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        match (&said["error"], &said["id"]) {
            (serde_json::Value::Null, id) if id.is_string() => End::Shows,
            (serde_json::Value::Null, _) => End::Garbage,
            _ => End::Fault(Fault::read(&bytes)),
        }
    }

    /// Reads until the beginning shows something, fails, or reaches its bounds. Whoever reads along gets
    /// what was held, to be read when there is time.
    pub(crate) async fn hold(&mut self, bounds: Bounds) -> End {
        let end = self.read(bounds).await;
        if let Some(sniffer) = &mut self.sniffer {
            sniffer.begins_with(self.held.clone());
        }
        end
    }

    async fn read(&mut self, bounds: Bounds) -> End {
        let begun = clock::mono();
        let due = begun + bounds.time;
        let mut last = begun;
        let wake = |last: Instant| bounds.silence.map_or(due, |silence| due.min(last + silence));
        // Made when there is something to wait for.
        let mut timer = std::pin::pin!(None::<Sleep>);
        let (mut beginning, mut bytes) = (Beginning::default(), 0);
        loop {
            let body = &mut self.body;
            let next = poll_fn(|context| {
                if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(context) {
                    return Poll::Ready(Some(frame));
                }
                if timer.is_none() {
                    timer.set(Some(tokio::time::sleep_until(wake(last))));
                }
                match timer.as_mut().as_pin_mut() {
                    Some(timer) => timer.poll(context).map(|()| None),
                    None => Poll::Pending,
                }
            });
            match next.await {
                None => {
                    let now = Instant::now();
                    if now >= due {
                        return at_bound(&beginning, bytes);
                    }
                    if now >= wake(last) {
                        return End::Silent;
                    }
                    timer.set(None);
                },
                Some(None) => return End::Empty,
                Some(Some(Err(_broken))) => return End::Cut,
                Some(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    last = clock::mono();
                    bytes += data.len();
                    let found = beginning.feed(&data);
                    self.held.push(data);
                    match found {
                        Some(Found::Answer) => {
                            poll_fn(|context| {
                                self.gather(bytes, context);
                                Poll::Ready(())
                            })
                            .await;
                            return End::Shows;
                        },
                        Some(Found::Fault(fault)) => return End::Fault(fault),
                        None if bytes > bounds.bytes => return at_bound(&beginning, bytes),
                        None => {},
                    }
                },
            }
        }
    }

    /// Takes in what has come already behind `bytes` of them, without waiting for any of it, and joins
    /// what is held.
    fn gather(&mut self, mut bytes: usize, context: &mut Context<'_>) {
        while bytes < TOGETHER && !self.body.is_end_stream() {
            let Poll::Ready(next) = Pin::new(&mut self.body).poll_frame(context) else { break };
            match next.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => {
                    bytes += data.len();
                    self.held.push(data);
                },
                // Trailers have no meaning here.
                Some(Ok(Err(_trailers))) => {},
                Some(Err(broken)) => {
                    self.broken = Some(broken);
                    break;
                },
                None => break,
            }
        }
        if self.held.len() > 1 && bytes <= 2 * TOGETHER {
            self.held = vec![self.bytes()];
        }
    }

    /// What was held, in one piece.
    pub(crate) fn bytes(&self) -> Bytes {
        self.held.concat().into()
    }
}

/// At its bound, a beginning is shown as it is, unless it is no stream at all.
fn at_bound(beginning: &Beginning, bytes: usize) -> End {
    if bytes > 0 && !beginning.is_a_stream() { End::Garbage } else { End::Shows }
}

fn is_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// Whether the request compacts its thread, as the CLI says (0.169.0, observed).
pub(super) fn is_compaction(said: &Said<'_>) -> bool {
    memchr::memmem::find(said.metadata, b"\"request_kind\":\"compaction\"").is_some()
}

#[cfg(test)]
mod tests;
