//! What is made around turns belongs to its account; a reset credit is used once.

use super::*;

fn post(sim: &Sim, bearer: Option<&str>, path: &str, body: &Value) -> Got {
    let bearer = bearer.map(|bearer| format!("Bearer {bearer}"));
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
    send(sim, &format!("POST /backend-api{path}"), &headers, body.to_string().as_bytes()).unwrap()
}

fn two() -> (Sim, String, String) {
    let accounts = vec![AccountSpec::new("a"), AccountSpec::new("b")];
    let sim = Sim::start(SimConfig { accounts, ..SimConfig::default() }).unwrap();
    let access = |name: &str| token(&login(&sim, name), "access_token").to_owned();
    let (a, b) = (access("a"), access("b"));
    (sim, a, b)
}

#[test]
fn what_an_account_made_is_nobody_elses() {
    let (sim, a, b) = two();
    let file = post(&sim, Some(&a), "/files", &json!({}));
    let id = file.json()["file_id"].as_str().unwrap().to_owned();
    let path = format!("/files/{id}/uploaded");
    assert_eq!(post(&sim, Some(&a), &path, &json!({})).status, 200);
    assert_eq!(post(&sim, Some(&b), &path, &json!({})).status, 404);
    assert_eq!(post(&sim, Some(&a), "/codex/realtime/calls", &json!({})).status, 201);
    assert_eq!(post(&sim, Some(&a), "/codex/responses/compact", &json!({})).status, 400);
    let model = json!({ "model": "gpt-5.5" });
    let compact = post(&sim, Some(&a), "/codex/responses/compact", &model);
    assert_eq!(compact.header("x-codex-primary-used-percent"), Some("0.01"), "it uses quota");
    let stats = sim.stats();
    assert_eq!((stats.accounts["a"].errands, stats.accounts["b"].errands), (5, 1));
    assert_clean(&sim);
    for path in ["/files", "/codex/alpha/search", "/wham/rate-limit-reset-credits/consume"] {
        assert_eq!(post(&sim, None, path, &json!({})).status, 401, "{path}");
        assert_eq!(post(&sim, Some("made-up"), path, &json!({})).status, 401, "{path}");
    }
    assert_eq!(sim.stats().unknown_tokens, 3);
}

#[test]
fn a_reset_credit_empties_the_windows_once() {
    let (sim, a, b) = two();
    sim.add_reset_credit("a", "c-1");
    sim.set_used("a", 100.0, 90.0);
    let list = get(&sim, &a, "/wham/rate-limit-reset-credits").json();
    assert_eq!((&list["available_count"], &list["credits"][0]["id"]), (&json!(1), &json!("c-1")));
    let consume = |access: &str, request: &str| {
        let body = json!({ "redeem_request_id": request, "credit_id": "c-1" });
        post(&sim, Some(access), "/wham/rate-limit-reset-credits/consume", &body).status
    };
    assert_eq!(consume(&b, "r-1"), 404, "it is the other's");
    assert_eq!((consume(&a, "r-1"), consume(&a, "r-1")), (200, 200), "the same request again");
    assert_eq!(consume(&a, "r-2"), 404, "it is spent");
    let usage = get(&sim, &a, "/wham/usage").json();
    assert_eq!(usage["rate_limit"]["primary_window"]["used_percent"], 0);
    assert_eq!(sim.stats().accounts["a"].credits_used, 1);
    assert_clean(&sim);
}

#[test]
fn an_account_says_where_its_workspace_lives() {
    let (sim, a, _b) = two();
    let entry = || get(&sim, &a, "/wham/accounts/check").json()["accounts"][0].clone();
    assert_eq!(entry()["workspace_backend_origin"], "NO_CONSTRAINT");
    sim.set_workspace("a", Some("https://eu.example.test"), Some("us"));
    assert_eq!(entry()["workspace_backend_origin"], "https://eu.example.test");
    assert_eq!(entry()["account_routing_override"], "us");
    let before = get(&sim, &a, "/codex/models").header("etag").unwrap().to_owned();
    sim.set_models("a", &["other"]);
    let after = get(&sim, &a, "/codex/models");
    assert_ne!(after.header("etag"), Some(&*before));
    assert_eq!(after.json()["models"][0]["slug"], "other");
    assert_clean(&sim);
}
