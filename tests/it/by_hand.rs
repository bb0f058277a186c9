//! The proxy from the wire: what the CLI's calls are answered, byte for byte and in time.

use crate::codex_kit::posts;
use cma_tests::{
    http::{Answer, Door, Line, turn_body},
    sim::{AccountSpec, Cut, Fault, Outcome, Route, SimConfig, Window},
    world::{World, eventually},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const WHOAMI: &str = "/api/accounts/v1/user-auth-credential/whoami";
const BUNDLE: &str = "/backend-api/wham/config/bundle";

fn world(accounts: Vec<AccountSpec>) -> (World, Door) {
    let world = World::with_accounts(SimConfig { accounts, ..SimConfig::default() });
    let door = Door::of(&world);
    (world, door)
}

fn two() -> (World, Door) {
    world(vec![AccountSpec::new("a"), AccountSpec::new("b")])
}

#[track_caller]
fn complete(answer: &Answer) {
    assert!(answer.is_complete(), "{} {:?} {}", answer.status, answer.headers, answer.text());
}

#[test]
fn whoami_names_one_real_account_and_stays_with_it() {
    let (world, door) = two();
    let me = door.get(WHOAMI).unwrap();
    let email = me.json()["email"].clone();
    assert_eq!(me.status, 200);
    assert_eq!(
        me.json(),
        json!({
            "email": "a@example.test", "chatgpt_user_id": "user-a", "chatgpt_account_id": "acct-a",
            "chatgpt_plan_type": "plus", "chatgpt_account_is_fedramp": false,
        })
    );
    // Neither a pin nor a limit nor a disabled account changes who the CLI believes to be.
    for words in ["switch b", "disable a", "label a z", "unpin"] {
        world.ctl(words).ok();
        assert_eq!(door.get(WHOAMI).unwrap().json()["email"], email, "{words}");
    }
    complete(&door.send(&door.turn()).unwrap());
    assert_eq!(door.get(WHOAMI).unwrap().json()["email"], email);
    assert!(world.sim().seen().iter().all(|seen| !seen.path.contains("whoami")));
    // Only when it leaves the pool another speaks.
    world.ctl("remove z --yes").ok();
    assert_eq!(door.get(WHOAMI).unwrap().json()["email"], "b@example.test");
    world.assert_clean();
}

#[test]
fn the_auxiliary_calls_are_answered() {
    let (world, door) = two();
    let check = door.get("/backend-api/wham/accounts/check").unwrap().json();
    assert_eq!(check["default_account_id"], "acct-a");
    assert_eq!(check["accounts"][0]["workspace_backend_origin"], "https://chatgpt.com");
    let models = door.get("/codex/models?client_version=0.169.0").unwrap();
    assert_eq!(models.json()["models"][0]["slug"], "gpt-5.5");
    let etag = models.header("etag").unwrap().to_owned();
    let again =
        door.ask("GET", "/codex/models?client_version=0.169.0").header("if-none-match", &etag);
    assert_eq!(door.send(&again).unwrap().status, 304);
    let percent = |usage: &Value, window: &str| {
        let used = &usage["rate_limit"][window]["used_percent"];
        used.as_u64().unwrap_or_else(|| panic!("no integer: {usage}"))
    };
    for account in ["a", "b"] {
        world.sim().set_used(account, 12.6, 3.4);
    }
    complete(&door.send(&door.turn()).unwrap());
    let usage = door.get("/backend-api/wham/usage").unwrap().json();
    assert!((12..=14).contains(&percent(&usage, "primary_window")), "{usage}");
    // From memory when upstream can't be asked: still integers, still 200.
    world.sim().fault(None, Route::Usage, Fault::server_error(500, None), None);
    let usage = door.get("/backend-api/wham/usage").unwrap();
    assert_eq!(usage.status, 200);
    assert!((12..=14).contains(&percent(&usage.json(), "primary_window")), "{}", usage.text());
    for path in [
        "wham/settings/user",
        "wham/profiles/me",
        "ps/plugins/installed",
        "wham/workspace-messages",
    ] {
        assert_eq!(door.get(&format!("/backend-api/{path}")).unwrap().status, 200, "{path}");
    }
    let events = door
        .ask("POST", "/backend-api/codex/analytics-events/events")
        .header("content-type", "application/json");
    assert_eq!(door.send(&events.body(b"{\"events\":[]}".to_vec())).unwrap().status, 200);
    world.assert_clean();
}

#[test]
fn a_401_never_reaches_the_cli_from_an_auxiliary_path() {
    let (world, door) = two();
    for (route, path) in [
        (Route::Aux, "/backend-api/wham/settings/user"),
        (Route::Aux, "/backend-api/ps/plugins/installed"),
        (Route::Models, "/codex/models"),
        (Route::Usage, "/backend-api/wham/usage"),
    ] {
        for fault in [Fault::token_expired(), Fault::token_invalidated()] {
            world.sim().fault(None, route, fault, None);
            let answer = door.get(path).unwrap();
            assert_ne!(answer.status, 401, "{path}: {}", answer.text());
            assert!(answer.status == 404 || answer.status == 200, "{path}: {}", answer.status);
            world.sim().clear_faults();
        }
    }
    // Really expired tokens too.
    world.sim().expire_access("a");
    world.sim().expire_access("b");
    for path in ["/backend-api/wham/settings/user", "/codex/models", "/backend-api/wham/usage"] {
        assert_ne!(door.get(path).unwrap().status, 401, "{path}");
    }
    world.assert_clean();
}

#[test]
fn a_managed_plans_policies_are_never_lifted() {
    let (plus, door) = world(vec![AccountSpec::new("a")]);
    plus.sim().fault(None, Route::Aux, Fault::server_error(500, None), None);
    let bundle = door.get(BUNDLE).unwrap();
    assert_eq!((bundle.status, bundle.json()), (200, json!({})));
    assert!(plus.sim().seen().iter().all(|seen| !seen.path.contains("bundle")));
    plus.assert_clean();
    for plan in ["business", "enterprise", "edu"] {
        let (managed, door) = world(vec![AccountSpec::new("a").plan(plan), AccountSpec::new("b")]);
        let policies = json!({ "policies": { "sandbox": "read-only" } });
        let faults = [
            Fault::server_error(500, None),
            Fault::token_expired(),
            Fault::forbidden(),
            Fault::ResetBeforeHead,
            Fault::GarbageHead,
            Fault::CutMidStream { after: 1, by: Cut::Close },
        ];
        for fault in &faults {
            managed.sim().fault(None, Route::Aux, fault.clone(), None);
            let bundle = door.get(BUNDLE).unwrap();
            assert!(!(200..300).contains(&bundle.status), "{plan} {fault:?}: {}", bundle.text());
            assert_ne!(bundle.status, 401, "{plan} {fault:?}");
            managed.sim().clear_faults();
        }
        managed.sim().fault(Some("a"), Route::Aux, Fault::json(200, &policies), Some(1));
        let bundle = door.get(BUNDLE).unwrap();
        assert_eq!((bundle.status, bundle.json()), (200, policies.clone()), "{plan}");
        // Once they are known, an outage doesn't keep the CLI from beginning; a refusal of its own does.
        for fault in faults {
            managed.sim().fault(None, Route::Aux, fault.clone(), None);
            let bundle = door.get(BUNDLE).unwrap();
            let refused = fault == Fault::forbidden();
            let want = if refused { (403, None) } else { (200, Some(policies.clone())) };
            let got = (bundle.status, (bundle.status == 200).then(|| bundle.json()));
            assert_eq!(got, want, "{plan} {fault:?}");
            managed.sim().clear_faults();
        }
        managed.assert_clean();
    }
}

/// As the CLI alone: a token that was refused is renewed for it, once.
#[test]
fn policies_are_worth_a_renewal() {
    let (managed, door) = world(vec![AccountSpec::new("a").plan("business")]);
    managed.sim().revoke_access("a");
    let bundle = door.get(BUNDLE).unwrap();
    assert_eq!(bundle.status, 200, "{}", bundle.text());
    managed.sim().fault(None, Route::Aux, Fault::token_invalidated(), None);
    for _ in 0..3 {
        assert_ne!(door.get(BUNDLE).unwrap().status, 401);
    }
    assert_eq!(managed.sim().stats().accounts["a"].refresh_requests, 1);
    assert_eq!(managed.account("a")["state"], "ready", "a turn tells whether the login is over");
    managed.assert_clean();
}

#[test]
fn the_only_accounts_final_answer_is_delivered_as_it_is() {
    let (world, door) = world(vec![AccountSpec::new("a")]);
    let fault = Fault::usage_not_included();
    world.sim().fault(None, Route::Responses, fault.clone(), None);
    let Fault::Status { code, body, .. } = fault else { panic!() };
    let answer = door.send(&door.turn()).unwrap();
    assert_eq!((answer.status, answer.text()), (code, body));
    assert_eq!(answer.header("x-cma-error"), None);
    // Believed for a while, and still an answer on which the CLI stops.
    let answer = door.send(&door.turn()).unwrap();
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("not included in its plan"), "{}", answer.text());
    world.sim().clear_faults();
    // Another model may be in the plan. What no account would answer otherwise is delivered too.
    let no = json!({ "detail": "no" });
    world.sim().fault(None, Route::Responses, Fault::json(400, &no), Some(1));
    let other = door.turn().with("x-codex-routing-hint", "model=gpt-5.5-mini");
    let answer = door.send(&other).unwrap();
    assert_eq!((answer.status, answer.json()), (400, no));
    world.assert_clean();
}

#[test]
fn a_dry_pool_answers_in_the_clis_own_words() {
    let dry = |name: &str, reset: u64| {
        AccountSpec::new(name)
            .primary(Window::new(1.0, 300, Duration::from_secs(reset)).used(100.0))
    };
    let (world, door) = world(vec![dry("a", 7200), dry("b", 3600)]);
    for _ in 0..2 {
        let answer = door.send(&door.turn()).unwrap();
        assert_eq!(answer.status, 429, "{}", answer.text());
        let error = answer.json()["error"].clone();
        assert_eq!(
            (&error["type"], &error["plan_type"]),
            (&json!("usage_limit_reached"), &json!("plus"))
        );
        let resets = error["resets_in_seconds"].as_u64().unwrap();
        assert!((3500..=3700).contains(&resets), "{error}");
        assert_eq!(answer.header("retry-after"), None, "the CLI would sleep it");
    }
    // Known to be dry: upstream isn't asked again.
    assert!(world.sim().stats().accounts.values().all(|stats| stats.limited <= 1));
    world.assert_clean();
}

/// What arrives through the proxy is what upstream sent, whatever it is.
#[test]
fn streams_pass_byte_for_byte() {
    let (world, door) = world(vec![AccountSpec::new("a")]);
    let login: Value = serde_json::from_str(&world.sim().auth_json("a")).unwrap();
    let token = login["tokens"]["access_token"].as_str().unwrap().to_owned();
    let direct = Door { addr: world.sim().addr(), key: token };
    let path = "/backend-api/codex/responses";
    let text =
        "Grüße, 世界! \u{1f980} \"quoted\" \\ and a long word ".to_owned() + &"x".repeat(100_000);
    world.sim().set_reply_text(&text);
    let normal = |answer: &Answer| {
        // The only thing that differs between two turns is their number.
        let text = answer.text();
        let id = text.split("resp_sim_").nth(1).unwrap();
        let id: String = id.chars().take_while(char::is_ascii_digit).collect();
        text.replace(&format!("_sim_{id}\""), "_sim_N\"")
    };
    let ask =
        direct.ask("POST", path).header("content-type", "application/json").body(turn_body(0));
    let from_sim = direct.send(&ask).unwrap();
    let through = door.send(&door.turn()).unwrap();
    complete(&through);
    assert_eq!(normal(&through), normal(&from_sim));
    let shown = |answer: &Answer| {
        let mut headers: Vec<_> = answer
            .headers
            .iter()
            .filter(|(name, _)| !name.contains("request-id") && !name.contains("turn-state"))
            // The tag of the pool's own list, when the launch has been given one.
            .filter(|(name, _)| name != "x-models-etag")
            .filter(|(name, _)| {
                !name.contains("used-percent") && !name.contains("reset") && name != "date"
            })
            .cloned()
            .collect();
        headers.sort();
        headers
    };
    assert_eq!(shown(&through), shown(&from_sim));
    world.assert_clean();
}

/// A cut stream is never ended cleanly, and a clean end without the last event is passed on as it is.
#[test]
fn a_cut_stream_looks_cut() {
    let (world, door) = world(vec![AccountSpec::new("a")]);
    // A clean end without the event that ends a response is a cut as well.
    for by in [Cut::Reset, Cut::Close, Cut::CleanEnd] {
        world.sim().fault(None, Route::Responses, Fault::CutMidStream { after: 2, by }, Some(1));
        let mut line = Line::open(door.addr).unwrap();
        line.write(&door.turn().bytes()).unwrap();
        assert_eq!(line.head().unwrap().status, 200);
        assert!(line.rest().is_err(), "{by:?} looks whole");
        complete(&door.send(&door.turn()).unwrap());
    }
    world.assert_clean();
}

/// A client that goes away leaves nothing behind: upstream sees it, and the account is free.
#[test]
fn a_client_that_leaves_ends_its_turn_upstream() {
    let (world, door) = world(vec![AccountSpec::new("a")]);
    let hang = Fault::HangMidStream { after: 2 };
    world.sim().fault(None, Route::Responses, hang, Some(1));
    world.sim().fault(None, Route::Responses, Fault::HangHead, Some(1));
    let mut line = Line::open(door.addr).unwrap();
    line.write(&door.turn().bytes()).unwrap();
    assert_eq!(line.head().unwrap().status, 200);
    line.piece().unwrap();
    assert_eq!(world.account("a")["in_flight"], 1);
    drop(line);
    let mut line = Line::open(door.addr).unwrap();
    line.write(&door.turn().bytes()).unwrap();
    eventually("the second is under way", || {
        world.sim().seen().iter().filter(|seen| seen.path.ends_with("/responses")).count() == 2
    });
    drop(line);
    eventually("both are given up upstream", || {
        let seen = world.sim().seen();
        seen.iter().filter(|seen| seen.outcome == Outcome::ClientGone).count() == 2
    });
    eventually("the account is free", || {
        let status = world.status();
        status["accounts"][0]["in_flight"] == 0 && status["proxy"]["active"] == 0
    });
    complete(&door.send(&door.turn()).unwrap());
    world.assert_clean();
}

/// How late the events of five turns came, in milliseconds, sorted.
fn late_events(door: &Door) -> Vec<f64> {
    let mut line = Line::open(door.addr).unwrap();
    let mut late = Vec::new();
    for _ in 0..5 {
        line.write(&door.turn().bytes()).unwrap();
        assert_eq!(line.head().unwrap().status, 200);
        let mut last = Instant::now();
        let mut first = true;
        while line.piece().unwrap().is_some() {
            let now = Instant::now();
            // The first event comes with the head.
            if !std::mem::take(&mut first) {
                late.push((now - last).as_secs_f64() * 1e3 - 10.0);
            }
            last = now;
        }
    }
    late.sort_by(f64::total_cmp);
    late
}

/// Events 10 ms apart on a kept connection: no waiting for acknowledgements anywhere.
#[test]
fn events_arrive_when_they_are_sent() {
    let gap = Duration::from_millis(10);
    let config = SimConfig { event_gap: gap, reply_text: "w ".repeat(40), ..SimConfig::default() };
    let world = World::with_accounts(config);
    let door = Door::of(&world);
    // What a busy machine delays, it delays now and then; what waits for acknowledgements, always.
    let well = (0..3).any(|_| {
        let late = late_events(&door);
        let at = |share: usize| late[late.len() * share / 100];
        let forty = late.iter().filter(|late| (25.0..35.0).contains(*late)).count();
        let (gaps, p50, p99) = (late.len(), at(50), at(99));
        eprintln!("{gaps} gaps: p50 {p50:+.1} ms, p99 {p99:+.1} ms off; {forty} near 40 ms");
        gaps >= 150 && p99 < 20.0 && forty * 50 < gaps
    });
    assert!(well, "events came late or in lumps, three times");
    world.assert_clean();
}

#[test]
fn large_bodies_pass_and_say_what_they_lose() {
    let (world, door) = two();
    let turn = |bytes: usize| door.turn().body(turn_body(bytes));
    for bytes in [2 << 20, 30 << 20] {
        complete(&door.send(&turn(bytes)).unwrap());
        let seen = posts(&world).pop().unwrap();
        assert!(seen.wire_bytes > bytes, "{} of {bytes}", seen.wire_bytes);
    }
    // The same in chunks.
    let body = turn_body(3 << 20);
    let mut chunked =
        door.turn().without("content-length").header("transfer-encoding", "chunked").bytes();
    let head = chunked.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    chunked.truncate(head);
    for chunk in body.chunks(100_000) {
        chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let mut line = Line::open(door.addr).unwrap();
    line.write(&chunked).unwrap();
    complete(&line.answer().unwrap());
    // Below the limit another account takes over, above it the client is asked to send it again.
    world.ctl("switch a").ok();
    for fault in [
        Fault::server_error(500, None),
        Fault::ResetBeforeHead,
        Fault::UsageLimitReached { resets_in: Duration::from_secs(60) },
    ] {
        world.sim().fault(Some("a"), Route::Responses, fault.clone(), Some(1));
        complete(&door.send(&turn(2 << 20)).unwrap());
        world.ctl("daemon restart").ok();
        world.sim().fault(None, Route::Responses, fault.clone(), Some(1));
        let before = posts(&world).len();
        let answer = door.send(&turn(30 << 20)).unwrap();
        assert_eq!(posts(&world).len(), before + 1, "{fault:?}: it was sent again");
        if matches!(fault, Fault::UsageLimitReached { .. }) {
            // By now nobody is left.
            assert_eq!(answer.status, 429);
            assert_eq!(answer.json()["error"]["type"], "usage_limit_reached");
            continue;
        }
        // On that the CLI sends it again, to the account that is there.
        assert_eq!(answer.status, 503, "{fault:?}: {}", answer.text());
        assert!(answer.text().contains("too large to be sent again"), "{}", answer.text());
        complete(&door.send(&turn(30 << 20)).unwrap());
        world.ctl("daemon restart").ok();
    }
    world.assert_clean();
}

/// A client that breaks off its upload is nobody's fault but its own.
#[test]
fn a_broken_upload_blames_no_account() {
    let (world, door) = two();
    let whole = door.turn().body(turn_body(1 << 20)).bytes();
    for _ in 0..5 {
        let mut line = Line::open(door.addr).unwrap();
        line.write(&whole[..whole.len() / 2]).unwrap();
        drop(line);
    }
    eventually("nothing runs", || {
        let status = world.status();
        status["accounts"].as_array().unwrap().iter().all(|account| account["in_flight"] == 0)
    });
    for account in ["a", "b"] {
        assert_eq!(world.account(account)["state"], "ready");
    }
    complete(&door.send(&door.turn()).unwrap());
    world.assert_clean();
}

/// `switch` holds for every request begun after it returned, and disturbs none before.
#[test]
fn a_switch_moves_the_next_request_and_not_the_running_one() {
    let (world, door) = two();
    world.ctl("switch a").ok();
    let mut took = Vec::new();
    for n in 0..10 {
        let (from, to) = if n % 2 == 0 { ("a", "b") } else { ("b", "a") };
        let pause = Duration::from_millis(200);
        let stall = Fault::StallMidStream { after: 1, pause };
        world.sim().fault(Some(from), Route::Responses, stall, Some(1));
        let before = world.sim().stats().accounts;
        let mut line = Line::open(door.addr).unwrap();
        line.write(&door.turn_in("one").bytes()).unwrap();
        let mut answer = line.head().unwrap();
        answer.body = line.piece().unwrap().unwrap();
        let switched = world.ctl(&format!("switch {to}")).ok();
        took.push(switched.took);
        complete(&door.send(&door.turn_in("one")).unwrap());
        answer.body.extend(line.rest().unwrap());
        complete(&answer);
        let now = world.sim().stats().accounts;
        for name in [from, to] {
            let served = now[name].completed - before.get(name).map_or(0, |stats| stats.completed);
            assert_eq!(served, 1, "{name}");
        }
    }
    // The whole process; a busy machine may be late with one.
    took.sort_unstable();
    eprintln!("switches: {took:?}");
    assert!(took[5] <= Duration::from_millis(50), "a switch took {took:?}");
    world.assert_clean();
}
