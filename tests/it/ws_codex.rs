//! The official CLI over WebSockets, its default: what it sees with a daemon in between is what it
//! sees without one, except that limits stop hurting.

use crate::{
    codex_faults::{gives_a_dead_host_up, waits_for_its_host},
    codex_kit::{TURN, VERSION, bare, codex, finish, upstream},
};
use cma_tests::{
    sim::{Cut, Fault, Route, Seen, SimConfig},
    world::{Ran, World, bin_dir, eventually},
};
use serde_json::json;
use std::{fs, time::Duration};

const LIMIT: Duration = Duration::from_secs(60);

/// A machine with these accounts in the pool, which think, and WebSockets as they are for everybody.
fn machine_of(names: &[&str], version: &str) -> Option<World> {
    let config = SimConfig { reasoning: true, ..upstream(names) };
    let world = bare(config, version)?.with_env("CMA_WEBSOCKET", "on");
    world.import_all();
    Some(world)
}

fn machine(names: &[&str]) -> Option<World> {
    machine_of(names, VERSION)
}

fn turn(world: &World) -> Ran {
    finish(world, codex(world, TURN), LIMIT)
}

/// The frames of turns that reached the upstream, without prewarms.
fn frames(world: &World) -> Vec<Seen> {
    let seen = world.sim().seen().into_iter();
    seen.filter(|seen| seen.method == "WS" && seen.body["generate"] != false).collect()
}

fn posts(world: &World) -> usize {
    world
        .sim()
        .seen()
        .iter()
        .filter(|seen| seen.method == "POST" && seen.path.ends_with("/codex/responses"))
        .count()
}

/// The CLI noticed nothing.
#[track_caller]
fn assert_quiet(ran: &Ran) {
    for word in ["Reconnecting", "retry", "Falling back", "disconnected", "ERROR: ", "to refresh"] {
        assert!(!ran.stderr.contains(word), "`{word}` in {}", ran.stderr);
    }
}

#[test]
fn a_turn_goes_over_a_websocket_by_default() {
    for version in [VERSION, "0.149.0"] {
        let Some(world) = machine_of(&["a"], version) else { return };
        let ran = turn(&world).ok();
        assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
        assert_quiet(&ran);
        let all = frames(&world);
        assert_eq!((all.len(), posts(&world)), (1, 0), "{version}");
        assert!(all[0].body["previous_response_id"].is_string(), "it goes on from its prewarm");
        let stats = world.sim().stats();
        assert_eq!((stats.sockets, stats.frames, stats.pongs), (1, 2, 1));
        let proxy = &world.status()["proxy"];
        assert_eq!((&proxy["served"], &proxy["failed"]), (&1.into(), &0.into()));
        eventually("the socket is gone", || world.sim().stats().sockets_open == 0);
        world.assert_clean();
    }
}

/// A turn with one tool call, a command that the CLI runs between two requests of the same thread.
fn with_tool(world: &World, command: &str) -> Ran {
    world.sim().script_tool_call(command);
    let args =
        ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "go"];
    finish(world, codex(world, args), LIMIT)
}

/// `cmactl` as a tool finds it: its login shell has forgotten our PATH.
fn ctl(world: &World, words: &str) -> String {
    let root = world.root();
    format!(
        "CODEX_MULTI_AUTH_DIR={} {}/cmactl {words} >tool.out 2>&1",
        root.display(),
        bin_dir().display()
    )
}

fn accounts(seen: &[Seen]) -> Vec<&str> {
    seen.iter().filter_map(|seen| seen.account.as_deref()).collect()
}

#[test]
fn a_tool_loop_goes_on_with_its_turn_state() {
    let Some(world) = machine(&["a", "b"]) else { return };
    let ran = with_tool(&world, "echo hi >tool.out").ok();
    assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    assert_quiet(&ran);
    let all = frames(&world);
    assert_eq!((accounts(&all), posts(&world)), (vec!["a", "a"], 0));
    let states =
        all.iter().map(|seen| seen.body["client_metadata"]["x-codex-turn-state"].is_string());
    assert_eq!(states.collect::<Vec<_>>(), [false, true]);
    let input = all[1].body["input"].to_string();
    assert!(
        input.contains("_call_output") && !input.contains("go on"),
        "only what is new: {input}"
    );
    assert_eq!(world.sim().stats().sockets, 1);
    assert_eq!(fs::read_to_string(world.path("work/tool.out")).unwrap(), "hi\n");
    world.assert_clean();
}

#[test]
fn a_limit_before_the_answer_is_hidden() {
    let fault = Fault::UsageLimitReached { resets_in: Duration::from_secs(3600) };
    let Some(world) = machine(&["a", "b"]) else { return };
    world.sim().fault(Some("a"), Route::Frame, fault, None);
    let ran = turn(&world).ok();
    assert_eq!(ran.stdout.trim(), "served by b", "{}", ran.stderr);
    assert_quiet(&ran);
    assert_eq!(world.account("a")["state"], "cooling");
    world.assert_clean();
}

/// The account runs dry below a thread: the turn that goes on from its prewarm comes again with
/// everything, and another account serves it.
#[test]
fn an_account_that_runs_dry_is_left_without_a_word() {
    let Some(world) = machine(&["a", "b"]) else { return };
    world.sim().set_used("a", 100.0, 10.0);
    let ran = turn(&world).ok();
    assert_eq!(ran.stdout.trim(), "served by b", "{}", ran.stderr);
    assert_quiet(&ran);
    assert_eq!(accounts(&frames(&world)), ["a", "b"]);
    world.assert_clean();
}

#[test]
fn a_break_within_the_answer_costs_one_repetition() {
    let limit = json!({ "type": "rate_limit_error", "code": "rate_limit_exceeded" });
    for fault in [
        Fault::ErrorFrame { after: 6, code: 503, error: limit.to_string() },
        Fault::CutMidStream { after: 6, by: Cut::Reset },
        Fault::CutMidStream { after: 6, by: Cut::CleanEnd },
    ] {
        let Some(world) = machine(&["a", "b"]) else { return };
        world.sim().fault(Some("a"), Route::Frame, fault.clone(), Some(1));
        let ran = turn(&world).ok();
        assert!(ran.stdout.trim().starts_with("served by"), "{fault:?}: {}", ran.stderr);
        assert_quiet(&ran);
        assert_eq!(frames(&world).len(), 2, "{fault:?}");
        world.assert_clean();
    }
}

/// A person switches while a tool of the thread runs: its next request is served by the other account.
#[test]
fn a_switch_within_a_tool_loop_shows_nothing() {
    let Some(world) = machine(&["a", "b"]) else { return };
    let ran = with_tool(&world, &ctl(&world, "switch b")).ok();
    assert_eq!(ran.stdout.trim(), "served by b", "{}", ran.stderr);
    assert_quiet(&ran);
    let all = frames(&world);
    // As it is, refused for what the other one sealed, and without that.
    assert_eq!(accounts(&all), ["a", "b", "b"]);
    for seen in &all[1..] {
        assert!(seen.body.get("previous_response_id").is_none(), "it came with everything");
        assert_eq!(seen.body["client_metadata"].get("x-codex-turn-state"), None);
    }
    let thoughts = |seen: &Seen| seen.body["input"].to_string().contains("encrypted_content");
    assert!(thoughts(&all[1]) && !thoughts(&all[2]));
    world.assert_clean();
}

#[test]
fn a_connection_that_has_lived_its_time_shows_nothing() {
    let Some(world) = machine(&["a"]) else { return };
    world.sim().set_socket_age(Duration::from_secs(2));
    let ran = with_tool(&world, "sleep 3").ok();
    assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    assert_quiet(&ran);
    assert_eq!(world.sim().stats().sockets, 2);
    world.assert_clean();
}

#[test]
fn a_refused_token_is_renewed_once() {
    let Some(world) = machine(&["a", "b"]) else { return };
    world.sim().expire_access("a");
    let ran = turn(&world).ok();
    assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    assert_quiet(&ran);
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refresh_requests, stats.refreshed, stats.reused), (1, 1, 0));
    world.assert_clean();
}

#[test]
fn upstream_without_websockets_shows_nothing() {
    for fault in [
        Fault::websocket_426(),
        Fault::not_found(),
        Fault::server_error(500, None),
        Fault::ResetBeforeHead,
    ] {
        let Some(world) = machine(&["a", "b"]) else { return };
        world.sim().fault(None, Route::Upgrade, fault.clone(), None);
        for n in 1..=2 {
            let ran = turn(&world).ok();
            assert_eq!(ran.stdout.trim(), "served by a", "{fault:?}: {}", ran.stderr);
            assert_quiet(&ran);
            assert_eq!((frames(&world).len(), posts(&world)), (0, n), "{fault:?}");
        }
        for name in ["a", "b"] {
            assert_eq!(world.account(name)["state"], "ready", "{fault:?}");
        }
        world.assert_clean();
    }
}

#[test]
fn a_tool_loop_over_http_behind_the_socket_goes_on() {
    let Some(world) = machine(&["a", "b"]) else { return };
    world.sim().fault(None, Route::Upgrade, Fault::server_error(500, None), None);
    let ran = with_tool(&world, "true").ok();
    assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    assert_quiet(&ran);
    assert_eq!((frames(&world).len(), posts(&world)), (0, 2));
    world.assert_clean();
}

/// The daemon dies or is replaced while a tool runs: the thread goes on with the next one.
#[test]
fn another_daemon_takes_the_thread_over() {
    let Some(world) = machine(&["a"]) else { return };
    world.ctl("daemon start").ok();
    for how in ["restart", "kill"] {
        let command = match how {
            "restart" => ctl(&world, "daemon restart"),
            _ => format!(
                "kill -9 {}; sleep 0.2; {}",
                world.daemon_pid().unwrap(),
                ctl(&world, "daemon start")
            ),
        };
        let before = world.daemon_pid();
        let ran = with_tool(&world, &command).ok();
        assert_eq!(ran.stdout.trim(), "served by a", "{how}: {}", ran.stderr);
        assert_quiet(&ran);
        assert_ne!(world.daemon_pid(), before, "{how}");
    }
    world.assert_clean();
}

#[test]
fn a_dry_pool_gets_the_clis_own_text() {
    let Some(world) = machine(&["a", "b"]) else { return };
    for name in ["a", "b"] {
        world.sim().set_used(name, 100.0, 10.0);
    }
    let ran = turn(&world);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("hit your usage limit"), "{}", ran.stderr);
    assert!(ran.stderr.contains("try again at"), "{}", ran.stderr);
    assert!(ran.took < Duration::from_secs(30), "{:?}", ran.took);
    assert_eq!(frames(&world).len(), 2, "each account is asked once");
    world.assert_clean();
}

#[test]
fn a_host_that_always_fails_ends_the_turn_in_our_words() {
    let Some(world) = machine(&["a", "b"]) else { return };
    for route in [Route::Frame, Route::Responses] {
        world.sim().fault(None, route, Fault::server_error(500, None), None);
    }
    let ran = turn(&world);
    assert_eq!(ran.code, 1, "{ran:?}");
    let said = |line: &str| line.starts_with("ERROR: cma: ") && line.contains("failed in");
    assert!(ran.stderr.lines().any(said), "{}", ran.stderr);
    assert!((2..=30).contains(&frames(&world).len()), "{}", frames(&world).len());
    world.assert_clean();
}

/// The CLI alone goes on over HTTP when messages are lost again and again: so does a turn behind its socket,
/// unseen, and those after it begin there.
#[test]
fn a_host_that_fails_frames_only_is_asked_over_http() {
    for (row, fault) in [
        ("500", Fault::server_error(500, None)),
        ("cut", Fault::CutMidStream { after: 0, by: Cut::Reset }),
        ("dropped", Fault::ResetBeforeHead),
        ("402", Fault::payment_required()),
        ("403", Fault::forbidden()),
    ] {
        let Some(world) = machine(&["a", "b"]) else { return };
        for route in [Route::Prewarm, Route::Frame] {
            world.sim().fault(None, route, fault.clone(), None);
        }
        let ran = turn(&world).ok();
        assert!(ran.stdout.starts_with("served by"), "{row}: {}", ran.stderr);
        assert_quiet(&ran);
        let tried = frames(&world).len();
        assert!(tried <= 6 && posts(&world) == 1, "{row}: {tried} frames");
        turn(&world).ok();
        let again = frames(&world).len() - tried;
        assert!(again <= usize::from(row.starts_with("40")), "{row}: {again} more frames");
        world.assert_clean();
    }
}

/// A host that refuses connections is no account's fault, and a turn waits for it a while.
#[test]
fn a_host_that_refuses_for_a_second_costs_no_account_anything() {
    let Some(world) = machine(&["a", "b"]) else { return };
    waits_for_its_host(&world);
}

/// Its prewarm doesn't wait as well, so that it is soon over.
#[test]
fn a_dead_host_ends_the_turn_in_our_words_after_few_attempts() {
    let Some(world) = machine(&["a", "b"]) else { return };
    gives_a_dead_host_up(world, Duration::from_secs(30));
}

#[test]
fn a_cli_on_its_own_login_uses_websockets_too() {
    let Some(world) = bare(upstream(&["a", "b"]), VERSION) else { return };
    let world = world.with_env("CMA_WEBSOCKET", "on").with_env("CMA_AUTH_MODE", "own");
    let auth = world.sim().auth_json("a");
    world.import("a", &auth).ok();
    world.import("b", &world.sim().auth_json("b")).ok();
    fs::write(world.codex_home().join("auth.json"), auth).unwrap();
    world.sim().set_used("a", 100.0, 10.0);
    let ran = turn(&world).ok();
    assert_eq!(ran.stdout.trim(), "served by b", "{}", ran.stderr);
    assert_quiet(&ran);
    assert_eq!((accounts(&frames(&world)), posts(&world)), (vec!["a", "b"], 0));
    world.assert_clean();
}
