//! What an upstream outcome means: for the request, and for the account that got it.
//!
//! Pure control flow. The proxy applies a verdict; it never interprets a status itself.
//!
//! The rules follow what the official CLI does with each shape (0.169.0, observed). It stops and
//! speaks for itself on a 429 `usage_limit_reached` or `usage_not_included` and on a 400; it loops
//! on 401, 403, 404, 5xx; it sleeps on any other 429 with `Retry-After`. So only shapes of the first
//! kind, and what no other account would answer differently, are delivered while another account
//! could still serve.

use crate::{
    cooldown::Cause,
    quota,
    time::{Span, Wall},
};
use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use serde_json::Value;
use std::sync::Arc;

/// How one attempt ended before its first byte was delivered.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// Upstream answered. For an error status `body` holds what could be read of it.
    Head {
        /// Status.
        status: StatusCode,
        /// Headers.
        headers: &'a HeaderMap,
        /// The body as JSON, when it was an error's and was JSON.
        body: Option<&'a Value>,
    },
    /// Nothing was sent: no connection came about.
    ConnectFailed,
    /// The same, and it won't by itself: TLS or a proxy on the way refuses.
    ConnectBarred,
    /// The connection ended before a head came.
    Cut,
    /// No head within the time for it.
    HeadTimeout,
    /// What came is not HTTP.
    Garbage,
    /// A web page came in upstream's place ([`is_page`]).
    Page(StatusCode),
}

/// What to do with the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Give the client what upstream answered, whatever it is.
    Deliver,
    /// Try again on the same account, after its token was renewed if that is what it lacks.
    RetrySame,
    /// Try another account; the same one only when there is no other.
    RetryOther,
    /// The way there is broken for all accounts: wait a little, then try again.
    Wait,
    /// The same, and it comes back by itself: wait for as long as a person would.
    Outlast,
}

/// What it means for the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// It served, or the answer says nothing about it.
    Fine,
    /// It rests.
    Cool(Cause),
    /// Its plan doesn't include the model asked for; other models may be.
    ModelNotIncluded,
    /// A limit of the model's own is used up; other models go on.
    ModelLimit {
        /// The limit's id.
        limit: Arc<str>,
        /// The reset upstream named.
        reset: Option<Wall>,
    },
    /// Its token was refused: renew it once, then believe it.
    Unauthorized,
    /// The way there failed: a tie-breaker against it for some seconds.
    Shaky,
}

impl Mark {
    /// Whether it keeps the account from the request that it was met with, so that trying the others
    /// once more never asks that account again.
    pub const fn bars(&self) -> bool {
        matches!(self, Self::Cool(_) | Self::ModelNotIncluded | Self::ModelLimit { .. })
    }
}

/// Both, and the one line for `why`, the log and events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// For the request.
    pub act: Act,
    /// For the account.
    pub mark: Mark,
    /// For a person.
    pub reason: String,
}

/// Judges one attempt of a Responses request.
pub fn classify(outcome: &Outcome<'_>, now: Wall) -> Verdict {
    let verdict = |act, mark, reason: &str| Verdict { act, mark, reason: reason.to_owned() };
    match outcome {
        Outcome::ConnectFailed => verdict(Act::Outlast, Mark::Fine, "could not connect"),
        Outcome::ConnectBarred => verdict(Act::Wait, Mark::Fine, "could not connect"),
        Outcome::Cut => verdict(Act::RetryOther, Mark::Shaky, "connection ended before an answer"),
        Outcome::HeadTimeout => verdict(Act::RetryOther, Mark::Shaky, "no answer in time"),
        Outcome::Page(status) => Verdict {
            // A network that wants a sign-in answers with a page of its own, or sends elsewhere. A front
            // door that finds fault with the request may find it again: that isn't waited for.
            act: match status.as_u16() {
                200..=399 | 511 => Act::Outlast,
                _ => Act::Wait,
            },
            mark: Mark::Fine,
            reason: format!(
                "a web page came instead of an answer (status {}): this network wants a sign-in, or \
                 something on the way answers for the host",
                status.as_u16()
            ),
        },
        Outcome::Garbage => verdict(Act::RetryOther, Mark::Shaky, "answer is not HTTP"),
        Outcome::Head { status, headers, body } => head(*status, headers, *body, now),
    }
}

fn head(status: StatusCode, headers: &HeaderMap, body: Option<&Value>, now: Wall) -> Verdict {
    let (kind, code) = (error_field(body, "type"), error_field(body, "code"));
    let named = |name: &str| kind == Some(name) || code == Some(name);
    let verdict = |act, mark, reason: String| Verdict { act, mark, reason };
    match status.as_u16() {
        200..=399 => verdict(Act::Deliver, Mark::Fine, format!("status {status}")),
        401 => verdict(Act::RetrySame, Mark::Unauthorized, "token refused (401)".to_owned()),
        402 => verdict(
            Act::RetryOther,
            Mark::Cool(Cause::PaymentRequired),
            "402 payment required".to_owned(),
        ),
        // A block page of the host's front door says nothing about the account.
        403 if body.is_none() => {
            verdict(Act::RetryOther, Mark::Shaky, "403 from the host's front door".to_owned())
        },
        403 => verdict(Act::RetryOther, Mark::Cool(Cause::Forbidden), "403 forbidden".to_owned()),
        408 => verdict(Act::RetryOther, Mark::Shaky, "408 request timeout".to_owned()),
        429 if named("usage_not_included") => verdict(
            Act::RetryOther,
            Mark::ModelNotIncluded,
            "429 usage not included in the plan".to_owned(),
        ),
        429 if named("usage_limit_reached") || limit_header(headers) => {
            let reset = body.and_then(|body| quota::reset_in_error(body, now));
            // Which limit the refusal is about (Codex CLI 0.169.0 tells the two apart by it).
            match quota::refused_limit(headers) {
                Some(limit) => {
                    let reason = format!("429 the model's own limit `{limit}` is reached");
                    verdict(Act::RetryOther, Mark::ModelLimit { limit, reset }, reason)
                },
                None => verdict(
                    Act::RetryOther,
                    Mark::Cool(Cause::UsageLimit(reset)),
                    "429 usage limit reached".to_owned(),
                ),
            }
        },
        429 => {
            let wait = retry_after(headers);
            verdict(
                Act::RetryOther,
                Mark::Cool(Cause::Throttled(wait)),
                "429 too many requests".to_owned(),
            )
        },
        500..=599 => verdict(Act::RetryOther, Mark::Shaky, format!("status {}", status.as_u16())),
        _ => verdict(Act::Deliver, Mark::Fine, format!("status {}", status.as_u16())),
    }
}

/// Whether an answer is a page of the network's (a captive portal, a proxy) and not upstream's word:
/// it says nothing about an account. Upstream never redirects these calls, never answers them with a
/// page but for its front door's blocks (403, 429) and failures (5xx), and 511 is made for such
/// networks.
pub fn is_page(status: StatusCode, headers: &HeaderMap) -> bool {
    let html = || {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.as_bytes().get(..9));
        kind.is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/html"))
    };
    match status.as_u16() {
        304 | 403 | 429 => false,
        300..=399 | 511 => true,
        500..=599 => false,
        _ => html(),
    }
}

/// Whether the official CLI stops on this answer and says itself what is wrong.
pub fn stops_the_cli(status: StatusCode, body: Option<&Value>) -> bool {
    status == StatusCode::BAD_REQUEST
        || (status == StatusCode::TOO_MANY_REQUESTS
            && matches!(
                error_field(body, "type"),
                Some("usage_limit_reached" | "usage_not_included")
            ))
}

/// Workspace limits come with a header instead of a body type the CLI knows.
fn limit_header(headers: &HeaderMap) -> bool {
    headers.contains_key("x-codex-rate-limit-reached-type")
}

fn error_field<'a>(body: Option<&'a Value>, name: &str) -> Option<&'a str> {
    let body = body?;
    body.get("error").and_then(|error| error.get(name)).or_else(|| body.get(name))?.as_str()
}

/// `Retry-After` in seconds; the date form is not used by this upstream.
fn retry_after(headers: &HeaderMap) -> Option<Span> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse::<u64>().ok().map(Span::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judge(status: u16, headers: &[(&'static str, &str)], body: &Value) -> (Act, Mark) {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        let status = StatusCode::from_u16(status).unwrap();
        let body = Some(body).filter(|body| !body.is_null());
        let verdict = classify(&Outcome::Head { status, headers: &headers, body }, Wall::default());
        (verdict.act, verdict.mark)
    }

    #[test]
    fn limits_rest_the_account_and_another_serves() {
        let limit = json!({"error": {"type": "usage_limit_reached", "resets_at": 9}});
        let reset = Some(Wall::from_secs(9));
        assert_eq!(
            judge(429, &[], &limit),
            (Act::RetryOther, Mark::Cool(Cause::UsageLimit(reset)))
        );
        let none = json!({"error": {"type": "usage_not_included"}});
        assert_eq!(judge(429, &[], &none), (Act::RetryOther, Mark::ModelNotIncluded));
        let wait = Mark::Cool(Cause::Throttled(Some(Span::from_secs(7))));
        assert_eq!(judge(429, &[("retry-after", "7")], &json!({})), (Act::RetryOther, wait));
        let owner = [("x-codex-rate-limit-reached-type", "workspace_owner_credits_depleted")];
        let workspace = Mark::Cool(Cause::UsageLimit(None));
        assert_eq!(judge(429, &owner, &Value::Null), (Act::RetryOther, workspace));
    }

    #[test]
    fn a_models_own_limit_leaves_the_account_to_other_models() {
        let limit = json!({"error": {"type": "usage_limit_reached", "resets_at": 9}});
        let active = ("x-codex-active-limit", "codex_bengalfox");
        let own = [active, ("x-codex-bengalfox-primary-used-percent", "100")];
        let reset = Some(Wall::from_secs(9));
        let mark = Mark::ModelLimit { limit: "codex_bengalfox".into(), reset };
        assert_eq!(judge(429, &own, &limit), (Act::RetryOther, mark));
        // A name without its family is a word of upstream's own; the main limit is everybody's.
        for main in [&[active][..], &[("x-codex-active-limit", "codex")]] {
            let mark = Mark::Cool(Cause::UsageLimit(reset));
            assert_eq!(judge(429, main, &limit), (Act::RetryOther, mark));
        }
    }

    #[test]
    fn a_page_of_the_network_is_nobodys_fault() {
        let page = |status: u16, kind: &str| {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, kind.parse().unwrap())]);
            is_page(StatusCode::from_u16(status).unwrap(), &headers)
        };
        for status in [200, 401, 404, 407] {
            assert!(page(status, "Text/HTML; charset=utf-8"), "{status}");
            assert!(!page(status, "application/json") && !page(status, "text/event-stream"));
        }
        assert!(page(302, "text/plain") && page(511, "text/plain"));
        assert!(!page(403, "text/html") && !page(429, "text/html"));
        assert!(!page(502, "text/html") && !page(304, "text/html"));
        let verdict = classify(&Outcome::Page(StatusCode::OK), Wall::default());
        assert_eq!((verdict.act, verdict.mark), (Act::Outlast, Mark::Fine));
    }

    #[test]
    fn host_faults_cool_nobody_and_client_faults_go_through() {
        for status in [500, 502, 503, 408] {
            assert_eq!(judge(status, &[], &Value::Null), (Act::RetryOther, Mark::Shaky));
        }
        assert_eq!(judge(403, &[], &Value::Null), (Act::RetryOther, Mark::Shaky));
        assert_eq!(judge(403, &[], &json!({})).1, Mark::Cool(Cause::Forbidden));
        for status in [200, 400, 404, 413, 422] {
            assert_eq!(judge(status, &[], &Value::Null), (Act::Deliver, Mark::Fine));
        }
        assert_eq!(judge(401, &[], &Value::Null), (Act::RetrySame, Mark::Unauthorized));
        let dead = classify(&Outcome::ConnectFailed, Wall::default());
        assert_eq!((dead.act, dead.mark), (Act::Outlast, Mark::Fine));
        let barred = classify(&Outcome::ConnectBarred, Wall::default());
        assert_eq!((barred.act, barred.mark), (Act::Wait, Mark::Fine));
    }
}
