//! Scripted misbehaviour: which fault applies to which request, and what it
//! looks like from outside.
//!
//! A fault replaces or damages an answer; it never changes the rules. What it
//! leaves undone stays undone (a reset before the head serves nothing), what it
//! lets happen has happened (`HangAfterCommit` has rotated the token).

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::inside::Inside;

/// Scripts kept at most; more is a mistake in the test.
const MAX_SCRIPTS: usize = 1000;

/// The routes a fault can be scripted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// `POST /codex/responses`.
    Responses,
    /// The WebSocket handshake on `/codex/responses`.
    Upgrade,
    /// A turn's frame on a WebSocket. A status is a wrapped error there, a head is an event.
    Frame,
    /// A prewarm's frame on a WebSocket; only what comes before an answer applies.
    Prewarm,
    /// `POST /oauth/token`.
    Refresh,
    /// `POST /oauth/revoke`.
    Revoke,
    /// The steps of a sign-in: the authorize page, device codes, codes for tokens.
    Login,
    /// `GET /codex/models`.
    Models,
    /// `GET /wham/usage`.
    Usage,
    /// `GET /wham/accounts/check`.
    AccountsCheck,
    /// Pictures, searches, notes, files, voice calls, compaction in one piece, stored responses,
    /// the use of a reset credit.
    Errand,
    /// Every other path of the backend.
    Aux,
    /// Every route, the control routes excepted.
    Any,
}

/// How a stream is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// The connection is reset.
    Reset,
    /// The connection is closed within the body.
    Close,
    /// The body ends as HTTP wants it, without its last events.
    CleanEnd,
}

/// A message that isn't one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strange {
    /// A binary message.
    Binary,
    /// Bytes that are no frame.
    Garbage,
    /// A frame that says it has a gibibyte.
    Oversized,
    /// A text that is no JSON.
    NoJson,
    /// Half a frame, then the connection is reset.
    Half,
}

/// One way an upstream fails.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", content = "with", rename_all = "snake_case")]
pub enum Fault {
    /// This answer instead of the right one.
    Status {
        /// The status.
        code: u16,
        /// Its headers.
        #[serde(default)]
        headers: Vec<(String, String)>,
        /// Its body.
        #[serde(default)]
        body: String,
    },
    /// 429 `usage_limit_reached` with the headers of the account, its short
    /// window full for this long. Its real windows stay as they are.
    UsageLimitReached {
        /// How long.
        #[serde(deserialize_with = "ms")]
        resets_in: Duration,
    },
    /// The right answer, but its head only after this long. Nothing happens before.
    SlowHead(#[serde(deserialize_with = "ms")] Duration),
    /// What is asked for happens at once, the answer comes after this long.
    DelayAnswer(#[serde(deserialize_with = "ms")] Duration),
    /// The request is read and never answered; nothing happens.
    HangHead,
    /// The same, by the name it has for a refresh.
    HangBeforeCommit,
    /// What is asked for happens; the request is never answered.
    HangAfterCommit,
    /// What is asked for happens; then the connection is closed.
    CloseAfterCommit,
    /// What is asked for happens; then the connection is reset.
    ResetAfterCommit,
    /// The request is read and the connection reset.
    ResetBeforeHead,
    /// The request is read and the connection closed.
    CloseBeforeHead,
    /// Bytes that are not HTTP, then the connection is closed.
    GarbageHead,
    /// The stream ends after some events. Other answers end halfway.
    CutMidStream {
        /// How many events are sent.
        after: usize,
        /// How it ends.
        by: Cut,
    },
    /// The stream stays open after some events, and nothing comes.
    HangMidStream {
        /// How many events are sent.
        after: usize,
    },
    /// The stream pauses after some events and then goes on.
    StallMidStream {
        /// How many events are sent before.
        after: usize,
        /// For how long it pauses.
        #[serde(deserialize_with = "ms")]
        pause: Duration,
    },
    /// The stream is `response.created` and `response.failed`.
    SseFailed {
        /// The code of the error.
        code: String,
        /// Its message.
        message: String,
    },
    /// On a WebSocket: a wrapped error after some events.
    ErrorFrame {
        /// How many events are sent before.
        after: usize,
        /// Its status.
        code: u16,
        /// The object under `error`, as JSON.
        error: String,
    },
    /// On a WebSocket: a close frame after some events.
    CloseFrame {
        /// How many events are sent before.
        after: usize,
        /// Its code.
        code: u16,
    },
    /// On a WebSocket: a message that no event is, after some events.
    StrangeFrame {
        /// How many events are sent before.
        after: usize,
        /// What it is.
        what: Strange,
    },
    /// The stream is `response.created` and `response.incomplete`.
    Incomplete {
        /// Its reason.
        reason: String,
    },
    /// Something happens inside the stream.
    Inside(Inside),
    /// HTTP/2 `REFUSED_STREAM`: nothing was done with the request. HTTP/1.1: the connection ends.
    RefuseStream,
}

fn ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}

impl Fault {
    /// A JSON answer.
    pub fn json(code: u16, body: &serde_json::Value) -> Self {
        Self::typed(code, "application/json", body.to_string())
    }

    /// 429 `usage_not_included`: the plan has no access.
    pub fn usage_not_included() -> Self {
        let message = "Your plan does not include this";
        Self::json(429, &json!({ "error": { "type": "usage_not_included", "message": message } }))
    }

    /// 429 without a code, with or without `retry-after` in seconds.
    pub fn rate_limited(retry_after: Option<u64>) -> Self {
        let body =
            json!({ "error": { "type": "rate_limit_error", "message": "Too many requests" } });
        Self::json(429, &body).with_retry_after(retry_after)
    }

    /// 401 `token_invalidated`.
    pub fn token_invalidated() -> Self {
        Self::json(401, &unauthorized("token_invalidated"))
    }

    /// 401 `token_expired`.
    pub fn token_expired() -> Self {
        Self::json(401, &unauthorized("token_expired"))
    }

    /// 402 for a workspace that is not paid.
    pub fn payment_required() -> Self {
        Self::json(402, &json!({ "detail": { "code": "deactivated_workspace" } }))
    }

    /// 403 as JSON.
    pub fn forbidden() -> Self {
        Self::json(403, &json!({ "detail": "Forbidden" }))
    }

    /// 403 as the page of the CDN.
    pub fn cloudflare() -> Self {
        let page = "<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title>\
                    </head><body>Sorry, you have been blocked</body></html>";
        let fault = Self::typed(403, "text/html; charset=UTF-8", page.to_owned());
        fault.with_header("server", "cloudflare").with_header("cf-ray", "8f00000000000000-SIM")
    }

    /// 404 as JSON.
    pub fn not_found() -> Self {
        Self::json(404, &json!({ "detail": "Not Found" }))
    }

    /// A 5xx with nothing to read from it, with or without `retry-after`.
    pub fn server_error(code: u16, retry_after: Option<u64>) -> Self {
        Self::typed(code, "text/plain", "upstream error".to_owned()).with_retry_after(retry_after)
    }

    /// 503 `server_is_overloaded`.
    pub fn overloaded() -> Self {
        Self::unavailable("server_is_overloaded")
    }

    /// 503 `slow_down`.
    pub fn slow_down() -> Self {
        Self::unavailable("slow_down")
    }

    /// 400 `invalid_grant`, a final answer to a refresh.
    pub fn invalid_grant() -> Self {
        let body = json!({ "error": "invalid_grant", "error_description": "Invalid grant" });
        Self::json(400, &body)
    }

    /// 426: no WebSocket here.
    pub fn websocket_426() -> Self {
        Self::typed(426, "text/plain", "Upgrade Required".to_owned())
    }

    /// A ready-made fault by name, for scripts without a compiler.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "usage_limit_reached" => {
                Self::UsageLimitReached { resets_in: Duration::from_secs(3600) }
            },
            "usage_not_included" => Self::usage_not_included(),
            "rate_limited" => Self::rate_limited(None),
            "token_invalidated" => Self::token_invalidated(),
            "token_expired" => Self::token_expired(),
            "payment_required" => Self::payment_required(),
            "forbidden" => Self::forbidden(),
            "cloudflare" => Self::cloudflare(),
            "not_found" => Self::not_found(),
            "overloaded" => Self::overloaded(),
            "slow_down" => Self::slow_down(),
            "invalid_grant" => Self::invalid_grant(),
            "websocket_426" => Self::websocket_426(),
            "hang_head" => Self::HangHead,
            "hang_before_commit" => Self::HangBeforeCommit,
            "hang_after_commit" => Self::HangAfterCommit,
            "close_after_commit" => Self::CloseAfterCommit,
            "reset_after_commit" => Self::ResetAfterCommit,
            "reset_before_head" => Self::ResetBeforeHead,
            "close_before_head" => Self::CloseBeforeHead,
            "garbage_head" => Self::GarbageHead,
            other => {
                let code = other.parse().ok().filter(|code| (500..600).contains(code))?;
                Self::server_error(code, None)
            },
        })
    }

    fn unavailable(code: &str) -> Self {
        Self::json(503, &json!({ "error": { "code": code, "message": "Please try again later" } }))
    }

    fn typed(code: u16, kind: &str, body: String) -> Self {
        Self::Status { code, headers: vec![("content-type".to_owned(), kind.to_owned())], body }
    }

    fn with_retry_after(self, secs: Option<u64>) -> Self {
        match secs {
            Some(secs) => self.with_header("retry-after", &secs.to_string()),
            None => self,
        }
    }

    /// The same answer with one more header; other faults stay as they are.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        if let Self::Status { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }
}

/// The body of a 401.
pub(super) fn unauthorized(code: &str) -> serde_json::Value {
    let message = match code {
        "token_expired" => "Provided authentication token is expired. Please try signing in again.",
        "token_invalidated" => {
            "Your authentication token has been invalidated. Please try signing in again."
        },
        _ => "Could not parse your authentication token. Please try signing in again.",
    };
    json!({
        "error": { "message": message, "type": null, "code": code, "param": null },
        "status": 401,
    })
}

#[derive(Debug)]
struct Script {
    account: Option<String>,
    route: Route,
    fault: Fault,
    left: Option<u32>,
}

/// The scripted faults in the order of scripting.
#[derive(Debug, Default)]
pub(super) struct Faults {
    scripts: Vec<Script>,
}

impl Faults {
    pub(super) fn script(
        &mut self,
        account: Option<&str>,
        route: Route,
        fault: Fault,
        times: Option<u32>,
    ) {
        if self.scripts.len() < MAX_SCRIPTS && times != Some(0) {
            let account = account.map(str::to_owned);
            self.scripts.push(Script { account, route, fault, left: times });
        }
    }

    pub(super) fn clear(&mut self) {
        self.scripts.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.scripts.len()
    }

    pub(super) fn take(&mut self, account: Option<&str>, route: Route) -> Option<Fault> {
        let at = self.scripts.iter().position(|script| {
            let here = script.route == Route::Any || script.route == route;
            let theirs = script.account.is_none() || script.account.as_deref() == account;
            here && theirs
        })?;
        let script = self.scripts.get_mut(at)?;
        let fault = script.fault.clone();
        if let Some(left) = &mut script.left {
            *left -= 1;
            if *left == 0 {
                self.scripts.remove(at);
            }
        }
        Some(fault)
    }
}
