//! The simulated upstream against its own rules, over real sockets.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::config::CLIENT_ID;
use super::drive::{DriveConfig, drive};
use super::{AccountSpec, Cut, Fault, Outcome, Route, Sim, SimConfig, Window};

/// An answer as it was read until the connection ended.
#[derive(Debug)]
struct Got {
    status: u16,
    head: String,
    body: String,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Sends one request over a connection of its own. `None`: no head came.
fn send(sim: &Sim, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Got> {
    let mut stream = TcpStream::connect(sim.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut head = format!("{target} HTTP/1.1\r\nhost: {}\r\n", sim.addr());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    read(&mut stream)
}

fn read(stream: &mut TcpStream) -> Option<Got> {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(n) => all.extend_from_slice(&chunk[..n]),
        }
        let text = String::from_utf8_lossy(&all);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let whole = match length {
            Some(length) => body.len() >= length.parse::<usize>().unwrap(),
            None => body.ends_with("0\r\n\r\n"),
        };
        if whole || head.contains(" 304 ") {
            break;
        }
    }
    let text = String::from_utf8_lossy(&all);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some(Got { status, head: head.to_owned(), body: body.to_owned() })
}

fn login(sim: &Sim, account: &str) -> Value {
    serde_json::from_str(&sim.auth_json(account)).unwrap()
}

fn token<'v>(login: &'v Value, which: &str) -> &'v str {
    login.pointer(&format!("/tokens/{which}")).unwrap().as_str().unwrap()
}

fn refresh(sim: &Sim, token: &str) -> Option<Got> {
    let body = json!({
        "client_id": CLIENT_ID,
        "grant_type": "refresh_token",
        "refresh_token": token,
        "refresh_reason": "proactive_expiry",
    });
    let headers = [("content-type", "application/json")];
    send(sim, "POST /oauth/token", &headers, body.to_string().as_bytes())
}

fn turn_with(sim: &Sim, access: &str, extra: &[(&str, &str)], body: &Value) -> Option<Got> {
    let bearer = format!("Bearer {access}");
    let mut headers = vec![
        ("authorization", bearer.as_str()),
        ("accept", "text/event-stream"),
        ("content-type", "application/json"),
        ("originator", "codex_exec"),
    ];
    headers.extend_from_slice(extra);
    let body = body.to_string();
    send(sim, "POST /backend-api/codex/responses", &headers, body.as_bytes())
}

fn turn(sim: &Sim, access: &str) -> Option<Got> {
    turn_with(sim, access, &[], &question())
}

fn question() -> Value {
    json!({ "model": "gpt-5.5", "stream": true, "store": false, "input": [] })
}

fn get(sim: &Sim, access: &str, path: &str) -> Got {
    let bearer = format!("Bearer {access}");
    send(sim, &format!("GET /backend-api{path}"), &[("authorization", &bearer)], b"").unwrap()
}

fn start() -> Sim {
    Sim::start(SimConfig::default()).unwrap()
}

fn start_with(primary: Window) -> Sim {
    let accounts = vec![AccountSpec::new("a").primary(primary)];
    Sim::start(SimConfig { accounts, ..SimConfig::default() }).unwrap()
}

fn assert_clean(sim: &Sim) {
    assert_eq!(sim.violations(), Vec::<String>::new());
}

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
fn tokens_are_readable_and_carry_the_canary() {
    let sim = start();
    let login = login(&sim, "a");
    for which in ["id_token", "access_token", "refresh_token"] {
        assert!(token(&login, which).contains(&sim.canary()), "{which}");
    }
    assert_eq!(login["tokens"]["account_id"], "acct-a");
    assert_eq!(login["tokens"]["oauth_provenance"]["client_id"], CLIENT_ID);
    let claims = claims(token(&login, "access_token"));
    let auth = &claims["https://api.openai.com/auth"];
    assert_eq!(auth["chatgpt_account_id"], "acct-a");
    assert_eq!(claims["https://api.openai.com/profile"]["email"], "a@example.test");
    let expired: Value = serde_json::from_str(&sim.auth_json_expired("a")).unwrap();
    let exp = |login: &Value| self::claims(token(login, "access_token"))["exp"].as_u64().unwrap();
    assert!(exp(&expired) + 3000 < exp(&login));
    assert_eq!(turn(&sim, token(&expired, "access_token")).unwrap().status, 401);
}

fn claims(jwt: &str) -> Value {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let parts: Vec<_> = jwt.split('.').collect();
    assert_eq!(parts.len(), 3);
    URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap()
}

#[test]
fn a_refresh_rotates_and_old_access_tokens_stay_good() {
    let sim = start();
    let login = login(&sim, "a");
    let renewed = refresh(&sim, token(&login, "refresh_token")).unwrap();
    assert_eq!(renewed.status, 200);
    let renewed = renewed.json();
    for which in ["id_token", "access_token", "refresh_token"] {
        assert_ne!(renewed[which], login["tokens"][which]);
    }
    assert_eq!(turn(&sim, token(&login, "access_token")).unwrap().status, 200);
    assert_eq!(turn(&sim, renewed["access_token"].as_str().unwrap()).unwrap().status, 200);
    let again = refresh(&sim, renewed["refresh_token"].as_str().unwrap()).unwrap();
    assert_eq!(again.status, 200);
    assert_eq!(sim.stats().accounts["a"].refreshed, 2);
    assert_clean(&sim);
}

#[test]
fn reuse_outside_the_grace_ends_the_family() {
    let sim = start();
    let first = login(&sim, "a");
    let other = login(&sim, "a");
    let renewed = refresh(&sim, token(&first, "refresh_token")).unwrap().json();
    let reused = refresh(&sim, token(&first, "refresh_token")).unwrap();
    assert_eq!(reused.status, 401);
    assert_eq!(reused.json()["error"]["code"], "refresh_token_reused");
    let successor = refresh(&sim, renewed["refresh_token"].as_str().unwrap()).unwrap();
    assert_eq!(successor.json()["error"]["code"], "refresh_token_invalidated");
    for access in [token(&first, "access_token"), renewed["access_token"].as_str().unwrap()] {
        let got = turn(&sim, access).unwrap();
        assert_eq!((got.status, &got.json()["error"]["code"]), (401, &json!("token_invalidated")));
    }
    assert_eq!(turn(&sim, token(&other, "access_token")).unwrap().status, 200);
    let stats = &sim.stats().accounts["a"];
    assert_eq!((stats.reused, stats.families_revoked, stats.unauthorized), (1, 1, 2));
}

#[test]
fn within_the_grace_the_same_successor_is_answered() {
    let sim = start();
    sim.set_grace(Duration::from_secs(30));
    let login = login(&sim, "a");
    let spent = token(&login, "refresh_token");
    let first = refresh(&sim, spent).unwrap().json();
    assert_eq!(refresh(&sim, spent).unwrap().json(), first);
    let stats = &sim.stats().accounts["a"];
    assert_eq!((stats.refreshed, stats.replayed, stats.reused), (1, 1, 0));
    // Once the successor is spent too, the first is no longer "just spent".
    assert_eq!(refresh(&sim, first["refresh_token"].as_str().unwrap()).unwrap().status, 200);
    assert_eq!(refresh(&sim, spent).unwrap().status, 401);
}

#[test]
fn what_ends_a_login_is_told_apart() {
    let sim = start();
    let code = |got: Option<Got>| got.unwrap().json()["error"]["code"].clone();
    let one = login(&sim, "a");
    sim.expire_access("a");
    assert_eq!(code(turn(&sim, token(&one, "access_token"))), "token_expired");
    let renewed = refresh(&sim, token(&one, "refresh_token")).unwrap().json();
    assert_eq!(turn(&sim, renewed["access_token"].as_str().unwrap()).unwrap().status, 200);
    sim.revoke_access("a");
    let renewed_access = renewed["access_token"].as_str().unwrap();
    assert_eq!(code(turn(&sim, renewed_access)), "token_invalidated");
    sim.expire_refresh("a");
    let renewed_refresh = renewed["refresh_token"].as_str().unwrap();
    assert_eq!(code(refresh(&sim, renewed_refresh)), "refresh_token_expired");
    let two = login(&sim, "a");
    sim.revoke_family("a");
    assert_eq!(code(turn(&sim, token(&two, "access_token"))), "token_invalidated");
    assert_eq!(code(refresh(&sim, token(&two, "refresh_token"))), "refresh_token_invalidated");
    let three = login(&sim, "a");
    let body = json!({ "token": token(&three, "refresh_token"), "client_id": CLIENT_ID });
    let revoked = send(&sim, "POST /oauth/revoke", &[], body.to_string().as_bytes()).unwrap();
    assert_eq!(revoked.status, 200);
    assert_eq!(code(refresh(&sim, token(&three, "refresh_token"))), "refresh_token_invalidated");
}

#[test]
fn other_grants_are_refused() {
    let sim = start();
    let form = b"grant_type=authorization_code&code=a%2Bb";
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let got = send(&sim, "POST /oauth/token", &headers, form).unwrap();
    assert_eq!((got.status, got.json()), (400, json!({ "error": "unsupported_grant_type" })));
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
    let upgrade = [("authorization", bearer.as_str()), ("upgrade", "websocket")];
    let got = send(&sim, "GET /backend-api/codex/responses", &upgrade, b"").unwrap();
    assert_eq!(got.status, 426);
}

#[test]
fn faults_apply_to_their_account_and_route_and_end() {
    let accounts = vec![AccountSpec::new("a"), AccountSpec::new("b")];
    let sim = Sim::start(SimConfig { accounts, ..SimConfig::default() }).unwrap();
    let (a, b) = (login(&sim, "a"), login(&sim, "b"));
    let (a, b) = (token(&a, "access_token"), token(&b, "access_token"));
    sim.fault(Some("a"), Route::Responses, Fault::overloaded(), Some(2));
    assert_eq!(turn(&sim, b).unwrap().status, 200);
    assert_eq!(get(&sim, a, "/wham/usage").status, 200);
    let got = turn(&sim, a).unwrap();
    assert_eq!(got.status, 503);
    assert_eq!(got.json()["error"]["code"], "server_is_overloaded");
    assert_eq!(turn(&sim, a).unwrap().status, 503);
    assert_eq!(turn(&sim, a).unwrap().status, 200);
    sim.fault(None, Route::Any, Fault::rate_limited(Some(7)), None);
    let got = turn(&sim, b).unwrap();
    assert_eq!((got.status, got.header("retry-after")), (429, Some("7")));
    assert_eq!(get(&sim, a, "/wham/usage").status, 429);
    sim.clear_faults();
    let limit = Fault::UsageLimitReached { resets_in: Duration::from_secs(60) };
    sim.fault(Some("a"), Route::Responses, limit, Some(1));
    let got = turn(&sim, a).unwrap();
    assert_eq!(got.header("x-codex-primary-used-percent"), Some("100.0"));
    assert_eq!(got.json()["error"]["plan_type"], "plus");
    assert_eq!(turn(&sim, a).unwrap().status, 200);
    assert_eq!(sim.stats().accounts["a"].faults, 4);
}

#[test]
fn faults_of_the_connection() {
    let sim = start();
    let login = login(&sim, "a");
    let access = token(&login, "access_token");
    for fault in [Fault::ResetBeforeHead, Fault::CloseBeforeHead, Fault::GarbageHead] {
        sim.fault(Some("a"), Route::Responses, fault.clone(), Some(1));
        assert!(turn(&sim, access).is_none(), "{fault:?}");
        assert_eq!(sim.seen().last().unwrap().outcome, Outcome::Dropped);
    }
    assert_eq!(sim.stats().accounts["a"].served, 0);
    sim.fault(Some("a"), Route::Responses, Fault::HangHead, Some(1));
    let mut stream = TcpStream::connect(sim.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let head = format!(
        "POST /backend-api/codex/responses HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {access}\
         \r\ncontent-length: 0\r\n\r\n",
        sim.addr()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    drop(stream);
    eventually(|| sim.seen().last().unwrap().outcome == Outcome::ClientGone);
}

#[test]
fn a_reset_is_a_reset() {
    let sim = start();
    let login = login(&sim, "a");
    let mut kinds = Vec::new();
    for fault in [Fault::ResetBeforeHead, Fault::CloseBeforeHead] {
        sim.fault(None, Route::Usage, fault, Some(1));
        let mut stream = TcpStream::connect(sim.addr()).unwrap();
        let access = token(&login, "access_token");
        let head = format!(
            "GET /backend-api/wham/usage HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {access}\
             \r\n\r\n",
            sim.addr()
        );
        stream.write_all(head.as_bytes()).unwrap();
        kinds.push(stream.read(&mut [0; 16]).map_err(|error| error.kind()));
    }
    assert_eq!(kinds, [Err(std::io::ErrorKind::ConnectionReset), Ok(0)]);
}

#[test]
fn faults_of_the_stream() {
    let sim = start();
    let login = login(&sim, "a");
    let run = |fault: Fault| {
        sim.fault(Some("a"), Route::Responses, fault, Some(1));
        turn(&sim, token(&login, "access_token")).unwrap().body
    };
    for by in [Cut::Reset, Cut::Close, Cut::CleanEnd] {
        let body = run(Fault::CutMidStream { after: 3, by });
        assert_eq!(body.matches("event: ").count(), 3, "{by:?}");
        assert_eq!(body.ends_with("0\r\n\r\n"), by == Cut::CleanEnd, "{by:?}");
        assert_eq!(sim.seen().last().unwrap().outcome, Outcome::Cut);
    }
    let failed = Fault::SseFailed { code: "slow_down".to_owned(), message: "m".to_owned() };
    assert!(run(failed).contains("response.failed"));
    let body = run(Fault::Incomplete { reason: "max_output_tokens".to_owned() });
    assert!(body.contains("max_output_tokens"));
    let stall = Fault::StallMidStream { after: 2, pause: Duration::from_millis(50) };
    assert!(run(stall).contains("response.completed"));
    assert_clean(&sim);
}

#[test]
fn a_refresh_can_fail_before_and_after_it_counts() {
    let sim = start();
    let check = |fault: Fault, commits: bool| {
        let login = login(&sim, "a");
        let spent = token(&login, "refresh_token");
        sim.fault(Some("a"), Route::Refresh, fault.clone(), Some(1));
        let before = sim.stats().accounts["a"].refreshed;
        let first = refresh(&sim, spent);
        assert!(first.is_none_or(|got| got.status != 200), "{fault:?}");
        let after = sim.stats().accounts["a"].refreshed;
        assert_eq!(after - before, u64::from(commits), "{fault:?}");
        let second = refresh(&sim, spent).unwrap();
        assert_eq!(second.status, if commits { 401 } else { 200 }, "{fault:?}");
    };
    check(Fault::CloseAfterCommit, true);
    check(Fault::ResetAfterCommit, true);
    check(Fault::CloseBeforeHead, false);
    check(Fault::server_error(500, None), false);
    check(Fault::invalid_grant(), false);
    let login = login(&sim, "a");
    let spent = token(&login, "refresh_token");
    sim.fault(None, Route::Refresh, Fault::DelayAnswer(Duration::from_millis(100)), Some(1));
    assert_eq!(refresh(&sim, spent).unwrap().status, 200);
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
fn a_closed_door_refuses_and_opens_on_the_same_port() {
    let sim = start();
    let addr = sim.addr();
    let mut open = TcpStream::connect(addr).unwrap();
    sim.stop_listening().unwrap();
    assert!(TcpStream::connect(addr).is_err());
    assert!(matches!(open.read(&mut [0; 1]), Ok(0) | Err(_)));
    sim.stop_listening().unwrap();
    sim.resume_listening().unwrap();
    sim.resume_listening().unwrap();
    let login = login(&sim, "a");
    assert_eq!(turn(&sim, token(&login, "access_token")).unwrap().status, 200);
}

#[test]
fn control_routes_do_what_the_library_does() {
    let sim = start();
    let post = |path: &str, body: &str| {
        send(&sim, &format!("POST /__sim/{path}"), &[], body.as_bytes()).unwrap()
    };
    let login = post("auth/a", "").json();
    let access = token(&login, "access_token");
    let script = r#"{"account":"a","route":"responses","fault":"403","times":1}"#;
    assert_eq!(post("fault", script).status, 400);
    let script = r#"{"account":"a","route":"responses","fault":"cloudflare","times":1}"#;
    assert_eq!(post("fault", script).status, 200);
    assert_eq!(turn(&sim, access).unwrap().status, 403);
    let script = r#"{"fault":{"kind":"cut_mid_stream","with":{"after":1,"by":"close"}},"times":1}"#;
    assert_eq!(post("fault", script).status, 200);
    assert_eq!(turn(&sim, access).unwrap().body.matches("event: ").count(), 1);
    let script = r#"{"fault":{"kind":"slow_head","with":5},"times":1}"#;
    assert_eq!(post("fault", script).status, 200);
    assert_eq!(turn(&sim, access).unwrap().status, 200);
    assert_eq!(post("used/a", r#"{"primary":100,"secondary":1}"#).status, 200);
    assert_eq!(turn(&sim, access).unwrap().status, 429);
    assert_eq!(post("expire/a", "").status, 200);
    assert_eq!(turn(&sim, access).unwrap().status, 401);
    assert_eq!(post("expire/nobody", "").status, 404);
    let state = send(&sim, "GET /__sim/state", &[], b"").unwrap().json();
    assert_eq!(state["accounts"][0]["primary"]["used_percent"], 100.0);
    assert_eq!(state["stats"]["accounts"]["a"]["served"], 2);
    assert_eq!(state["violations"], json!([]));
    assert_eq!(post("pause", r#"{"ms":100}"#).status, 200);
    eventually(|| TcpStream::connect(sim.addr()).is_err());
    eventually(|| TcpStream::connect(sim.addr()).is_ok());
}

#[test]
fn the_client_drives_and_reports() {
    let sim = start();
    let login = login(&sim, "a");
    let config = DriveConfig {
        base_url: format!("{}/codex", sim.backend()),
        key: token(&login, "access_token").to_owned(),
        requests: 7,
        concurrency: 3,
        gap: Duration::ZERO,
        timeout: Duration::from_secs(10),
    };
    let mut out = Vec::new();
    let summary = drive(config.clone(), &mut out).unwrap();
    assert_eq!((summary.ok, summary.failed), (7, 0));
    let out = String::from_utf8(out).unwrap();
    assert_eq!(out.lines().count(), 8);
    assert!(out.lines().next().unwrap().contains("hello from the simulated upstream"));
    assert_clean(&sim);
    assert_eq!(sim.stats().connections, 3);
    sim.fault(None, Route::Responses, Fault::ResetBeforeHead, Some(1));
    sim.fault(None, Route::Responses, Fault::CutMidStream { after: 2, by: Cut::CleanEnd }, Some(1));
    let mut out = Vec::new();
    let summary = drive(DriveConfig { requests: 3, concurrency: 1, ..config }, &mut out).unwrap();
    assert_eq!((summary.ok, summary.failed), (1, 2));
}

#[test]
fn nonsense_is_survived() {
    let sim = start();
    for bytes in [&b"\0\x01\x02\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", b"POST /oauth/token HT"] {
        let mut stream = TcpStream::connect(sim.addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        stream.write_all(bytes).unwrap();
        read(&mut stream);
    }
    for body in [&b"[]"[..], b"%", b"grant_type=%ff%0", b"{\"grant_type\":1}"] {
        assert_eq!(send(&sim, "POST /oauth/token", &[], body).unwrap().status, 400);
    }
    let login = login(&sim, "a");
    assert_eq!(turn(&sim, token(&login, "access_token")).unwrap().status, 200);
}

/// Waits for something that is about to become true.
fn eventually(holds: impl Fn() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never became true");
}

#[test]
fn dates_are_right() {
    use super::clock::{UnixMs, rfc3339};
    assert_eq!(rfc3339(UnixMs(0)), "1970-01-01T00:00:00Z");
    assert_eq!(rfc3339(UnixMs(951_782_400_000)), "2000-02-29T00:00:00Z");
    assert_eq!(rfc3339(UnixMs(1_795_228_642_000)), "2026-11-21T02:37:22Z");
}
