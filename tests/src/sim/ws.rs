//! Responses over a WebSocket: the handshake, and the frames until either side ends it.
//!
//! What a response builds on is known on its connection only. A turn state is an account's, and once
//! given it is shown again by every frame of the same turn. A connection has a greatest age, looked at
//! when a turn begins on it. Errors are wrapped: status, error and headers in one frame. A fault of
//! [`Route::Frame`] damages one turn; one of [`Route::Upgrade`] the handshake.
//!
//! Each frame that begins a turn is in the record as a request of method `WS`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{
    AUTHORIZATION, CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use ring::digest;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::backend::{self, Admitted};
use super::clock::UnixMs;
use super::faults::{Cut, Fault, Route, Strange, unauthorized};
use super::record::{Open, Outcome, Seen};
use super::reply;
use super::sealed;
use super::state::{AccountNo, Busy, Shared, Work};
use super::strict;
use super::tokens::AccessVerdict;
use super::wire::{Call, Line, Reply, SimBody, respond, text};

/// A hang ends with the client.
const HANG: Duration = Duration::from_secs(3600);
/// So that what was sent leaves before a connection is cut.
const FLUSH: Duration = Duration::from_millis(20);
/// What the answer to a key is made with (RFC 6455, section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

type Wire = WebSocketStream<TokioIo<Upgraded>>;

/// Accepts a handshake, or answers why it is none.
pub(super) fn accept(mut call: Call, no: AccountNo) -> http::Response<SimBody> {
    let headers = &call.head.headers;
    let is = |name: &str, wanted: &str| {
        text(headers, name).is_some_and(|value| value.eq_ignore_ascii_case(wanted))
    };
    let shakes = is(UPGRADE.as_str(), "websocket")
        && is(CONNECTION.as_str(), "upgrade")
        && is(SEC_WEBSOCKET_VERSION.as_str(), "13")
        && headers.contains_key("openai-beta");
    let key = text(headers, SEC_WEBSOCKET_KEY.as_str()).unwrap_or_default();
    let good = BASE64_STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16);
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
    let answer = BASE64_STANDARD.encode(hash);
    let token = text(headers, AUTHORIZATION.as_str()).and_then(|value| value.split(' ').nth(1));
    let token = token.unwrap_or_default().to_owned();
    let session = text(headers, "session-id").map(str::to_owned);
    let upgrade = call.head.extensions.remove::<OnUpgrade>();
    let Some(upgrade) = upgrade.filter(|_| shakes && good) else {
        call.breach("a bad handshake");
        return Reply::json(400, &json!({ "detail": "Bad handshake" })).send(&mut call.open);
    };
    let headers = vec![
        (CONNECTION.to_string(), "Upgrade".to_owned()),
        (UPGRADE.to_string(), "websocket".to_owned()),
        (SEC_WEBSOCKET_ACCEPT.to_string(), answer),
        // The CLI was seen to ignore these on a handshake.
        ("x-codex-turn-state".to_owned(), "of-the-handshake".to_owned()),
    ];
    call.open.settle(Some(101), Outcome::Answered);
    let peer = Peer {
        shared: Arc::clone(&call.shared),
        line: Arc::clone(&call.line),
        no,
        token,
        session,
        since: Instant::now(),
        known: BTreeMap::new(),
        state: None,
    };
    call.line.go_on(peer.serve(upgrade));
    let mut response =
        respond(101, headers, UnsyncBoxBody::new(Empty::new().map_err(|never| match never {})));
    response.headers_mut().remove("content-type");
    response
}

/// Who is at the other end, and what was said.
struct Peer {
    shared: Arc<Shared>,
    line: Arc<Line>,
    no: AccountNo,
    token: String,
    session: Option<String>,
    since: Instant,
    /// Responses of this connection, with all items they consist of.
    known: BTreeMap<String, Vec<Value>>,
    /// The turn whose state was given here.
    state: Option<String>,
}

/// Counts a connection while it is open.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.state.lock().record.count(|stats| {
            stats.sockets += 1;
            stats.sockets_open += 1;
        });
        Self(Arc::clone(shared))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.state.lock().record.count(|stats| stats.sockets_open -= 1);
    }
}

/// Why no more frames are read.
#[derive(Debug)]
struct Over;

impl Peer {
    async fn serve(mut self, upgrade: OnUpgrade) {
        let Ok(upgraded) = upgrade.await else { return };
        let _counted = Counted::new(&self.shared);
        let io = TokioIo::new(upgraded);
        let mut wire = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        if wire.send(Message::Ping(Bytes::from_static(b"sim"))).await.is_err() {
            return;
        }
        while let Some(Ok(message)) = wire.next().await {
            let over = match message {
                Message::Text(frame) => self.frame(&mut wire, &frame).await.is_err(),
                Message::Pong(_) => {
                    self.shared.state.lock().record.count(|stats| stats.pongs += 1);
                    false
                },
                Message::Binary(_) => {
                    self.breach("a binary message");
                    true
                },
                _ => false,
            };
            if over {
                return;
            }
        }
    }

    fn breach(&self, what: &str) {
        self.shared.state.lock().record.breach(format!("WS: {what}"));
    }

    async fn frame(&mut self, wire: &mut Wire, frame: &str) -> Result<(), Over> {
        if let Some(leak) = strict::leaks(&self.shared, frame.as_bytes()) {
            self.breach(leak);
        }
        let Ok(body) = serde_json::from_str::<Value>(frame) else {
            self.breach("a frame that is no JSON");
            return self.refuse(wire, 400, json!({ "message": "not JSON" }), &[]).await;
        };
        if body["type"] != "response.create" {
            self.breach("a frame of an unknown type");
            return Ok(());
        }
        let number = self.record(&body, frame.len());
        let mut open = Open::new(Arc::clone(&self.shared), number);
        let route = if body["generate"] == false { Route::Prewarm } else { Route::Frame };
        let fault = self.shared.state.lock().take_fault(Some(self.no), route);
        let ended = self.turn(wire, &body, frame.len(), fault, &mut open).await;
        if ended.is_err() {
            tokio::time::sleep(FLUSH).await;
        }
        ended
    }

    fn record(&self, body: &Value, bytes: usize) -> u64 {
        let state = &mut *self.shared.state.lock();
        state.record.count(|stats| stats.frames += 1);
        let kept = if bytes > state.config.keep_body { 0 } else { bytes };
        let seen = Seen {
            number: 0,
            at_unix_ms: UnixMs::now().0,
            method: "WS".to_owned(),
            path: "/backend-api/codex/responses".to_owned(),
            query: String::new(),
            headers: Vec::new(),
            account: Some(state.name(self.no).to_owned()),
            body: if kept == 0 { Value::Null } else { body.clone() },
            wire_bytes: bytes,
            status: None,
            outcome: Outcome::Open,
            tokens: None,
        };
        state.record.begin(seen, kept)
    }

    async fn turn(
        &mut self,
        wire: &mut Wire,
        body: &Value,
        bytes: usize,
        fault: Option<Fault>,
        open: &mut Open,
    ) -> Result<(), Over> {
        if let Some(Fault::Status { code, headers, body }) = &fault {
            open.settle(Some(*code), Outcome::Answered);
            let body: Value = serde_json::from_str(body).unwrap_or_default();
            return self.refuse(wire, *code, body["error"].clone(), headers).await;
        }
        self.before(wire, fault.as_ref(), open).await?;
        if let Some((code, error)) = self.refusal(body) {
            open.settle(Some(code), Outcome::Answered);
            return self.refuse(wire, code, error, &[]).await;
        }
        let Some(body) = self.whole(body) else {
            open.settle(Some(400), Outcome::Answered);
            let error = json!({
                "type": "invalid_request_error", "code": "previous_response_not_found",
                "message": "Previous response not found.", "param": "previous_response_id",
            });
            return self.refuse(wire, 400, error, &[]).await;
        };
        if let Some(error) = sealed::refusal(&self.shared, self.no, &body) {
            open.settle(Some(400), Outcome::Answered);
            return self.refuse(wire, 400, error, &[]).await;
        }
        if body["generate"] == false {
            return self.prewarm(wire, &body, open).await;
        }
        let busy = Busy::begin(&self.shared, self.no, Work::Responding);
        let admitted = backend::admit(&self.shared, self.no, self.session.as_deref(), &body, bytes);
        let (turn, _headers, gap): Admitted = match admitted {
            Ok(admitted) => admitted,
            Err(Reply { code, headers, body }) => {
                open.settle(Some(code), Outcome::Answered);
                let body: Value = serde_json::from_str(&body).unwrap_or_default();
                return self.refuse(wire, code, body["error"].clone(), &headers).await;
            },
        };
        open.head(200);
        self.shared.state.lock().record.told(open.number, turn.tokens());
        let mut events = self.preamble(&body);
        let mut inside = None;
        let told = match &fault {
            Some(Fault::SseFailed { code, message }) => turn.failed(code, message),
            Some(Fault::Incomplete { reason }) => turn.incomplete(reason),
            Some(Fault::Inside(script)) => {
                let (told, end) = script.script(turn.events());
                inside = end.map(|end| match end {
                    Fault::CutMidStream { after, by } => {
                        Fault::CutMidStream { after: after + events.len(), by }
                    },
                    end => end,
                });
                told
            },
            _ => turn.events(),
        };
        let fault = inside.or(fault);
        events.extend(told.iter().filter_map(|event| of_sse(event)));
        let ended = self.tell(wire, &events, gap, fault.as_ref(), open).await;
        drop(busy);
        ended?;
        let done = events.iter().filter(|event| event["type"] == "response.output_item.done");
        let input = body["input"].as_array().cloned().unwrap_or_default();
        let items = input.into_iter().chain(done.map(|event| event["item"].clone()));
        self.known.insert(format!("resp_sim_{}", turn.id), items.collect());
        Ok(())
    }

    /// What a fault does before anything is answered.
    async fn before(
        &self,
        wire: &mut Wire,
        fault: Option<&Fault>,
        open: &mut Open,
    ) -> Result<(), Over> {
        match fault {
            Some(Fault::HangHead | Fault::HangBeforeCommit) => self.wait(wire, HANG).await?,
            Some(Fault::SlowHead(span) | Fault::DelayAnswer(span)) => {
                return self.wait(wire, *span).await;
            },
            Some(Fault::ResetBeforeHead) => self.line.reset(),
            Some(Fault::CloseBeforeHead) => {},
            _ => return Ok(()),
        }
        open.settle(None, Outcome::Dropped);
        Err(Over)
    }

    /// What is wrong with a frame or with who sends it.
    fn refusal(&self, body: &Value) -> Option<(u16, Value)> {
        let (verdict, age) = {
            let state = self.shared.state.lock();
            (state.tokens.judge(&self.token), state.config.socket_age)
        };
        let refused = |code: &str| Some((401, unauthorized(code)["error"].clone()));
        match verdict {
            AccessVerdict::Good(_) => {},
            AccessVerdict::Expired(_) => return refused("token_expired"),
            AccessVerdict::Revoked(_) => return refused("token_invalidated"),
            AccessVerdict::Unknown => return refused("invalid_token"),
        }
        if self.since.elapsed() >= age {
            let error = json!({
                "type": "invalid_request_error", "code": "websocket_connection_limit_reached",
                "message": "connection limit (60 minutes)",
            });
            return Some((400, error));
        }
        let metadata = &body["client_metadata"];
        let turn = metadata["turn_id"].as_str().unwrap_or_default();
        match metadata["x-codex-turn-state"].as_str() {
            Some(state) if !state.starts_with(&format!("turn-{}-", self.no.0)) => {
                self.breach("a turn state of another account");
            },
            None if !turn.is_empty() && self.state.as_deref() == Some(turn) => {
                self.breach("a turn state that was given is not shown");
            },
            _ => {},
        }
        let why = reply::fault_of(body)?;
        self.breach(&format!("a frame with a bad body: {why}"));
        Some((400, json!({ "type": "invalid_request_error", "message": why })))
    }

    /// The frame with all items that it builds on; none when these are not known here.
    fn whole(&self, body: &Value) -> Option<Value> {
        let mut body = body.clone();
        if let Some(previous) = body.get("previous_response_id").cloned() {
            let mut items = self.known.get(previous.as_str()?)?.clone();
            items.extend(body["input"].as_array().cloned().unwrap_or_default());
            body["input"] = Value::Array(items);
        }
        Some(body)
    }

    async fn prewarm(
        &mut self,
        wire: &mut Wire,
        body: &Value,
        open: &mut Open,
    ) -> Result<(), Over> {
        let id = format!("resp_sim_{}", self.shared.state.lock().serial());
        let usage = json!({ "input_tokens": 1, "output_tokens": 0, "total_tokens": 1 });
        let events = [
            json!({ "type": "response.created", "response": { "id": id } }),
            json!({ "type": "response.completed", "response": { "id": id, "usage": usage } }),
        ];
        self.known.insert(id, body["input"].as_array().cloned().unwrap_or_default());
        for event in &events {
            send(wire, event).await?;
        }
        open.settle(Some(200), Outcome::Answered);
        Ok(())
    }

    /// What comes before a response.
    fn preamble(&mut self, body: &Value) -> Vec<Value> {
        let state = &mut *self.shared.state.lock();
        let Some(account) = state.accounts.get(self.no.0) else { return Vec::new() };
        let mut limits = account.quota.event(&account.spec.plan);
        limits["type"] = "codex.rate_limits".into();
        let mut events = vec![limits];
        let metadata = &body["client_metadata"];
        if metadata.get("x-codex-turn-state").is_none() {
            let given = format!("turn-{}-{}", self.no.0, state.serial());
            let headers = json!({ "x-codex-turn-state": given });
            events.push(json!({ "type": "response.metadata", "headers": headers }));
            self.state = metadata["turn_id"].as_str().map(str::to_owned);
        }
        let headers = json!({ "openai-model": body["model"] });
        events.push(json!({ "type": "codex.response.metadata", "headers": headers }));
        events
    }

    async fn tell(
        &self,
        wire: &mut Wire,
        events: &[Value],
        gap: Duration,
        fault: Option<&Fault>,
        open: &mut Open,
    ) -> Result<(), Over> {
        for (at, event) in events.iter().enumerate() {
            if at > 0 {
                self.wait(wire, gap).await?;
            }
            self.damage(wire, at, fault, open).await?;
            send(wire, event).await?;
        }
        let unfinished = matches!(fault, Some(Fault::SseFailed { .. } | Fault::Incomplete { .. }));
        open.settle(None, if unfinished { Outcome::Answered } else { Outcome::Completed });
        Ok(())
    }

    /// What a fault does in front of the `at`-th event.
    async fn damage(
        &self,
        wire: &mut Wire,
        at: usize,
        fault: Option<&Fault>,
        open: &mut Open,
    ) -> Result<(), Over> {
        let here = |after: &usize| *after == at;
        match fault {
            Some(Fault::CutMidStream { after, by }) if here(after) => {
                match by {
                    Cut::Reset => {
                        tokio::time::sleep(FLUSH).await;
                        self.line.reset();
                    },
                    Cut::Close => {},
                    Cut::CleanEnd => close(wire, 1000).await,
                }
                open.settle(None, Outcome::Cut);
                Err(Over)
            },
            Some(Fault::CloseFrame { after, code }) if here(after) => {
                close(wire, *code).await;
                open.settle(None, Outcome::Cut);
                Err(Over)
            },
            Some(Fault::HangMidStream { after }) if here(after) => self.wait(wire, HANG).await,
            Some(Fault::StallMidStream { after, pause }) if here(after) => {
                self.wait(wire, *pause).await
            },
            Some(Fault::ErrorFrame { after, code, error }) if here(after) => {
                open.settle(Some(*code), Outcome::Answered);
                let error = serde_json::from_str(error).unwrap_or_default();
                self.refuse(wire, *code, error, &[]).await?;
                Err(Over)
            },
            Some(Fault::StrangeFrame { after, what }) if here(after) => {
                open.settle(None, Outcome::Cut);
                self.strange(wire, *what).await;
                Err(Over)
            },
            _ => Ok(()),
        }
    }

    async fn strange(&self, wire: &mut Wire, what: Strange) {
        let raw: &[u8] = match what {
            Strange::Binary => {
                wire.send(Message::Binary(Bytes::from_static(b"\x00\x01"))).await.ok();
                return;
            },
            Strange::NoJson => {
                wire.send(Message::text("this is no JSON")).await.ok();
                return;
            },
            // Reserved bits and an opcode that nobody has.
            Strange::Garbage => b"\xff\xff\xff\xff this is no frame",
            Strange::Oversized => b"\x81\x7f\x00\x00\x00\x00\x40\x00\x00\x00 and so on",
            Strange::Half => b"\x81\x7e\x10\x00{\"type\":\"response.out",
        };
        wire.get_mut().write_all(raw).await.ok();
        if what == Strange::Half {
            tokio::time::sleep(FLUSH).await;
            self.line.reset();
        }
    }

    /// Waits, and notices when the client goes.
    async fn wait(&self, wire: &mut Wire, span: Duration) -> Result<(), Over> {
        if span.is_zero() {
            return Ok(());
        }
        let until = Instant::now() + span;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Ok(()),
                message = wire.next() => match message {
                    Some(Ok(Message::Pong(_))) => {
                        self.shared.state.lock().record.count(|stats| stats.pongs += 1);
                    },
                    Some(Ok(Message::Ping(_))) => {},
                    Some(Ok(Message::Text(_))) => self.breach("a frame within a turn"),
                    _ => return Err(Over),
                },
            }
        }
    }

    /// Answers with a wrapped error.
    async fn refuse(
        &self,
        wire: &mut Wire,
        code: u16,
        error: Value,
        headers: &[(String, String)],
    ) -> Result<(), Over> {
        let quota = headers.iter().filter(|(name, _)| name.starts_with("x-codex-"));
        let headers: Map<String, Value> =
            quota.map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        let mut event = json!({ "type": "error", "status": code, "error": error });
        if !headers.is_empty() {
            event["headers"] = Value::Object(headers);
        }
        send(wire, &event).await
    }
}

async fn close(wire: &mut Wire, code: u16) {
    let frame = CloseFrame { code: CloseCode::from(code), reason: "".into() };
    wire.send(Message::Close(Some(frame))).await.ok();
}

/// The type goes first, as the real upstream writes it.
async fn send(wire: &mut Wire, event: &Value) -> Result<(), Over> {
    let mut rest = event.as_object().cloned().unwrap_or_default();
    let kind = rest.remove("type").unwrap_or_default();
    let rest = rest.iter().map(|(name, value)| format!(",\"{name}\":{value}"));
    let text = format!("{{\"type\":{kind}{}}}", rest.collect::<String>());
    wire.send(Message::text(text)).await.map_err(|_gone| Over)
}

/// The JSON of an event as it is told over HTTP.
fn of_sse(event: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(event).ok()?;
    let data = text.lines().find_map(|line| line.strip_prefix("data: "))?;
    serde_json::from_str(data).ok()
}
