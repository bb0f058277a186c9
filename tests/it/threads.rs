//! Threads of the official CLI that move between accounts, in each state in which they can.
//!
//! The upstream thinks (each answer begins with reasoning sealed for the account's workspace), gives
//! turn states that belong to an account and a turn, and refuses what another workspace sealed. It
//! notes a turn state that is shown to the wrong account; `assert_clean` looks at its notes.

mod frames;

use crate::codex_kit::{VERSION, bare, codex, finish, posts, start, upstream};
use cma_tests::{
    http::Door,
    sim::{Cut, Encrypted, Fault, Route, Seen, SimConfig},
    world::{Ran, World, eventually},
};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

const LIMIT: Duration = Duration::from_secs(60);
/// The tool is an echo; a sandbox isn't to be had on every machine.
const BYPASS: &str = "--dangerously-bypass-approvals-and-sandbox";
const HOUR: Fault = Fault::UsageLimitReached { resets_in: Duration::from_secs(3600) };

/// Two accounts, `a` chosen first, that think; WebSockets `on` or `off`.
fn machine_with(websockets: &str) -> Option<World> {
    let config = SimConfig { reasoning: true, ..upstream(&["a", "b"]) };
    let world = bare(config, VERSION)?.with_env("CMA_WEBSOCKET", websockets);
    world.import_all();
    Some(world)
}

fn machine() -> Option<World> {
    machine_with("off")
}

/// The first turn of a thread: its id.
#[track_caller]
fn begin(world: &World, words: &str) -> String {
    let ran = finish(world, codex(world, ["exec", "--skip-git-repo-check", words]), LIMIT).ok();
    assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    sessions(world)[0]["id"].as_str().unwrap().to_owned()
}

/// A further turn of a thread, with options of the CLI.
fn go_on_with(world: &World, id: &str, options: &[&str], words: &str) -> Ran {
    let mut args = vec!["exec", "resume", "--skip-git-repo-check"];
    args.extend(options);
    args.extend([id, words]);
    finish(world, codex(world, args), LIMIT)
}

/// A further turn, answered by that account without a word of trouble.
#[track_caller]
fn go_on(world: &World, id: &str, words: &str, by: &str) {
    let ran = go_on_with(world, id, &[], words).ok();
    assert_eq!(ran.stdout.trim(), format!("served by {by}"), "{}", ran.stderr);
    assert_quiet(&ran);
}

#[track_caller]
fn assert_quiet(ran: &Ran) {
    for word in ["Reconnecting", "retry", "Falling back", "disconnected", "ERROR: ", "could not be"]
    {
        assert!(!ran.stderr.contains(word), "`{word}` in {}", ran.stderr);
    }
}

fn sessions(world: &World) -> Vec<Value> {
    let list = world.ctl("session list --json").ok().json();
    assert_eq!(list["schema"], 1);
    list["sessions"].as_array().unwrap().clone()
}

fn shown(world: &World, id: &str) -> Value {
    world.ctl(&format!("session show {id} --json")).ok().json()
}

/// Account and status of the turns that reached the upstream from the n-th on.
fn asked(world: &World, from: usize) -> Vec<(String, u16)> {
    let one = |seen: Seen| (seen.account.unwrap_or_default(), seen.status.unwrap_or_default());
    posts(world).into_iter().skip(from).map(one).collect()
}

fn to(all: &[(&str, u16)]) -> Vec<(String, u16)> {
    all.iter().map(|(account, status)| ((*account).to_owned(), *status)).collect()
}

fn items<'a>(seen: &'a Seen, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    seen.body["input"].as_array().unwrap().iter().filter(move |item| item["type"] == kind)
}

fn thoughts(seen: &Seen) -> usize {
    items(seen, "reasoning").count()
}

/// The thread's own words are all there, in order.
#[track_caller]
fn assert_history(seen: &Seen, words: &[&str]) {
    let text = seen.body["input"].to_string();
    let places: Vec<_> = words.iter().map(|word| text.find(word)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{words:?}: {places:?}");
}

fn last(world: &World) -> Seen {
    posts(world).pop().unwrap()
}

#[test]
fn an_idle_thread_is_moved_by_hand_and_back_to_the_pools_choice() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    let ran = world.ctl(&format!("session move {} b", &id[..13])).ok();
    assert!(ran.stdout.contains(&format!("Thread {id} goes to b")), "{}", ran.stdout);
    go_on(&world, &id, "second words", "b");
    // As it is, refused; once more without what was sealed for the other.
    assert_eq!(asked(&world, 1), to(&[("b", 400), ("b", 200)]));
    assert_history(&last(&world), &["first words", "served by a", "second words"]);
    assert_eq!(thoughts(&last(&world)), 0);
    let detail = shown(&world, &id);
    let moved = &detail["moves"][0];
    assert_eq!((&moved["from_name"], &moved["to_name"]), (&json!("a"), &json!("b")));
    assert_eq!(moved["reason"], "moved by hand");
    assert_eq!(moved["dropped"], "1 reasoning item");
    assert_eq!(detail["session"]["pinned"]["account_name"], "b");
    let why = world.ctl("why --request last --json").ok().json();
    let told = why["attempts"].to_string();
    assert!(told.contains("moved from a to b (moved by hand): dropped 1 reasoning item"), "{told}");
    // What was left out stays out; what the new account thought goes along.
    go_on(&world, &id, "third words", "b");
    assert_eq!(asked(&world, 3), to(&[("b", 200)]));
    assert_eq!(thoughts(&last(&world)), 1);
    assert_history(&last(&world), &["first words", "second words", "served by b", "third words"]);
    // Without the pin it stays where its cache is.
    world.ctl(&format!("session unpin {id}")).ok();
    go_on(&world, &id, "fourth words", "b");
    // Back: the pair is known by now, so nothing is refused.
    world.ctl(&format!("session move {id} a")).ok();
    go_on(&world, &id, "fifth words", "a");
    assert_eq!(asked(&world, 4), to(&[("b", 200), ("a", 200)]));
    assert_eq!(shown(&world, &id)["moves"].as_array().unwrap().len(), 2);
    let thread = &sessions(&world)[0];
    assert_eq!((&thread["requests"], &thread["live"]), (&json!(5), &json!(0)));
    world.assert_clean();
}

#[test]
fn a_refusal_without_a_code_is_understood_and_what_is_read_is_not_left_out() {
    let Some(world) = machine() else { return };
    world.sim().set_encrypted(Encrypted::Wordy);
    let id = begin(&world, "first words");
    world.ctl("switch b").ok();
    go_on(&world, &id, "second words", "b");
    assert_eq!(asked(&world, 1), to(&[("b", 400), ("b", 200)]));
    assert_eq!(shown(&world, &id)["moves"][0]["reason"], "the other one is pinned");
    world.assert_clean();

    let Some(world) = machine() else { return };
    world.sim().set_encrypted(Encrypted::Lenient);
    let id = begin(&world, "first words");
    world.ctl("switch b").ok();
    go_on(&world, &id, "second words", "b");
    assert_eq!(asked(&world, 1), to(&[("b", 200)]));
    assert_eq!(thoughts(&last(&world)), 1);
    assert_eq!(shown(&world, &id)["moves"][0]["dropped"], "nothing");
    world.assert_clean();
}

#[test]
fn a_turn_that_fails_before_its_first_event_goes_on_elsewhere() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    world.sim().fault(Some("a"), Route::Responses, HOUR, None);
    go_on(&world, &id, "second words", "b");
    assert_eq!(asked(&world, 1), to(&[("a", 429), ("b", 400), ("b", 200)]));
    assert_history(&last(&world), &["first words", "served by a", "second words"]);
    let detail = shown(&world, &id);
    assert_eq!(detail["moves"][0]["reason"], "usage limit reached");
    assert_eq!(detail["session"]["pinned"], Value::Null);
    world.assert_clean();
}

#[test]
fn a_turn_that_is_cut_after_its_first_event_goes_on_elsewhere() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    let cut = Fault::CutMidStream { after: 3, by: Cut::Reset };
    world.sim().fault(Some("a"), Route::Responses, cut, Some(1));
    world.sim().fault(Some("a"), Route::Responses, HOUR, None);
    // The CLI sees the cut and asks again; what it asks then it gets.
    let ran = go_on_with(&world, &id, &[], "second words").ok();
    assert_eq!(ran.stdout.trim(), "served by b", "{}", ran.stderr);
    let told = ran.stderr.lines().filter(|line| line.starts_with("ERROR: "));
    assert!(told.clone().all(|line| line.contains("Reconnecting... 1/5")), "{}", ran.stderr);
    assert_eq!(asked(&world, 1), to(&[("a", 200), ("a", 429), ("b", 400), ("b", 200)]));
    assert_history(&last(&world), &["first words", "second words"]);
    world.assert_clean();
}

#[test]
fn a_tool_loop_goes_on_elsewhere_without_the_turn_state() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    world.sim().script_tool_call("echo from the tool");
    // The turn's first request is served, its second is not.
    let slow = Fault::StallMidStream { after: 1, pause: Duration::from_secs(2) };
    world.sim().fault(Some("a"), Route::Responses, slow, Some(1));
    let args = ["exec", "resume", "--skip-git-repo-check", BYPASS, &id, "second words"];
    let running = start(codex(&world, args));
    eventually("the turn has begun", || asked(&world, 1) == to(&[("a", 200)]));
    world.sim().fault(Some("a"), Route::Responses, HOUR, None);
    let ran = running.end(&world, LIMIT).ok();
    assert_eq!(ran.stdout.trim(), "served by b", "{}", ran.stderr);
    assert_quiet(&ran);
    assert_eq!(asked(&world, 1), to(&[("a", 200), ("a", 429), ("b", 400), ("b", 200)]));
    let seen = last(&world);
    assert!(posts(&world)[2].header("x-codex-turn-state").is_some(), "the account's own");
    assert_eq!(seen.header("x-codex-turn-state"), None);
    assert_eq!(items(&seen, "function_call_output").count(), 1);
    assert_history(&seen, &["first words", "second words", "from the tool"]);
    assert_eq!(shown(&world, &id)["moves"][0]["dropped"], "turn state, 2 reasoning items");
    world.assert_clean();
}

#[test]
fn a_switch_takes_the_next_request_of_a_turn_and_a_pin_that_returns_waits_for_its_end() {
    let Some(world) = machine() else { return };
    world.sim().script_tool_call("echo from the tool");
    let slow = Fault::StallMidStream { after: 1, pause: Duration::from_secs(2) };
    world.sim().fault(Some("a"), Route::Responses, slow.clone(), Some(1));
    let running = start(codex(&world, ["exec", "--skip-git-repo-check", BYPASS, "first words"]));
    eventually("the turn has begun", || asked(&world, 0) == to(&[("a", 200)]));
    world.ctl("switch b").ok();
    let ran = running.end(&world, LIMIT).ok();
    assert_eq!(ran.stdout.trim(), "served by b", "a person's word counts at once: {}", ran.stderr);
    assert_quiet(&ran);
    world.assert_clean();

    // Nobody says anything during the turn: the pin's account comes back and waits.
    let Some(world) = machine() else { return };
    world.ctl("switch b").ok();
    world.ctl("disable b").ok();
    world.sim().script_tool_call("echo from the tool");
    world.sim().fault(Some("a"), Route::Responses, slow, Some(1));
    let running = start(codex(&world, ["exec", "--skip-git-repo-check", BYPASS, "first words"]));
    eventually("the turn has begun", || asked(&world, 0) == to(&[("a", 200)]));
    world.ctl("enable b").ok();
    let ran = running.end(&world, LIMIT).ok();
    assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    assert_eq!(asked(&world, 0), to(&[("a", 200), ("a", 200)]));
    let id = sessions(&world)[0]["id"].as_str().unwrap().to_owned();
    go_on(&world, &id, "second words", "b");
    world.assert_clean();
}

/// Compaction before the next turn.
const COMPACT: [&str; 2] = ["-c", "model_auto_compact_token_limit=100"];

#[test]
fn a_compaction_is_made_by_the_account_that_takes_over() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    world.sim().fault(Some("a"), Route::Responses, HOUR, None);
    let ran = go_on_with(&world, &id, &COMPACT, "second words").ok();
    assert_eq!(ran.stdout.trim(), "served by b", "{}", ran.stderr);
    assert_quiet(&ran);
    let all = posts(&world);
    let trigger = |seen: &&Seen| items(seen, "compaction_trigger").count() == 1;
    assert!(all.iter().any(|seen| trigger(&seen) && seen.status == Some(200)), "it was compacted");
    assert_eq!(items(&last(&world), "compaction").count(), 1);
    go_on(&world, &id, "third words", "b");
    assert_eq!(items(&last(&world), "compaction").count(), 1);
    world.assert_clean();
}

/// A turn of a thread whose compaction only `a` can read, while that is at its limit: one line.
#[track_caller]
fn says_what_to_type(world: &World, id: &str) {
    let ran = go_on_with(world, id, &[], "third words");
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let line = format!("run `cmactl session move {id} b --without-summary`");
    assert!(ran.stderr.contains("only `a` (usage limit reached) can read"), "{}", ran.stderr);
    assert!(ran.stderr.contains(&line), "{}", ran.stderr);
}

#[test]
fn a_compacted_thread_waits_for_its_account_or_goes_on_without_its_past() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    let ran = go_on_with(&world, &id, &COMPACT, "second words").ok();
    assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    assert_eq!(items(&last(&world), "compaction").count(), 1);
    let before = posts(&world).len();
    world.sim().fault(Some("a"), Route::Responses, HOUR, None);
    says_what_to_type(&world, &id);
    assert_eq!(asked(&world, before)[0], ("a".to_owned(), 429));
    // It is known from now on: nobody is asked in vain.
    let before = posts(&world).len();
    assert_eq!(go_on_with(&world, &id, &[], "third words").code, 1);
    assert_eq!(asked(&world, before), []);
    let words = format!("session move {id} b --without-summary");
    assert!(world.ctl(&words).ok().stdout.contains("goes to b"));
    go_on(&world, &id, "fourth words", "b");
    assert_eq!(items(&last(&world), "compaction").count(), 0);
    assert_history(&last(&world), &["fourth words"]);
    assert_eq!(shown(&world, &id)["session"]["pinned"]["without_summary"], true);
    let moved = shown(&world, &id)["moves"][0]["dropped"].to_string();
    assert!(moved.contains("1 compaction item"), "{moved}");
    let before = posts(&world).len();
    go_on(&world, &id, "fifth words", "b");
    assert_eq!(asked(&world, before), to(&[("b", 200)]), "what is lost is left out at once");
    world.assert_clean();
}

#[test]
fn a_compacted_thread_is_served_by_its_account_when_that_is_back_in_moments() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    go_on_with(&world, &id, &COMPACT, "second words").ok();
    world.sim().fault(Some("a"), Route::Responses, Fault::rate_limited(Some(3)), Some(1));
    go_on(&world, &id, "third words", "a");
    assert_eq!(items(&last(&world), "compaction").count(), 1);
    assert_eq!(shown(&world, &id)["moves"], json!([]));
    world.assert_clean();
}

#[test]
fn a_compacted_thread_is_served_by_its_account_that_failed_once() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    go_on_with(&world, &id, &COMPACT, "second words").ok();
    let mut before = posts(&world).len();
    // The other one is asked with and without reasoning; from then on it is known that it can't read it.
    for (words, wanted) in [
        ("third words", &[("a", 500), ("b", 400), ("b", 400), ("a", 200)][..]),
        ("fourth words", &[("a", 500), ("a", 200)][..]),
    ] {
        world.sim().fault(Some("a"), Route::Responses, Fault::server_error(500, None), Some(1));
        go_on(&world, &id, words, "a");
        assert_eq!(asked(&world, before), to(wanted), "{words}");
        before = posts(&world).len();
    }
    assert_eq!(items(&last(&world), "compaction").count(), 1);
    world.assert_clean();
}

#[test]
fn a_compacted_thread_that_was_refused_elsewhere_returns_to_its_account() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    go_on_with(&world, &id, &COMPACT, "second words").ok();
    // Longer than a request waits.
    let soon = Fault::UsageLimitReached { resets_in: Duration::from_secs(14) };
    world.sim().fault(Some("a"), Route::Responses, soon, Some(1));
    let ran = go_on_with(&world, &id, &[], "third words");
    assert!(ran.code == 1 && ran.stderr.contains("try again in 1 min, or"), "{}", ran.stderr);
    // The other one was asked last; it isn't asked again.
    let back = world.account("a")["until"].as_u64().unwrap();
    eventually("it is back in moments", || back.saturating_sub(now()) <= 5);
    let before = posts(&world).len();
    go_on(&world, &id, "third words again", "a");
    assert_eq!(asked(&world, before), to(&[("a", 200)]));
    assert_eq!(items(&last(&world), "compaction").count(), 1);
    world.assert_clean();
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn threads_moved_by_hand_are_sealed_with_the_root() {
    let world = World::with_accounts(upstream(&["a", "b"]));
    let with = |words: &str| {
        let mut command = world.command("cmactl");
        command.env("CMA_PASSPHRASE", "four words of mine").args(words.split(' '));
        world.finish(command)
    };
    let door = Door::of(&world);
    let served = || door.send(&door.turn_in("thread-one")).unwrap().text();
    assert!(served().contains("served by"));
    world.ctl("session move thread-one b").ok();
    with("seal on").ok();
    let kept = std::fs::read(world.root().join("threads/pins.json")).unwrap();
    assert!(kept.starts_with(b"cma-sealed 1 "));
    world.kill_daemon();
    assert_eq!(world.status()["daemon"]["phase"], "locked");
    for words in ["session move thread-one a", "session unpin thread-one"] {
        let ran = world.ctl(words);
        assert_eq!(ran.code, 6, "{ran:?}");
        assert!(ran.stderr.contains("cmactl unlock"), "{ran:?}");
    }
    with("unlock").ok();
    assert!(served().contains("served by b"), "the person's word still counts");
    // What is damaged meanwhile keeps nobody from serving, is told, and isn't written over.
    world.kill_daemon();
    let pins = world.root().join("threads/pins.json");
    let whole = std::fs::read(&pins).unwrap();
    let damaged = [&whole[..whole.len() / 2], b"!"].concat();
    std::fs::write(&pins, &damaged).unwrap();
    assert_eq!(world.status()["daemon"]["phase"], "locked");
    for _ in 0..2 {
        let ran = with("unlock");
        assert_ne!(ran.code, 0, "{ran:?}");
        let said = &ran.stderr;
        assert!(said.contains("its accounts serve") && said.contains("pins.json"), "{said}");
    }
    assert!(served().contains("served by"));
    assert!(world.status()["notes"].to_string().contains("cmactl unlock"));
    assert_eq!(world.ctl("session move thread-one a").code, 6);
    assert_eq!(std::fs::read(&pins).unwrap(), damaged);
    std::fs::write(&pins, &whole).unwrap();
    with("unlock").ok();
    assert_eq!(world.status()["notes"], serde_json::json!([]));
    assert!(served().contains("served by b"), "the person's word still counts");
    world.ctl("session unpin thread-one").ok();
    assert_eq!(shown(&world, "thread-one")["session"]["pinned"], Value::Null);
    world.assert_clean();
}

#[test]
fn threads_find_their_accounts_after_a_restart() {
    let Some(world) = machine() else { return };
    let id = begin(&world, "first words");
    let other = begin(&world, "other words");
    world.ctl(&format!("session move {id} b")).ok();
    go_on(&world, &id, "second words", "b");
    world.ctl(&format!("session unpin {id}")).ok();
    world.ctl(&format!("session move {other} b")).ok();
    world.ctl("daemon restart").ok();
    let before = posts(&world).len();
    go_on(&world, &id, "third words", "b");
    assert_eq!(asked(&world, before), to(&[("b", 200)]), "what it leaves out is known as well");
    assert_eq!(thoughts(&last(&world)), 1);
    go_on(&world, &other, "words for another", "b");
    assert_eq!(shown(&world, &id)["session"]["requests"], 3);
    // A pin is a choice, so it survives what the cache doesn't.
    world.kill_daemon();
    std::fs::remove_dir_all(world.root().join("cache")).unwrap();
    go_on(&world, &other, "more words", "b");
    assert_eq!(sessions(&world).len(), 1);
    world.assert_clean();
}

#[test]
fn subagents_share_the_account_of_their_session() {
    let world = World::with_accounts(SimConfig { reasoning: true, ..upstream(&["a", "b"]) });
    let door = Door::of(&world);
    let send = |session: &str, thread: &str| {
        let answer = door.send(&door.turn_in(session).header("thread-id", thread)).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let by = |name: &str| answer.text().contains(&format!("served by {name}"));
        assert_ne!(by("a"), by("b"));
        if by("a") { "a" } else { "b" }
    };
    // Both have served; where a new thread goes now is the pool's choice.
    for name in ["a", "b"] {
        world.ctl(&format!("switch {name}")).ok();
        assert_eq!(send(name, name), name);
    }
    world.ctl("unpin").ok();
    let usual = send("new", "new");
    let other = if usual == "a" { "b" } else { "a" };
    world.ctl(&format!("switch {other}")).ok();
    assert_eq!(send("root", "root"), other);
    world.ctl("unpin").ok();
    assert_eq!(send("newer", "newer"), usual);
    assert_eq!(send("root", "child-one"), other);
    // One that left stays where it went; its session doesn't follow.
    assert_eq!(world.ctl(&format!("session move child-two {usual}")).code, 7);
    assert_eq!(send("root", "child-two"), other);
    world.ctl(&format!("session move child-two {usual}")).ok();
    assert_eq!(send("root", "child-two"), usual);
    world.ctl("session unpin child-two").ok();
    assert_eq!(send("root", "child-two"), usual);
    assert_eq!(send("root", "root"), other);
    assert_eq!(shown(&world, "child-two")["session"]["parent"], "root");
    world.assert_clean();
}

#[test]
fn the_session_commands_speak_to_people_and_to_programs() {
    let world = World::with_accounts(upstream(&["a", "b"]));
    assert_eq!(world.ctl("session").ok().stdout, "No thread has run yet.\n");
    let door = Door::of(&world);
    for thread in ["01a1fbe7-aa", "01a1fbe7-ab"] {
        assert_eq!(door.send(&door.turn_in(thread)).unwrap().status, 200);
    }
    let text = world.ctl("sessions list").ok().stdout;
    assert!(
        text.contains("01a1fbe7-ab") && text.contains("01a1fbe7-aa") && text.contains("gpt-5.5"),
        "{text}"
    );
    // What an answer used is known once it has ended.
    eventually("both have ended", || sessions(&world).iter().all(|one| one["live"] == 0));
    let list = sessions(&world);
    assert_eq!(list.len(), 2);
    for one in &list {
        assert_eq!(one["requests"], 1);
        assert!(one["input_tokens"].as_u64() > one["cached_tokens"].as_u64(), "{one}");
        assert_eq!(one["account_name"], "a");
    }
    let refused = |words: &str, code: i32, name: &str, hint: &str| {
        let ran = world.ctl(&format!("{words} --json"));
        assert_eq!((ran.code, &*ran.stdout), (code, ""), "{words}: {}", ran.stderr);
        let error: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(error["error"]["code"], name, "{error}");
        assert!(error["error"]["hint"].as_str().unwrap().contains(hint), "{error}");
    };
    refused("session show nothing", 7, "not_found", "cmactl session list");
    refused("session move 01a1fbe7 b", 7, "ambiguous", "more of its id");
    refused("session move 01a1fbe7-aa nobody", 7, "not_found", "cmactl list");
    refused("session unpin nothing", 7, "not_found", "cmactl session list");
    let ran = world.ctl("session unpin 01a1fbe7-aa").ok();
    assert!(ran.stderr.contains("it was not pinned"), "{}", ran.stderr);
    world.ctl("disable b").ok();
    let ran = world.ctl("session move 01a1fbe7-aa b").ok();
    assert!(ran.stderr.contains("it can't serve now"), "{}", ran.stderr);
    assert_eq!(door.send(&door.turn_in("01a1fbe7-aa")).unwrap().status, 200);
    let text = world.ctl("session show 01a1fbe7-aa").ok();
    assert!(text.stdout.contains("pinned      b"), "{}", text.stdout);
    assert!(text.stderr.contains("others do until it can"), "{}", text.stderr);
    // An account that leaves takes its pins along, on the disk too.
    world.ctl("remove b --yes").ok();
    assert_eq!(shown(&world, "01a1fbe7-aa")["session"]["pinned"], Value::Null);
    let kept = std::fs::read_to_string(world.root().join("threads/pins.json")).unwrap();
    assert!(!kept.contains("01a1fbe7"), "{kept}");
    world.assert_clean();
}
