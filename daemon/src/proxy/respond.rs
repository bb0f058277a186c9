//! Answers that the proxy makes itself.
//!
//! What the CLI does with a shape decides which one it gets (observed with 0.169.0): it stops and
//! speaks for itself on a 429 `usage_limit_reached` and on a 400 with plain text; it loops or sleeps
//! on a 503, a 401 or any other 429. Each such answer carries `x-cma-error`, so that it can be told
//! from upstream's.

use super::relay::{Answer, Out};
use crate::clock;
use bytes::Bytes;
use cma_core::pool::Refused;
use cma_proto::error::ErrorCode;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

const ERROR: HeaderName = HeaderName::from_static("x-cma-error");

/// JSON with a status.
pub(crate) fn json(status: StatusCode, body: &serde_json::Value) -> Answer {
    let mut response = Response::new(Out::Whole(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// One line of plain text on which the CLI stops and which it prints as it is.
pub(crate) fn stop(code: ErrorCode, line: &str) -> Answer {
    let line = line.replace(['\n', '\r'], " ");
    let mut response = Response::new(Out::Whole(Bytes::from(format!("{line}\n"))));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    marked(response, code)
}

/// An error in the shape of the API.
pub(crate) fn error(status: StatusCode, code: ErrorCode, message: &str) -> Answer {
    let body = serde_json::json!({"error": {"message": message, "type": "cma_error", "code": code.name()}});
    marked(json(status, &body), code)
}

/// 413 for a body beyond every bound.
pub(crate) fn too_large() -> Answer {
    error(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::TooLarge,
        "the request is larger than any model takes",
    )
}

/// 404 for what the CLI can do without.
pub(crate) fn not_here() -> Answer {
    error(StatusCode::NOT_FOUND, ErrorCode::NotFound, "not available through cma")
}

/// The daemon is going down; another will be there in a moment.
pub(crate) fn draining() -> Answer {
    let mut answer =
        error(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Draining, "the daemon is stopping");
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

/// The final word when no account can serve: the CLI's own usage-limit text where a time is known,
/// else one line that says what to do.
pub(crate) fn refused(refused: &Refused) -> Answer {
    let reasons: Vec<_> =
        refused.reasons.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
    match refused.retry_at.filter(|_at| refused.quota) {
        Some(at) => {
            let seconds = at.since(clock::wall()).millis().div_ceil(1000);
            let body = serde_json::json!({"error": {
                "type": "usage_limit_reached",
                "message": format!("No account of the pool can serve. {}", reasons.join("; ")),
                "plan_type": refused.plan.as_deref().unwrap_or("unknown"),
                "resets_at": at.secs(),
                "resets_in_seconds": seconds,
            }});
            marked(json(StatusCode::TOO_MANY_REQUESTS, &body), ErrorCode::Exhausted)
        },
        None if refused.reasons.is_empty() => stop(
            ErrorCode::NeedsLogin,
            "cma: there is no account in the pool. Run `cmactl login`, or `cmactl import` for a login you \
             have; when the pool is sealed, run `cmactl unlock`.",
        ),
        None => stop(
            ErrorCode::NeedsLogin,
            &format!(
                "cma: no account can serve this request ({}). Run `cmactl status` to see what to do.",
                reasons.join("; ")
            ),
        ),
    }
}

fn marked(mut response: Answer, code: ErrorCode) -> Answer {
    response.headers_mut().insert(ERROR, HeaderValue::from_static(code.name()));
    response
}
