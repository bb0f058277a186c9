//! Who serves: strategies, forces, pauses, drains, caps, waits and profiles, over the real daemon, and
//! what it says about them.

use crate::codex_kit::{TURN, VERSION, bare, codex, finish, machine, posts};
use cma_tests::{
    http::{Answer, Door, Line},
    sim::{AccountSpec, Fault, Route, SimConfig},
    world::{World, eventually},
};
use serde_json::Value;
use std::{collections::BTreeMap, fs, thread, time::Duration};

const LIMIT: Duration = Duration::from_secs(60);

fn world(names: &[&str]) -> World {
    let accounts = names.iter().map(|name| AccountSpec::new(name)).collect();
    World::with_accounts(SimConfig { accounts, ..SimConfig::default() })
}

/// A thread's name, another for each number.
fn thread_of(n: usize) -> String {
    format!("01900000-0000-7000-8000-{n:012x}")
}

#[track_caller]
fn turn(door: &Door, thread: usize) -> Answer {
    let answer = door.send(&door.turn_in(&thread_of(thread))).unwrap();
    assert!(answer.is_complete(), "{} {}", answer.status, answer.text());
    answer
}

/// Turns that each account completed.
fn served(world: &World) -> BTreeMap<String, u64> {
    let stats = world.sim().stats();
    stats.accounts.iter().map(|(name, one)| (name.clone(), one.completed)).collect()
}

fn of(world: &World, name: &str) -> u64 {
    served(world).get(name).copied().unwrap_or_default()
}

fn json(world: &World, words: &str) -> Value {
    world.ctl(&format!("{words} --json")).ok().json()
}

fn notes(world: &World) -> String {
    world.status()["notes"].to_string()
}

#[test]
fn the_real_cli_runs_on_the_account_it_names_and_on_no_other() {
    let Some(world) = machine(&["a", "b"]) else { return };
    let ran = finish(&world, codex(&world, ["--account", "b"].into_iter().chain(TURN)), LIMIT);
    assert!(ran.code == 0 && ran.stdout.contains("served by b"), "{ran:?}");
    let mut command = codex(&world, TURN);
    command.env("CODEX_MULTI_AUTH_FORCE_ACCOUNT", "a@example.test");
    let ran = finish(&world, command, LIMIT);
    assert!(ran.code == 0 && ran.stdout.contains("served by a"), "{ran:?}");
    // A tag is as good as a name.
    world.ctl("account tag b night").ok();
    let ran = finish(&world, codex(&world, ["--account=night"].into_iter().chain(TURN)), LIMIT);
    assert!(ran.code == 0 && ran.stdout.contains("served by b"), "{ran:?}");
    let before = posts(&world).len();
    for (wanted, code) in [("nobody", 7), ("", 2)] {
        let ran =
            finish(&world, codex(&world, ["--account", wanted].into_iter().chain(TURN)), LIMIT);
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(ran.stderr.starts_with("cma: ") && ran.stderr.lines().count() == 1, "{ran:?}");
    }
    assert_eq!(posts(&world).len(), before, "nothing was sent for an account that isn't there");
    // Fail-hard: the one it names can't serve, the other could.
    world.ctl("disable b").ok();
    let ran = finish(&world, codex(&world, ["--account", "b"].into_iter().chain(TURN)), LIMIT);
    assert_ne!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("disabled by you"), "{ran:?}");
    assert_eq!(posts(&world).len(), before);
    world.assert_no_secrets();
}

#[test]
fn a_named_account_never_ends_in_plain_codex() {
    let Some(world) = bare(SimConfig::default(), VERSION) else { return };
    // The pool is empty, so that codex would run plain.
    let ran = finish(&world, codex(&world, ["--account", "a"].into_iter().chain(TURN)), LIMIT);
    assert!(ran.code == 7 && ran.stderr.contains("codex was not started"), "{ran:?}");
    let mut command = codex(&world, ["--account", "a"].into_iter().chain(TURN));
    command.env("CODEX_API_KEY", "own");
    let ran = finish(&world, command, LIMIT);
    assert!(ran.code == 2 && ran.stderr.contains("a key of your own"), "{ran:?}");
    let ran = finish(&world, codex(&world, ["--account", "a", "--version"]), LIMIT);
    assert!(ran.code == 2 && ran.stderr.contains("leave the flag away"), "{ran:?}");
    assert!(posts(&world).is_empty());
}

#[test]
fn a_force_is_strict_is_shown_outlives_the_daemon_and_ends_by_itself() {
    let world = world(&["a", "b"]);
    let door = Door::of(&world);
    let forced = json(&world, "force b --for 1h");
    assert_eq!(forced["force"]["names"][0], "b");
    for thread in 0..4 {
        turn(&door, thread);
    }
    assert_eq!((of(&world, "a"), of(&world, "b")), (0, 4));
    assert!(notes(&world).contains("`b` is forced for 1 h"), "{}", notes(&world));
    // A strategy is saved and waits.
    let set = json(&world, "strategy round-robin");
    assert!(set["notes"][0].as_str().unwrap().contains("waits for the force to end"), "{set}");
    assert!(notes(&world).contains("round-robin, waiting for the force"), "{}", notes(&world));
    world.kill_daemon();
    assert_eq!(json(&world, "strategy")["force"]["names"][0], "b");
    turn(&door, 9);
    assert_eq!(of(&world, "b"), 5);
    // Nobody steps in for it.
    world.ctl("disable b").ok();
    let refused = door.send(&door.turn_in(&thread_of(10))).unwrap();
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains("b: disabled by you"), "{}", refused.text());
    assert!(refused.text().contains("a: another account is forced"), "{}", refused.text());
    world.ctl("enable b").ok();
    let ended = json(&world, "unforce");
    assert_eq!(ended["force"], Value::Null);
    assert_eq!(ended["strategy"], "round-robin", "what was saved meanwhile counts now");
    turn(&door, 11);
    turn(&door, 12);
    assert!(of(&world, "a") > 0);
    // One that is short ends by itself.
    json(&world, "force b --for 1s");
    eventually("the force ends", || json(&world, "strategy")["force"].is_null());
    assert_eq!(world.ctl("force nobody").code, 7);
    assert_eq!(world.ctl("force b --for 99d").code, 2);
    world.assert_clean();
}

#[test]
fn a_paused_account_serves_nothing_and_a_drained_one_finishes_its_threads() {
    let world = world(&["a", "b"]);
    let door = Door::of(&world);
    world.ctl("account pause b").ok();
    for thread in 0..3 {
        turn(&door, thread);
    }
    assert_eq!((of(&world, "a"), of(&world, "b")), (3, 0));
    assert_eq!(world.account("b")["state"], "paused");
    world.ctl("account unpause b").ok();
    // Its threads stay with `a`, new ones go to `b`.
    world.ctl("account drain a").ok();
    for thread in 0..6 {
        turn(&door, thread);
    }
    assert_eq!((of(&world, "a"), of(&world, "b")), (6, 3));
    assert_eq!(world.account("a")["state"], "draining");
    // Both are durable.
    world.kill_daemon();
    world.ctl("account pause b").ok();
    let refused = door.send(&door.turn_in(&thread_of(77))).unwrap();
    assert_eq!(refused.status, 400);
    let said = refused.text();
    assert!(said.contains("takes no new one") && said.contains("b: paused by you"), "{said}");
    let listed = json(&world, "account policy list");
    assert_eq!(listed["accounts"][0]["drained"], true);
    assert_eq!(listed["accounts"][1]["paused"], true);
    world.ctl("account undrain a").ok();
    turn(&door, 78);
    world.assert_clean();
}

#[test]
fn a_cap_makes_requests_wait_and_one_that_goes_away_waits_no_more() {
    let world = world(&["a"]);
    world.ctl("account cap a 1").ok();
    let door = Door::of(&world);
    let slow = Fault::DelayAnswer(Duration::from_secs(3));
    world.sim().fault(None, Route::Responses, slow, Some(1));
    let first = {
        let door = door.clone();
        thread::spawn(move || turn(&door, 1))
    };
    eventually("the first runs", || world.account("a")["in_flight"] == 1);
    let second = {
        let door = door.clone();
        thread::spawn(move || turn(&door, 2))
    };
    let waiting = || json(&world, "strategy")["waiting"].as_u64().unwrap();
    eventually("the second waits", || waiting() == 1);
    assert!(notes(&world).contains("1 request waits for an account"), "{}", notes(&world));
    // One that hangs up takes its place in the queue with it.
    let mut third = Line::open(door.addr).unwrap();
    third.write(&door.turn_in(&thread_of(3)).bytes()).unwrap();
    eventually("the third waits", || waiting() == 2);
    drop(third);
    eventually("the third is gone", || waiting() == 1);
    first.join().unwrap();
    second.join().unwrap();
    assert_eq!((of(&world, "a"), waiting()), (2, 0));
    world.assert_clean();
}

#[test]
fn with_a_wait_a_request_outlasts_a_short_rest_and_without_it_is_told() {
    let world = world(&["a"]);
    let door = Door::of(&world);
    let limit = || {
        // Longer than an answer is waited for anyhow.
        let at = Fault::UsageLimitReached { resets_in: Duration::from_secs(10) };
        world.sim().fault(None, Route::Responses, at, Some(1));
    };
    limit();
    let refused = door.send(&door.turn_in(&thread_of(1))).unwrap();
    assert_eq!(refused.status, 429, "{}", refused.text());
    world.ctl("strategy --wait 30s").ok();
    let begun = std::time::Instant::now();
    turn(&door, 2);
    assert!(begun.elapsed() > Duration::from_secs(2), "it had to wait: {:?}", begun.elapsed());
    // The one that meets the limit waits as well.
    limit();
    turn(&door, 3);
    assert_eq!(world.ctl("strategy --wait soon").code, 2);
    world.assert_clean();
}

#[test]
fn strategies_take_effect_on_the_next_choice_and_outlive_the_daemon() {
    let world = world(&["a", "b", "c"]);
    let door = Door::of(&world);
    assert_eq!(json(&world, "strategy")["strategy"], "balanced");
    json(&world, "strategy sequential");
    for thread in 0..3 {
        turn(&door, thread);
    }
    assert_eq!(of(&world, "a"), 3);
    world.ctl("account weight b 3").ok();
    world.ctl("account weight c 0").ok();
    json(&world, "strategy weighted-round-robin");
    world.kill_daemon();
    let known = json(&world, "strategy");
    assert_eq!(known["strategy"], "weighted-round-robin");
    for thread in 10..18 {
        turn(&door, thread);
    }
    let all = served(&world);
    assert_eq!((all["a"], all["b"]), (5, 6));
    assert_eq!(of(&world, "c"), 0);
    // Threads stay where they are, whatever the strategy.
    json(&world, "strategy random --preset conservative --low 30");
    turn(&door, 0);
    let before = served(&world);
    for _again in 0..5 {
        turn(&door, 0);
    }
    let moved =
        served(&world).iter().filter(|(name, count)| before.get(*name) != Some(count)).count();
    assert_eq!(moved, 1, "{before:?} {:?}", served(&world));
    let rules = json(&world, "strategy");
    assert_eq!(
        (rules["preset"].as_str(), rules["low"].as_f64()),
        (Some("conservative"), Some(30.0))
    );
    for bad in ["strategy fastest", "strategy --preset best", "strategy --low 3 --critical 5"] {
        assert_eq!(world.ctl(bad).code, 2, "{bad}");
    }
    world.assert_clean();
}

#[test]
fn why_tells_the_keys_of_a_past_choice_and_answers_carry_what_is_asked_for() {
    let world = world(&["a", "b", "c"]);
    let door = Door::of(&world);
    world.ctl("account pause c").ok();
    world.ctl("switch b").ok();
    let plain = turn(&door, 1);
    assert_eq!(plain.header("x-cma-account"), None, "nobody asked");
    // What an answer leaves behind is settled beside its connection.
    eventually("it is settled", || world.ctl("why --last").code == 0);
    let ask = door.turn_in(&thread_of(1)).header("x-cma-explain", "1");
    let told = door.send(&ask).unwrap();
    let id = world.account("b")["id"].as_str().unwrap().to_owned();
    assert_eq!(told.header("x-cma-account"), Some(id.as_str()));
    let overhead: u64 = told.header("x-cma-overhead-us").unwrap().parse().unwrap();
    assert!(overhead < 5_000_000, "{overhead}");
    let trace = told.header("x-cma-trace").unwrap().to_owned();
    let seen = world.sim().seen();
    assert!(
        seen.iter().all(|seen| seen.headers.iter().all(|(name, _)| !name.starts_with("x-cma")))
    );
    eventually("it is traced", || world.ctl(&format!("why --request {trace} --json")).code == 0);
    let why = json(&world, &format!("why --request {trace}"));
    assert_eq!(why["chosen"], id.as_str());
    assert_eq!(
        (why["decided_by"].as_str(), why["by"].as_str()),
        (Some("it is pinned"), Some("pin"))
    );
    assert_eq!(why["able"], 2);
    let candidates = why["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 3, "{why}");
    assert_eq!(candidates[0]["keys"][0][0], "pin");
    assert_eq!(candidates[2]["excluded"], "paused by you");
    assert!(why["cache"].as_str().unwrap().contains("stayed"), "{why}");
    assert_eq!(why["warm"]["account"], id.as_str(), "{why}");
    assert!(why["cost_us"].as_f64().unwrap() < 1e6);
    // The predecessor's name, and the newest one.
    assert_eq!(json(&world, "why-selected --last")["request"], trace.as_str());
    let now = json(&world, "why --now");
    assert_eq!((now["request"].is_null(), now["chosen"].as_str()), (true, Some(id.as_str())));
    assert!(world.ctl("why --last").ok().stdout.contains("it is pinned"));
    // Headers for all, by a setting.
    json(&world, "strategy --headers on");
    assert!(turn(&door, 5).header("x-cma-account").is_some());
    world.assert_clean();
}

/// All are asked at once, and the client waits for that.
#[test]
fn a_forecast_doesnt_wait_for_a_silent_host_once_an_account() {
    let world = world(&["a", "b", "c", "d"]);
    world.sim().fault(None, Route::Usage, Fault::HangHead, None);
    let ran = world.ctl("forecast --live").ok();
    assert!(ran.took < Duration::from_secs(25), "{:?}", ran.took);
    assert_eq!(ran.stderr.matches("upstream didn't tell for").count(), 4, "{}", ran.stderr);
    world.assert_clean();
}

#[test]
fn a_forecast_is_the_choice_and_live_asks_upstream_and_spends_nothing() {
    let world = world(&["a", "b"]);
    world.sim().set_used("a", 97.0, 20.0);
    world.sim().set_used("b", 40.0, 20.0);
    let before = posts(&world).len();
    let forecast = json(&world, "forecast --live --explain");
    assert_eq!(posts(&world).len(), before, "no request was spent");
    let b = world.account("b")["id"].as_str().unwrap().to_owned();
    assert_eq!(forecast["recommended"], b.as_str(), "{forecast}");
    assert_eq!(forecast["reason"], "it has more headroom");
    let rows = forecast["accounts"].as_array().unwrap();
    assert_eq!(
        (rows[0]["account"].as_str(), rows[0]["readiness"].as_str()),
        (Some(b.as_str()), Some("ready"))
    );
    assert_eq!(rows[1]["risk"], "high");
    assert!(rows[1]["windows"][0]["empty_at"].is_u64(), "{forecast}");
    assert_eq!(json(&world, "best")["account"]["account"], b.as_str());
    assert_eq!(json(&world, "why --now")["chosen"], b.as_str(), "the same engine");
    let door = Door::of(&world);
    turn(&door, 1);
    assert_eq!(of(&world, "b"), 1);
    assert!(world.ctl("forecast").ok().stdout.contains("Next is b"));
    world.ctl("disable a").ok();
    world.ctl("disable b").ok();
    assert_eq!(world.ctl("best").code, 9);
    world.assert_clean();
}

#[test]
fn a_project_s_profile_prefers_tags_and_refuses_models() {
    let world = world(&["a", "b"]);
    let repo = world.path("repo");
    fs::create_dir_all(repo.join(".git")).unwrap();
    let ctl = |words: &str| {
        let mut command = world.command("cmactl");
        command.args(words.split_whitespace()).current_dir(&repo);
        world.finish(command)
    };
    world.ctl("account tag b fast").ok();
    ctl("profile set --prefer fast --deny gpt-4* --weight a=0.5").ok();
    let plan = ctl("launch --print --json").ok().json();
    let key = plan["client_key"].as_str().unwrap().to_owned();
    let inside = Door { key, ..Door::of(&world) };
    for thread in 0..3 {
        turn(&inside, thread);
    }
    assert_eq!((of(&world, "a"), of(&world, "b")), (0, 3));
    let old = inside.turn_in(&thread_of(9)).with("x-codex-routing-hint", "model=gpt-4o");
    let refused = inside.send(&old).unwrap();
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains("profile doesn't allow the model"), "{}", refused.text());
    // Elsewhere nothing of it counts.
    let outside = Door::of(&world);
    let old = outside.turn_in(&thread_of(10)).with("x-codex-routing-hint", "model=gpt-4o");
    assert!(outside.send(&old).unwrap().is_complete());
    world.kill_daemon();
    let shown = ctl("profile --json").ok().json();
    assert_eq!(
        (shown["prefer"][0].as_str(), shown["deny"][0].as_str()),
        (Some("fast"), Some("gpt-4*"))
    );
    assert_eq!(shown["weights"][0][1], 0.5);
    assert_eq!(
        ctl("why --now --project --json").ok().json()["decided_by"],
        "the project prefers its tags"
    );
    ctl("profile clear").ok();
    assert!(ctl("profile --json").ok().json()["prefer"].as_array().unwrap().is_empty());
    assert_eq!(ctl("profile set --strategy fastest").code, 2);
    world.assert_clean();
}

#[test]
fn the_simulator_prints_a_table_a_picture_and_json() {
    let world = world(&["a"]);
    let words =
        "simulate --strategy balanced --strategy peer:round-robin --accounts 3 --workload bursty";
    let text = world.ctl(words).ok().stdout;
    assert!(
        text.contains("balanced") && text.contains("peer:round-robin") && text.contains('█'),
        "{text}"
    );
    let json = json(&world, words);
    assert_eq!((json["schema"].as_u64(), json["rules"].as_array().unwrap().len()), (Some(1), 2));
    assert_eq!(world.ctl("simulate --strategy fastest").code, 2);
    assert_eq!(world.ctl("simulate --trace /nowhere").code, 7);
    // What was served here is replayed as well as what was made up.
    assert_eq!(world.ctl("simulate --from-ledger").code, 7, "nothing was");
    let door = Door::of(&world);
    for thread in [1, 1, 2] {
        turn(&door, thread);
    }
    eventually("the rows are written", || world.ctl("simulate --from-ledger").code == 0);
    world.ctl("usage").ok();
    let own = self::json(&world, "simulate --from-ledger --strategy balanced");
    assert_eq!((own["requests"].as_u64(), own["rules"][0]["served"].as_u64()), (Some(3), Some(3)));
}
