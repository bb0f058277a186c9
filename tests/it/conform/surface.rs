//! Quota in the headers of an answer, and the calls around turns when they fail.

use super::case::{Case, Wire, turn};
use cma_tests::sim::{Fault, Route};
use serde_json::json;
use std::time::Duration;

/// Why a managed plan never comes to a turn.
const POLICIES: &str = "it wants the workspace's policies from a call that upstream has no more";
/// Why older versions have no such row.
const NO_AUX: &str = "it makes none of these calls";
/// Why there is nothing to hold against.
const OFFICIAL: &str = "the CLI alone turns to the official host there, which no test may reach";

fn case(row: &str) -> Case {
    Case::new(Wire::Http, row)
}

/// A whole turn with these headers.
fn answered(headers: &[(&str, &str)]) -> Fault {
    let item = json!({ "type": "message", "role": "assistant", "id": "msg_sim_0", "content": [{ "type": "output_text", "text": "hi ok" }] });
    let usage = json!({ "input_tokens": 10, "output_tokens": 5, "total_tokens": 15 });
    let events = [
        json!({ "type": "response.created", "response": { "id": "resp_sim_0" } }),
        json!({ "type": "response.output_item.done", "output_index": 0, "item": item }),
        json!({ "type": "response.completed", "response": { "id": "resp_sim_0", "usage": usage } }),
    ];
    let body = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    let stream = [("content-type", "text/event-stream")];
    let headers =
        stream.iter().chain(headers).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Fault::Status { code: 200, headers: headers.collect(), body }
}

/// Quota headers, each seen in what the CLI keeps of the turn.
pub(super) fn quota() -> Vec<Case> {
    let window = [
        ("x-codex-primary-used-percent", "42.5"),
        ("x-codex-primary-window-minutes", "300"),
        ("x-codex-primary-reset-at", "1995200000"),
    ];
    let with = |more: &[(&'static str, &'static str)]| [&window[..], more].concat();
    let rows = [
        ("quota_none", Vec::new()),
        ("quota_primary", window.to_vec()),
        (
            "quota_both",
            with(&[
                ("x-codex-secondary-used-percent", "7"),
                ("x-codex-secondary-window-minutes", "10080"),
                ("x-codex-secondary-reset-at", "1995900000"),
            ]),
        ),
        ("quota_zero", vec![("x-codex-primary-used-percent", "0")]),
        ("quota_name", with(&[("x-codex-limit-name", "Codex")])),
        (
            "quota_second_family",
            with(&[
                ("x-codex-bengalfox-primary-used-percent", "90"),
                ("x-codex-bengalfox-primary-window-minutes", "60"),
                ("x-codex-bengalfox-primary-reset-at", "1995200000"),
                ("x-codex-bengalfox-limit-name", "Second limit"),
            ]),
        ),
        (
            "quota_credits",
            with(&[
                ("x-codex-credits-has-credits", "True"),
                ("x-codex-credits-unlimited", "0"),
                ("x-codex-credits-balance", "12.50"),
            ]),
        ),
        (
            "quota_unlimited",
            with(&[("x-codex-credits-has-credits", "1"), ("x-codex-credits-unlimited", "true")]),
        ),
        ("quota_plan", with(&[("x-codex-plan-type", "pro")])),
        ("quota_promo", with(&[("x-codex-promo-message", "PROMO TEXT")])),
        (
            "quota_reached_type",
            with(&[("x-codex-rate-limit-reached-type", "workspace_member_usage_limit_reached")]),
        ),
        (
            "quota_nonsense",
            vec![("x-codex-primary-used-percent", "many"), ("x-codex-primary-reset-at", "soon")],
        ),
        ("quota_active_limit", with(&[("x-codex-active-limit", "codex")])),
        ("header_reasoning", vec![("x-reasoning-included", "true")]),
        ("header_safety", vec![("x-codex-safety-buffering-enabled", "true")]),
        ("header_oai_request_id", vec![("x-oai-request-id", "req_2")]),
        ("header_model", vec![("openai-model", "gpt-5.4")]),
        ("header_models_etag", vec![("x-models-etag", "W/\"another\"")]),
        ("header_turn_state", vec![("x-codex-turn-state", "sticky")]),
        ("header_request_id", vec![("x-request-id", "req_1"), ("cf-ray", "8f-SIM")]),
    ];
    rows.iter()
        .map(|(row, headers)| case(row).fault(Route::Responses, answered(headers), None).same())
        .collect()
}

/// The calls around turns: a turn stays what it is.
pub(super) fn aux() -> Vec<Case> {
    let mut all = Vec::new();
    let ways = [
        ("401", Fault::token_invalidated()),
        ("403", Fault::forbidden()),
        ("404", Fault::not_found()),
        ("500", Fault::server_error(500, None)),
        (
            "page",
            Fault::Status {
                code: 200,
                headers: vec![("content-type".to_owned(), "text/html".to_owned())],
                body: "<html>".to_owned(),
            },
        ),
        ("drop", Fault::ResetBeforeHead),
    ];
    let calls = [("models", Route::Models), ("check", Route::AccountsCheck), ("aux", Route::Aux)];
    for (name, route) in calls {
        for (way, fault) in &ways {
            let row = case(&format!("{name}_{way}")).fault(route, fault.clone(), None);
            let row = match name {
                "check" => row.since("0.169.0", "it doesn't ask for `accounts/check`"),
                "aux" => row.since("0.128.0", NO_AUX),
                _ => row,
            };
            let row = match *way {
                "401" if name == "aux" => row.not_with("0.149.0", OFFICIAL),
                _ => row,
            };
            all.push(row.same());
        }
    }
    let slow = Fault::SlowHead(Duration::from_secs(2));
    all.push(case("models_slow").fault(Route::Models, slow.clone(), None).same());
    all.push(case("models_hang").fault(Route::Models, Fault::HangHead, None).same());
    all.push(case("aux_slow").fault(Route::Aux, slow, None).since("0.128.0", NO_AUX).same());
    for plan in PLANS {
        all.push(case(&format!("plan_{}", plan.0)).tune(plan.1).same());
    }
    let limit = Fault::UsageLimitReached { resets_in: Duration::from_secs(3600) };
    for plan in PLANS {
        let limited = case(&format!("plan_{}_limit", plan.0)).tune(plan.1);
        let managed = ["business", "enterprise"].contains(&plan.0);
        let limited = if managed { limited.not_with("0.128.0", POLICIES) } else { limited };
        all.push(
            limited
                .steps(vec![turn(&["--json"])])
                .fault(Route::Responses, limit.clone(), None)
                .same(),
        );
    }
    all
}

type Plan = (&'static str, fn(&mut cma_tests::sim::SimConfig));

/// The limit's text depends on the plan; some need their configuration first.
const PLANS: [Plan; 7] = [
    ("free", |config| of_plan(config, "free")),
    ("go", |config| of_plan(config, "go")),
    ("pro", |config| of_plan(config, "pro")),
    ("team", |config| of_plan(config, "team")),
    ("business", |config| of_plan(config, "business")),
    ("enterprise", |config| of_plan(config, "enterprise")),
    ("unheard_of", |config| of_plan(config, "unheard_of")),
];

fn of_plan(config: &mut cma_tests::sim::SimConfig, plan: &str) {
    for account in &mut config.accounts {
        plan.clone_into(&mut account.plan);
    }
}
