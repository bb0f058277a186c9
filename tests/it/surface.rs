//! Everything around turns, from the wire: which account it goes to, how often, and what the CLI sees.

use crate::surface_kit::{accounts, post, posting, seen, served, specs, turn, world, world_with};
use cma_tests::{
    http::{Answer, Ask, Door},
    sim::{AccountSpec, Fault, Route, Window},
    world::eventually,
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, time::Duration};

const MODELS: &str = "/codex/models?client_version=0.169.0";
const USAGE: &str = "/backend-api/wham/usage";
const CREDITS: &str = "/backend-api/wham/rate-limit-reset-credits";
const CONSUME: &str = "/backend-api/wham/rate-limit-reset-credits/consume";
const CHECK: &str = "/backend-api/wham/accounts/check";

fn slugs(answer: &Answer) -> Vec<String> {
    let models = answer.json()["models"].as_array().cloned().unwrap_or_default();
    models.iter().map(|model| model["slug"].as_str().unwrap().to_owned()).collect()
}

fn plans() -> Vec<AccountSpec> {
    let models: [&[&str]; 3] = [&["m-one"], &["m-one", "m-two"], &["m-one", "m-three"]];
    let specs = specs(&["a", "b", "c"]).into_iter().zip(models);
    specs.map(|(spec, models)| spec.models(models)).collect()
}

#[test]
fn the_model_list_is_the_pools_and_costs_each_account_one_question() {
    let (world, door) = world(plans());
    // A start of the CLI asks twice, and several may start at once.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let answer = door.get(MODELS).unwrap();
                assert_eq!(slugs(&answer), ["m-one", "m-two", "m-three"]);
            });
        }
    });
    let asked = seen(&world, "/models");
    let mut whose = accounts(&asked);
    whose.sort_unstable();
    assert_eq!(whose, ["a", "b", "c"]);
    assert!(asked.iter().all(|seen| seen.query == "client_version=0.169.0"));
    let tag = door.get(MODELS).unwrap().header("etag").unwrap().to_owned();
    let again = door.send(&door.ask("GET", MODELS).header("if-none-match", &tag)).unwrap();
    assert_eq!((again.status, again.header("etag"), again.body.len()), (304, Some(&*tag), 0));
    // Another version of the CLI may see other models: it is asked for.
    assert_eq!(door.get("/codex/models?client_version=0.149.0").unwrap().status, 200);
    assert_eq!(seen(&world, "/models").len(), 6);
    world.assert_clean();
}

#[test]
fn a_model_goes_to_an_account_that_lists_it() {
    let (world, door) = world(plans());
    door.get(MODELS).unwrap();
    for (model, name) in [("m-two", "b"), ("m-three", "c"), ("m-two", "b")] {
        let before = served(&world, name);
        let session = format!("session-{model}");
        let ask = door.turn_in(&session).with("x-codex-routing-hint", &format!("model={model}"));
        assert!(door.send(&ask).unwrap().is_complete());
        assert_eq!(served(&world, name), before + 1, "{model}");
    }
    assert_eq!(served(&world, "a"), 0);
    // A pin yields where it can't serve; a model that nobody lists is tried all the same.
    world.ctl("switch a").ok();
    turn(&door, "m-three");
    assert_eq!((served(&world, "a"), served(&world, "c")), (0, 2));
    turn(&door, "m-hidden");
    assert_eq!(served(&world, "a"), 1);
    world.assert_clean();
}

#[test]
fn a_turns_tag_is_that_of_the_list_the_cli_has() {
    let (world, door) = world(plans());
    // Without a list there is nothing to compare with.
    assert_eq!(turn(&door, "m-one").header("x-models-etag"), None);
    let tag = door.get(MODELS).unwrap().header("etag").unwrap().to_owned();
    for name in ["a", "b", "c", "a"] {
        world.ctl(&format!("switch {name}")).ok();
        assert_eq!(turn(&door, "m-one").header("x-models-etag"), Some(&*tag), "{name}");
    }
    assert_eq!(seen(&world, "/models").len(), 3, "nothing was asked for again");
    // An account gets another model: the next turn tells, and only then.
    world.sim().set_models("a", &["m-one", "m-four"]);
    turn(&door, "m-one");
    eventually("the pool has noticed", || {
        turn(&door, "m-one").header("x-models-etag") != Some(&*tag)
    });
    let list = door.get(MODELS).unwrap();
    assert_eq!(slugs(&list), ["m-one", "m-four", "m-two", "m-three"]);
    let new = list.header("etag").unwrap();
    assert_ne!(new, tag);
    for name in ["b", "a"] {
        world.ctl(&format!("switch {name}")).ok();
        assert_eq!(turn(&door, "m-one").header("x-models-etag"), Some(new), "{name}");
    }
    // What can't be had any more is known all the same.
    world.sim().fault(None, Route::Models, Fault::server_error(500, None), None);
    assert_eq!(door.get(MODELS).unwrap().header("etag"), Some(new));
    world.assert_clean();
}

#[test]
fn a_model_list_renews_one_account_at_most() {
    let (world, door) = world(plans());
    for name in ["a", "b", "c"] {
        world.sim().revoke_access(name);
    }
    let answer = door.get(MODELS).unwrap();
    assert_eq!(slugs(&answer), ["m-one"], "the account that serves next was renewed");
    let stats = world.sim().stats();
    let refreshed: u64 = stats.accounts.values().map(|stats| stats.refresh_requests).sum();
    assert_eq!(refreshed, 1);
    assert!(stats.accounts.values().all(|stats| stats.unauthorized == 1), "{stats:?}");
    world.assert_clean();
}

/// Everything that may be asked, with a method; what each needs in its body.
fn all_calls(door: &Door) -> Vec<(String, Ask)> {
    let get = [
        "/codex/models",
        USAGE,
        CREDITS,
        CHECK,
        "/backend-api/wham/config/bundle",
        "/backend-api/wham/settings/user",
        "/backend-api/wham/security-setup",
        "/backend-api/wham/profiles/me",
        "/backend-api/wham/workspace-messages",
        "/backend-api/wham/environments",
        "/backend-api/wham/tasks/task_1",
        "/backend-api/wham/usage/thread_usage/query",
        "/backend-api/ps/plugins/installed?limit=200",
        "/backend-api/connectors/directory/list",
        "/backend-api/files/file-a-1",
        "/codex/alpha/notes/v2/list",
        "/codex/alpha/history/v2/list",
        "/api/codex/usage",
        "/api/codex/settings/user",
        "/ps/plugins/list",
    ];
    let sent = [
        "/codex/responses/compact",
        "/codex/images/generations",
        "/codex/images/edits",
        "/codex/alpha/search",
        "/codex/alpha/notes/v2/add",
        "/codex/memories/trace_summarize",
        "/codex/realtime/calls",
        "/backend-api/files",
        "/backend-api/files/file-a-1/uploaded",
        "/backend-api/codex/analytics-events/events",
        "/backend-api/ps/apps/batch",
        "/backend-api/wham/accounts/send_add_credits_nudge_email",
        CONSUME,
    ];
    let body = json!({ "model": "gpt-5.5", "credit_id": "c", "redeem_request_id": "r" });
    let gets = get.iter().map(|path| (format!("GET {path}"), door.ask("GET", path)));
    let posts = sent.iter().map(|path| (format!("POST {path}"), posting(door, path, &body)));
    let head = ("HEAD /codex/responses".to_owned(), door.ask("HEAD", "/codex/responses"));
    gets.chain(posts).chain([head]).collect()
}

fn status(door: &Door, ask: &Ask) -> u16 {
    let mut line = cma_tests::http::Line::open(door.addr).unwrap();
    line.write(&ask.bytes()).unwrap();
    line.head().unwrap().status
}

#[test]
fn no_call_is_ever_answered_401() {
    let (world, door) = world(specs(&["a", "b"]));
    for (what, ask) in all_calls(&door) {
        let good = if what.starts_with("HEAD") { 405 } else { 200 };
        let status = status(&door, &ask);
        let fine = status == good
            || (what.contains("realtime") && status == 201)
            || ((what.contains("consume") || what.contains("file-a-1")) && status == 404)
            || (what.contains("file-a-1") && status == 200);
        // The thread's usage is asked for by POST; a GET of it exists for nobody.
        assert!(fine || what.contains("thread_usage"), "{what}: {status}");
    }
    for fault in [Fault::token_expired(), Fault::token_invalidated()] {
        world.sim().fault(None, Route::Any, fault, None);
        for (what, ask) in all_calls(&door) {
            assert_ne!(status(&door, &ask), 401, "{what}");
        }
        world.sim().clear_faults();
    }
    assert_eq!(world.sim().violations(), Vec::<String>::new());
    world.assert_clean();
}

#[test]
fn what_is_in_no_table_goes_nowhere() {
    let (world, door) = world(specs(&["a"]));
    let before = world.sim().stats().requests;
    for path in [
        "/backend-api/conversation",
        "/backend-api/wham/remote/control/x",
        "/v1/responses",
        "/backend-api/wham/agent-identities/jwks",
        "/backend-api/codex/responses",
        "/codex/responses/x/y",
        "/backend-api/wham/../conversation",
        "/backend-api/ps/plugins/%2e%2e/x",
        "/codex/realtime/sessions",
        "/backend-api/ps/mcp",
        "/api/codex/ps/mcp",
        "/codex/responses/resp_1",
        "/backend-api//wham/usage",
    ] {
        for method in ["GET", "POST", "PUT", "DELETE"] {
            let answer = door.send(&door.ask(method, path).header("content-length", "0")).unwrap();
            assert_eq!(answer.status, 404, "{method} {path}");
        }
    }
    assert_eq!(world.sim().stats().requests, before);
    world.assert_clean();
}

/// What a person keeps out of turns isn't told as left.
#[test]
fn what_is_left_is_of_those_who_would_take_over() {
    let (world, door) = world(specs(&["a", "b"]));
    world.sim().set_used("a", 100.0, 40.0);
    world.sim().set_used("b", 0.0, 0.0);
    let left = || {
        let told = door.get(USAGE).unwrap().json();
        let limit = &told["rate_limit"];
        (limit["allowed"].clone(), limit["primary_window"]["used_percent"].clone())
    };
    eventually("both are known", || left() == (json!(true), json!(50)));
    for (out, back) in [("account pause b", "account unpause b"), ("force a", "unforce")] {
        world.ctl(out).ok();
        assert_eq!(left(), (json!(false), json!(100)), "{out}");
        world.ctl(back).ok();
        assert_eq!(left(), (json!(true), json!(50)), "{back}");
    }
    world.assert_clean();
}

#[test]
fn the_older_compaction_moves_like_a_turn() {
    let (world, door) = world(specs(&["a", "b"]));
    let body = json!({ "model": "gpt-5.5", "input": [], "instructions": "" });
    let compact = |session: &str| {
        let ask = posting(&door, "/codex/responses/compact", &body).header("session-id", session);
        let answer = door.send(&ask).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["output"][0]["by"].as_str().unwrap().to_owned()
    };
    // With the thread's account, as its turns.
    world.ctl("switch b").ok();
    assert!(door.send(&door.turn_in("s-1")).unwrap().is_complete());
    world.ctl("unpin").ok();
    assert_eq!(compact("s-1"), "b");
    world.sim().set_used("b", 100.0, 10.0);
    assert_eq!(compact("s-1"), "a");
    assert_eq!(world.account("b")["state"], "cooling");
    world.sim().fault(Some("a"), Route::Errand, Fault::server_error(500, None), Some(1));
    assert_eq!(compact("s-2"), "a", "tried again, as it changes nothing");
    // What the account before sealed stays behind, whether the thread is named or not.
    let thought = json!({ "type": "reasoning", "summary": [], "encrypted_content": world.sim().sealed_for("b") });
    let said = json!({ "type": "message", "role": "user", "content": [] });
    let body = json!({ "model": "gpt-5.5", "input": [thought, said], "instructions": "" });
    for session in [Some("s-1"), None] {
        let ask = posting(&door, "/codex/responses/compact", &body);
        let ask =
            session.map_or_else(|| ask.clone(), |name| ask.clone().header("session-id", name));
        let answer = door.send(&ask).unwrap();
        assert_eq!(answer.status, 200, "{session:?}: {}", answer.text());
        assert_eq!(answer.json()["output"][0]["by"], "a", "{session:?}");
    }
    world.assert_clean();
}

#[test]
fn usage_is_the_pools_in_whole_percents() {
    let window = |used| Window::new(0.0, 300, Duration::from_secs(7200)).used(used);
    let long = |used| Window::new(0.0, 10_080, Duration::from_secs(86_400)).used(used);
    let mut all = specs(&["a", "b", "c"]);
    for (spec, (short, week)) in all.iter_mut().zip([(100.0, 12.5), (30.4, 20.0), (0.0, 100.0)]) {
        *spec = spec.clone().primary(window(short)).secondary(long(week));
    }
    let (world, door) = world(all);
    let told: Vec<Value> = std::thread::scope(|scope| {
        let asking: Vec<_> =
            (0..24).map(|_| scope.spawn(|| door.get(USAGE).unwrap().json())).collect();
        asking.into_iter().map(|one| one.join().unwrap()).collect()
    });
    // Left of the short windows: 0, 70 (of 69.6 seen as whole percents), 0 as the week is spent.
    let used = |usage: &Value| usage["rate_limit"]["primary_window"]["used_percent"].clone();
    assert_eq!(told.iter().map(used).collect::<Vec<_>>(), vec![json!(77); told.len()]);
    let usage = &told[0];
    let limit = &usage["rate_limit"];
    assert_eq!(limit["secondary_window"]["used_percent"], 44, "{usage}");
    assert_eq!((&limit["allowed"], &limit["limit_reached"]), (&json!(true), &json!(false)));
    assert_eq!(limit["primary_window"]["limit_window_seconds"], 18_000);
    let resets = limit["primary_window"]["reset_after_seconds"].as_u64().unwrap();
    assert!((7000..=7200).contains(&resets), "{usage}");
    assert_eq!((&usage["email"], &usage["plan_type"]), (&json!("a@example.test"), &json!("plus")));
    let parts = usage["cma_accounts"].as_array().unwrap();
    let next: Vec<_> =
        parts.iter().filter(|part| part["next"] == true).map(|part| &part["name"]).collect();
    assert_eq!((parts.len(), next), (3, vec![&json!("b")]));
    assert_eq!(parts[1]["primary_window"]["used_percent"], 30);
    let asked = seen(&world, "/wham/usage");
    let mut whose = accounts(&asked);
    whose.sort_unstable();
    assert_eq!(whose, ["a", "b", "c"], "each was asked once, whoever looked");
    // From memory, in both path styles, when nobody can be asked.
    world.sim().stop_listening().unwrap();
    for path in [USAGE, "/api/codex/usage"] {
        let again = door.get(path).unwrap().json();
        assert_eq!(again["rate_limit"]["primary_window"]["used_percent"], 77, "{path}");
    }
    world.sim().resume_listening().unwrap();
    world.assert_clean();
}

/// The CLI shows and warns by what its turns tell: one account's windows aren't what its person has left.
#[test]
fn a_turn_tells_what_the_pool_has_left() {
    let window = |used| Window {
        per_request: 0.0,
        ..Window::new(0.0, 300, Duration::from_secs(7200)).used(used)
    };
    let long = |used| Window {
        per_request: 0.0,
        ..Window::new(0.0, 10_080, Duration::from_secs(86_400)).used(used)
    };
    for (names, shown) in [(&["a", "b"][..], ("60", "10")), (&["a"], ("90", "10"))] {
        let mut all = specs(names);
        for (spec, (short, week)) in all.iter_mut().zip([(90.0, 10.0), (30.0, 40.0)]) {
            *spec = spec.clone().primary(window(short)).secondary(long(week));
        }
        let (world, door) = world(all);
        door.get(USAGE).unwrap();
        world.ctl("switch a").ok();
        let answer = door.send(&door.turn()).unwrap();
        assert!(answer.is_complete(), "{}", answer.text());
        // An older CLI's own call for a compaction is a turn as well.
        let body = json!({ "model": "gpt-5.5", "input": [], "instructions": "" });
        let compacted = post(&door, "/codex/responses/compact", &body);
        for answer in [answer, compacted] {
            let field = |name: &str| answer.header(&format!("x-codex-{name}-used-percent"));
            let whole = |name: &str| field(name).unwrap().trim_end_matches(".0").to_owned();
            let told = (whole("primary"), whole("secondary"));
            assert_eq!((&*told.0, &*told.1), shown, "{names:?}");
        }
        let told = door.socket("thread-1").unwrap().say("hello");
        let limits = told.0.iter().find(|event| event["type"] == "codex.rate_limits").unwrap();
        for (place, used) in [("primary", shown.0), ("secondary", shown.1)] {
            let percent = limits["rate_limits"][place]["used_percent"].as_f64().unwrap();
            assert_eq!(percent.to_string(), used, "{names:?} {limits}");
        }
        let turns = seen(&world, "/codex/responses");
        assert!(turns.iter().all(|turn| turn.account.as_deref() == Some("a")), "{names:?}");
        // What the daemon itself goes by are the account's own.
        let windows = world.account("a")["windows"].clone();
        assert_eq!(windows[0]["used_percent"], 90.0, "{windows}");
        world.assert_clean();
    }
}

#[test]
fn a_dry_pool_says_when_it_is_back() {
    let dry = |name: &str, reset: u64| {
        AccountSpec::new(name)
            .primary(Window::new(1.0, 300, Duration::from_secs(reset)).used(100.0))
    };
    let (world, door) = world(vec![dry("a", 7200), dry("b", 3600)]);
    assert_eq!(door.send(&door.turn()).unwrap().status, 429);
    let usage = door.get(USAGE).unwrap().json();
    let limit = &usage["rate_limit"];
    assert_eq!((&limit["allowed"], &limit["limit_reached"]), (&json!(false), &json!(true)));
    assert_eq!(limit["primary_window"]["used_percent"], 100);
    let resets = limit["primary_window"]["reset_after_seconds"].as_u64().unwrap();
    assert!((3500..=3600).contains(&resets), "{usage}");
    assert!(
        usage["cma_accounts"].as_array().unwrap().iter().all(|part| part["state"] == "cooling")
    );
    world.assert_clean();
}

#[test]
fn a_reset_credit_is_used_where_it_belongs_and_on_command_only() {
    let (world, door) = world(specs(&["a", "b"]));
    world.sim().add_reset_credit("b", "credit-b");
    let list = door.get(CREDITS).unwrap().json();
    assert_eq!(
        (&list["available_count"], &list["credits"][0]["id"]),
        (&json!(1), &json!("credit-b"))
    );
    assert_eq!(list["credits"][0]["cma_account"], "b");
    // Out of quota: it rests, and stays so until somebody says otherwise.
    world.sim().set_used("b", 100.0, 50.0);
    world.ctl("switch b").ok();
    turn(&door, "gpt-5.5");
    assert_eq!(world.account("b")["state"], "cooling");
    assert_eq!(world.sim().stats().accounts["b"].credits_used, 0);
    let use_one = |credit: &str| {
        post(&door, CONSUME, &json!({ "redeem_request_id": "r-1", "credit_id": credit }))
    };
    assert_eq!(use_one("credit-of-nobody").status, 404);
    assert_eq!(post(&door, CONSUME, &json!({ "redeem_request_id": "r-1" })).status, 400);
    assert!(seen(&world, "/consume").is_empty(), "nobody was asked for what nobody has");
    // Its token was refused meanwhile: renewed, and used once all the same.
    world.sim().expire_access("b");
    assert_eq!(use_one("credit-b").status, 200);
    assert_eq!(world.account("b")["state"], "ready");
    let stats = world.sim().stats();
    assert_eq!((stats.accounts["a"].credits_used, stats.accounts["b"].credits_used), (0, 1));
    turn(&door, "gpt-5.5");
    assert_eq!(served(&world, "b"), 1);
    assert_eq!(door.get(CREDITS).unwrap().json()["available_count"], 0);
    world.assert_clean();
}

#[test]
fn a_person_lists_and_uses_reset_credits() {
    let (world, door) = world(specs(&["a", "b"]));
    for credit in ["c-1", "c-2"] {
        world.sim().add_reset_credit("a", credit);
    }
    let list = world.ctl("reset-credits list --json").ok().json();
    let purse = &list["purses"]["accounts"][0];
    assert_eq!((&purse["name"], &purse["available"]), (&json!("a"), &json!(2)), "{list}");
    assert!(world.ctl("reset-credits list").ok().stdout.contains("c-2"));
    world.sim().set_used("a", 100.0, 50.0);
    turn(&door, "gpt-5.5");
    assert_eq!(world.account("a")["state"], "cooling");
    // Nobody is there to be asked.
    let unasked = world.ctl("reset-credits use a");
    assert!(unasked.code != 0 && unasked.stderr.contains("--yes"), "{unasked:?}");
    assert_ne!(world.ctl("reset-credits use b --yes").code, 0, "it has none");
    assert_ne!(world.ctl("reset-credits use a --credit c-9 --yes").code, 0);
    assert_eq!(world.sim().stats().accounts["a"].credits_used, 0);
    let used = world.ctl("reset-credits use a --credit c-2 --yes --json").ok().json();
    assert_eq!((&used["credit"], &used["state"]), (&json!("c-2"), &json!("ready")), "{used}");
    assert_eq!(world.sim().stats().accounts["a"].credits_used, 1);
    // No answer: it is said, not tried again.
    world.sim().fault(Some("a"), Route::Errand, Fault::CloseAfterCommit, Some(1));
    let unknown = world.ctl("reset-credits use a --yes");
    assert!(unknown.code != 0 && unknown.stderr.contains("not known"), "{unknown:?}");
    assert_eq!(seen(&world, "/consume").len(), 2);
    world.assert_clean();
}

#[test]
fn a_workspace_is_served_from_where_it_lives() {
    let (world, door) = world(specs(&["a", "b", "c"]));
    let port = world.sim().addr().port();
    let origin = format!("http://localhost:{port}");
    world.sim().set_workspace("a", Some(&origin), Some("us_cr"));
    world.sim().set_workspace("b", Some("https://evil.example.test"), Some("us"));
    // The CLI is told of none of it: it would leave for there itself.
    let check = door.get(CHECK).unwrap().json();
    assert_eq!(check["accounts"][0]["workspace_backend_origin"], "https://chatgpt.com");
    assert_eq!(check["accounts"][0]["account_routing_override"], "NO_CONSTRAINT");
    eventually("all are learned", || seen(&world, "/wham/accounts/check").len() == 3);
    eventually("what is not trusted is said", || {
        let notes = world.status()["notes"].to_string();
        notes.contains("evil.example.test") && notes.contains("stay at")
    });
    let last = |name: &str| {
        world.ctl(&format!("switch {name}")).ok();
        turn(&door, "gpt-5.5");
        let seen = seen(&world, "/codex/responses").pop().unwrap();
        assert_eq!(seen.account.as_deref(), Some(name));
        let header = |name: &str| seen.header(name).map(str::to_owned);
        (header("host").unwrap(), header("x-openai-account-routing-override"))
    };
    let (here, there) = (world.sim().addr().to_string(), format!("localhost:{port}"));
    assert_eq!(last("a"), (there.clone(), Some("us_cr".to_owned())));
    assert_eq!(last("b"), (here.clone(), Some("us".to_owned())));
    assert_eq!(last("c"), (here.clone(), None));
    assert_eq!(last("a").0, there);
    // Only what lives below the Responses base goes there.
    door.get("/backend-api/wham/settings/user").unwrap();
    let settings = seen(&world, "/wham/settings/user").pop().unwrap();
    assert_eq!(settings.header("host"), Some(&*here));
    assert_eq!(settings.header("x-openai-account-routing-override"), None);
    // A renewal changes nothing; a client can't choose for the account.
    world.sim().expire_access("a");
    assert_eq!(last("a"), (there.clone(), Some("us_cr".to_owned())));
    world.ctl("switch c").ok();
    let own = door.turn().header("x-openai-account-routing-override", "us");
    assert!(door.send(&own).unwrap().is_complete());
    let seen_last = seen(&world, "/codex/responses").pop().unwrap();
    assert_eq!(seen_last.header("x-openai-account-routing-override"), None);
    // A CLI that was there before a new daemon doesn't ask again, and other clients never do: turns
    // make it learn.
    world.ctl("switch a").ok();
    world.kill_daemon();
    world.ctl("daemon start").ok();
    eventually("learned again", || last("a").0 == there);
    world.assert_clean();
}

#[test]
fn passed_calls_go_to_the_account_that_whoami_names() {
    let (world, door) = world(specs(&["a", "b"]));
    world.ctl("switch b").ok();
    turn(&door, "gpt-5.5");
    for path in [
        "/backend-api/ps/plugins/installed",
        "/backend-api/wham/tasks/task_1",
        "/api/codex/settings/user",
        "/backend-api/connectors/directory/list",
        "/backend-api/wham/profiles/me",
    ] {
        assert_eq!(door.get(path).unwrap().status, 200, "{path}");
    }
    assert_eq!(door.get("/backend-api/wham/tasks/task_1").unwrap().json()["owner"], "a");
    for path in ["/backend-api/ps/apps/batch", "/backend-api/wham/usage/thread_usage/query"] {
        assert_eq!(post(&door, path, &json!({})).status, 200, "{path}");
    }
    let turns: BTreeSet<_> = ["/codex/responses"].into();
    let others =
        world.sim().seen().into_iter().filter(|seen| seen.path.starts_with("/backend-api"));
    for seen in others {
        let path = seen.path.trim_start_matches("/backend-api");
        // Where each account's workspace lives is asked of each.
        if path == "/wham/accounts/check" {
            continue;
        }
        let expected = if turns.contains(path) { "b" } else { "a" };
        assert_eq!(seen.account.as_deref(), Some(expected), "{path}");
    }
    world.assert_clean();
}

#[test]
fn analytics_are_passed_or_dropped_as_set() {
    let path = "/backend-api/codex/analytics-events/events";
    let events = json!({ "events": [{ "event_type": "x" }] });
    let (kept, door) = world(specs(&["a"]));
    assert_eq!(post(&door, path, &events).status, 200);
    assert_eq!(seen(&kept, "/events").pop().unwrap().body, events);
    kept.assert_clean();
    let (dropped, door) = world_with("analytics = \"drop\"\n", &["a"]);
    assert_eq!(post(&door, path, &events).status, 200);
    assert!(seen(&dropped, "/events").is_empty());
    dropped.assert_clean();
    dropped.ctl("daemon stop").ok();
    eventually("the daemon is gone", || dropped.daemon_pid().is_none());
    fs::write(dropped.root().join("config.toml"), "analytics = \"perhaps\"\n").unwrap();
    let refused = dropped.ctl("daemon start");
    assert!(refused.code != 0 && refused.stderr.contains("`pass`"), "{refused:?}");
}
