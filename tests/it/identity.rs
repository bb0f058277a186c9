//! Who an account is: a user in a workspace, whatever its address; what a person says of it stays.

use cma_tests::{
    http::Door,
    sim::{AccountSpec, Fault, Route, SimConfig},
    world::{World, eventually},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, thread, time::Duration};

fn spec(name: &str, email: &str, user: &str, workspace: &str) -> AccountSpec {
    AccountSpec {
        email: email.to_owned(),
        user_id: user.to_owned(),
        workspace_id: workspace.to_owned(),
        ..AccountSpec::new(name)
    }
}

/// One address in two workspaces, and two people's seats in one of them.
fn mixed() -> SimConfig {
    SimConfig {
        accounts: vec![
            spec("home", "ann@example.test", "user-ann", "acct-home"),
            spec("team", "ann@example.test", "user-ann", "acct-team"),
            spec("seat", "bob@example.test", "user-bob", "acct-team"),
        ],
        ..SimConfig::default()
    }
}

fn listed(world: &World) -> Vec<Value> {
    world.ctl("list --json").ok().json()["accounts"].as_array().cloned().unwrap_or_default()
}

/// Imports a login without naming it again.
fn import_again(world: &World, auth_json: &str) -> Value {
    let file = world.path("tmp/again.json");
    fs::write(&file, auth_json).unwrap();
    let ran = world.run("cmactl", ["import", &file.display().to_string(), "--json"]).ok();
    fs::remove_file(&file).unwrap();
    ran.json()["accounts"][0].clone()
}

#[test]
fn one_address_in_two_workspaces_and_two_seats_of_one_team_stay_apart() {
    let world = World::with_accounts(mixed());
    let accounts = listed(&world);
    let ids: BTreeSet<_> = accounts.iter().map(|one| one["id"].to_string()).collect();
    assert_eq!((accounts.len(), ids.len()), (3, 3), "{accounts:?}");
    let who = |one: &Value| (one["user"].clone(), one["workspace"].clone(), one["email"].clone());
    let seats: Vec<_> = accounts.iter().map(who).collect();
    assert_eq!(seats[0].2, seats[1].2);
    assert_eq!(seats[1].1, seats[2].1);
    assert_ne!(seats[1].0, seats[2].0);
    // Each serves as itself: the upstream refuses a workspace that isn't the token's.
    for name in ["home", "team", "seat"] {
        world.ctl(&format!("switch {name}")).ok();
        let door = Door::of(&world);
        assert!(door.send(&door.turn()).unwrap().is_complete(), "{name}");
        assert_eq!(world.sim().stats().accounts[name].completed, 1, "{name}");
    }
    // The address alone is no name for one of them.
    let both = world.ctl("switch ann@example.test --json");
    assert!(both.code == 7 && both.stderr.contains("\"ambiguous\""), "{}", both.stderr);
    // A second login of a seat touches that seat alone.
    assert_eq!(import_again(&world, &world.sim().auth_json("seat"))["created"], false);
    let generations: Vec<_> =
        listed(&world).iter().map(|one| one["generation"].as_u64().unwrap()).collect();
    assert_eq!(generations, [1, 1, 2]);
    world.assert_clean();
}

#[test]
fn a_new_login_keeps_everything_a_person_said_and_what_was_counted() {
    let names = ["a", "b"].map(AccountSpec::new);
    let world =
        World::with_accounts(SimConfig { accounts: names.to_vec(), ..SimConfig::default() });
    let door = Door::of(&world);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    world.ctl("label a work").ok();
    world.ctl("tag work +client-x +paid -nothing").ok();
    world.ctl("note work renews on the 3rd").ok();
    world.ctl("disable work").ok();
    let before = world.account("work");
    assert_eq!(before["served"], 1);
    assert_eq!(import_again(&world, &world.sim().auth_json("a"))["created"], false);
    let after = world.account("work");
    for field in
        ["index", "id", "label", "tags", "note", "enabled", "served", "pools", "windows", "user"]
    {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert_eq!(after["tags"], json!(["client-x", "paid"]));
    assert_eq!(after["note"], "renews on the 3rd");
    assert_eq!((&after["enabled"], &after["state"]), (&json!(false), &json!("disabled")));
    assert_eq!(after["generation"], 2);
    // And it is all there after a restart, and shown to a person.
    world.kill_daemon();
    assert_eq!(world.account("work")["tags"], after["tags"]);
    let shown = world.ctl("list").ok().stdout;
    assert!(shown.contains("+client-x +paid renews on the 3rd"), "{shown}");
    world.assert_clean();
}

#[test]
fn tags_and_notes_are_words_that_a_terminal_may_show() {
    let world = World::with_accounts(SimConfig::default());
    world.ctl("tag a +One two").ok();
    assert_eq!(world.account("a")["tags"], json!(["one", "two"]));
    world.ctl("tag a -one").ok();
    assert_eq!(world.account("a")["tags"], json!(["two"]));
    for words in [&["tag", "a", "+a b"][..], &["tag", "a", "+\u{1b}[31m"], &["note", "a", "x\u{7}"]]
    {
        assert_eq!(world.run("cmactl", words).code, 2, "{words:?}");
    }
    let many: Vec<String> = (0..17).map(|n| format!("+t{n}")).collect();
    let many = world.ctl(&format!("tag a {}", many.join(" ")));
    assert!(many.code == 2 && many.stderr.contains("16 at most"), "{}", many.stderr);
    assert_eq!(world.ctl("tag nobody +x").code, 7);
    world.run("cmactl", ["note", "a", ""]).ok();
    assert_eq!(world.account("a")["note"], Value::Null);
    world.assert_clean();
}

#[test]
fn leaving_and_coming_back_during_a_renewal_sends_no_token_twice() {
    let world = World::new(SimConfig::default());
    let login = world.sim().auth_json_expired("a");
    let slow = Fault::DelayAnswer(Duration::from_millis(700));
    world.sim().fault(None, Route::Refresh, slow, Some(1));
    world.import("a", &login).ok();
    eventually("the renewal is at the issuer", || {
        world.sim().stats().accounts["a"].refresh_requests == 1
    });
    // The account leaves while its renewal is under way, and the same file comes back at once,
    // several times, from several hands.
    thread::scope(|scope| {
        let removed = scope.spawn(|| world.ctl("remove a --yes"));
        thread::sleep(Duration::from_millis(100));
        for n in 0..3 {
            let (world, login) = (&world, &login);
            scope.spawn(move || world.import(&format!("again{n}"), login));
        }
        removed.join().unwrap();
    });
    let door = {
        world.import("a", &login).ok();
        Door::of(&world)
    };
    assert!(door.send(&door.turn()).unwrap().is_complete());
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refresh_requests, stats.refreshed, stats.reused), (1, 1, 0));
    assert_eq!(stats.refreshes_at_once, 1);
    let accounts = listed(&world);
    assert_eq!((accounts.len(), &accounts[0]["state"]), (1, &json!("ready")), "{accounts:?}");
    // What came of the renewal is what is kept: it can be renewed in turn.
    world.sim().expire_access("a");
    assert!(door.send(&door.turn()).unwrap().is_complete());
    assert_eq!(world.sim().stats().accounts["a"].reused, 0);
    world.assert_clean();
}

#[test]
fn many_hands_that_remove_and_import_one_account_lose_no_login() {
    let world = World::with_accounts(SimConfig::default());
    let login = world.sim().auth_json("a");
    world.import("a", &login).ok();
    for round in 0..6 {
        world.sim().expire_access("a");
        let door = Door::of(&world);
        thread::scope(|scope| {
            for n in 0..3 {
                let (world, login) = (&world, &login);
                scope.spawn(move || world.import(&format!("hand{n}"), login));
                scope.spawn(move || world.ctl("remove 1 --yes"));
            }
            scope.spawn(|| door.send(&door.turn()));
        });
        world.import("a", &login).ok();
        let door = Door::of(&world);
        let answer = door.send(&door.turn()).unwrap();
        assert!(answer.is_complete(), "round {round}: {} {}", answer.status, answer.text());
        assert_eq!(listed(&world).len(), 1, "round {round}");
    }
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.reused, stats.refreshes_at_once), (0, 1));
    world.assert_clean();
}

#[test]
fn workspaces_are_shown_with_who_serves_them_and_new_launches_can_be_limited() {
    let world = World::new(mixed());
    world.import("home", &world.sim().auth_json("home")).ok();
    world.import("seat", &world.sim().auth_json("seat")).ok();
    let known = |live: &str| {
        let list = world.ctl(&format!("workspace list {live} --json")).ok().json();
        list["known"].as_array().cloned().unwrap()
    };
    let of_ann = |known: &[Value]| -> Vec<(String, bool)> {
        let ann = known.iter().filter(|one| one["email"] == "ann@example.test");
        ann.map(|one| (one["id"].as_str().unwrap().to_owned(), !one["account"].is_null())).collect()
    };
    assert_eq!(of_ann(&known("")), [("acct-home".to_owned(), true)]);
    // Upstream knows one more, of which there is no login.
    let live = known("--live");
    assert_eq!(of_ann(&live), [("acct-home".to_owned(), true), ("acct-team".to_owned(), false)]);
    let named = live.iter().find(|one| one["id"] == "acct-home").unwrap();
    assert_eq!((&named["name"], &named["account_name"]), (&json!("home"), &json!("home")));

    // A launch that runs keeps what it was started with; a new one is limited.
    world.ctl("switch home").ok();
    let before = Door::of(&world);
    world.ctl("workspace use seat").ok();
    assert_eq!(world.ctl("workspace show --json").ok().json()["limit"], json!(["acct-team"]));
    let door = Door::of(&world);
    for _turn in 0..3 {
        assert!(
            door.send(&door.turn_in("01900000-0000-7000-8000-00000000000a")).unwrap().is_complete()
        );
    }
    assert!(before.send(&before.turn()).unwrap().is_complete());
    let completed = |name: &str| world.sim().stats().accounts[name].completed;
    assert_eq!((completed("home"), completed("seat")), (1, 3));
    // It holds after a restart, and is lifted by one word.
    world.kill_daemon();
    assert_eq!(world.ctl("workspace show --json").ok().json()["limit"], json!(["acct-team"]));
    assert_eq!(world.ctl("workspace use nowhere").code, 7);
    world.ctl("workspace use --any").ok();
    let door = Door::of(&world);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    assert_eq!(completed("home"), 2);
    // The CLI's own binding and the limit hold together.
    world.ctl("workspace use acct-home").ok();
    let config = world.codex_home().join("config.toml");
    fs::write(&config, "forced_chatgpt_workspace_id = \"acct-team\"\n").unwrap();
    let aside = world.ctl("launch --print");
    assert!(aside.code == 1 && aside.stderr.contains("limit you set"), "{}", aside.stderr);
    world.assert_clean();
}
