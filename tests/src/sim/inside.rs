//! Failures that come inside a stream, event by event.
//!
//! It changes what a turn's stream says after some of its events and how it then ends; pauses, cuts
//! between events and hangs are the faults of `faults`. The shapes are those of the upstream's own
//! streams (official CLI 0.169.0, observed).

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::clock::UnixMs;
use super::faults::{Cut, Fault};
use super::sse::event;

/// Something that happens inside a stream after some of its events.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Inside {
    /// How many events of the turn are sent before; 1 is the preamble alone.
    pub after: usize,
    /// What happens then.
    pub what: What,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// `response.failed` with this code and message.
    Failed(String, String),
    /// `response.failed` with `usage_limit_reached`, to be reset after so many seconds.
    UsageLimit(u64),
    /// An `error` event with this code.
    Error(String),
    /// The next event is sent by half, then the connection ends like this.
    HalfAnEvent(Cut),
    /// An event that is not JSON; the stream then goes on.
    Garbage,
    /// An event that is not JSON, and nothing else.
    GarbageAlone,
    /// A page instead of events, by half a kilobyte.
    Page,
    /// So many comments, as keep-alives; the stream then goes on.
    Comments(usize),
    /// These pieces instead of the whole stream, one after another.
    Pieces(Vec<Vec<u8>>),
    /// Quota windows, the short one with so many percent used; the stream then goes on.
    Limits(u8),
}

impl Inside {
    /// After the preamble.
    pub fn before_the_answer(what: What) -> Fault {
        Fault::Inside(Self { after: 1, what })
    }

    /// After the first delta.
    pub fn within_the_answer(what: What) -> Fault {
        Fault::Inside(Self { after: 3, what })
    }

    /// `response.failed` with a code.
    pub fn failed(code: &str, message: &str) -> What {
        What::Failed(code.to_owned(), message.to_owned())
    }

    /// The events of a turn with this in them, and how the stream ends if not as a whole one.
    pub(super) fn script(&self, mut events: Vec<Bytes>) -> (Vec<Bytes>, Option<Fault>) {
        let rest = events.split_off(self.after.min(events.len()));
        let ends = |how: &str| Some(Fault::Incomplete { reason: how.to_owned() });
        let failed = |error: Value| {
            let response = json!({ "id": "resp_sim_failed", "status": "failed", "error": error });
            event("response.failed", &json!({ "response": response }))
        };
        match &self.what {
            What::Failed(code, message) => {
                events.push(failed(json!({ "code": code, "message": message })));
                (events, ends("failed"))
            },
            What::UsageLimit(resets_in) => {
                let message = "The usage limit has been reached";
                let resets_at = UnixMs::now().0 / 1000 + resets_in;
                let error = json!({
                    "code": "usage_limit_reached", "message": message, "plan_type": "plus",
                    "resets_at": resets_at, "resets_in_seconds": resets_in,
                });
                events.push(failed(error));
                (events, ends("failed"))
            },
            What::Error(code) => {
                let error = json!({ "code": code, "message": "scripted", "param": null });
                events.push(event("error", &error));
                (events, ends("error"))
            },
            What::HalfAnEvent(by) => {
                let next = rest.into_iter().next().unwrap_or_default();
                events.push(next.slice(..next.len() / 2));
                let after = events.len();
                (events, Some(Fault::CutMidStream { after, by: *by }))
            },
            What::Garbage => {
                events.push(Bytes::from_static(b"data: {\"type\": broken\n\n"));
                events.extend(rest);
                (events, None)
            },
            What::GarbageAlone => {
                (vec![Bytes::from_static(b"data: {\"type\": broken\n\n")], ends("garbage"))
            },
            What::Page => {
                let page = format!("<!DOCTYPE html>\n<html><body>{}</body>\n\n", "x".repeat(500));
                (vec![Bytes::from(page)], ends("page"))
            },
            What::Comments(count) => {
                events.extend((0..*count).map(|_| Bytes::from_static(b": keep-alive\n\n")));
                events.extend(rest);
                (events, None)
            },
            What::Pieces(pieces) => {
                let pieces = pieces.iter().map(|piece| Bytes::from(piece.clone())).collect();
                (pieces, ends("as scripted"))
            },
            What::Limits(percent) => {
                let window = json!({
                    "used_percent": percent, "window_minutes": 300,
                    "reset_at": UnixMs::now().0 / 1000 + 3600,
                });
                let limits = json!({ "rate_limits": { "primary": window } });
                events.push(event("codex.rate_limits", &limits));
                events.extend(rest);
                (events, None)
            },
        }
    }
}
