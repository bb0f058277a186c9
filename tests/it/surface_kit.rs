//! What the scenarios of calls around turns share: worlds, calls, and what upstream saw of them.

use cma_tests::{
    http::{Answer, Ask, Door},
    sim::{AccountSpec, Seen, SimConfig},
    world::{World, eventually},
};
use serde_json::Value;
use std::fs;

pub(crate) fn specs(names: &[&str]) -> Vec<AccountSpec> {
    names.iter().map(|name| AccountSpec::new(name)).collect()
}

pub(crate) fn world(accounts: Vec<AccountSpec>) -> (World, Door) {
    let world = World::with_accounts(SimConfig { accounts, ..SimConfig::default() });
    let door = Door::of(&world);
    (world, door)
}

/// A world whose daemon has these settings from its start.
pub(crate) fn world_with(config: &str, names: &[&str]) -> (World, Door) {
    let (world, _door) = world(specs(names));
    world.ctl("daemon stop").ok();
    eventually("the daemon is gone", || world.daemon_pid().is_none());
    fs::write(world.root().join("config.toml"), config).unwrap();
    let door = Door::of(&world);
    (world, door)
}

/// What upstream saw below a path.
pub(crate) fn seen(world: &World, path: &str) -> Vec<Seen> {
    world.sim().seen().into_iter().filter(|seen| seen.path.ends_with(path)).collect()
}

/// Whose token each of these carried.
pub(crate) fn accounts(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|seen| seen.account.as_deref().unwrap_or("-")).collect()
}

pub(crate) fn served(world: &World, name: &str) -> u64 {
    world.sim().stats().accounts[name].served
}

pub(crate) fn post(door: &Door, path: &str, body: &Value) -> Answer {
    door.send(&posting(door, path, body)).unwrap()
}

pub(crate) fn posting(door: &Door, path: &str, body: &Value) -> Ask {
    let ask = door.ask("POST", path).header("content-type", "application/json");
    ask.body(body.to_string().into_bytes())
}

#[track_caller]
pub(crate) fn turn(door: &Door, model: &str) -> Answer {
    let answer =
        door.send(&door.turn().with("x-codex-routing-hint", &format!("model={model}"))).unwrap();
    assert!(answer.is_complete(), "{} {}", answer.status, answer.text());
    answer
}
