//! The rules a request must keep: which headers may arrive, whose account they
//! may name, and what must never leave the client's machine.
//!
//! A broken rule is noted and never changes the answer by itself. A note names
//! the request and the header but never a value, as values are tokens.
//!
//! The lists are the headers the official CLI was seen to send; a proxy that
//! adds its own is recognisable by them.

use http::HeaderMap;

use super::wire::{Call, text};

/// Headers of a turn, besides those with an allowed prefix.
const TURN_HEADERS: [&str; 17] = [
    "authorization",
    "chatgpt-account-id",
    "originator",
    "user-agent",
    "version",
    "session-id",
    "thread-id",
    "x-client-request-id",
    "x-oai-attestation",
    "content-encoding",
    "content-type",
    "content-length",
    "transfer-encoding",
    "accept",
    "host",
    "openai-organization",
    "openai-project",
];

/// Headers of a WebSocket's handshake, besides those of a turn.
const HANDSHAKE_HEADERS: [&str; 7] = [
    "connection",
    "upgrade",
    "openai-beta",
    "sec-websocket-version",
    "sec-websocket-key",
    "sec-websocket-extensions",
    "x-codex-beta-features",
];

/// Prefixes of headers of a turn.
const TURN_PREFIXES: [&str; 2] = ["x-codex-", "x-openai-"];

/// What tells on any route that something stands in between.
const PROXY_HEADERS: [&str; 8] = [
    "via",
    "forwarded",
    "cookie",
    "x-real-ip",
    "proxy-authorization",
    "proxy-connection",
    "keep-alive",
    "te",
];

/// Prefixes of the same.
const PROXY_PREFIXES: [&str; 2] = ["x-forwarded-", "x-cma-"];

/// Headers that make sense once only.
const ONCE: [&str; 7] = [
    "authorization",
    "chatgpt-account-id",
    "content-encoding",
    "content-type",
    "host",
    "session-id",
    "thread-id",
];

/// Notes what is wrong with any request to the issuer or the backend.
pub(super) fn check_any(call: &Call) {
    let headers = &call.head.headers;
    for name in headers.keys().map(http::HeaderName::as_str) {
        let telling = PROXY_HEADERS.contains(&name)
            || PROXY_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        if telling {
            call.breach(&format!("header `{name}` tells of a proxy"));
        }
    }
    for name in ONCE {
        if headers.get_all(name).iter().count() > 1 {
            call.breach(&format!("header `{name}` sent more than once"));
        }
    }
    let port = call.shared.addr.port();
    let mut hosts = vec![call.shared.addr.to_string(), format!("localhost:{port}")];
    let named = call.shared.state.lock().config.names.clone();
    hosts.extend(named.into_iter().map(|name| format!("{name}:{port}")));
    if !text(headers, "host").is_some_and(|host| hosts.iter().any(|ours| ours == host)) {
        call.breach("header `host` does not name this upstream");
    }
    check_leaks(call, headers);
}

/// Notes what is wrong with a WebSocket's handshake.
pub(super) fn check_handshake(call: &Call) {
    check_names(call, &HANDSHAKE_HEADERS);
    for name in ["content-type", "content-encoding", "accept"] {
        if call.head.headers.contains_key(name) {
            call.breach(&format!("header `{name}` in a handshake"));
        }
    }
    // Observed with 0.169.0; without it upstream speaks another protocol.
    if text(&call.head.headers, "openai-beta") != Some("responses_websockets=2026-02-06") {
        call.breach("a handshake without its `openai-beta`");
    }
}

/// Notes what is wrong with the headers of a turn.
pub(super) fn check_turn(call: &Call) {
    check_names(call, &[]);
    let Some(body) = &call.body.json else { return };
    for name in ["type", "generate", "previous_response_id"] {
        if body.get(name).is_some() {
            call.breach(&format!("field `{name}` of a WebSocket's frame in a body"));
        }
    }
    if body["client_metadata"].get("x-codex-turn-state").is_some() {
        call.breach("a turn state in a body");
    }
}

/// Notes what a text holds that must not leave the client's machine.
pub(super) fn leaks(shared: &super::state::Shared, words: &[u8]) -> Option<&'static str> {
    let state = shared.state.lock();
    let marks = &state.config.client_key_marks;
    if marks.iter().any(|mark| !mark.is_empty() && contains(words, mark)) {
        return Some("leaked client key in a frame");
    }
    let canary = &state.config.canary;
    (!canary.is_empty() && contains(words, canary)).then_some("a token in a frame")
}

fn check_names(call: &Call, more: &[&str]) {
    let headers = &call.head.headers;
    for name in headers.keys().map(http::HeaderName::as_str) {
        let proxied = PROXY_HEADERS.contains(&name)
            || PROXY_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        let known = TURN_HEADERS.contains(&name)
            || more.contains(&name)
            || TURN_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        if !known && !proxied {
            call.breach(&format!("header `{name}` is none the CLI sends with a turn"));
        }
    }
}

fn check_leaks(call: &Call, headers: &HeaderMap) {
    let (marks, canary) = {
        let state = call.shared.state.lock();
        (state.config.client_key_marks.clone(), state.config.canary.clone())
    };
    let target = call.head.uri.to_string();
    for mark in marks.iter().filter(|mark| !mark.is_empty()) {
        for (name, value) in headers {
            if contains(value.as_bytes(), mark) {
                call.breach(&format!("leaked client key in header `{name}`"));
            }
        }
        if contains(target.as_bytes(), mark) {
            call.breach("leaked client key in the target");
        }
        if contains(&call.body.bytes, mark) {
            call.breach("leaked client key in the body");
        }
    }
    if canary.is_empty() {
        return;
    }
    for (name, value) in headers {
        if name != "authorization" && contains(value.as_bytes(), &canary) {
            call.breach(&format!("a token in header `{name}`"));
        }
    }
    if contains(target.as_bytes(), &canary) {
        call.breach("a token in the target");
    }
    let to_issuer = call.head.uri.path().starts_with("/oauth/");
    if !to_issuer && contains(&call.body.bytes, &canary) {
        call.breach("a token in the body");
    }
}

/// By whole windows; bodies are a few hundred kilobytes and this is a test.
fn contains(text: &[u8], word: &str) -> bool {
    let word = word.as_bytes();
    let Some(first) = word.first() else { return false };
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        let Some(found) = rest.get(at..) else { return false };
        if found.starts_with(word) {
            return true;
        }
        rest = found.get(1..).unwrap_or_default();
    }
    false
}

impl Call {
    /// Notes a broken rule of this request.
    pub(super) fn breach(&self, what: &str) {
        let (method, path) = (&self.head.method, self.head.uri.path());
        let number = self.open.number;
        let words = format!("{method} {path}: {what} (request {number})");
        self.shared.state.lock().record.breach(words);
    }
}
