//! Each way an account or the host can fail, below a turn of the official CLI.

use crate::codex_kit::{
    TURN, VERSION, bare, codex, finish, logged, machine, posts, start, turn, upstream,
};
use cma_tests::{
    sim::{Cut, Fault, Outcome, Route},
    world::{Ran, World, eventually},
};
use serde_json::Value;
use std::{
    fs, thread,
    time::{Duration, Instant, SystemTime},
};

/// Two accounts; on the one chosen first, turns fail like this for ever.
fn failing(fault: Fault) -> Option<World> {
    let world = machine(&["a", "b"])?;
    world.sim().fault(Some("a"), Route::Responses, fault, None);
    Some(world)
}

/// One turn, which the other account answers after one failed attempt. The first as it is then.
#[track_caller]
fn moved(world: &World) -> Value {
    let ran = turn(world).ok();
    assert_eq!(ran.stdout.trim(), "served by b", "{}", ran.stderr);
    assert_quiet(&ran);
    let proxy = &world.status()["proxy"];
    assert_eq!(
        (&proxy["served"], &proxy["failed"], &proxy["retried"]),
        (&1.into(), &0.into(), &1.into())
    );
    // A kept connection that breaks is replaced by a new one, once.
    let mut accounts: Vec<_> = posts(world).into_iter().filter_map(|seen| seen.account).collect();
    assert!(accounts.len() <= 3, "{accounts:?}");
    accounts.dedup();
    assert_eq!(accounts, ["a", "b"]);
    let stats = world.sim().stats().accounts;
    assert_eq!((stats["a"].completed, stats["b"].completed), (0, 1));
    assert_eq!(world.account("b")["state"], "ready");
    assert_eq!(world.account("b")["served"], 1);
    world.account("a")
}

/// The CLI noticed nothing: it has the account's model list and had to repeat nothing. Lines of its
/// log are its own affair (the upgrade that was declined; `ps/mcp`, which it asks without a key; a
/// race of its own for its model cache).
#[track_caller]
fn assert_quiet(ran: &Ran) {
    for word in ["Reconnecting", "retry", "Falling back", "disconnected", "ERROR: ", "to refresh"] {
        assert!(!ran.stderr.contains(word), "`{word}` in {}", ran.stderr);
    }
    assert!(ran.stderr.contains("model: gpt-5.5"), "{}", ran.stderr);
}

/// It rests for that reason and about that long.
#[track_caller]
fn assert_rests(account: &Value, reason: &str, seconds: u64) {
    assert_eq!(account["state"], "cooling", "{account}");
    assert_eq!(account["reason"], reason, "{account}");
    let left = account["until"].as_u64().unwrap().saturating_sub(now());
    assert!((seconds.saturating_sub(5)..=seconds + 1).contains(&left), "{left} s: {account}");
}

#[track_caller]
fn assert_ready(account: &Value) {
    assert_eq!(account["state"], "ready", "{account}");
    assert_eq!(account["reason"], Value::Null, "{account}");
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn a_usage_limit_rests_the_account_until_its_reset() {
    let fault = Fault::UsageLimitReached { resets_in: Duration::from_secs(3600) };
    let Some(world) = failing(fault) else { return };
    assert_rests(&moved(&world), "usage limit reached", 3600);
    // It isn't asked again before.
    turn(&world).ok();
    assert_eq!(posts(&world).len(), 3);
    world.assert_clean();
}

#[test]
fn a_plan_without_the_model_keeps_the_account() {
    let Some(world) = failing(Fault::usage_not_included()) else { return };
    assert_ready(&moved(&world));
    turn(&world).ok();
    assert_eq!(posts(&world).len(), 3, "it isn't asked again for this model");
    world.assert_clean();
}

#[test]
fn a_throttle_without_a_time_is_short() {
    let Some(world) = failing(Fault::rate_limited(None)) else { return };
    assert_rests(&moved(&world), "asked to slow down", 5);
    world.assert_clean();
}

#[test]
fn a_throttle_with_a_time_lasts_that_long() {
    let Some(world) = failing(Fault::rate_limited(Some(60))) else { return };
    assert_rests(&moved(&world), "asked to slow down", 60);
    world.assert_clean();
}

#[test]
fn a_token_that_upstream_expires_is_renewed_once_and_the_same_account_serves() {
    let Some(world) = machine(&["a", "b"]) else { return };
    world.sim().expire_access("a");
    let ran = turn(&world).ok();
    assert_eq!(ran.stdout.trim(), "served by a");
    assert_quiet(&ran);
    let stats = world.sim().stats().accounts;
    assert_eq!((stats["a"].refresh_requests, stats["a"].refreshed), (1, 1));
    assert!(stats["a"].unauthorized > 0);
    assert_eq!(world.account("a")["generation"], 2);
    assert_ready(&world.account("a"));
    world.assert_clean();
}

#[test]
fn a_token_that_was_expired_at_the_import_is_renewed_before_it_is_sent() {
    let Some(world) = bare(upstream(&["a"]), VERSION) else { return };
    world.import("a", &world.sim().auth_json_expired("a")).ok();
    let ran = turn(&world).ok();
    assert_eq!(ran.stdout.trim(), "served by a");
    assert_quiet(&ran);
    let stats = world.sim().stats().accounts;
    assert_eq!((stats["a"].refresh_requests, stats["a"].refreshed), (1, 1));
    assert_eq!(stats["a"].unauthorized, 0);
    world.assert_clean();
}

#[test]
fn a_revoked_login_needs_its_person_and_the_other_account_serves() {
    let Some(world) = machine(&["a", "b"]) else { return };
    world.sim().revoke_family("a");
    let ran = turn(&world).ok();
    assert_eq!(ran.stdout.trim(), "served by b");
    assert_quiet(&ran);
    let account = world.account("a");
    assert_eq!(account["state"], "needs_login", "{account}");
    assert!(account["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{account}");
    assert_eq!(world.sim().stats().accounts["a"].refresh_requests, 1);
    turn(&world).ok();
    assert_eq!(world.sim().stats().accounts["a"].refresh_requests, 1, "asked once and for all");
    world.assert_clean();
}

#[test]
fn a_403_rests_the_account_for_a_minute() {
    let Some(world) = failing(Fault::forbidden()) else { return };
    assert_rests(&moved(&world), "forbidden by upstream", 60);
    world.assert_clean();
}

#[test]
fn a_402_rests_the_account_for_an_hour() {
    let Some(world) = failing(Fault::payment_required()) else { return };
    assert_rests(&moved(&world), "payment required", 3600);
    world.assert_clean();
}

#[test]
fn a_block_page_says_nothing_about_the_account() {
    let Some(world) = failing(Fault::cloudflare()) else { return };
    assert_ready(&moved(&world));
    world.assert_clean();
}

#[test]
fn a_500_cools_nobody() {
    let Some(world) = failing(Fault::server_error(500, None)) else { return };
    assert_ready(&moved(&world));
    world.assert_clean();
}

#[test]
fn a_503_cools_nobody() {
    let Some(world) = failing(Fault::overloaded()) else { return };
    assert_ready(&moved(&world));
    world.assert_clean();
}

#[test]
fn a_reset_before_the_first_byte_cools_nobody() {
    let Some(world) = failing(Fault::ResetBeforeHead) else { return };
    assert_ready(&moved(&world));
    world.assert_clean();
}

#[test]
fn garbage_instead_of_a_head_cools_nobody() {
    let Some(world) = failing(Fault::GarbageHead) else { return };
    assert_ready(&moved(&world));
    world.assert_clean();
}

#[test]
fn a_head_that_never_comes_is_waited_for_as_long_as_the_setting_says() {
    for by_key in [false, true] {
        let Some(world) = bare(upstream(&["a", "b"]), VERSION) else { return };
        let world = if by_key {
            fs::create_dir_all(world.root()).unwrap();
            fs::write(world.root().join("config.toml"), "head_timeout = \"2s\"\n").unwrap();
            world
        } else {
            world.with_env("CMA_HEAD_TIMEOUT", "2s")
        };
        world.import_all();
        world.sim().fault(Some("a"), Route::Responses, Fault::HangHead, None);
        let begun = Instant::now();
        assert_ready(&moved(&world));
        // By default it would be half a minute.
        let took = begun.elapsed().as_secs();
        assert!((2..25).contains(&took), "{took} s");
        let attempts = world.ctl("why --request last --json").ok().json()["attempts"].to_string();
        assert!(attempts.contains("no answer in time"), "{attempts}");
        world.assert_clean();
    }
}

/// A turn, by either transport, whose host refuses connections for a second.
#[track_caller]
pub(crate) fn waits_for_its_host(world: &World) {
    world.sim().stop_listening().unwrap();
    let running = start(codex(world, TURN));
    eventually("the turn met the dead host", || logged(world, "attempt failed") > 0);
    thread::sleep(Duration::from_secs(1));
    world.sim().resume_listening().unwrap();
    let ran = running.end(world, Duration::from_secs(60)).ok();
    assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    assert!(!ran.stderr.contains("Reconnecting"), "{}", ran.stderr);
    for name in ["a", "b"] {
        assert_ready(&world.account(name));
    }
    assert_eq!(world.status()["proxy"]["failed"], 0);
    world.assert_clean();
}

/// A turn, by either transport, whose host stays dead for longer than it is to be waited for, ends in our
/// words within that.
#[track_caller]
pub(crate) fn gives_a_dead_host_up(world: World, within: Duration) {
    let world = world.with_env("CMA_HOST_WAIT", "10s");
    world.ctl("daemon restart").ok();
    world.sim().stop_listening().unwrap();
    let ran = turn(&world);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.took < within, "{:?}", ran.took);
    assert!(!ran.stderr.contains("waiting for network"), "{}", ran.stderr);
    let said = |line: &&str| line.contains("cma:") && line.contains("could not connect");
    assert!(ran.stderr.lines().any(|line| said(&line)), "{}", ran.stderr);
    let attempts = logged(&world, "attempt failed");
    assert!((2..=30).contains(&attempts), "{attempts}");
    assert_eq!(world.status()["proxy"]["failed"], 1, "the CLI asked once");
    world.assert_clean();
}

#[test]
fn a_host_that_refuses_for_a_second_costs_no_account_anything() {
    let Some(world) = machine(&["a", "b"]) else { return };
    waits_for_its_host(&world);
}

#[test]
fn a_dead_host_ends_the_turn_in_our_words_after_few_attempts() {
    let Some(world) = machine(&["a", "b"]) else { return };
    gives_a_dead_host_up(world, Duration::from_secs(45));
}

#[test]
fn a_host_that_always_answers_500_is_asked_thirty_times_at_most() {
    asked_thirty_times_at_most(Fault::server_error(500, None));
}

#[test]
fn a_host_that_always_hangs_up_is_asked_thirty_times_at_most() {
    asked_thirty_times_at_most(Fault::ResetBeforeHead);
}

fn asked_thirty_times_at_most(fault: Fault) {
    let Some(world) = machine(&["a", "b"]) else { return };
    world.sim().fault(None, Route::Responses, fault, None);
    let ran = turn(&world);
    assert_eq!(ran.code, 1, "{ran:?}");
    let count = posts(&world).len();
    assert!((2..=30).contains(&count), "{count}");
    assert!(ran.stderr.contains("cma:"), "{}", ran.stderr);
    assert_eq!(world.status()["proxy"]["failed"], 1, "the CLI asked once");
    for name in ["a", "b"] {
        assert_ready(&world.account(name));
    }
    world.assert_clean();
}

#[test]
fn a_dry_pool_gets_the_clis_own_usage_limit_text() {
    let Some(world) = machine(&["a", "b"]) else { return };
    for name in ["a", "b"] {
        world.sim().set_used(name, 100.0, 10.0);
    }
    for known in [false, true] {
        let ran = turn(&world);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains("hit your usage limit"), "{}", ran.stderr);
        assert!(ran.stderr.contains("try again at"), "{}", ran.stderr);
        assert!(!ran.stderr.contains("waiting"), "{}", ran.stderr);
        assert_eq!(posts(&world).len(), 2, "each account is asked once, known: {known}");
    }
    for name in ["a", "b"] {
        assert_rests(&world.account(name), "usage limit reached", 3 * 3600);
    }
    world.assert_clean();
}

/// A cut within the stream belongs to the CLI: it alone knows what it has shown.
fn cut_is_not_hidden(by: Cut) {
    let Some(world) = machine(&["a", "b"]) else { return };
    world.sim().fault(None, Route::Responses, Fault::CutMidStream { after: 3, by }, Some(1));
    let ran = turn(&world).ok();
    assert_eq!(ran.stdout.trim(), "served by a");
    let outcomes: Vec<_> = posts(&world).iter().map(|seen| seen.outcome).collect();
    assert_eq!(outcomes, [Outcome::Cut, Outcome::Completed]);
    let proxy = &world.status()["proxy"];
    assert_eq!(
        (&proxy["served"], &proxy["failed"], &proxy["retried"]),
        (&1.into(), &1.into(), &0.into())
    );
    assert_eq!(logged(&world, "served"), 2, "the CLI asked twice");
    assert_ready(&world.account("a"));
    world.assert_clean();
}

#[test]
fn a_stream_that_is_closed_reaches_the_cli_as_broken() {
    cut_is_not_hidden(Cut::Close);
}

#[test]
fn a_stream_that_is_reset_reaches_the_cli_as_broken() {
    cut_is_not_hidden(Cut::Reset);
}

#[test]
fn twenty_turns_at_once_renew_an_expired_token_once() {
    let Some(world) = bare(upstream(&["a"]), VERSION) else { return };
    world.import("a", &world.sim().auth_json_expired("a")).ok();
    let runs: Vec<_> = (0..20).map(|_| start(codex(&world, TURN))).collect();
    for run in runs {
        let ran = run.end(&world, Duration::from_secs(100)).ok();
        assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    }
    let stats = &world.sim().stats().accounts["a"];
    assert_eq!((stats.refresh_requests, stats.refreshed, stats.reused), (1, 1, 0));
    assert_eq!(stats.completed, 20);
    assert_eq!(world.account("a")["served"], 20);
    world.assert_clean();
}

#[test]
fn twenty_turns_at_once_renew_a_refused_token_once() {
    let Some(world) = machine(&["a"]) else { return };
    world.sim().expire_access("a");
    let runs: Vec<_> = (0..20).map(|_| start(codex(&world, TURN))).collect();
    for run in runs {
        let ran = run.end(&world, Duration::from_secs(100)).ok();
        assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    }
    let stats = &world.sim().stats().accounts["a"];
    assert_eq!((stats.refresh_requests, stats.refreshed, stats.reused), (1, 1, 0));
    assert_eq!(stats.completed, 20);
    world.assert_clean();
}

#[test]
fn an_upgrade_that_is_answered_426_goes_over_to_http_without_a_word() {
    let Some(world) = machine(&["a"]) else { return };
    let ran = finish(&world, codex(&world, TURN), Duration::from_secs(60)).ok();
    assert_quiet(&ran);
    assert!(!ran.stderr.contains("Falling back"), "{}", ran.stderr);
    let upgrades = world.sim().seen().into_iter().filter(|seen| seen.header("upgrade").is_some());
    assert_eq!(upgrades.count(), 0, "the daemon answers the upgrade itself");
    world.assert_clean();
}
