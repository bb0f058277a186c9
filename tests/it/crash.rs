//! The daemon is killed at random moments of refreshes: no login is lost, none is spent twice.

use super::crash_matrix::{NAMES, OnDisk, number, quick_starts, settled};
use cma_tests::{
    http::Door,
    sim::{AccountSpec, AccountStats, Fault, Route, SimConfig},
    world::World,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

fn config(grace: Duration) -> SimConfig {
    let accounts = NAMES.into_iter().map(AccountSpec::new).collect();
    SimConfig { accounts, grace, ..SimConfig::default() }
}

/// All of them, by their names.
fn on_disk(world: &World) -> BTreeMap<String, OnDisk> {
    let found = super::crash_matrix::on_disk(world);
    assert_eq!(found.len(), NAMES.len(), "{found:?}");
    found
}

struct Round<'a> {
    world: &'a World,
    doors: &'a BTreeMap<&'static str, Door>,
    rng: &'a mut fastrand::Rng,
    starts: Vec<Duration>,
    /// Refreshes whose answer the daemon never got, over all rounds.
    unknown: u64,
}

impl Round<'_> {
    /// Refreshes of all accounts, a kill among them, and a start. Returns the accounts whose
    /// refresh token was spent without the daemon having learned what came of it.
    fn kill(&mut self) -> BTreeSet<String> {
        let world = self.world;
        world.sim().clear_faults();
        for name in NAMES {
            world.sim().expire_access(name);
            let pause = Duration::from_millis(self.rng.u64(0..50));
            let fault = match self.rng.u8(0..5) {
                0 => Fault::HangAfterCommit,
                1 => Fault::HangBeforeCommit,
                2 | 3 => Fault::DelayAnswer(pause),
                _ => Fault::SlowHead(pause),
            };
            world.sim().fault(Some(name), Route::Refresh, fault, Some(1));
        }
        let (before, known) = (settled(world), on_disk(world));
        std::thread::scope(|scope| {
            for door in self.doors.values() {
                // What it is answered doesn't matter, nor whether.
                scope.spawn(|| drop(door.send(&door.turn())));
            }
            std::thread::sleep(Duration::from_micros(self.rng.u64(0..60_000)));
            world.kill_daemon();
        });
        world.sim().clear_faults();
        let (after, left) = (settled(world), on_disk(world));
        let started = world.ctl("daemon start").ok();
        self.starts.push(started.took);
        let kept = on_disk(world);
        let mut lost = BTreeSet::new();
        for name in NAMES {
            let sent = after[name].refresh_requests - before[name].refresh_requests;
            let spent = after[name].refreshed - before[name].refreshed;
            let written = left[name].generation - known[name].generation;
            if sent > written {
                assert_eq!(left[name].noted, Some(left[name].generation), "{name}: no note of it");
            }
            // A credential that was whole on disk but had no name yet is found by the start.
            let saved = kept[name].generation - known[name].generation;
            assert!(sent <= 1 && saved <= spent, "{name}: {sent} sent, {saved} of {spent} saved");
            if spent > saved {
                lost.insert(name.to_owned());
            }
        }
        self.unknown += lost.len() as u64;
        for entry in fs::read_dir(world.root().join("accounts")).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            assert!(!name.starts_with(".new-"), "a half-written credential was left: {name}");
        }
        lost
    }
}

fn doors(world: &World) -> BTreeMap<&'static str, Door> {
    NAMES.into_iter().map(|name| (name, Door::of_account(world, name))).collect()
}

fn rounds(grace: Duration, mut check: impl FnMut(&mut Round<'_>)) {
    let seed = number("CMA_SIM_SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds = number("CMA_CRASH_ROUNDS").unwrap_or(20);
    eprintln!("CMA_SIM_SEED={seed} CMA_CRASH_ROUNDS={rounds}, grace {grace:?}");
    let world = World::with_accounts(config(grace));
    let doors = doors(&world);
    let mut rng = fastrand::Rng::with_seed(seed);
    let (starts, begun) = (Vec::new(), Instant::now());
    let mut round = Round { world: &world, doors: &doors, rng: &mut rng, starts, unknown: 0 };
    for _ in 0..rounds {
        check(&mut round);
    }
    let starts = quick_starts(&mut round.starts);
    eprintln!(
        "{rounds} kills in {:?}: {} outcomes unknown; {starts}",
        begun.elapsed(),
        round.unknown
    );
    assert!(rounds < 20 || round.unknown > 0, "no kill came at a wrong moment: nothing was tested");
    world.assert_clean();
}

fn count(world: &World, of: impl Fn(&AccountStats) -> u64) -> BTreeMap<String, u64> {
    settled(world).iter().map(|(name, stats)| (name.clone(), of(stats))).collect()
}

/// Within the issuer's grace every login survives.
#[test]
fn kill_during_refresh() {
    rounds(Duration::from_secs(30), |round| {
        let before = count(round.world, |stats| stats.replayed);
        let lost = round.kill();
        for (name, door) in round.doors {
            let answer = door.send(&door.turn()).unwrap();
            assert!(answer.is_complete(), "{name}: {} {}", answer.status, answer.text());
        }
        for (name, stats) in settled(round.world) {
            assert_eq!(stats.reused, 0, "{name}");
            let again = stats.replayed - before[&name];
            assert_eq!(again, u64::from(lost.contains(&name)), "{name}: sent again");
        }
    });
}

/// Without a grace exactly the logins with an unknown outcome are gone, and they say so.
#[test]
fn kill_during_refresh_without_grace() {
    rounds(Duration::ZERO, |round| {
        let world = round.world;
        let before = count(world, |stats| stats.reused);
        let lost = round.kill();
        for (name, door) in round.doors {
            let answer = door.send(&door.turn()).unwrap();
            let gone = lost.contains(*name);
            assert_eq!(answer.is_complete(), !gone, "{name}: {} {}", answer.status, answer.text());
            if gone {
                assert_eq!(answer.status, 400, "{name}: {}", answer.text());
            }
        }
        let now = count(world, |stats| stats.reused);
        let status = world.status();
        for account in status["accounts"].as_array().unwrap() {
            let name = account["label"].as_str().unwrap();
            let gone = lost.contains(name);
            assert_eq!(now[name] - before[name], u64::from(gone), "{name}: spent again");
            if gone {
                assert_eq!(account["state"], "needs_login", "{account}");
                let reason = account["reason"].as_str().unwrap();
                assert!(reason.contains("refresh outcome unknown"), "{reason}");
                assert!(
                    account["until"].as_u64().is_some_and(|at| at > 1_600_000_000),
                    "{account}"
                );
            } else {
                assert_eq!(account["state"], "ready", "{account}");
            }
        }
        for name in lost {
            world.import(&name, &world.sim().auth_json(&name)).ok();
            let door = &round.doors[name.as_str()];
            assert!(door.send(&door.turn()).unwrap().is_complete(), "{name} after a new login");
        }
    });
}

/// A person's changes are whole or not there, whenever the daemon dies.
#[test]
fn kill_during_changes() {
    let seed = number("CMA_SIM_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("CMA_SIM_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let world = World::with_accounts(config(Duration::ZERO));
    let login = world.path("tmp/login.json");
    let mut starts = Vec::new();
    for round in 0..number("CMA_CRASH_ROUNDS").unwrap_or(20) {
        fs::write(&login, world.sim().auth_json("b")).unwrap();
        let path = login.display().to_string();
        std::thread::scope(|scope| {
            for words in [
                format!("--no-start switch {}", NAMES[rng.usize(0..5)]),
                format!("--no-start label 3 c{round}"),
                "--no-start disable d".to_owned(),
                "--no-start enable d".to_owned(),
                format!("--no-start import {path}"),
            ] {
                // What becomes of it is what the next start shows.
                let world = &world;
                scope.spawn(move || drop(world.ctl(&words)));
            }
            std::thread::sleep(Duration::from_micros(rng.u64(0..25_000)));
            world.kill_daemon();
        });
        starts.push(world.ctl("daemon start").ok().took);
        let status = world.status();
        let accounts = status["accounts"].as_array().unwrap();
        assert_eq!(accounts.len(), NAMES.len());
        let pin = &status["pin"]["account"];
        assert!(pin.is_null() || accounts.iter().any(|account| account["id"] == *pin), "{status}");
        for account in accounts.iter().filter(|account| account["label"] != "d") {
            assert_eq!(account["state"], "ready", "{account}");
        }
    }
    eprintln!("{}", quick_starts(&mut starts));
    fs::remove_file(&login).unwrap();
    world.ctl("enable d").ok();
    let door = Door::of_account(&world, "b");
    assert!(door.send(&door.turn()).unwrap().is_complete());
    world.assert_clean();
}
