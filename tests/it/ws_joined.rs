//! Turns over WebSockets take part in what turns over HTTP do: the ledger, budgets, threads, the
//! account of a choice, and the host's health.

use crate::{
    codex_kit::{TURN, VERSION, bare, codex, finish, logged, upstream},
    ws_kit::{open, world},
};
use cma_tests::{
    sim::{Fault, Outcome, Route, Seen, Tokens},
    world::{Ran, World, eventually},
    ws::said,
};
use serde_json::{Value, json};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A machine with the official CLI, over WebSockets as they are for everybody.
fn machine() -> Option<World> {
    let world = bare(upstream(&["a", "b"]), VERSION)?.with_env("CMA_WEBSOCKET", "on");
    world.import_all();
    Some(world)
}

/// The frames of turns that reached the upstream, without prewarms.
fn frames(world: &World) -> Vec<Seen> {
    let seen = world.sim().seen().into_iter();
    seen.filter(|seen| seen.method == "WS" && seen.body["generate"] != false).collect()
}

fn rows(world: &World) -> Vec<Value> {
    let words = "usage --by request --since 48h --most 5000 --json";
    world.ctl(words).ok().json()["requests"].as_array().cloned().unwrap()
}

/// Account and tokens of the answers that upstream told to their end.
fn counted(world: &World) -> Vec<(String, Tokens)> {
    let whole = frames(world).into_iter().filter(|seen| seen.outcome == Outcome::Completed);
    let mut all: Vec<_> = whole.map(|seen| (seen.account.unwrap(), seen.tokens.unwrap())).collect();
    all.sort();
    all
}

/// The same by the ledger.
fn written(world: &World) -> Vec<(String, Tokens)> {
    let tokens = |row: &Value| Tokens {
        input: row["input_tokens"].as_u64().unwrap(),
        cached: row["cached_tokens"].as_u64().unwrap(),
        output: row["output_tokens"].as_u64().unwrap(),
        reasoning: row["reasoning_tokens"].as_u64().unwrap(),
    };
    let complete = rows(world).into_iter().filter(|row| row["outcome"] == "complete");
    let mut all: Vec<_> = complete
        .map(|row| (row["account_name"].as_str().unwrap().to_owned(), tokens(&row)))
        .collect();
    all.sort();
    all
}

#[test]
fn the_ledger_has_what_upstream_counted() {
    let world = world(&["a", "b"]);
    let mut socket = open(&world, "thread-1");
    let mut prewarm = socket.create(&[said("the prompt")]);
    prewarm["generate"] = false.into();
    let mut last = socket.ask(&prewarm).id();
    for text in ["one", "two", "three"] {
        last = socket.go_on(&last, text).id();
    }
    // A switch: the turn is asked for again with everything, and is one row.
    world.ctl("switch b").ok();
    let told = socket.go_on(&last, "four");
    assert_eq!(told.last()["error"]["code"], "previous_response_not_found");
    assert_eq!(socket.say("one two three four").text(), "served by b");
    world.sim().fault(Some("b"), Route::Frame, Fault::server_error(500, None), Some(1));
    assert_eq!(socket.say("five").text(), "served by a");
    eventually("all is written", || rows(&world).len() == 5);
    let all = rows(&world);
    assert!(all.iter().all(|row| row["outcome"] == "complete"), "{all:?}");
    assert!(all.iter().all(|row| row["thread"] == "thread-1" && row["model"] == "gpt-5.5"));
    let attempts: u64 = all.iter().filter_map(|row| row["attempts"].as_u64()).sum();
    assert_eq!(attempts, frames(&world).len() as u64, "every attempt that upstream saw");
    assert_eq!(counted(&world).len(), 5);
    assert_eq!(written(&world), counted(&world));
    let why = world.ctl("why --last --json").ok().json();
    let names: Vec<_> = why["candidates"].as_array().unwrap().iter().collect();
    assert_eq!(names.len(), 2, "{why}");
    assert_eq!(why["chosen"], world.account("a")["id"], "{why}");
    let session = &world.ctl("session show thread-1 --json").ok().json()["session"];
    assert_eq!((&session["requests"], &session["live"]), (&json!(5), &json!(0)));
    world.assert_clean();
}

fn turn(world: &World) -> Ran {
    finish(world, codex(world, TURN), LIMIT)
}

#[test]
fn a_budget_blocks_a_turn_of_the_cli_and_lets_go() {
    let Some(world) = machine() else { return };
    assert_eq!(turn(&world).ok().stdout.trim(), "served by a");
    world.ctl("budget limit stop --window day --requests 1").ok();
    let before = frames(&world).len();
    let ran = turn(&world);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("cma: the budget `stop`"), "{}", ran.stderr);
    assert_eq!(frames(&world).len(), before, "nothing was sent");
    world.ctl("budget delete stop").ok();
    assert!(turn(&world).ok().stdout.starts_with("served by "));
    let outcomes: Vec<_> = rows(&world).iter().map(|row| row["outcome"].clone()).collect();
    assert_eq!(outcomes, ["complete", "blocked", "complete"]);
    assert_eq!(written(&world), counted(&world));
    world.assert_clean();
}

/// A further turn of a thread, answered by that account without a word of trouble.
#[track_caller]
fn go_on(world: &World, id: &str, words: &str, by: &str) {
    let args = ["exec", "resume", "--skip-git-repo-check", id, words];
    let ran = finish(world, codex(world, args), LIMIT).ok();
    assert_eq!(ran.stdout.trim(), format!("served by {by}"), "{}", ran.stderr);
    for word in ["Reconnecting", "Falling back", "disconnected", "ERROR: "] {
        assert!(!ran.stderr.contains(word), "`{word}` in {}", ran.stderr);
    }
}

#[test]
fn a_thread_of_the_cli_is_listed_shown_and_moved() {
    let Some(world) = machine() else { return };
    let args = ["exec", "--skip-git-repo-check", "first words"];
    let ran = finish(&world, codex(&world, args), LIMIT).ok();
    assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    let list = world.ctl("session list --json").ok().json();
    let thread = &list["sessions"][0];
    let id = thread["id"].as_str().unwrap().to_owned();
    assert_eq!((&thread["requests"], &thread["live"]), (&json!(1), &json!(0)));
    assert_eq!(thread["account_name"], "a", "{list}");
    world.ctl(&format!("session move {id} b")).ok();
    go_on(&world, &id, "second words", "b");
    let detail = world.ctl(&format!("session show {id} --json")).ok().json();
    let moved = &detail["moves"][0];
    assert_eq!((&moved["from_name"], &moved["to_name"]), (&json!("a"), &json!("b")));
    assert_eq!(moved["reason"], "moved by hand");
    go_on(&world, &id, "third words", "b");
    let detail = world.ctl(&format!("session show {id} --json")).ok().json();
    assert_eq!(detail["moves"].as_array().map(Vec::len), Some(1));
    assert_eq!(detail["session"]["requests"], 3);
    let text = frames(&world).last().unwrap().body["input"].to_string();
    assert!(text.contains("second words") && text.contains("third words"), "{text}");
    world.assert_clean();
}

#[test]
fn a_host_that_fails_for_several_accounts_is_left_in_peace_for_a_moment() {
    let world = world(&["a", "b", "c"]);
    let mut socket = open(&world, "thread-1");
    let down = Fault::server_error(503, None);
    world.sim().fault(None, Route::Frame, down, Some(4));
    let told = socket.say("hello");
    assert!(told.is_complete(), "{:?}", told.0);
    assert!(logged(&world, "the host fails for several accounts: pause") > 0);
    for name in ["a", "b", "c"] {
        assert_ne!(world.account(name)["state"], "cooling", "{name}");
    }
    world.assert_clean();
}

/// An item that was sealed for `a`.
fn sealed(world: &World, kind: &str) -> Value {
    json!({ "type": kind, "summary": [], "encrypted_content": world.sim().sealed_for("a") })
}

fn moves(world: &World) -> Value {
    world.ctl("session show thread-1 --json").ok().json()["moves"].clone()
}

#[test]
fn what_a_move_left_out_stays_out() {
    let world = world(&["a", "b"]);
    let mut socket = open(&world, "thread-1");
    assert_eq!(socket.say("one").text(), "served by a");
    world.ctl("session move thread-1 b").ok();
    let thought = sealed(&world, "reasoning");
    let frame = socket.create(&[said("one"), thought.clone(), said("two")]);
    let told = socket.ask(&frame);
    assert_eq!(told.text(), "served by b", "{:?}", told.0);
    assert_eq!(frames(&world).last().unwrap().body["input"], json!([said("one"), said("two")]));
    let all = moves(&world);
    assert_eq!(
        (&all[0]["reason"], &all[0]["dropped"]),
        (&json!("moved by hand"), &json!("1 reasoning item"),)
    );
    // A turn that goes on has nothing of it and forgets nothing.
    assert!(socket.go_on(&told.id(), "three").is_complete());
    let before = frames(&world).len();
    let frame = socket.create(&[said("one"), thought, said("four")]);
    assert_eq!(socket.ask(&frame).text(), "served by b");
    let after = frames(&world);
    assert_eq!(after.len(), before + 1, "it is left out at once");
    assert_eq!(after[before].body["input"], json!([said("one"), said("four")]));
    world.assert_clean();
}

#[test]
fn a_compacted_thread_is_not_moved_without_a_word() {
    let world = world(&["a", "b"]);
    let mut socket = open(&world, "thread-1");
    assert_eq!(socket.say("one").text(), "served by a");
    let hour = Fault::UsageLimitReached { resets_in: Duration::from_secs(3600) };
    world.sim().fault(Some("a"), Route::Frame, hour, None);
    let frame = socket.create(&[sealed(&world, "compaction"), said("two")]);
    let told = socket.ask(&frame);
    let words = told.last()["response"]["error"]["message"].as_str().unwrap_or_default();
    assert!(words.contains("`cmactl session move thread-1 b --without-summary`"), "{:?}", told.0);
    world.ctl("session move thread-1 b --without-summary").ok();
    assert_eq!(socket.ask(&frame).text(), "served by b");
    assert_eq!(frames(&world).last().unwrap().body["input"], json!([said("two")]));
    assert_eq!(moves(&world)[0]["dropped"], "1 compaction item");
    world.assert_clean();
}

/// A fault of the one account that can read it is no reason to give the thread's past away.
#[test]
fn a_compacted_thread_is_served_by_its_account_that_failed_once() {
    let world = world(&["a", "b"]);
    let mut socket = open(&world, "thread-1");
    assert_eq!(socket.say("one").text(), "served by a");
    let frame = socket.create(&[sealed(&world, "compaction"), said("two")]);
    for fault in [Fault::ResetBeforeHead, Fault::server_error(500, None)] {
        world.sim().fault(Some("a"), Route::Frame, fault, Some(1));
        let told = socket.ask(&frame);
        assert_eq!(told.text(), "served by a", "{:?}", told.0);
    }
    let asked = frames(&world).into_iter().filter(|seen| seen.account.as_deref() == Some("b"));
    assert!(asked.count() <= 2, "with and without reasoning, once");
    world.assert_clean();
}
