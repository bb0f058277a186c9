//! What upstream answers to a turn over HTTP: heads with an error status, and streams that fail.

use super::case::{Case, Wire};
use cma_tests::sim::{Cut, Fault, Inside, Route, What};
use serde_json::{Value, json};
use std::time::Duration;

const TURN: Route = Route::Responses;
/// Why a failing host gets our words.
const GIVES_UP: &str = "the CLI alone asks up to 30 times; one request through the daemon has a budget \
                        over all accounts, after which the CLI is told to stop, with the reason";

/// Why a login that is spent gets our words.
const SEVERAL: &str = "the CLI alone says that its one login has to be renewed; a pool has several, and our words \
                       lead to `cmactl why`";

/// How the words begin that tell the reason, where that depends on how a connection breaks.
const AND_LAST: &str = "attempts, the last one:";

/// An error without a stream around it.
const SAYS_NO: &str =
    r#"{"error":{"type":"server_error","code":"server_error","message":"broken"}}"#;

/// `{"error":{"code":"x","message":"said in a header"}}`.
const ERROR_JSON: &str = "eyJlcnJvciI6eyJjb2RlIjoieCIsIm1lc3NhZ2UiOiJzYWlkIGluIGEgaGVhZGVyIn19";

fn case(row: &str) -> Case {
    Case::new(Wire::Http, row)
}

fn fails(row: &str, fault: &Fault, times: Option<u32>) -> Case {
    case(row).fault(TURN, fault.clone(), times)
}

fn status(code: u16, body: &Value) -> Fault {
    Fault::json(code, body)
}

fn plain(code: u16, body: &str) -> Fault {
    typed(code, "text/plain", body)
}

fn typed(code: u16, kind: &str, body: &str) -> Fault {
    let headers = vec![("content-type".to_owned(), kind.to_owned())];
    Fault::Status { code, headers, body: body.to_owned() }
}

fn usage() -> Fault {
    Fault::UsageLimitReached { resets_in: Duration::from_secs(3600) }
}

fn reused() -> Fault {
    status(
        401,
        &json!({ "error": { "message": "Your refresh token has already been used.", "code": "refresh_token_reused" } }),
    )
}

fn detail(code: u16, text: &str) -> Fault {
    status(code, &json!({ "detail": text }))
}

fn bare_usage() -> Fault {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    status(
        429,
        &json!({ "error": {
        "type": "usage_limit_reached", "message": "The usage limit has been reached",
        "plan_type": "plus", "resets_at": now.as_secs() + 3600, "resets_in_seconds": 3600,
    } }),
    )
}

/// The limit of a family that isn't the main one, by the header that says so.
fn second_family() -> Fault {
    [
        ("x-codex-active-limit", "codex_bengalfox"),
        ("x-codex-bengalfox-limit-name", "Second limit"),
        ("x-codex-bengalfox-primary-used-percent", "100"),
        ("x-codex-bengalfox-primary-window-minutes", "60"),
        ("x-codex-bengalfox-primary-reset-at", "1995200000"),
    ]
    .iter()
    .fold(bare_usage(), |fault, (name, value)| fault.with_header(name, value))
}

/// Heads that every account answers for ever, and how the words end that the person gets.
fn ends() -> [(&'static str, Fault, &'static str); 12] {
    let slow = status(503, &json!({ "error": { "code": "slow_down", "message": "slow" } }));
    [
        ("402ws", Fault::payment_required(), "the last one: 402 payment required"),
        ("403all", Fault::forbidden(), "the last one: 403 forbidden"),
        ("403html", Fault::cloudflare(), "the last one: 403 from the host's front door"),
        ("408", detail(408, "timeout"), "the last one: 408 request timeout"),
        ("500all", Fault::server_error(500, None), "the last one: status 500"),
        ("502all", plain(502, "bad gateway"), "the last one: status 502"),
        ("503overloaded", Fault::overloaded(), "the last one: status 503"),
        ("503slow", slow, "the last one: status 503"),
        ("503plain", plain(503, "unavail"), "the last one: status 503"),
        ("520all", plain(520, "unknown"), "the last one: status 520"),
        ("dropall", Fault::ResetBeforeHead, AND_LAST),
        ("garbageall", Fault::GarbageHead, AND_LAST),
    ]
}

/// Heads. For each row what all accounts meet, and the same with one that doesn't.
pub(super) fn heads() -> Vec<Case> {
    let bad = status(
        400,
        &json!({ "error": { "message": "bad request x", "type": "invalid_request_error", "code": "x" } }),
    );
    let why = Fault::token_invalidated().with_header("x-openai-authorization-error", "expired");
    let workspace = |kind: &str| bare_usage().with_header("x-codex-rate-limit-reached-type", kind);
    let mut all = vec![
        fails("401x1", &Fault::token_invalidated(), Some(1)).same(),
        fails("401x1", &Fault::token_invalidated(), Some(1)).hidden(),
        fails("401all", &Fault::token_invalidated(), None)
            .ours("the last one: the host refuses the tokens of several accounts (401)", GIVES_UP),
        fails("401all", &Fault::token_invalidated(), None).hidden(),
        fails("401all_reused", &Fault::token_invalidated(), None)
            .fault(Route::Refresh, reused(), None)
            .ours("a: the issuer refused its refresh token (refresh_token_reused)", SEVERAL),
        fails("401all_reused", &Fault::token_invalidated(), None)
            .fault(Route::Refresh, reused(), None)
            .hidden(),
        fails("401x1_why", &why, Some(1)).same(),
        fails("401x1_why", &why, Some(1)).hidden(),
        fails("400", &bad, None).same_for_two(),
        fails("400_error_json", &bad.clone().with_header("x-error-json", ERROR_JSON), None)
            .same_for_two(),
        fails("404", &detail(404, "Not Found"), None).same_for_two(),
        fails("413", &detail(413, "Too large"), None).same_for_two(),
        fails("422", &detail(422, "Unprocessable"), None).same_for_two(),
        fails("429x1retryafter", &Fault::rate_limited(Some(1)), Some(1)).healed(),
        fails("429x1retryafter", &Fault::rate_limited(Some(1)), Some(1)).hidden(),
        fails("429_retry_after_all", &Fault::rate_limited(Some(1)), None)
            .ours("the last one: 429 too many requests", GIVES_UP),
        fails("429_retry_after_big", &Fault::rate_limited(Some(20)), Some(1)).healed(),
        fails("429_retry_after_big", &Fault::rate_limited(Some(20)), Some(1)).hidden(),
        fails("500x1", &Fault::server_error(500, None), Some(1)).same(),
        fails("503x1", &Fault::server_error(503, None), Some(1)).same(),
        fails("503_retry_after", &Fault::server_error(503, Some(3)), Some(1)).healed(),
        fails("drop1", &Fault::ResetBeforeHead, Some(1)).same(),
        fails("close1", &Fault::CloseBeforeHead, Some(1)).same(),
        fails("garbage1", &Fault::GarbageHead, Some(1)).healed(),
        fails("slow_head", &Fault::SlowHead(Duration::from_secs(2)), Some(1)).same(),
        fails("429ul_retry_after", &bare_usage().with_header("retry-after", "30"), None)
            .same_for_two(),
    ];
    let own_text = [
        ("429usage", usage()),
        ("429usage_noheaders", bare_usage()),
        ("429notincluded", Fault::usage_not_included()),
        ("429ul_owner_credits", workspace("workspace_owner_credits_depleted")),
        ("429ul_member_credits", workspace("workspace_member_credits_depleted")),
        ("429ul_owner_limit", workspace("workspace_owner_usage_limit_reached")),
        ("429ul_member_limit", workspace("workspace_member_usage_limit_reached")),
        ("429ul_promo", bare_usage().with_header("x-codex-promo-message", "PROMO TEXT")),
        ("429ul_reached", workspace("rate_limit_reached")),
        (
            "429_primary_type",
            workspace("primary").with_header("x-codex-promo-message", "PROMO TEXT"),
        ),
        ("429ul_active_limit", second_family()),
    ];
    for (row, fault) in &own_text {
        all.push(fails(row, fault, None).same());
        all.push(fails(row, fault, None).same_for_two());
        all.push(fails(row, fault, None).hidden());
    }
    let credits = json!({ "error": { "type": "workspace_member_credits_depleted" } });
    let throttles = [
        ("429ratelimit", Fault::rate_limited(None)),
        ("429plain", plain(429, "slow down")),
        ("429wscredits", status(429, &credits)),
    ];
    for (row, fault) in &throttles {
        all.push(fails(row, fault, None).same_for_two());
        all.push(fails(row, fault, None).hidden());
    }
    for (row, fault, says) in ends() {
        all.push(fails(row, &fault, None).ours(says, GIVES_UP));
        all.push(fails(row, &fault, None).hidden());
    }
    all
}

fn failed(code: &str, message: &str) -> Fault {
    Fault::SseFailed { code: code.to_owned(), message: message.to_owned() }
}

fn cut(after: usize, by: Cut) -> Fault {
    Fault::CutMidStream { after, by }
}

/// These events instead of the turn's own.
fn pieces(events: &[Value]) -> Fault {
    let pieces = events.iter().map(|event| format!("data: {event}\n\n").into_bytes()).collect();
    Inside::before_the_answer(What::Pieces(pieces))
}

fn created() -> Value {
    json!({ "type": "response.created", "response": { "id": "resp_sim_0" } })
}

/// Streams that fail.
pub(super) fn streams() -> Vec<Case> {
    let error =
        json!({ "type": "error", "error": { "code": "server_error", "message": "scripted" } });
    let mut all = Vec::new();
    // What the CLI heals with a word of its own is healed without one.
    let healed = [
        (
            "rf_rate_limit_x1",
            failed("rate_limit_exceeded", "Rate limit reached. Please try again in 1.5s."),
        ),
        ("rf_rate_limit_ms_x1", failed("rate_limit_exceeded", "Please try again in 300ms.")),
        ("rf_slow_x1", failed("slow_down", "slow")),
        ("rf_server_error_x1", failed("server_error", "broken")),
        ("rf_unknown_x1", failed("unheard_of", "what")),
        ("error_event_x1", pieces(&[created(), error])),
        ("html200_x1", typed(200, "text/html", "<html>a page</html>")),
        ("json200_x1", typed(200, "application/json", "{\"ok\":true}")),
        ("json200_error_x1", typed(200, "application/json", SAYS_NO)),
        ("empty200_x1", cut(0, Cut::CleanEnd)),
        ("dropafterheaders1", cut(0, Cut::Reset)),
        ("drop_after_created1", cut(1, Cut::Reset)),
        ("close_after_created1", cut(1, Cut::Close)),
        ("cleaneof_after_created1", cut(1, Cut::CleanEnd)),
        ("half_event1", Inside::before_the_answer(What::HalfAnEvent(Cut::Reset))),
    ];
    for (row, fault) in &healed {
        all.push(fails(row, fault, Some(1)).healed());
        all.push(fails(row, fault, Some(1)).hidden());
    }
    // A page is the network's word, for all accounts alike.
    let page = typed(200, "text/html", "<html>a page</html>");
    let says = "the last one: a web page came instead of an answer (status 200)";
    all.push(fails("html200_all", &page, None).ours(says, GIVES_UP));
    let json = typed(200, "application/json", SAYS_NO);
    let says = "failed inside the stream before anything was shown: server_error";
    all.push(fails("json200_all", &json, None).ours(says, GIVES_UP));
    // What has been shown in part is the CLI's to begin again.
    let shown = [
        ("dropmid1", cut(4, Cut::Reset)),
        ("closemid1", cut(4, Cut::Close)),
        ("cleaneofmid1", cut(4, Cut::CleanEnd)),
        ("half_event_mid1", Inside::within_the_answer(What::HalfAnEvent(Cut::Close))),
        (
            "rf_server_error_mid1",
            Inside::within_the_answer(Inside::failed("server_error", "broken")),
        ),
        ("error_event_mid1", Inside::within_the_answer(What::Error("server_error".to_owned()))),
        ("garbage_event_mid", Inside::within_the_answer(What::Garbage)),
        ("comments_mid", Inside::within_the_answer(What::Comments(20))),
        ("comments_before", Inside::before_the_answer(What::Comments(20))),
        ("limits_event", Inside::before_the_answer(What::Limits(77))),
        ("stall_mid", Fault::StallMidStream { after: 3, pause: Duration::from_secs(3) }),
    ];
    for (row, fault) in &shown {
        all.push(fails(row, fault, Some(1)).same());
    }
    all.push(fails("dropmidall", &cut(4, Cut::Reset), None).same_for_two());
    all.push(
        fails(
            "rf_server_error_mid_all",
            &Inside::within_the_answer(Inside::failed("server_error", "broken")),
            None,
        )
        .same_for_two(),
    );
    all
}

/// Streams that fail in the same way for ever.
pub(super) fn failures() -> Vec<Case> {
    let mut all = Vec::new();
    // What stops the CLI at once.
    let fatal = [
        ("rf_context", failed("context_length_exceeded", "Your input exceeds the context window.")),
        ("rf_invalid_prompt", failed("invalid_prompt", "bad prompt")),
        ("rf_cyber", failed("cyber_policy", "cyber")),
        ("rf_bio", failed("bio_policy", "bio")),
        ("incomplete", Fault::Incomplete { reason: "max_output_tokens".to_owned() }),
        ("incomplete_filter", Fault::Incomplete { reason: "content_filter".to_owned() }),
    ];
    for (row, fault) in &fatal {
        all.push(fails(row, fault, None).same_for_two());
    }
    // The same, where another account may fare better.
    let others = [
        ("rf_quota", failed("insufficient_quota", "Quota exceeded.")),
        ("rf_usage_not_incl", failed("usage_not_included", "no")),
        ("rf_overloaded", failed("server_is_overloaded", "overloaded")),
    ];
    for (row, fault) in &others {
        all.push(fails(row, fault, None).same());
        all.push(fails(row, fault, None).hidden());
    }
    let ends = [
        // The CLI's own words, on the pool's own answer.
        ("rf_usage_limit", failed("usage_limit_reached", "lim"), "hit your usage limit"),
        (
            "rf_slow_all",
            failed("slow_down", "slow"),
            "failed inside the stream before anything was shown: slow_down",
        ),
        (
            "rf_server_error_all",
            failed("server_error", "broken"),
            "failed inside the stream before anything was shown: server_error",
        ),
        ("dropafterheaders_all", cut(0, Cut::Reset), AND_LAST),
    ];
    for (row, fault, says) in ends {
        all.push(fails(row, &fault, None).ours(says, GIVES_UP));
        all.push(fails(row, &fault, None).hidden());
    }
    all
}

/// Streams of an unusual form, which are whole.
pub(super) fn whole() -> Vec<Case> {
    let message = json!({ "type": "message", "role": "assistant", "id": "msg_sim_0", "content": [{ "type": "output_text", "text": "hi ok" }] });
    let done = json!({ "type": "response.output_item.done", "output_index": 0, "item": message });
    let usage = json!({ "input_tokens": 10, "output_tokens": 5, "total_tokens": 15 });
    let completed =
        json!({ "type": "response.completed", "response": { "id": "resp_sim_0", "usage": usage } });
    let no_usage = json!({ "type": "response.completed", "response": { "id": "resp_sim_0" } });
    let added = json!({ "type": "response.output_item.added", "output_index": 0, "item": { "type": "message", "role": "assistant", "id": "msg_sim_0", "content": [] } });
    let delta = json!({ "type": "response.output_text.delta", "item_id": "msg_sim_0", "output_index": 0, "content_index": 0, "delta": "hi" });
    let whole = [
        ("minimal_done_only", pieces(&[done.clone(), completed.clone()])),
        ("completed_only", pieces(std::slice::from_ref(&no_usage))),
        ("delta_no_itemdone", pieces(&[created(), added, delta, completed.clone()])),
        (
            "unknown_event",
            pieces(&[created(), json!({ "type": "response.unheard_of" }), done, completed]),
        ),
    ];
    whole.iter().map(|(row, fault)| fails(row, fault, None).same()).collect()
}
