//! Messages of the Responses WebSocket as the two legs take them: a turn's frame with its edits
//! ([`cma_core::frame`]), and the frames that are made here ([`cma_core::wrapped`]).

use super::socket::Text;
use bytes::Bytes;
pub(super) use cma_core::frame::{Create, MODELS, TURN_STATE, input, is_foreign};
use cma_core::wrapped;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;

use crate::proxy::relay::{Answer, Out};

/// As [`cma_core::frame::with_turn_state`].
pub(super) fn with_turn_state(text: &str, state: Option<&str>) -> Option<Text> {
    cma_core::frame::with_turn_state(text, state).map(Into::into)
}

/// As [`cma_core::frame::with_header`].
pub(super) fn with_header(text: &str, header: &str, value: Option<&str>) -> Option<Text> {
    cma_core::frame::with_header(text, header, value).map(Into::into)
}

/// As [`cma_core::frame::to_http`].
pub(super) fn to_http(text: &str) -> Option<(Bytes, HeaderMap)> {
    cma_core::frame::to_http(text).map(|(body, headers)| (body.into(), headers))
}

/// As [`cma_core::frame::whole`].
pub(super) fn whole(text: &str, before: &str) -> Option<Text> {
    cma_core::frame::whole(text, before).map(Into::into)
}

/// An HTTP answer as the frame that stands for it (the CLI treats it like that answer, observed with
/// 0.169.0). Only for answers that are whole.
pub(super) async fn wrapped(answer: Answer) -> Text {
    let (parts, body) = answer.into_parts();
    let whole = matches!(body, Out::Whole(_));
    let body = if whole { body.collect().await.ok().map(|body| body.to_bytes()) } else { None };
    let body = body.unwrap_or_default();
    if parts.status == StatusCode::BAD_REQUEST && serde_json::from_slice::<Value>(&body).is_err() {
        return stop(String::from_utf8_lossy(&body).trim());
    }
    wrap(parts.status.as_u16(), &parts.headers, &body)
}

/// As [`wrapped::stop`].
pub(super) fn stop(line: &str) -> Text {
    wrapped::stop(line).into()
}

/// What is said of a turn's frame that can't be read as far as it has to be.
pub(super) fn unreadable() -> Text {
    wrap(StatusCode::BAD_REQUEST.as_u16(), &HeaderMap::new(), b"the frame is no JSON object")
}

/// As [`wrapped::wrap`].
pub(super) fn wrap(status: u16, headers: &HeaderMap, body: &[u8]) -> Text {
    wrapped::wrap(status, headers, body).into()
}

/// As [`wrapped::error_of`].
pub(super) fn error_of(body: &[u8]) -> Option<Text> {
    wrapped::error_of(body).map(Into::into)
}

/// As [`wrapped::previous_not_found`].
pub(super) fn previous_not_found(id: &str) -> Text {
    wrapped::previous_not_found(id).into()
}

/// Says nothing but that somebody is there.
pub(super) fn keepalive() -> Text {
    r#"{"type":"keepalive"}"#.to_owned().into()
}

/// As [`wrapped::warmed`].
pub(super) fn warmed(id: &str) -> [Text; 2] {
    wrapped::warmed(id).map(Into::into)
}

/// The events that carry the headers of an HTTP answer.
pub(super) fn of_headers(headers: &HeaderMap) -> impl Iterator<Item = Text> {
    [wrapped::metadata(headers), wrapped::limits(headers)].into_iter().flatten().map(Into::into)
}

#[cfg(test)]
mod tests;
