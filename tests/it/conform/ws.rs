//! What upstream answers to a handshake, to a prewarm and to the frame of a turn.

use super::case::{Case, Wire};
use cma_tests::sim::{Cut, Fault, Route, Strange};
use serde_json::{Value, json};
use std::time::Duration;

/// Why a failing host gets our words.
const GIVES_UP: &str = "HTTP fails in the same way: the CLI alone begins again up to five times over WebSockets and up to 30 times over \
                        HTTP; one request through the daemon has a budget, after which it is told to stop";

/// Why the thread's file differs where the text doesn't.
const INSIDE: &str = "the same text, but the CLI files a refusal inside a WebSocket under another kind than one \
                      of the handshake";

fn case(row: &str) -> Case {
    Case::new(Wire::Ws, row)
}

fn on(route: Route, row: &str, fault: &Fault, times: Option<u32>) -> Case {
    case(row).fault(route, fault.clone(), times)
}

fn error(code: u16, kind: &str, message: &str) -> Fault {
    Fault::json(code, &json!({ "error": { "type": kind, "code": kind, "message": message } }))
}

fn wrapped(after: usize, code: u16, error: &Value) -> Fault {
    Fault::ErrorFrame { after, code, error: error.to_string() }
}

fn failed(code: &str, message: &str) -> Fault {
    Fault::SseFailed { code: code.to_owned(), message: message.to_owned() }
}

fn usage() -> Fault {
    Fault::UsageLimitReached { resets_in: Duration::from_secs(3600) }
}

fn cut(after: usize, by: Cut) -> Fault {
    Fault::CutMidStream { after, by }
}

fn close(after: usize, code: u16) -> Fault {
    Fault::CloseFrame { after, code }
}

fn strange(after: usize, what: Strange) -> Fault {
    Fault::StrangeFrame { after, what }
}

/// Handshakes. One that fails for good is bridged over HTTP behind the CLI's own socket.
pub(super) fn handshakes() -> Vec<Case> {
    let route = Route::Upgrade;
    let detail = |code: u16, text: &str| Fault::json(code, &json!({ "detail": text }));
    let mut all = vec![
        on(route, "up426", &Fault::websocket_426(), None).healed(),
        on(route, "up400", &detail(400, "x"), None).ours("{\"detail\":\"x\"}", INSIDE),
        on(route, "up401x1", &Fault::token_invalidated(), Some(1)).same(),
        on(route, "up401x1", &Fault::token_invalidated(), Some(1)).hidden(),
        on(route, "up429usage", &usage(), None).same(),
        on(route, "up429usage", &usage(), None).hidden(),
        on(route, "up429notincluded", &Fault::usage_not_included(), None).same(),
        on(route, "up429notincluded", &Fault::usage_not_included(), None).hidden(),
        on(route, "updrop1", &Fault::ResetBeforeHead, Some(1)).same(),
        on(route, "up500x1", &Fault::server_error(500, None), Some(1)).same(),
        on(route, "upslow", &Fault::SlowHead(Duration::from_secs(2)), Some(1)).same(),
    ];
    let bridged = [
        ("up404", detail(404, "Not Found")),
        ("up403html", Fault::cloudflare()),
        ("up500", Fault::server_error(500, None)),
        ("up503", Fault::server_error(503, None)),
        ("updropall", Fault::ResetBeforeHead),
        ("upgarbage", Fault::GarbageHead),
        ("up401all", Fault::token_invalidated()),
        ("up403", Fault::forbidden()),
        ("up429other", Fault::rate_limited(None)),
    ];
    for (row, fault) in &bridged {
        all.push(on(route, row, fault, None).healed());
        all.push(on(route, row, fault, None).hidden());
    }
    all
}

/// Frames.
pub(super) fn frames() -> Vec<Case> {
    let route = Route::Frame;
    let too_old = json!({ "type": "invalid_request_error", "code": "websocket_connection_limit_reached", "message": "connection limit (60 minutes)" });
    let unknown = json!({ "type": "invalid_request_error", "code": "previous_response_not_found", "message": "Previous response not found." });
    let broken = json!({ "type": "server_error", "code": "server_error", "message": "broken" });
    let mut all = vec![
        on(Route::Prewarm, "fr_prewarm_drop", &Fault::ResetBeforeHead, Some(1)).same(),
        on(Route::Prewarm, "fr_prewarm_500", &Fault::server_error(500, None), Some(1)).same(),
        on(Route::Prewarm, "fr_prewarm_401", &Fault::token_expired(), Some(1)).same(),
        on(Route::Prewarm, "fr_prewarm_slow", &Fault::SlowHead(Duration::from_secs(2)), Some(1))
            .same(),
        on(Route::Prewarm, "fr_usage429_prewarm", &usage(), None)
            .fault_behind(route, usage())
            .same(),
        on(Route::Prewarm, "fr_usage429_prewarm", &usage(), None)
            .fault_behind(route, usage())
            .hidden(),
        on(
            route,
            "fr_stall_mid",
            &Fault::StallMidStream { after: 6, pause: Duration::from_secs(3) },
            Some(1),
        )
        .same(),
        on(route, "fr_slow", &Fault::SlowHead(Duration::from_secs(2)), Some(1)).same(),
    ];
    let healed = [
        ("fr_connlimit", wrapped(0, 400, &too_old)),
        ("fr_prevnotfound", wrapped(0, 400, &unknown)),
        ("fr_401", Fault::token_invalidated()),
        ("fr_429_retry_after", Fault::rate_limited(Some(1))),
        ("fr_500", wrapped(0, 500, &broken)),
        ("fr_503", error(503, "server_error", "unavailable")),
        ("fr_failed_rl", failed("rate_limit_exceeded", "Please try again in 1s.")),
        ("fr_failed_server_error", failed("server_error", "broken")),
        ("fr_failed_slow", failed("slow_down", "slow")),
        ("fr_failed_unknown", failed("unheard_of", "what")),
        ("fr_drop", cut(0, Cut::Reset)),
        ("fr_drop_after_preamble", cut(4, Cut::Reset)),
        ("fr_close_no_frame", cut(0, Cut::Close)),
        ("fr_close1000", close(0, 1000)),
        ("fr_close1008", close(0, 1008)),
        ("fr_close1011", close(0, 1011)),
        ("fr_close1012", close(0, 1012)),
        ("fr_dropbefore", Fault::ResetBeforeHead),
        ("fr_closebefore", Fault::CloseBeforeHead),
        ("fr_binary", strange(0, Strange::Binary)),
        ("fr_garbage", strange(0, Strange::Garbage)),
        ("fr_oversized", strange(0, Strange::Oversized)),
        ("fr_half", strange(0, Strange::Half)),
        ("fr_nojson", strange(0, Strange::NoJson)),
    ];
    for (row, fault) in &healed {
        all.push(on(route, row, fault, Some(1)).healed());
        all.push(on(route, row, fault, Some(1)).hidden());
    }
    all
}

/// Frames of turns that can't be healed.
pub(super) fn lost() -> Vec<Case> {
    let route = Route::Frame;
    let broken = json!({ "type": "server_error", "code": "server_error", "message": "broken" });
    let mut all = Vec::new();
    // What has been shown in part is the CLI's to begin again.
    let shown = [
        ("fr_dropmid", cut(7, Cut::Reset)),
        ("fr_closemid", close(7, 1000)),
        ("fr_errormid", wrapped(7, 500, &broken)),
        ("fr_halfmid", strange(7, Strange::Half)),
        ("fr_binarymid", strange(7, Strange::Binary)),
    ];
    for (row, fault) in &shown {
        all.push(on(route, row, fault, Some(1)).same());
    }
    all.push(on(route, "fr_dropmid_all", &cut(7, Cut::Reset), None).same_for_two());
    // What stops the CLI at once, whoever serves it.
    let fatal = [
        ("fr_400", error(400, "invalid_request_error", "bad request x")),
        ("fr_context", failed("context_length_exceeded", "Your input exceeds the context window.")),
        ("fr_invalid_prompt", failed("invalid_prompt", "bad prompt")),
        ("fr_cyber", failed("cyber_policy", "cyber")),
        ("fr_bio", failed("bio_policy", "bio")),
        ("fr_incomplete", Fault::Incomplete { reason: "max_output_tokens".to_owned() }),
    ];
    for (row, fault) in &fatal {
        all.push(on(route, row, fault, None).same_for_two());
    }
    let others = [
        ("fr_usage429", usage()),
        ("fr_notincluded", Fault::usage_not_included()),
        ("fr_quota", failed("insufficient_quota", "Quota exceeded.")),
        ("fr_failed_notincluded", failed("usage_not_included", "no")),
        ("fr_overloaded", failed("server_is_overloaded", "overloaded")),
    ];
    for (row, fault) in &others {
        all.push(on(route, row, fault, None).same());
        all.push(on(route, row, fault, None).hidden());
    }
    all.push(on(route, "fr_usage429", &usage(), None).same_for_two());
    let ends = [
        ("fr_402", Fault::payment_required(), "the last one: 402 payment required"),
        ("fr_403", Fault::forbidden(), "the last one: 403 forbidden"),
        ("fr_500_all", error(500, "server_error", "broken"), "the last one: status 500"),
        // The CLI's own words, on the pool's own answer.
        ("fr_failed_usage_limit", failed("usage_limit_reached", "lim"), "hit your usage limit"),
        // The reason depends on how the connection breaks.
        ("fr_dropall", cut(0, Cut::Reset), "attempts, the last one:"),
    ];
    for (row, fault, says) in ends {
        // Over HTTP the CLI alone is served in the end.
        if !says.contains("usage limit") {
            all.push(on(route, row, &fault, None).bridged());
        }
        let both = on(route, row, &fault, None).fault_behind(Route::Responses, fault);
        all.push(both.clone().ours(says, GIVES_UP));
        // Before another account is asked, HTTP is, as of a handshake.
        let refused = says.contains("40");
        all.push(if refused { both.hidden().may_bridge() } else { both.hidden() });
    }
    all
}
