use super::*;
use crate::{fixtures, sse::Events};
use proptest::prelude::*;
use serde_json::json;

const NOW: Wall = Wall::from_secs(1_000);

fn failed(code: &str, message: &str) -> Fault {
    let error = json!({"code": code, "message": message});
    let event = json!({"type": "response.failed", "response": {"id": "r", "error": error}});
    Fault::read(event.to_string().as_bytes())
}

fn judged(fault: &Fault) -> (Act, Mark) {
    let verdict = fault.verdict(NOW);
    (verdict.act, verdict.mark)
}

#[test]
fn types_are_told_from_the_first_bytes() {
    for (name, kind) in [
        ("response.created", Kind::Preamble),
        ("response.in_progress", Kind::Preamble),
        ("keepalive", Kind::Preamble),
        ("response.metadata", Kind::Metadata),
        ("codex.response.metadata", Kind::Metadata),
        ("codex.rate_limits", Kind::Limits),
        ("response.output_item.added", Kind::Visible),
        ("response.output_item.done", Kind::Visible),
        ("response.reasoning_summary_text.delta", Kind::Visible),
        ("response.a_kind_of_tomorrow", Kind::Visible),
        ("response.completed", Kind::Completed),
        ("response.incomplete", Kind::Incomplete),
        ("response.failed", Kind::Failed),
        ("error", Kind::Error),
        ("responsesapi.websocket_timing", Kind::Other),
        ("codex.something", Kind::Other),
        ("a_type_of_tomorrow", Kind::Visible),
    ] {
        for text in [
            format!("{{\"type\":\"{name}\",\"sequence_number\":0}}"),
            format!(" {{ \"type\" : \"{name}\" }}"),
        ] {
            assert_eq!(Kind::peek(text.as_bytes()), Some(kind), "{text}");
            assert_eq!(Kind::of(text.as_bytes()), kind, "{text}");
        }
        let late = format!("{{\"item\":{{\"type\":\"error\"}},\"type\":\"{name}\"}}");
        assert_eq!(
            (Kind::peek(late.as_bytes()), Kind::of(late.as_bytes())),
            (None, kind),
            "{late}"
        );
    }
    let escaped = br#"{"type":"response\u002efailed"}"#;
    assert_eq!((Kind::peek(escaped), Kind::of(escaped)), (None, Kind::Failed));
    for garbage in ["<html>", "{", "[1]", "{\"type\":7}", "{\"kind\":\"error\"}"] {
        assert_eq!(Kind::of(garbage.as_bytes()), Kind::Garbage, "{garbage}");
    }
    for harmless in ["", " ", "[DONE]"] {
        assert_eq!(Kind::of(harmless.as_bytes()), Kind::Other);
    }
}

#[test]
fn the_first_bytes_of_an_event_never_tell_another_kind() {
    let event = br#"{"type":"response.output_item.done","item":{"type":"error"}}"#;
    for end in 0..event.len() {
        assert!(Kind::peek(&event[..end]).is_none_or(|kind| kind == Kind::Visible), "{end}");
    }
}

#[test]
fn the_first_bytes_of_every_event_of_the_corpus_tell_its_kind_or_nothing() {
    for (name, bytes) in fixtures::streams() {
        let (mut events, mut last) = (Events::new(bytes.len()), None);
        events.feed(&bytes);
        while let Some(event) = events.next_event() {
            let event = event.unwrap().into_bytes();
            let kind = Kind::of(&event);
            assert_ne!(kind, Kind::Garbage, "{name}");
            assert_eq!(Kind::peek(&event), Some(kind), "{name}");
            for end in 0..event.len() {
                let peeked = Kind::peek(&event[..end]);
                assert!(peeked.is_none_or(|peeked| peeked == kind), "{name} at {end}: {peeked:?}");
            }
            last = Some(kind);
        }
        assert!(last.is_some_and(Kind::is_final), "{name}: {last:?}");
    }
}

#[test]
fn limits_rest_the_account_for_as_long_as_upstream_says() {
    let event = json!({"type": "response.failed", "response": {"error":
        {"code": "usage_limit_reached", "message": "lim", "resets_at": 1_060}}});
    let reset = Some(Wall::from_secs(1_060));
    let limit = Fault::read(event.to_string().as_bytes());
    assert_eq!(judged(&limit), (Act::RetryOther, Mark::Cool(Cause::UsageLimit(reset))));
    let none = Mark::Cool(Cause::UsageLimit(None));
    assert_eq!(judged(&failed("insufficient_quota", "quota")), (Act::RetryOther, none));
    let wait = Mark::Cool(Cause::Throttled(Some(Span::from_millis(1_500))));
    let rate = failed("rate_limit_exceeded", "Rate limit reached. Please try again in 1.5s.");
    assert_eq!(judged(&rate), (Act::RetryOther, wait));
    let untold = Mark::Cool(Cause::Throttled(None));
    assert_eq!(judged(&failed("rate_limit_exceeded", "slow")), (Act::RetryOther, untold));
    let plan = failed("usage_not_included", "x");
    assert_eq!(judged(&plan), (Act::RetryOther, Mark::ModelNotIncluded));
}

#[test]
fn the_requests_own_faults_go_through_and_the_hosts_cool_nobody() {
    for code in ["context_length_exceeded", "invalid_prompt", "bio_policy", "cyber_policy"] {
        let fault = failed(code, "bad");
        assert_eq!(judged(&fault), (Act::Deliver, Mark::Fine), "{code}");
        assert!(fault.stops_the_cli() && !fault.is_hosts());
    }
    for code in ["server_is_overloaded", "slow_down", "server_error"] {
        let fault = failed(code, "boom");
        assert_eq!(judged(&fault), (Act::RetryOther, Mark::Shaky), "{code}");
        assert!(fault.is_hosts());
        assert_eq!(fault.stops_the_cli(), code == "server_is_overloaded");
    }
    let unknown = failed("a_code_of_tomorrow", "?");
    assert_eq!(judged(&unknown), (Act::RetryOther, Mark::Shaky));
    assert!(!unknown.is_hosts() && !unknown.stops_the_cli());
    assert_eq!(unknown.to_string(), "a_code_of_tomorrow");
}

#[test]
fn a_wrapped_error_is_the_http_answer_it_stands_for() {
    let event = json!({"type": "error", "status": 429, "error": {"type": "usage_limit_reached",
        "message": "The usage limit has been reached", "plan_type": "plus", "resets_at": 2_000},
        "headers": {"x-codex-primary-used-percent": "100.0", "x-codex-primary-reset-at": 2_000,
        "bad name": "x"}});
    let limit = Fault::read(event.to_string().as_bytes());
    let reset = Some(Wall::from_secs(2_000));
    assert_eq!(judged(&limit), (Act::RetryOther, Mark::Cool(Cause::UsageLimit(reset))));
    assert_eq!((limit.code.as_str(), limit.windows(NOW).len()), ("usage_limit_reached", 1));
    assert_eq!(limit.windows(NOW)[0].resets, reset);
    assert!(limit.stops_the_cli());
    assert_eq!(limit.to_string(), "usage_limit_reached (429)");

    let read = |event: Value| Fault::read(event.to_string().as_bytes());
    let expired = read(json!({"type": "error", "status": 401, "error": {"code": "token_expired"}}));
    assert_eq!(judged(&expired), (Act::RetrySame, Mark::Unauthorized));
    let busy = read(json!({"type": "error", "status_code": 503, "error": {"code": "slow_down"}}));
    assert_eq!(judged(&busy), (Act::RetryOther, Mark::Shaky));
    assert!(busy.is_hosts());
    let throttled = read(json!({"type": "error", "status": 429, "headers": {"retry-after": "7"},
        "error": {"message": "slow"}}));
    let wait = Mark::Cool(Cause::Throttled(Some(Span::from_secs(7))));
    assert_eq!(judged(&throttled), (Act::RetryOther, wait));
    let flat = read(json!({"type": "error", "code": "server_error", "message": "boom"}));
    assert_eq!(judged(&flat), (Act::RetryOther, Mark::Shaky));
    assert_eq!(flat.message, "boom");
}

#[test]
fn faults_of_the_connection_blame_nobody() {
    let event = |code| {
        let error = json!({"type": "invalid_request_error", "code": code, "message": "m"});
        let event = json!({"type": "error", "status": 400, "error": error});
        Fault::read(event.to_string().as_bytes())
    };
    let old = event("websocket_connection_limit_reached");
    assert_eq!(old.of_connection(), Some(OfConnection::TooOld));
    assert_eq!(judged(&old), (Act::RetrySame, Mark::Fine));
    let unknown = event("previous_response_not_found");
    assert_eq!(unknown.of_connection(), Some(OfConnection::PreviousUnknown));
    assert_eq!(judged(&unknown), (Act::Deliver, Mark::Fine));
    let own = event("invalid_value");
    assert_eq!((own.of_connection(), judged(&own)), (None, (Act::Deliver, Mark::Fine)));
}

#[test]
fn waits_are_read_as_the_cli_reads_them() {
    for (message, wait) in [
        ("Rate limit reached. Please try again in 1.5s.", Some(1_500)),
        ("Please try again in 28ms. Visit", Some(28)),
        ("Try again in 35 seconds.", Some(35_000)),
        ("try again in 1m30s", Some(90_000)),
        ("try again in 99999999999999999999h", Some(3_600_000)),
        ("try again in a while", None),
        ("try again in 5 parsecs", None),
        ("slow", None),
    ] {
        let read = failed("rate_limit_exceeded", message).stated_wait();
        assert_eq!(read, wait.map(Span::from_millis), "{message}");
    }
}

#[test]
fn metadata_and_limits_are_read() {
    let event = br#"{"type":"response.metadata","headers":{"x-codex-turn-state":"opaque","n":3}}"#;
    let headers = metadata(event);
    assert_eq!(headers.get("x-codex-turn-state").unwrap(), "opaque");
    assert_eq!(headers.get("n").unwrap(), "3");
    let event = br#"{"type":"codex.rate_limits","rate_limits":{"primary":{"used_percent":55}}}"#;
    assert_eq!(limits(event, NOW).len(), 1);
    assert!(limits(b"{", NOW).is_empty() && metadata(b"[]").is_empty());
}

proptest! {
    #[test]
    fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let kind = Kind::of(&bytes);
        prop_assert!(Kind::peek(&bytes).is_none_or(|peeked| peeked == kind));
        let fault = Fault::read(&bytes);
        drop((fault.verdict(NOW), fault.stops_the_cli(), fault.to_string(), limits(&bytes, NOW)));
        prop_assert!(metadata(&bytes).len() <= MAX_HEADERS);
    }

    #[test]
    fn any_message_states_a_sane_wait_or_none(text in ".{0,60}") {
        let wait = stated_wait(&format!("try again in {text}"));
        prop_assert!(wait.is_none_or(|wait| wait <= MAX_STATED));
    }
}
