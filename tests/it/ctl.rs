//! What people type: every command with and without `--json`, names of accounts, pins, imports.

use cma_tests::{
    http::Door,
    sim::{AccountSpec, Fault, Route, SimConfig, Window},
    world::{World, bin_dir, eventually, signal},
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Duration,
};

fn world() -> World {
    let accounts = vec![AccountSpec::new("anna"), AccountSpec::new("ben"), AccountSpec::new("bob")];
    World::with_accounts(SimConfig { accounts, ..SimConfig::default() })
}

fn served(world: &World, name: &str) -> u64 {
    world.sim().stats().accounts.get(name).map_or(0, |stats| stats.served)
}

#[test]
fn every_command_answers_people_and_programs() {
    let world = world();
    let door = Door::of(&world);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    world.ctl("unpin").ok();
    for (words, says, field) in [
        ("status", "anna@example.test", "/accounts/0/id"),
        ("list", "bob@example.test", "/accounts/2/id"),
        ("switch anna", "Pinned to anna", "/to"),
        ("why", "anna", "/candidates/0/account"),
        ("unpin", "the global pool chooses", "/epoch"),
        ("forecast", "Next is", "/recommended"),
        ("token list", "There is no token", "/tokens"),
        ("disable anna", "serves no new request", "/account"),
        ("enable anna", "may serve again", "/account"),
        ("label 1 work", "work", "/name"),
        ("label 1 anna", "anna", "/name"),
        ("version", "protocol", "/protocol/max"),
        ("launch --print", "CODEX_ACCESS_TOKEN", "/client_key"),
        ("daemon status", "serving", "/pid"),
        ("daemon start", "already running", "/pid"),
        ("daemon restart", "is running", "/pid"),
    ] {
        let plain = world.ctl(words).ok();
        assert!(plain.stdout.contains(says), "{words}: {}", plain.stdout);
        assert!(!plain.stdout.contains('\u{1b}'), "{words}: colour off a terminal");
        let shown = world.ctl(&format!("{words} --json")).ok();
        assert_eq!(shown.stdout.lines().count(), 1, "{words}: {}", shown.stdout);
        let shown = shown.json();
        assert_eq!(shown["schema"], 1, "{words}");
        assert!(!shown.pointer(field).unwrap_or(&Value::Null).is_null(), "{words}: {shown}");
    }
    let log = world.ctl("logs -n 5 --json").ok();
    assert_eq!(log.stdout.lines().count(), 5);
    for line in log.stdout.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["schema"], 1, "{line}");
    }
    let stopped = world.ctl("daemon stop --json").ok().json();
    assert_eq!((&stopped["running"], &stopped["schema"]), (&json!(false), &json!(1)));
    world.ctl("daemon stop").ok();
    assert_eq!(world.ctl("daemon status --json").code, 4);
    assert_eq!(world.ctl("--no-start status").code, 4);
    assert!(world.ctl("version --json").ok().json()["daemon"].is_null());
    // The log is there without the daemon, and asking for it starts none.
    assert!(world.ctl("logs").ok().stdout.contains("listening"));
    assert_eq!(world.daemon_pid(), None);
    world.assert_clean();
}

#[test]
fn any_command_that_needs_the_daemon_starts_it() {
    let world = world();
    for words in ["status", "list", "switch ben", "unpin", "why", "launch --print", "label ben ben"]
    {
        world.kill_daemon();
        let ran = world.ctl(words).ok();
        assert!(world.daemon_pid().is_some(), "{words}");
        assert!(ran.took < Duration::from_millis(500), "{words}: {:?}", ran.took);
    }
    world.assert_clean();
}

#[test]
fn an_account_has_many_names() {
    let world = world();
    let ben = world.account("ben");
    let id = ben["id"].as_str().unwrap().to_owned();
    let names = [
        "2".to_owned(),
        "ben".to_owned(),
        "BEN".to_owned(),
        "be".to_owned(),
        "ben@example.test".to_owned(),
        "Ben@Example.test".to_owned(),
        id.clone(),
        id[..id.len() - 1].to_owned(),
    ];
    for name in &names {
        let switched = world.ctl(&format!("switch {name} --json")).ok().json();
        assert_eq!(switched["to"], ben["id"], "{name}");
    }
    // An exact name goes before a prefix of others.
    world.ctl("label anna b").ok();
    assert_eq!(world.ctl("switch b --json").ok().json()["to"], world.account("b")["id"]);
    world.assert_clean();
}

#[test]
fn a_pin_yields_and_returns_by_itself() {
    let first = AccountSpec::new("anna").primary(Window::new(50.0, 300, Duration::from_secs(3)));
    let accounts = vec![first, AccountSpec::new("ben")];
    let world = World::with_accounts(SimConfig { accounts, ..SimConfig::default() });
    let door = Door::of(&world);
    world.ctl("switch anna").ok();
    // Two turns empty its window, the third has to go elsewhere.
    for _ in 0..3 {
        assert!(door.send(&door.turn()).unwrap().is_complete());
    }
    assert_eq!((served(&world, "anna"), served(&world, "ben")), (2, 1));
    let status = world.status();
    assert_eq!(status["pin"]["account"], world.account("anna")["id"]);
    assert!(status["pin"]["yielded"].as_str().is_some(), "{status}");
    let shown = world.ctl("status").ok().stdout;
    assert!(shown.contains("the pin on `anna` yields") && shown.contains("unpin"), "{shown}");
    // Nothing is typed; its window resets.
    eventually("the pin returns", || world.status()["pin"]["yielded"].is_null());
    let before = served(&world, "anna");
    assert!(door.send(&door.turn()).unwrap().is_complete());
    assert_eq!(served(&world, "anna"), before + 1);
    // The same when the person takes it out for a while.
    world.ctl("disable anna").ok();
    assert!(door.send(&door.turn()).unwrap().is_complete());
    assert_eq!((served(&world, "anna"), served(&world, "ben")), (before + 1, 2));
    assert!(world.ctl("status").ok().stdout.contains("yields"));
    let switched = world.ctl("switch anna").ok();
    assert!(switched.stderr.contains("can't serve now"), "{}", switched.stderr);
    world.ctl("enable anna").ok();
    assert!(world.status()["pin"]["yielded"].is_null());
    world.sim().set_used("anna", 0.0, 0.0);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    assert_eq!(served(&world, "anna"), before + 2);
    world.assert_clean();
}

#[test]
fn a_removed_account_is_kept_aside_and_can_come_back() {
    let world = world();
    let door = Door::of(&world);
    world.ctl("switch ben").ok();
    let id = world.account("ben")["id"].as_str().unwrap().to_owned();
    let removed = world.ctl("remove ben --yes --json").ok().json();
    assert_eq!(removed["account"], id.as_str());
    let note = removed["notes"][0].as_str().unwrap();
    assert!(note.contains("removed") && note.contains("not revoked"), "{note}");
    let kept: Vec<_> = fs::read_dir(world.root().join("removed")).unwrap().flatten().collect();
    assert_eq!(kept.len(), 1);
    assert!(kept[0].file_name().to_str().unwrap().starts_with(&id));
    let status = world.status();
    assert_eq!((status["accounts"].as_array().unwrap().len(), &status["pin"]), (2, &Value::Null));
    assert!(!world.root().join(format!("accounts/{id}.json")).exists());
    assert!(door.send(&door.turn()).unwrap().is_complete());
    assert_eq!(
        world.sim().stats().accounts.get("ben").map_or(0, |stats| stats.families_revoked),
        0
    );
    world.kill_daemon();
    assert_eq!(world.status()["accounts"].as_array().unwrap().len(), 2);
    let back = world.import("ben", &world.sim().auth_json("ben")).ok().json();
    assert_eq!(
        (&back["accounts"][0]["id"], &back["accounts"][0]["created"]),
        (&json!(id), &json!(true))
    );
    // It takes no other's place in the list.
    assert_eq!(world.account("ben")["index"], 3);
    world.assert_clean();
}

#[test]
fn an_old_copy_of_a_login_does_not_replace_what_came_of_it() {
    let world = World::new(SimConfig::default());
    let old = world.sim().auth_json("a");
    let first = world.import("a", &old).ok().json();
    assert_eq!(first["accounts"][0]["created"], true);
    let door = Door::of(&world);
    for turn in 1..=3 {
        world.sim().expire_access("a");
        assert!(door.send(&door.turn()).unwrap().is_complete());
        let generation = world.account("a")["generation"].clone();
        let again = world.import("a", &old).ok().json();
        assert_eq!(again["accounts"][0]["created"], false);
        assert!(again["accounts"][0]["notes"].to_string().contains("kept"), "{again}");
        assert_eq!(world.account("a")["generation"], generation);
        if turn == 2 {
            world.kill_daemon();
            world.ctl("daemon start").ok();
        }
        world.sim().expire_access("a");
        assert!(door.send(&door.turn()).unwrap().is_complete());
    }
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.reused, stats.replayed), (6, 0, 0));
    // A login of its own is news, and is taken.
    let fresh = world.import("a", &world.sim().auth_json("a")).ok().json();
    assert_eq!(fresh["accounts"][0]["created"], false);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    assert_eq!(world.sim().stats().accounts["a"].refreshed, 6);
    world.assert_clean();
}

/// `remove` promises that the login is kept: the old file brings back what came of it.
#[test]
fn a_removed_account_comes_back_with_its_newest_credential() {
    let world = World::new(SimConfig::default());
    let old = world.sim().auth_json("a");
    world.import("a", &old).ok();
    let door = Door::of(&world);
    world.sim().expire_access("a");
    assert!(door.send(&door.turn()).unwrap().is_complete());
    for renewals in [2, 4] {
        world.ctl("remove a --yes").ok();
        let back = world.import("a", &old).ok().json();
        assert_eq!(back["accounts"][0]["created"], true);
        assert!(door.send(&door.turn()).unwrap().is_complete());
        world.sim().expire_access("a");
        assert!(door.send(&door.turn()).unwrap().is_complete());
        // Once more, with the removal in the middle of a renewal.
        world.sim().expire_access("a");
        let late = Fault::DelayAnswer(Duration::from_millis(300));
        world.sim().fault(None, Route::Refresh, late, Some(1));
        std::thread::scope(|scope| {
            scope.spawn(|| drop(door.send(&door.turn())));
            eventually("it is renewed", || {
                world.sim().stats().accounts["a"].refreshed == renewals + 1
            });
            world.ctl("remove a --yes").ok();
        });
        world.import("a", &old).ok();
        assert!(door.send(&door.turn()).unwrap().is_complete());
    }
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.reused), (5, 0));
    world.assert_clean();
}

#[test]
fn two_workspaces_of_one_person_are_two_accounts() {
    let private = AccountSpec::new("private");
    let mut office = AccountSpec::new("office").plan("business");
    (office.email, office.user_id) = (private.email.clone(), private.user_id.clone());
    let world = World::new(SimConfig { accounts: vec![private, office], ..SimConfig::default() });
    for name in ["private", "office"] {
        let made = world.import(name, &world.sim().auth_json(name)).ok().json();
        assert_eq!(made["accounts"][0]["created"], true, "{made}");
        assert_eq!(made["accounts"][0]["workspace"], format!("acct-{name}"));
    }
    assert_ne!(world.account("private")["id"], world.account("office")["id"]);
    assert_eq!(world.account("private")["email"], world.account("office")["email"]);
    let both = world.ctl("switch private@example.test --json");
    assert_eq!(both.code, 7);
    assert!(both.stderr.contains("ambiguous") && both.stderr.contains("office"), "{}", both.stderr);
    for name in ["private", "office"] {
        let door = Door::of_account(&world, name);
        assert!(door.send(&door.turn()).unwrap().is_complete());
        assert_eq!(served(&world, name), 1);
        let me = door.get("/api/accounts/v1/user-auth-credential/whoami").unwrap().json();
        assert_eq!(me["chatgpt_account_id"], format!("acct-{name}"));
    }
    world.assert_clean();
}

#[test]
fn a_label_is_one_accounts_only() {
    let world = world();
    let ran = world.import("anna", &world.sim().auth_json("ben"));
    assert_eq!(ran.code, 2, "two accounts are called anna now: {}", ran.stdout);
    assert_eq!(world.account("ben")["email"], "ben@example.test");
    // Its own name is no other's, and an empty one is none.
    world.import("ben", &world.sim().auth_json("ben")).ok();
    let file = world.path("tmp/login.json");
    fs::write(&file, world.sim().auth_json("ben")).unwrap();
    world.run("cmactl", ["import", file.to_str().unwrap(), "--label", ""]).ok();
    fs::remove_file(file).unwrap();
    assert_eq!(world.account("ben")["email"], "ben@example.test");
    world.assert_clean();
}

#[test]
fn a_shell_with_other_settings_is_told_so() {
    let world = world();
    let mut command = world.command("cmactl");
    command.arg("status").env("CMA_HEAD_TIMEOUT", "7s");
    let ran = world.finish(command).ok();
    assert!(
        ran.stderr.contains("CMA_HEAD_TIMEOUT") && ran.stderr.contains("cmactl daemon restart"),
        "{}",
        ran.stderr
    );
    assert!(!world.ctl("status").ok().stderr.contains("warning"));
    let mut command = world.command("cmactl");
    command.args(["status", "--json"]).env("CMA_HEAD_TIMEOUT", "7s");
    let difference = world.finish(command).ok().json()["environment_differences"][0].clone();
    assert_eq!(
        (&difference["name"], &difference["client"]),
        (&json!("CMA_HEAD_TIMEOUT"), &json!("7s"))
    );
    // A restart takes this shell's.
    let mut command = world.command("cmactl");
    command.args(["daemon", "restart"]).env("CMA_HEAD_TIMEOUT", "7s");
    world.finish(command).ok();
    let status = world.status();
    let environment = status["daemon"]["environment"].as_array().unwrap();
    assert!(
        environment.contains(&json!({ "name": "CMA_HEAD_TIMEOUT", "value": "7s" })),
        "{status}"
    );
    world.assert_clean();
}

#[test]
fn events_and_why_tell_of_a_request() {
    let world = world();
    let door = Door::of(&world);
    let mut command = world.command("cmactl");
    command.args(["events", "--json"]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert!(next()["change"]["snapshot"]["status"]["accounts"].is_array());
    world.ctl("switch ben").ok();
    world.sim().fault(Some("ben"), Route::Responses, Fault::rate_limited(Some(60)), Some(1));
    assert!(door.send(&door.turn()).unwrap().is_complete());
    let (mut retried, mut pinned) = (false, false);
    let request = loop {
        let event = next();
        assert_eq!(event["schema"], 1);
        retried |= event["change"]["retry"]["reason"].as_str().is_some();
        pinned |= event["change"].get("pin").is_some();
        if let Some(id) = event["change"]["served"]["request"].as_str() {
            assert_eq!(event["change"]["served"]["attempts"], 2, "{event}");
            break id.to_owned();
        }
    };
    assert!(retried && pinned);
    let why = world.ctl(&format!("why --request {request} --json")).ok().json();
    assert_ne!(why["chosen"], world.account("ben")["id"]);
    assert!(why["attempts"].to_string().contains("429"), "{why}");
    assert!(world.ctl(&format!("why --request {request}")).ok().stdout.contains("429"));
    // A cooling account says why and until when.
    let ben = world.account("ben");
    assert_eq!(ben["state"], "cooling");
    assert!(ben["until"].as_u64().is_some());
    signal(child.id(), rustix::process::Signal::INT);
    assert!(child.wait().unwrap().success());
    world.assert_clean();
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let world = world();
    let mut command = world.command("sh");
    let script = format!("{} status | head -1", bin_dir().join("cmactl").display());
    command.args(["-c", &script]);
    let ran = world.finish(command).ok();
    assert_eq!((ran.stdout.lines().count(), ran.stderr.as_str()), (1, ""));
    world.assert_clean();
}
