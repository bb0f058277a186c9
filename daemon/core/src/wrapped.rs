//! The frames of a Responses WebSocket that stand for what came, or would have come, over HTTP: errors,
//! one line for the person, a prewarm's answer, the headers of an answer.
//!
//! Each is an object whose type comes first, as upstream writes it. What an error's body says is kept
//! as it is; of its headers only those that the CLI reads in a frame. Pure.

use crate::frame::TURN_STATE;
use http::{HeaderMap, header::RETRY_AFTER};
use serde_json::{Value, json};

/// One line on which the CLI stops and which it prints as it is: of a wrapped 400 it prints the whole
/// frame, of this failure only the message (observed, 0.169.0).
pub fn stop(line: &str) -> String {
    let error = json!({"code": "invalid_prompt", "message": line});
    let response = json!({"id": "resp_cma", "status": "failed", "error": error});
    ordered(&[("type", "response.failed".into()), ("response", response)])
}

/// The frame that stands for an HTTP error.
pub fn wrap(status: u16, headers: &HeaderMap, body: &[u8]) -> String {
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
        let known = name.as_str().starts_with("x-codex-") || name == RETRY_AFTER;
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
pub fn previous_not_found(id: &str) -> String {
    let error = json!({
        "type": "invalid_request_error",
        "code": "previous_response_not_found",
        "message": format!("Previous response with id '{id}' not found."),
        "param": "previous_response_id",
    });
    ordered(&[("type", "error".into()), ("status", 400.into()), ("error", error)])
}

/// The event for an error that came as JSON in a stream's place; `None` for what is no error.
pub fn error_of(body: &[u8]) -> Option<String> {
    let said: Value = serde_json::from_slice(body).ok()?;
    let error = said.get("error").filter(|error| !error.is_null())?;
    Some(ordered(&[("type", "error".into()), ("error", error.clone())]))
}

/// The two events that answer a prewarm which nobody sent anywhere.
pub fn warmed(id: &str) -> [String; 2] {
    let event =
        |kind: &str, response: Value| ordered(&[("type", kind.into()), ("response", response)]);
    let usage = json!({"input_tokens": 0, "output_tokens": 0, "total_tokens": 0});
    [
        event("response.created", json!({"id": id})),
        event("response.completed", json!({"id": id, "usage": usage})),
    ]
}

/// The event that carries headers of an HTTP answer.
pub fn metadata(headers: &HeaderMap) -> Option<String> {
    let state = headers.get(TURN_STATE)?.to_str().ok()?;
    let headers = json!({ TURN_STATE: state });
    Some(ordered(&[("type", "response.metadata".into()), ("headers", headers)]))
}

/// The event that tells the quota of an HTTP answer's headers, as upstream tells it on a WebSocket
/// (fields observed with 0.169.0): the CLI keeps it with the thread and shows it as `/status`.
pub fn limits(headers: &HeaderMap) -> Option<String> {
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
fn ordered(fields: &[(&str, Value)]) -> String {
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn answers_become_frames() {
        let mut headers = HeaderMap::new();
        headers.insert("x-codex-primary-used-percent", HeaderValue::from_static("100"));
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        let limit = br#"{"error":{"type":"usage_limit_reached","resets_at":9}}"#;
        let frame = value(&wrap(429, &headers, limit));
        assert_eq!(
            frame,
            json!({
                "type": "error", "status": 429,
                "error": {"type": "usage_limit_reached", "resets_at": 9},
                "headers": {"x-codex-primary-used-percent": "100"},
            })
        );
        let plain = value(&wrap(400, &HeaderMap::new(), b"cma: no\n"));
        assert_eq!(plain["error"]["message"], "cma: no");
        assert!(previous_not_found("resp_1").starts_with(r#"{"type":"error","status":400"#));
        for event in warmed("resp_2") {
            assert_eq!(value(&event)["response"]["id"], "resp_2");
        }
    }

    #[test]
    fn the_headers_of_an_answer_become_events() {
        let mut headers = HeaderMap::new();
        assert!(metadata(&headers).is_none() && limits(&headers).is_none());
        for (name, text) in [
            (TURN_STATE, "state"),
            ("x-codex-plan-type", "plus"),
            ("x-codex-primary-used-percent", "12.5"),
            ("x-codex-primary-window-minutes", "300"),
            ("x-codex-secondary-used-percent", "NaN"),
            ("x-codex-credits-has-credits", "True"),
        ] {
            headers.insert(name, HeaderValue::from_static(text));
        }
        let state = value(&metadata(&headers).unwrap());
        assert_eq!(state, json!({"type": "response.metadata", "headers": {TURN_STATE: "state"}}));
        let told = value(&limits(&headers).unwrap());
        assert_eq!(told["rate_limits"]["primary"]["used_percent"], 12.5);
        assert_eq!(told["rate_limits"]["primary"]["window_minutes"], 300);
        assert_eq!(told["rate_limits"]["secondary"], Value::Null, "what is no number is no window");
        assert_eq!(told["credits"]["has_credits"], true);
        assert_eq!(told["plan_type"], "plus");
    }
}
