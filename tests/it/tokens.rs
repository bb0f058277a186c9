//! Named tokens: what they open, whose their requests are, and their end.

use cma_tests::{
    http::Door,
    sim::{AccountSpec, SimConfig},
    world::{World, eventually},
};
use serde_json::{Value, json};
use std::fs;

fn world(names: &[&str]) -> (World, Door) {
    let accounts = names.iter().map(|name| AccountSpec::new(name)).collect();
    let world = World::with_accounts(SimConfig { accounts, ..SimConfig::default() });
    let door = Door::of(&world);
    (world, door)
}

fn json(world: &World, words: &str) -> Value {
    world.ctl(&format!("{words} --json")).ok().json()
}

/// A door that opens with a new token of that name.
fn with_token(world: &World, door: &Door, words: &str) -> Door {
    let made = json(world, &format!("token create {words}"));
    assert_eq!(made["base_url"], format!("http://{}/codex", door.addr));
    Door { key: made["token"].as_str().unwrap().to_owned(), ..door.clone() }
}

#[test]
fn a_tokens_requests_are_told_apart_and_have_a_budget_of_their_own() {
    let (world, door) = world(&["a"]);
    let (editor, bot) =
        (with_token(&world, &door, "editor"), with_token(&world, &door, "bot --for 2h"));
    for door in [&editor, &editor, &bot, &door] {
        assert!(door.send(&door.turn()).unwrap().is_complete());
    }
    let by = json(&world, "usage --by client");
    let mut groups: Vec<_> = by["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| {
            (group["key"].as_str().unwrap().to_owned(), group["sums"]["requests"].as_u64().unwrap())
        })
        .collect();
    groups.sort();
    let wanted = [("custom", 1), ("token:bot", 1), ("token:editor", 2)];
    assert_eq!(groups, wanted.map(|(key, count)| (key.to_owned(), count)));
    // What a token spent before its budget was set counts, other requests never do.
    let set = json(&world, "budget limit bots --window day --requests 2 --token bot");
    assert_eq!(set["budgets"][0]["requests"], 1);
    assert!(bot.send(&bot.turn()).unwrap().is_complete());
    let blocked = bot.send(&bot.turn()).unwrap();
    assert!(blocked.status == 400 && blocked.text().contains("the budget `bots`"), "{blocked:?}");
    for door in [&editor, &door] {
        assert!(door.send(&door.turn()).unwrap().is_complete());
    }
    let rows = json(&world, "usage --by request")["requests"].clone();
    let bots: Vec<_> =
        rows.as_array().unwrap().iter().filter(|row| row["token"] == "bot").collect();
    assert_eq!(bots.len(), 3);
    assert_eq!((&bots[0]["outcome"], &bots[0]["client"]), (&json!("blocked"), &json!("custom")));
    assert_eq!(world.ctl("budget check bots").code, 1);
    // After a restart the ledger still knows whose they were.
    world.ctl("daemon stop").ok();
    eventually("it has stopped", || world.daemon_pid().is_none());
    world.ctl("daemon start").ok();
    assert_eq!(bot.send(&bot.turn()).unwrap().status, 400);
    assert!(editor.send(&editor.turn()).unwrap().is_complete(), "a token outlives the daemon");
    world.assert_clean();
}

#[test]
fn a_token_that_was_taken_away_opens_nothing_and_is_nowhere_written() {
    let (world, door) = world(&["a"]);
    let editor = with_token(&world, &door, "editor");
    assert_eq!(world.ctl("token create editor").code, 1, "the name is taken");
    assert_eq!(world.ctl("token create bad/name").code, 2);
    assert_eq!(world.ctl("token create long --for 400d").code, 2);
    assert_eq!(world.ctl("token revoke other").code, 7);
    assert_eq!(world.ctl("budget limit x --window day --requests 1 --token other").code, 7);
    assert_eq!(world.ctl("budget limit x --window day --requests 1 --client other").code, 2);
    assert!(editor.send(&editor.turn()).unwrap().is_complete());
    assert_eq!(editor.get("/metrics").unwrap().status, 401, "another scope");
    let list = json(&world, "token list");
    assert_eq!(
        (list["tokens"].as_array().unwrap().len(), &list["tokens"][0]["name"]),
        (1, &json!("editor"))
    );
    assert!(!list.to_string().contains("at-cma-"));
    let file = fs::read_to_string(world.root().join("tokens.json")).unwrap();
    let secret = editor.key.rsplit('.').next().unwrap();
    assert!(file.contains("editor") && !file.contains(secret));
    let left = json(&world, "token revoke editor");
    assert_eq!(left["tokens"], json!([]));
    assert_eq!(editor.send(&editor.turn()).unwrap().status, 401);
    let again = with_token(&world, &door, "editor");
    assert!(again.send(&again.turn()).unwrap().is_complete());
    assert_eq!(editor.send(&editor.turn()).unwrap().status, 401, "the old one stays away");
    let shown = world.ctl("token create third").ok();
    assert!(shown.stdout.starts_with("at-cma-") && shown.stdout.lines().count() == 1, "{shown:?}");
    assert!(shown.stderr.contains("/codex"), "{shown:?}");
    world.assert_clean();
}

#[test]
fn tokens_of_a_sealed_root_are_sealed_and_good_when_it_is_open() {
    let accounts = vec![AccountSpec::new("a")];
    let world = World::with_accounts(SimConfig { accounts, ..SimConfig::default() })
        .with_env("CMA_PASSPHRASE", "correct horse battery staple");
    let door = Door::of(&world);
    let editor = with_token(&world, &door, "secret-editor");
    world.ctl("seal on --passphrase").ok();
    let bytes = fs::read(world.root().join("tokens.json")).unwrap();
    assert!(!String::from_utf8_lossy(&bytes).contains("secret-editor"));
    world.kill_daemon();
    let mut locked = world.command("cmactl");
    locked.args(["daemon", "start"]).env_remove("CMA_PASSPHRASE");
    world.finish(locked).ok();
    assert_ne!(editor.send(&editor.turn()).unwrap().status, 200);
    world.ctl("unlock").ok();
    assert!(editor.send(&editor.turn()).unwrap().is_complete());
    world.assert_clean();
}
