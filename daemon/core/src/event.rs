//! What one Responses event means: the payload of an SSE `data:` line or of a WebSocket text message.
//!
//! Both transports carry the same JSON (Codex CLI 0.169.0, observed), so there is one reader for both.
//! It works in two steps. [`Kind::of`] looks at the type alone, which upstream writes first: a few
//! bytes, whatever the size of the event. Only a [`Fault`] or limits are then read further, by types
//! that skip what isn't asked for: a final event repeats the whole answer. What a fault means for the
//! request and its account is a [`Verdict`], as for an HTTP answer ([`crate::verdict`]).
//!
//! Nothing here fails: what can't be read is [`Kind::Garbage`], or a fault without a code.

use crate::{
    cooldown::Cause,
    quota::{self, Window},
    time::{Span, Wall},
    verdict::{self, Act, Mark, Outcome, Verdict},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use std::{borrow::Cow, collections::BTreeMap};

/// A type is read from this many bytes at the event's beginning; the longest known one has 46.
pub const TELLS_BY: usize = 96;
/// Of an error's texts this much is kept.
const MAX_TEXT: usize = 512;
/// Of a code this much is kept; the longest known one has 41 bytes.
const MAX_CODE: usize = 64;
/// Headers inside a wrapped error that are looked at.
const MAX_HEADERS: usize = 64;
/// A wait that a message states is believed up to here: a rate recovers in minutes.
const MAX_STATED: Span = Span::from_secs(3600);

/// What an event is, by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Says that work begins or goes on; no client shows it (`response.created`, `.in_progress`,
    /// `.queued`, `keepalive`).
    Preamble,
    /// Headers that come inside the stream (`response.metadata`, `codex.response.metadata`).
    Metadata,
    /// Quota windows (`codex.rate_limits`); read them by [`limits`].
    Limits,
    /// A part of the answer: from here on, an error can't be hidden.
    Visible,
    /// The answer is whole (`response.completed`).
    Completed,
    /// The answer ends early and says why (`response.incomplete`): the request's own bounds.
    Incomplete,
    /// The response failed (`response.failed`); read it by [`Fault::read`].
    Failed,
    /// The request was refused (`error`), over a WebSocket with a status of its own; read it by
    /// [`Fault::read`].
    Error,
    /// No part of a response: what upstream tells of itself between events; clients ignore it.
    Other,
    /// Not an event: no JSON object with a type.
    Garbage,
}

impl Kind {
    /// The kind of a whole event.
    pub fn of(json: &[u8]) -> Self {
        Self::peek(json).unwrap_or_else(|| match serde_json::from_slice::<Typed<'_>>(json) {
            Ok(typed) => Self::named(typed.kind.as_bytes()),
            Err(_not_one) if matches!(json.trim_ascii(), b"" | b"[DONE]") => Self::Other,
            Err(_not_one) => Self::Garbage,
        })
    }

    /// The kind of an event of which only the beginning is there; `None` when that doesn't tell.
    /// More than [`TELLS_BY`] bytes tell no more.
    pub fn peek(start: &[u8]) -> Option<Self> {
        // Nearly all of them, whatever follows: a name that begins so is none of those below.
        if start.starts_with(br#"{"type":"response.output_"#) {
            return Some(Self::Visible);
        }
        let start = start.get(..start.len().min(TELLS_BY))?;
        // As upstream writes it, or with spaces.
        let name = match start.strip_prefix(br#"{"type":""#) {
            Some(name) => name,
            None => {
                let head = start.trim_ascii_start().strip_prefix(b"{")?.trim_ascii_start();
                let head = head.strip_prefix(br#""type""#)?.trim_ascii_start();
                head.strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?
            },
        };
        let end = memchr::memchr2(b'"', b'\\', name)?;
        let (name, after) = name.split_at_checked(end)?;
        let whole = after.first() == Some(&b'"');
        (whole && (name.is_ascii() || str::from_utf8(name).is_ok())).then(|| Self::named(name))
    }

    /// The kind that a type names.
    fn named(name: &[u8]) -> Self {
        match name {
            b"response.created" | b"response.in_progress" | b"response.queued" | b"keepalive" => {
                Self::Preamble
            },
            b"response.metadata" | b"codex.response.metadata" => Self::Metadata,
            b"codex.rate_limits" => Self::Limits,
            b"response.completed" => Self::Completed,
            b"response.incomplete" => Self::Incomplete,
            b"response.failed" => Self::Failed,
            b"error" => Self::Error,
            b"" => Self::Other,
            _ if name.starts_with(b"codex.") || name.starts_with(b"responsesapi.") => Self::Other,
            // A type that nobody knows yet may be a part of the answer: it isn't kept from the client.
            _ => Self::Visible,
        }
    }

    /// Whether nobody would miss the event if the response began again elsewhere.
    pub const fn is_before_the_answer(self) -> bool {
        matches!(self, Self::Preamble | Self::Metadata | Self::Limits | Self::Other | Self::Garbage)
    }

    /// Whether the event is a fault; [`Fault::read`] then tells which.
    pub const fn is_fault(self) -> bool {
        matches!(self, Self::Failed | Self::Error)
    }

    /// Whether the response ends with this event, well or badly.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Incomplete | Self::Failed | Self::Error)
    }
}

/// The windows of a [`Kind::Limits`] event; `seen` is now.
pub fn limits(json: &[u8], seen: Wall) -> Vec<Window> {
    serde_json::from_slice(json).map(|event| quota::from_event(&event, seen)).unwrap_or_default()
}

/// The headers of a [`Kind::Metadata`] event, as far as they are headers.
pub fn metadata(json: &[u8]) -> HeaderMap {
    serde_json::from_slice::<Raw<'_>>(json).map(|raw| headers_of(&raw)).unwrap_or_default()
}

/// What went wrong, as upstream says it inside a stream.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fault {
    /// The status of a wrapped error: it stands for an HTTP answer of that status.
    pub status: Option<StatusCode>,
    /// The headers of a wrapped error: quota windows, `retry-after`.
    pub headers: HeaderMap,
    /// `error.code`, or `error.type` where there is no code; empty when neither is said.
    pub code: String,
    /// `error.message`.
    pub message: String,
    /// `{"error": {…}}`, as the body of an HTTP answer would have it; within bounds.
    pub body: Value,
}

/// Faults that are about the connection or its state and not about the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfConnection {
    /// The connection has lived its time (60 minutes): the same request goes on a new one.
    TooOld,
    /// The response that the request builds on is not known on this connection or to this account:
    /// the same request goes in full.
    PreviousUnknown,
}

impl Fault {
    /// Reads a fault; one that can't be read has no code, no status and a message that says so.
    pub fn read(json: &[u8]) -> Self {
        let Ok(raw) = serde_json::from_slice::<Raw<'_>>(json) else {
            return Self { message: "an error that can't be read".to_owned(), ..Self::default() };
        };
        let headers = headers_of(&raw);
        let status = raw
            .status
            .as_ref()
            .or(raw.status_code.as_ref())
            .and_then(Value::as_u64)
            .and_then(|status| u16::try_from(status).ok())
            .and_then(|status| StatusCode::from_u16(status).ok())
            .filter(|status| status.is_client_error() || status.is_server_error());
        // An `error` event of the public API has its fields beside the type.
        let flat = Said { code: raw.code, kind: None, message: raw.message, ..Said::default() };
        let said = raw.response.and_then(|response| response.error).or(raw.error).unwrap_or(flat);
        let text = |text: Option<Value>| text.as_ref().map(short).unwrap_or_default();
        let (code, kind) = (text(said.code), text(said.kind));
        let message = text(said.message);
        let mut error = serde_json::Map::new();
        for (name, value) in [("type", &kind), ("code", &code), ("message", &message)] {
            if !value.is_empty() {
                error.insert(name.to_owned(), Value::String(value.clone()));
            }
        }
        let resets = [("resets_at", said.resets_at), ("resets_in_seconds", said.resets_in_seconds)];
        for (name, value) in resets {
            if let Some(Value::Number(number)) = value {
                error.insert(name.to_owned(), Value::Number(number));
            }
        }
        let body = Value::Object(serde_json::Map::from_iter([("error".into(), error.into())]));
        // A code goes into reasons that people read: it is a word.
        let code = if code.is_empty() { kind } else { code };
        let code = code.chars().filter(char::is_ascii_graphic).take(MAX_CODE).collect();
        Self { status, headers, code, message, body }
    }

    /// Whether the fault is about the connection.
    pub fn of_connection(&self) -> Option<OfConnection> {
        match self.code.as_str() {
            "websocket_connection_limit_reached" => Some(OfConnection::TooOld),
            "previous_response_not_found" => Some(OfConnection::PreviousUnknown),
            _ => None,
        }
    }

    /// Whether it is the host's: overload or a failure that every account would meet.
    pub fn is_hosts(&self) -> bool {
        self.of_connection().is_none()
            && match self.status {
                Some(status) => status.is_server_error(),
                None => class(&self.code) == Class::Host,
            }
    }

    /// The wait that the message states: `try again in 1.5s`, `… in 20ms`, `… in 1m30s`. The CLI
    /// reads the same words (0.169.0, observed).
    pub fn stated_wait(&self) -> Option<Span> {
        stated_wait(&self.message)
    }

    /// The windows that came with it.
    pub fn windows(&self, now: Wall) -> Vec<Window> {
        quota::from_headers(&self.headers, now)
    }

    /// What the fault means while nothing of the response was shown.
    ///
    /// [`Act::Deliver`] is for what no account would answer differently.
    pub fn verdict(&self, now: Wall) -> Verdict {
        let verdict = |act, mark| Verdict { act, mark, reason: self.to_string() };
        match self.of_connection() {
            Some(OfConnection::TooOld) => return verdict(Act::RetrySame, Mark::Fine),
            Some(OfConnection::PreviousUnknown) => return verdict(Act::Deliver, Mark::Fine),
            None => {},
        }
        if let Some(status) = self.status {
            let head = Outcome::Head { status, headers: &self.headers, body: Some(&self.body) };
            let of_status = verdict::classify(&head, now);
            return Verdict { reason: self.to_string(), ..of_status };
        }
        match class(&self.code) {
            Class::Limit => {
                let reset = quota::reset_in_error(&self.body, now);
                verdict(Act::RetryOther, Mark::Cool(Cause::UsageLimit(reset)))
            },
            Class::Rate => {
                verdict(Act::RetryOther, Mark::Cool(Cause::Throttled(self.stated_wait())))
            },
            Class::Plan => verdict(Act::RetryOther, Mark::ModelNotIncluded),
            Class::Payment => verdict(Act::RetryOther, Mark::Cool(Cause::PaymentRequired)),
            Class::Token => verdict(Act::RetrySame, Mark::Unauthorized),
            Class::Request => verdict(Act::Deliver, Mark::Fine),
            Class::Host | Class::Unknown => verdict(Act::RetryOther, Mark::Shaky),
        }
    }

    /// Whether the official CLI stops on this fault in a stream and says itself what is wrong; on
    /// others it starts the request again (0.169.0, observed).
    pub fn stops_the_cli(&self) -> bool {
        match self.status {
            Some(status) => verdict::stops_the_cli(status, Some(&self.body)),
            None => {
                class(&self.code) == Class::Request
                    || matches!(
                        self.code.as_str(),
                        "insufficient_quota" | "usage_not_included" | "server_is_overloaded"
                    )
            },
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = if self.code.is_empty() { "an error without a code" } else { &self.code };
        match self.status {
            Some(status) => write!(f, "{code} ({})", status.as_u16()),
            None => f.write_str(code),
        }
    }
}

/// What a code without a status is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Limit,
    Rate,
    Plan,
    Payment,
    Token,
    Request,
    Host,
    Unknown,
}

fn class(code: &str) -> Class {
    match code {
        "usage_limit_reached"
        | "insufficient_quota"
        | "subscription_sharing_usage_limit_exceeded" => Class::Limit,
        "rate_limit_exceeded" => Class::Rate,
        "usage_not_included" => Class::Plan,
        "deactivated_workspace" | "account_deactivated" => Class::Payment,
        "token_expired" | "token_invalidated" | "token_revoked" => Class::Token,
        "context_length_exceeded"
        | "invalid_prompt"
        | "bio_policy"
        | "cyber_policy"
        | "invalid_request_error" => Class::Request,
        "server_is_overloaded" | "slow_down" | "server_error" => Class::Host,
        _ => Class::Unknown,
    }
}

fn stated_wait(message: &str) -> Option<Span> {
    let lower = message.to_ascii_lowercase();
    let (_before, mut rest) = lower.split_once("try again in ")?;
    let mut wait = Span::ZERO;
    let mut any = false;
    loop {
        rest = rest.trim_start();
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let (number, after) = rest.split_at_checked(digits)?;
        let Ok(number) = number.parse::<f64>() else { break };
        let after = after.trim_start();
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(letters)?;
        let millis = match unit {
            "ms" | "millisecond" | "milliseconds" => number,
            "s" | "sec" | "second" | "seconds" => number * 1e3,
            "m" | "min" | "minute" | "minutes" => number * 6e4,
            "h" | "hour" | "hours" => number * 3.6e6,
            _ => break,
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "digits and a dot are never negative, and the cast saturates"
        )]
        let millis = millis.ceil() as u64;
        wait = Span::from_millis(wait.millis().saturating_add(millis)).min(MAX_STATED);
        (rest, any) = (after, true);
    }
    any.then_some(wait)
}

fn short(value: &Value) -> String {
    match value {
        Value::String(text) => text.chars().take(MAX_TEXT).collect(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

fn headers_of(raw: &Raw<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in raw.headers.iter().flatten().take(MAX_HEADERS) {
        let value = match value {
            Value::String(text) => HeaderValue::from_str(text),
            Value::Number(number) => HeaderValue::from_str(&number.to_string()),
            Value::Bool(yes) => HeaderValue::from_str(if *yes { "true" } else { "false" }),
            _ => continue,
        };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), value) {
            headers.append(name, value);
        }
    }
    headers
}

#[derive(Deserialize)]
struct Typed<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
}

/// The fields of a fault, of any form.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw<'a> {
    status: Option<Value>,
    status_code: Option<Value>,
    error: Option<Said>,
    response: Option<Answered>,
    #[serde(borrow)]
    headers: Option<BTreeMap<Cow<'a, str>, Value>>,
    code: Option<Value>,
    message: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Answered {
    error: Option<Said>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    #[serde(rename = "type")]
    kind: Option<Value>,
    code: Option<Value>,
    message: Option<Value>,
    resets_at: Option<Value>,
    resets_in_seconds: Option<Value>,
}

#[cfg(test)]
mod tests;
