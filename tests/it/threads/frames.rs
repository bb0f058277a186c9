//! The same over WebSockets, the CLI's default: what is bound to an account stands in frames there, and
//! refusals come wrapped on a connection that goes on.

use super::{
    BYPASS, COMPACT, HOUR, LIMIT, assert_history, assert_quiet, begin, go_on, go_on_with, items,
    machine_with, says_what_to_type, shown, thoughts, to,
};
use crate::codex_kit::{codex, start};
use cma_tests::{
    sim::{Cut, Fault, Route, Seen},
    world::{World, eventually},
};
use serde_json::json;
use std::time::Duration;

fn machine() -> Option<World> {
    machine_with("on")
}

/// The frames of turns that reached the upstream; no turn may have gone another way.
#[track_caller]
fn frames(world: &World) -> Vec<Seen> {
    let seen = world.sim().seen().into_iter();
    let turns: Vec<Seen> = seen.filter(|seen| seen.path.ends_with("/codex/responses")).collect();
    let begin = |seen: &Seen| seen.method == "WS" && seen.body["generate"] != false;
    assert!(turns.iter().all(|seen| seen.method != "POST"), "a turn went over HTTP");
    turns.into_iter().filter(begin).collect()
}

/// Account and status of those from the n-th on.
#[track_caller]
fn asked(world: &World, from: usize) -> Vec<(String, u16)> {
    let one = |seen: Seen| (seen.account.unwrap_or_default(), seen.status.unwrap_or_default());
    frames(world).into_iter().skip(from).map(one).collect()
}

#[track_caller]
fn last(world: &World) -> Seen {
    frames(world).pop().unwrap()
}

#[test]
fn an_idle_thread_is_moved_by_hand_and_back() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    world.ctl(&format!("session move {id} b")).ok();
    go_on(&world, &id, "second words", "b");
    assert_history(&last(&world), &["first words", "served by a", "second words"]);
    assert_eq!(thoughts(&last(&world)), 0);
    let moved = &shown(&world, &id)["moves"][0];
    assert_eq!((&moved["from_name"], &moved["to_name"]), (&json!("a"), &json!("b")));
    assert_eq!(moved["dropped"], "1 reasoning item");
    // What was left out stays out; what the new account thought goes along.
    let before = frames(&world).len();
    go_on(&world, &id, "third words", "b");
    assert_eq!(asked(&world, before), to(&[("b", 200)]));
    world.ctl(&format!("session move {id} a")).ok();
    let before = frames(&world).len();
    go_on(&world, &id, "fourth words", "a");
    assert_eq!(asked(&world, before), to(&[("a", 200)]), "the pair is known by now");
    world.assert_clean();
}

#[test]
fn a_turn_that_fails_before_its_first_event_goes_on_elsewhere() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    world.sim().fault(Some("a"), Route::Frame, HOUR, None);
    go_on(&world, &id, "second words", "b");
    assert_history(&last(&world), &["first words", "served by a", "second words"]);
    assert_eq!(thoughts(&last(&world)), 0);
    assert_eq!(shown(&world, &id)["moves"][0]["reason"], "usage limit reached");
    world.assert_clean();
}

#[test]
fn a_turn_that_is_cut_after_its_first_event_goes_on_elsewhere() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    let before = frames(&world).len();
    let cut = Fault::CutMidStream { after: 8, by: Cut::Reset };
    world.sim().fault(Some("a"), Route::Frame, cut, Some(1));
    world.sim().fault(Some("a"), Route::Frame, HOUR, None);
    let ran = go_on_with(&world, &id, &[], "second words").ok();
    assert_eq!(ran.stdout.trim(), "served by b", "{}", ran.stderr);
    assert_quiet(&ran);
    let all = asked(&world, before);
    assert_eq!((&*all[0].0, all.last()), ("a", Some(&("b".to_owned(), 200))), "{all:?}");
    assert_history(&last(&world), &["first words", "second words"]);
    assert_eq!(thoughts(&last(&world)), 0);
    world.assert_clean();
}

#[test]
fn a_tool_loop_goes_on_elsewhere_without_the_turn_state() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    let before = frames(&world).len();
    world.sim().script_tool_call("echo from the tool");
    let slow = Fault::StallMidStream { after: 1, pause: Duration::from_secs(2) };
    world.sim().fault(Some("a"), Route::Frame, slow, Some(1));
    let args = ["exec", "resume", "--skip-git-repo-check", BYPASS, &id, "second words"];
    let running = start(codex(&world, args));
    eventually("the turn has begun", || asked(&world, before) == to(&[("a", 200)]));
    world.sim().fault(Some("a"), Route::Frame, HOUR, None);
    let ran = running.end(&world, LIMIT).ok();
    assert_eq!(ran.stdout.trim(), "served by b", "{}", ran.stderr);
    assert_quiet(&ran);
    let seen = last(&world);
    let state = |seen: &Seen| seen.body["client_metadata"].get("x-codex-turn-state").is_some();
    assert!(state(&frames(&world)[before + 1]), "the account's own is shown to it");
    assert!(!state(&seen) && seen.body.get("previous_response_id").is_none());
    assert_eq!((items(&seen, "function_call_output").count(), thoughts(&seen)), (1, 0));
    assert_history(&seen, &["first words", "second words", "from the tool"]);
    world.assert_clean();
}

#[test]
fn a_compaction_is_made_by_the_account_that_takes_over() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    world.sim().fault(Some("a"), Route::Frame, HOUR, None);
    let ran = go_on_with(&world, &id, &COMPACT, "second words").ok();
    assert_eq!(ran.stdout.trim(), "served by b", "{}", ran.stderr);
    assert_quiet(&ran);
    let trigger = |seen: &&Seen| items(seen, "compaction_trigger").count() == 1;
    let all = frames(&world);
    assert!(all.iter().any(|seen| trigger(&seen) && seen.status == Some(200)), "it was compacted");
    go_on(&world, &id, "third words", "b");
    assert_eq!(items(&last(&world), "compaction").count(), 1);
    world.assert_clean();
}

#[test]
fn a_compacted_thread_waits_for_its_account_or_goes_on_without_its_past() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    let ran = go_on_with(&world, &id, &COMPACT, "second words").ok();
    assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    world.sim().fault(Some("a"), Route::Frame, HOUR, None);
    says_what_to_type(&world, &id);
    world.ctl(&format!("session move {id} b --without-summary")).ok();
    go_on(&world, &id, "fourth words", "b");
    assert_eq!(items(&last(&world), "compaction").count(), 0);
    assert_history(&last(&world), &["fourth words"]);
    world.assert_clean();
}
