//! Turns a reply into events and events into a body that takes its time.
//!
//! It decides the form of a stream and how it ends; what is said is decided in
//! `reply`. Dropping the body before its end is noted as the client's doing.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use serde_json::{Value, json};
use tokio::time::Sleep;

use super::faults::{Cut, Fault};
use super::record::{Open, Outcome, Tokens};
use super::state::Busy;
use super::wire::Line;

/// Before a connection is cut, so that what was sent has left hyper's buffer.
const FLUSH: Duration = Duration::from_millis(20);

/// One output item of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    Text(String),
    Call { name: String, arguments: String },
    Compaction(String),
}

/// A turn before it is told.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) id: u64,
    pub(super) model: String,
    /// What is sealed of the reasoning before the item, if there is any.
    pub(super) reasoning: Option<String>,
    pub(super) item: Item,
    pub(super) input_tokens: usize,
    pub(super) cached_tokens: usize,
}

impl Turn {
    /// The events of the whole turn.
    pub(super) fn events(&self) -> Vec<Bytes> {
        let mut events = vec![self.created()];
        if let Some(content) = &self.reasoning {
            events.push(done(&json!({
                "type": "reasoning",
                "id": format!("rs_sim_{}", self.id),
                "summary": [],
                "encrypted_content": content,
            })));
        }
        let output = match &self.item {
            Item::Text(text) => self.text(text, &mut events),
            Item::Call { name, arguments } => self.call(name, arguments, &mut events),
            Item::Compaction(content) => {
                let item = json!({
                    "type": "compaction",
                    "id": format!("cmp_sim_{}", self.id),
                    "encrypted_content": content,
                });
                events.push(done(&item));
                1
            },
        };
        let mut response = self.response("completed");
        response["usage"] = json!({
            "input_tokens": self.input_tokens,
            "input_tokens_details": { "cached_tokens": self.cached_tokens },
            "output_tokens": output,
            "output_tokens_details": { "reasoning_tokens": output / 2 },
            "total_tokens": self.input_tokens + output,
        });
        events.push(event("response.completed", &json!({ "response": response })));
        events
    }

    /// What [`Self::events`] say that it used.
    pub(super) fn tokens(&self) -> Tokens {
        let output = match &self.item {
            Item::Text(text) => text.split_inclusive(' ').count(),
            Item::Call { arguments, .. } => 1 + arguments.len() / 4,
            Item::Compaction(_) => 1,
        } as u64;
        Tokens {
            input: self.input_tokens as u64,
            cached: self.cached_tokens as u64,
            output,
            reasoning: output / 2,
        }
    }

    /// The events of a turn that fails.
    pub(super) fn failed(&self, code: &str, message: &str) -> Vec<Bytes> {
        let mut response = self.response("failed");
        response["error"] = json!({ "code": code, "message": message });
        vec![self.created(), event("response.failed", &json!({ "response": response }))]
    }

    /// The events of a turn that stops early.
    pub(super) fn incomplete(&self, reason: &str) -> Vec<Bytes> {
        let mut response = self.response("incomplete");
        response["incomplete_details"] = json!({ "reason": reason });
        vec![self.created(), event("response.incomplete", &json!({ "response": response }))]
    }

    fn created(&self) -> Bytes {
        event("response.created", &json!({ "response": self.response("in_progress") }))
    }

    fn response(&self, status: &str) -> Value {
        json!({
            "id": format!("resp_sim_{}", self.id),
            "object": "response",
            "model": self.model,
            "status": status,
        })
    }

    fn text(&self, text: &str, events: &mut Vec<Bytes>) -> usize {
        let id = format!("msg_sim_{}", self.id);
        let item = |content: Value| json!({ "type": "message", "role": "assistant", "id": id, "content": content });
        events.push(added(&item(json!([]))));
        let mut words = 0;
        for word in text.split_inclusive(' ') {
            words += 1;
            let delta = json!({
                "item_id": id,
                "output_index": 0,
                "content_index": 0,
                "delta": word,
            });
            events.push(event("response.output_text.delta", &delta));
        }
        events.push(done(&item(json!([{ "type": "output_text", "text": text }]))));
        words
    }

    fn call(&self, name: &str, arguments: &str, events: &mut Vec<Bytes>) -> usize {
        let item = json!({
            "type": "function_call",
            "id": format!("fc_sim_{}", self.id),
            "call_id": format!("call_sim_{}", self.id),
            "name": name,
            "arguments": arguments,
        });
        events.push(added(&item));
        events.push(done(&item));
        1 + arguments.len() / 4
    }
}

fn added(item: &Value) -> Bytes {
    event("response.output_item.added", &json!({ "output_index": 0, "item": item }))
}

fn done(item: &Value) -> Bytes {
    event("response.output_item.done", &json!({ "output_index": 0, "item": item }))
}

/// An event; its type stands first, as upstream writes it.
pub(super) fn event(name: &str, data: &Value) -> Bytes {
    let data = data.to_string();
    let rest = data.strip_prefix('{').unwrap_or("}");
    let comma = if rest == "}" { "" } else { "," };
    Bytes::from(format!("event: {name}\ndata: {{\"type\":\"{name}\"{comma}{rest}\n\n"))
}

/// How a [`Stream`] ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    /// Whole, but not to `response.completed`.
    Unfinished,
    Cut(Cut),
    Hang,
}

/// A body that sends pieces with pauses and ends as scripted.
#[derive(Debug)]
pub(super) struct Stream {
    pieces: VecDeque<(Duration, Bytes)>,
    end: End,
    wait: Option<Pin<Box<Sleep>>>,
    line: Arc<Line>,
    open: Open,
    _busy: Option<Busy>,
}

impl Stream {
    /// Sends `pieces` `gap` apart, damaged by `fault` where it is one of those
    /// that damage a stream.
    pub(super) fn new(
        pieces: Vec<Bytes>,
        gap: Duration,
        fault: Option<&Fault>,
        line: Arc<Line>,
        (open, busy): (Open, Option<Busy>),
    ) -> Self {
        let mut pieces: VecDeque<_> = pieces.into_iter().map(|piece| (gap, piece)).collect();
        if let Some((first, _)) = pieces.front_mut() {
            *first = Duration::ZERO;
        }
        let mut end = End::Whole;
        match fault {
            Some(Fault::CutMidStream { after, by }) => {
                pieces.truncate(*after);
                end = End::Cut(*by);
            },
            Some(Fault::HangMidStream { after }) => {
                pieces.truncate(*after);
                end = End::Hang;
            },
            Some(Fault::StallMidStream { after, pause }) => {
                if let Some((wait, _)) = pieces.get_mut(*after) {
                    *wait = *pause;
                }
            },
            Some(Fault::SseFailed { .. } | Fault::Incomplete { .. }) => end = End::Unfinished,
            _ => {},
        }
        Self { pieces, end, wait: None, line, open, _busy: busy }
    }

    /// Waits `span` once; true while the wait is not over.
    fn waiting(&mut self, span: Duration, cx: &mut Context<'_>) -> bool {
        if span.is_zero() {
            return false;
        }
        let wait = self.wait.get_or_insert_with(|| Box::pin(tokio::time::sleep(span)));
        if wait.as_mut().poll(cx).is_pending() {
            return true;
        }
        self.wait = None;
        false
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.end {
            End::Hang => return Poll::Pending,
            End::Whole => {
                self.open.settle(None, Outcome::Completed);
                return Poll::Ready(None);
            },
            End::Unfinished => {
                self.open.settle(None, Outcome::Answered);
                return Poll::Ready(None);
            },
            End::Cut(Cut::CleanEnd) => {
                self.open.settle(None, Outcome::Cut);
                return Poll::Ready(None);
            },
            End::Cut(Cut::Reset) => self.line.reset(),
            End::Cut(Cut::Close) => {},
        }
        if self.waiting(FLUSH, cx) {
            return Poll::Pending;
        }
        self.open.settle(None, Outcome::Cut);
        Poll::Ready(Some(Err(io::Error::other("cut by a scripted fault"))))
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some((wait, _)) = self.pieces.front() else { return self.poll_end(cx) };
        let wait = *wait;
        if self.waiting(wait, cx) {
            return Poll::Pending;
        }
        let piece = self.pieces.pop_front().map(|(_, piece)| Ok(Frame::data(piece)));
        Poll::Ready(piece)
    }
}
