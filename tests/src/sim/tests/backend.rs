//! Turns, quota, small documents, and the rules of requests.

use super::*;

#[test]
fn a_turn_is_streamed_to_its_end() {
    let sim = start();
    sim.set_reply_text("one two {account}");
    let login = login(&sim, "a");
    let extra = [("chatgpt-account-id", "acct-a")];
    let got = turn_with(&sim, token(&login, "access_token"), &extra, &question()).unwrap();
    assert_eq!(got.status, 200);
    assert_eq!(got.header("x-codex-primary-used-percent"), Some("0.01"));
    assert_eq!(got.header("x-codex-plan-type"), Some("plus"));
    assert_eq!(got.header("openai-model"), Some("gpt-5.5"));
    assert_eq!(got.body.matches("response.output_text.delta\ndata").count(), 3);
    assert!(got.body.contains("one two a"));
    assert!(got.body.contains("event: response.completed"));
    assert_clean(&sim);
    let seen = sim.seen();
    assert_eq!((seen[0].status, seen[0].outcome), (Some(200), Outcome::Completed));
    assert_eq!(seen[0].account.as_deref(), Some("a"));
    assert_eq!(seen[0].body["model"], "gpt-5.5");
    let stats = &sim.stats().accounts["a"];
    assert_eq!((stats.served, stats.completed, stats.responses_at_once), (1, 1, 1));
}

#[test]
fn a_full_window_refuses_until_its_reset() {
    let sim = start_with(Window::new(60.0, 300, Duration::from_secs(3600)));
    let login = login(&sim, "a");
    let access = token(&login, "access_token");
    assert_eq!(turn(&sim, access).unwrap().header("x-codex-primary-used-percent"), Some("60.0"));
    let second = turn(&sim, access).unwrap();
    assert_eq!(
        (second.status, second.header("x-codex-primary-used-percent")),
        (200, Some("100.0"))
    );
    let refused = turn(&sim, access).unwrap();
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("x-codex-active-limit"), Some("codex"));
    let body = refused.json();
    assert_eq!(body["error"]["type"], "usage_limit_reached");
    let reset_at = refused.header("x-codex-primary-reset-at").unwrap();
    assert_eq!(body["error"]["resets_at"].to_string(), reset_at);
    let usage = get(&sim, access, "/wham/usage").json();
    assert_eq!(usage["rate_limit"]["limit_reached"], true);
    assert_eq!(usage["rate_limit"]["primary_window"]["used_percent"], 100);
    assert_eq!(usage["rate_limit"]["primary_window"]["reset_at"].to_string(), reset_at);
    sim.set_reset_in("a", Duration::ZERO, Duration::from_secs(60));
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(turn(&sim, access).unwrap().status, 200);
    assert_eq!(sim.stats().accounts["a"].limited, 1);
    assert_clean(&sim);
}

#[test]
fn usage_has_whole_percents() {
    let sim = start();
    sim.set_used("a", 12.7, 99.9);
    let login = login(&sim, "a");
    let usage = get(&sim, token(&login, "access_token"), "/wham/usage").json();
    assert_eq!(usage["rate_limit"]["primary_window"]["used_percent"], 12);
    assert_eq!(usage["rate_limit"]["secondary_window"]["used_percent"], 99);
    assert_eq!(usage["rate_limit"]["allowed"], true);
}

#[test]
fn small_documents_are_served() {
    let sim = start();
    let login = login(&sim, "a");
    let access = token(&login, "access_token");
    let models = get(&sim, access, "/codex/models?client_version=0.169.0");
    assert_eq!(models.json()["models"][0]["slug"], "gpt-5.5");
    let bearer = format!("Bearer {access}");
    let headers =
        [("authorization", bearer.as_str()), ("if-none-match", models.header("etag").unwrap())];
    let again = send(&sim, "GET /backend-api/codex/models", &headers, b"").unwrap();
    assert_eq!(again.status, 304);
    let accounts = get(&sim, access, "/wham/accounts/check").json();
    assert_eq!(accounts["default_account_id"], "acct-a");
    assert_eq!(get(&sim, access, "/wham/config/bundle").json(), json!({}));
    assert_eq!(get(&sim, access, "/wham/settings/user").status, 200);
    assert_eq!(get(&sim, access, "/ps/plugins/installed?limit=200").status, 200);
    assert_eq!(get(&sim, access, "/wham/nothing").status, 404);
    assert_clean(&sim);
}

#[test]
fn a_tool_call_is_scripted_for_one_session() {
    let sim = start();
    sim.script_tool_call("echo hi");
    let login = login(&sim, "a");
    let access = token(&login, "access_token");
    let mut asked = question();
    asked["tools"] = json!([{ "type": "function", "name": "exec_command" }]);
    let run = |session: &str, body: &Value| {
        turn_with(&sim, access, &[("session-id", session)], body).unwrap().body
    };
    assert!(!run("s1", &question()).contains("function_call"));
    assert!(run("s1", &asked).contains(r#"{\"cmd\":\"echo hi\"}"#));
    assert!(run("s1", &asked).contains("function_call"));
    assert!(!run("s2", &asked).contains("function_call"));
    asked["input"] = json!([{ "type": "function_call_output", "call_id": "c", "output": "hi" }]);
    assert!(run("s1", &asked).contains("output_text"));
    let compaction = json!({
        "model": "gpt-5.5", "stream": true, "input": [{ "type": "compaction_trigger" }],
    });
    let body = run("s1", &compaction);
    assert_eq!(body.matches(r#""type":"compaction""#).count(), 1);
    assert_clean(&sim);
}

#[test]
fn broken_rules_are_noted() {
    let check = |headers: &[(&str, &str)], body: &Value, expect: &str| {
        let sim = start();
        let login = login(&sim, "a");
        turn_with(&sim, token(&login, "access_token"), headers, body).unwrap();
        let violations = sim.violations();
        assert!(violations.len() == 1 && violations[0].contains(expect), "{violations:?}");
        assert!(!violations[0].contains(&sim.canary()));
    };
    let fine = question();
    check(&[("via", "1.1 x")], &fine, "header `via`");
    check(&[("x-forwarded-for", "127.0.0.1")], &fine, "header `x-forwarded-for`");
    check(&[("connection", "keep-alive")], &fine, "header `connection`");
    check(&[("x-cma-launch", "1")], &fine, "header `x-cma-launch`");
    check(&[("chatgpt-account-id", "acct-b")], &fine, "names another account");
    check(&[("authorization", "Bearer x")], &fine, "more than once");
    check(&[("x-codex-window-id", "at-cma-123")], &fine, "leaked client key");
    let mut leaky = question();
    leaky["client_metadata"] = json!({ "env": "at-cma-123" });
    check(&[], &leaky, "leaked client key in the body");
    check(&[], &json!({ "model": "gpt-5.5", "stream": true }), "bad body");
    check(&[("content-encoding", "zstd")], &fine, "bad body");
}

#[test]
fn an_unknown_token_is_noted_and_refused() {
    let sim = start();
    assert_eq!(turn(&sim, "sk-nothing").unwrap().status, 401);
    assert_eq!(sim.stats().unknown_tokens, 1);
    assert!(sim.violations()[0].contains("unknown token"));
    let lax = Sim::start(SimConfig { strict: false, ..SimConfig::default() }).unwrap();
    assert_eq!(turn(&lax, "sk-nothing").unwrap().status, 401);
    assert_clean(&lax);
}
