//! Messages of the Responses WebSocket as the two legs take them: a turn's frame with its edits
//! ([`cma_core::frame`]), and the frames that are made here.

use super::socket::Text;
use bytes::Bytes;
pub(super) use cma_core::frame::{Create, MODELS, TURN_STATE, input, is_foreign};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

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

/// One line on which the CLI stops and which it prints as it is: of a wrapped 400 it prints the whole
/// frame, of this failure only the message (observed, 0.169.0).
pub(super) fn stop(line: &str) -> Text {
    let error = json!({"code": "invalid_prompt", "message": line});
    let response = json!({"id": "resp_cma", "status": "failed", "error": error});
    ordered(&[("type", "response.failed".into()), ("response", response)])
}

/// The frame that stands for an HTTP error.
pub(super) fn wrap(status: u16, headers: &HeaderMap, body: &[u8]) -> Text {
    let error = match serde_json::from_slice::<Value>(body) {
        Ok(mut json) if json.get("error").is_some_and(Value::is_object) => {
            json.get_mut("error").map(Value::take).unwrap_or_default()
        },
        // A body without an error of its own is the message: the CLI prints what it finds there.
        Ok(json) if !json.is_null() => {
            json!({"type": "invalid_request_error", "message": json.to_string()})
        },
        _ => {
            let text = String::from_utf8_lossy(body);
            json!({"type": "invalid_request_error", "message": text.trim()})
        },
    };
    let mut kept = serde_json::Map::new();
    for (name, value) in headers {
        let known = name.as_str().starts_with("x-codex-") || name == http::header::RETRY_AFTER;
        if let (true, Ok(value)) = (known, value.to_str()) {
            kept.insert(name.as_str().to_owned(), value.into());
        }
    }
    ordered(&[
        ("type", "error".into()),
        ("status", status.into()),
        ("error", error),
        ("headers", Value::Object(kept)),
    ])
}

/// The error at which the CLI opens another connection and sends its whole input, without a word to
/// the person (observed, 0.169.0).
pub(super) fn previous_not_found(id: &str) -> Text {
    let error = json!({
        "type": "invalid_request_error",
        "code": "previous_response_not_found",
        "message": format!("Previous response with id '{id}' not found."),
        "param": "previous_response_id",
    });
    ordered(&[("type", "error".into()), ("status", 400.into()), ("error", error)])
}

/// The two events that answer a prewarm which nobody sent anywhere.
pub(super) fn warmed(id: &str) -> [Text; 2] {
    let event =
        |kind: &str, response: Value| ordered(&[("type", kind.into()), ("response", response)]);
    let usage = json!({"input_tokens": 0, "output_tokens": 0, "total_tokens": 0});
    [
        event("response.created", json!({"id": id})),
        event("response.completed", json!({"id": id, "usage": usage})),
    ]
}

/// The event that carries headers of an HTTP answer.
pub(super) fn metadata(headers: &HeaderMap) -> Option<Text> {
    let state = headers.get(TURN_STATE)?.to_str().ok()?;
    let headers = json!({ TURN_STATE: state });
    Some(ordered(&[("type", "response.metadata".into()), ("headers", headers)]))
}

/// The event that tells the quota of an HTTP answer's headers, as upstream tells it on a WebSocket
/// (fields observed with 0.169.0): the CLI keeps it with the thread and shows it as `/status`.
pub(super) fn limits(headers: &HeaderMap) -> Option<Text> {
    let text = |name: &str| headers.get(format!("x-codex-{name}"))?.to_str().ok();
    let window = |place: &str| {
        let number = |field: &str| text(&format!("{place}-{field}"))?.parse::<u64>().ok();
        let used: f64 = text(&format!("{place}-used-percent"))?.parse().ok()?;
        used.is_finite().then(|| {
            json!({
                "used_percent": used,
                "window_minutes": number("window-minutes"),
                "reset_at": number("reset-at"),
            })
        })
    };
    let (primary, secondary) = (window("primary"), window("secondary"));
    let whether =
        |name: &str| text(name).map(|said| said.eq_ignore_ascii_case("true") || said == "1");
    let credits = whether("credits-has-credits").map(|has| {
        let unlimited = whether("credits-unlimited").unwrap_or_default();
        json!({"has_credits": has, "unlimited": unlimited, "balance": text("credits-balance")})
    });
    if primary.is_none() && secondary.is_none() && credits.is_none() {
        return None;
    }
    Some(ordered(&[
        ("type", "codex.rate_limits".into()),
        ("plan_type", text("plan-type").into()),
        ("rate_limits", json!({"primary": primary, "secondary": secondary})),
        ("credits", credits.into()),
        ("metered_limit_name", "codex".into()),
    ]))
}

/// An object whose type comes first, as upstream writes it.
fn ordered(fields: &[(&str, Value)]) -> Text {
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(",")).into()
}

#[cfg(test)]
mod tests;
