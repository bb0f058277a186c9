//! The daemon is killed at each of its named crash points, in the middle of renewals, imports and
//! everything else that people do; then it is started again and nothing may be lost.
//!
//! Replayable: `CMA_CRASH_SEED` and `CMA_CRASH_ROUNDS` (50 by default). The list of points is the
//! daemon's own (`cmad crash-points`); one that the script can't reach fails the test.

use cma_tests::{
    http::Door,
    sim::{AccountSpec, AccountStats, Fault, Route, SimConfig},
    world::{World, files},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

pub(super) const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// From exec to ready.
const START: Duration = Duration::from_millis(300);
/// A machine that does other things at the same time may take this long now and then.
const SLOW_START: Duration = Duration::from_secs(2);
/// The points at which an answer of the issuer is in memory alone, or on its way.
const OUTCOME_UNKNOWN: [&str; 4] =
    ["renewal.posted", "renewal.answered", "renewal.before_save", "account.created"];

/// What the starts after crashes took, in words.
///
/// # Panics
/// When they weren't below the limit. One in twenty may have met a machine that was busy with other
/// scenarios, none may have waited for anything.
#[track_caller]
pub(super) fn quick_starts(starts: &mut [Duration]) -> String {
    starts.sort_unstable();
    let slow = starts.iter().filter(|took| **took > START).count();
    let (median, slowest) = (starts[starts.len() / 2], starts[starts.len() - 1]);
    assert!(slow * 20 <= starts.len() && slowest < SLOW_START, "{slow} slow starts: {starts:?}");
    format!("starts: median {median:?}, slowest {slowest:?}")
}

pub(super) fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// What stands on disk of one account.
#[derive(Debug, Clone)]
pub(super) struct OnDisk {
    pub(super) generation: u64,
    /// The generation that the renewal's note names.
    pub(super) noted: Option<u64>,
}

fn sealed(path: &Path) -> Option<Value> {
    let text = fs::read_to_string(path).ok()?;
    let envelope: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{} is torn: {error}", path.display()));
    Some(envelope["content"].clone())
}

/// By the name that the account has upstream.
pub(super) fn on_disk(world: &World) -> BTreeMap<String, OnDisk> {
    let folder = world.root().join("accounts");
    let mut found = BTreeMap::new();
    for path in files(&folder) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(id) = name.strip_suffix(".json").filter(|id| !id.contains('.')) else { continue };
        let record = sealed(&path).unwrap();
        let note = sealed(&folder.join(format!("{id}.renewal.json")));
        let known = OnDisk {
            generation: record["generation"].as_u64().unwrap(),
            noted: note.and_then(|note| note["generation"].as_u64()),
        };
        let name = record["workspace"].as_str().unwrap().strip_prefix("acct-").unwrap();
        found.insert(name.to_owned(), known);
    }
    found
}

/// What the issuer counted, once it has nothing more to read.
pub(super) fn settled(world: &World) -> BTreeMap<String, AccountStats> {
    let mut last = world.sim().stats().accounts;
    loop {
        // On a busy machine it may not have been given a processor for as long as this.
        std::thread::sleep(Duration::from_millis(60));
        let now = world.sim().stats().accounts;
        if now == last {
            return NAMES
                .into_iter()
                .map(|name| (name.to_owned(), now.get(name).cloned().unwrap_or_default()))
                .collect();
        }
        last = now;
    }
}

/// What the script does, one after another in an order of the seed's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// A turn whose token upstream refuses.
    Renew,
    Import,
    Label,
    Pin,
    Enable,
    Leave,
}

const DEEDS: [Deed; 6] =
    [Deed::Renew, Deed::Import, Deed::Label, Deed::Pin, Deed::Enable, Deed::Leave];

struct Matrix {
    world: World,
    doors: BTreeMap<&'static str, Door>,
    ids: BTreeMap<String, String>,
    rng: fastrand::Rng,
    reached: BTreeSet<String>,
    starts: Vec<Duration>,
    unknown: u64,
}

impl Matrix {
    fn new(seed: u64) -> Self {
        let accounts = NAMES.into_iter().map(AccountSpec::new).collect();
        let world = World::with_accounts(SimConfig { accounts, ..SimConfig::default() });
        let doors = NAMES.into_iter().map(|name| (name, Door::of_account(&world, name))).collect();
        let status = world.status();
        let text = |account: &Value, field: &str| account[field].as_str().unwrap().to_owned();
        let ids = status["accounts"].as_array().unwrap().iter();
        let ids = ids.map(|account| (text(account, "label"), text(account, "id"))).collect();
        let rng = fastrand::Rng::with_seed(seed);
        let (reached, starts) = (BTreeSet::new(), Vec::new());
        Self { world, doors, ids, rng, reached, starts, unknown: 0 }
    }

    fn points(&self) -> Vec<String> {
        let listed = self.world.run("cmad", ["crash-points"]).ok();
        listed.stdout.lines().map(str::to_owned).collect()
    }

    fn deed(&mut self, deed: Deed, round: usize) {
        let world = &self.world;
        let id = |name: &str| self.ids[name].clone();
        match deed {
            Deed::Renew => {
                let pause = Duration::from_millis(80);
                let fault = match self.rng.u8(0..3) {
                    0 => Fault::SlowHead(pause),
                    _ => Fault::DelayAnswer(pause),
                };
                world.sim().expire_access("a");
                world.sim().fault(Some("a"), Route::Refresh, fault, Some(1));
                let door = &self.doors["a"];
                // Whatever it is answered: the daemon may be gone.
                drop(door.send(&door.turn()));
            },
            Deed::Import => {
                self.import("b");
            },
            Deed::Label => drop(world.ctl(&format!("--no-start label {} c{round}", id("c")))),
            Deed::Pin => {
                drop(world.ctl(&format!("--no-start switch {}", id("d"))));
                drop(world.ctl("--no-start unpin"));
            },
            Deed::Enable => {
                drop(world.ctl(&format!("--no-start disable {}", id("c"))));
                drop(world.ctl(&format!("--no-start enable {}", id("c"))));
            },
            Deed::Leave => {
                // Something that is older than it: `.previous.json` leaves with it.
                drop(world.ctl(&format!("--no-start label {} e{round}", id("e"))));
                drop(world.ctl(&format!("--no-start remove {} --yes", id("e"))));
                self.import("e");
            },
        }
    }

    /// A login that was just made, without starting a daemon for it.
    fn import(&self, name: &str) -> i32 {
        let file = self.world.path("tmp/login.json");
        fs::write(&file, self.world.sim().auth_json(name)).unwrap();
        let ran = self.world.ctl(&format!("--no-start import {}", file.display()));
        fs::remove_file(&file).unwrap();
        ran.code
    }

    /// One crash, one start, and all that must hold after it.
    fn round(&mut self, point: &str, times: u32, round: usize) {
        let grace = Duration::from_secs(if self.rng.bool() { 30 } else { 0 });
        self.world.sim().set_grace(grace);
        self.world.sim().clear_faults();
        self.world.kill_daemon();
        let new_secret = point.starts_with("secret.");
        if new_secret {
            fs::remove_file(self.world.root().join("root.key")).unwrap();
        }
        let (before, known) = (settled(&self.world), on_disk(&self.world));
        let mut armed = self.world.command("cmactl");
        armed.args(["daemon", "start"]).env("CMA_CRASH_AT", format!("{point}:{times}"));
        // It may well end before it is ready.
        drop(self.world.finish(armed));
        let mut deeds = DEEDS;
        self.rng.shuffle(&mut deeds);
        for deed in deeds {
            if self.world.daemon_pid().is_none() {
                break;
            }
            self.deed(deed, round);
        }
        // Its connections close a moment before it is gone.
        let died = (0..20).any(|look| {
            std::thread::sleep(Duration::from_millis(5 * u64::from(look > 0)));
            self.world.daemon_pid().is_none()
        });
        if died {
            self.reached.insert(point.to_owned());
        }
        self.world.kill_daemon();
        self.world.sim().clear_faults();
        let (after, left) = (settled(&self.world), on_disk(&self.world));
        let started = self.world.ctl("daemon start").ok();
        self.starts.push(started.took);
        let kept = on_disk(&self.world);
        for path in files(&self.world.root()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(!name.starts_with(".new-"), "a half-written file was left: {name}");
        }
        for name in NAMES {
            let sent = after[name].refresh_requests - before[name].refresh_requests;
            assert!(sent <= u64::from(name == "a"), "{name}: {sent} sent");
            let again = after[name].replayed + after[name].reused;
            assert_eq!(again, before[name].replayed + before[name].reused, "{name}: sent again");
            let Some(kept) = kept.get(name) else {
                assert_eq!(name, "e", "{name} is not in the pool any more");
                continue;
            };
            assert!(kept.generation >= known[name].generation, "{name} went back");
        }
        let spent = after["a"].refreshed - before["a"].refreshed;
        let saved = kept["a"].generation - known["a"].generation;
        assert!(saved <= spent, "{saved} of {spent} saved");
        let lost = spent > saved;
        if lost {
            assert!(died && OUTCOME_UNKNOWN.contains(&point), "a credential was lost at {point}");
            assert_eq!(left["a"].noted, Some(left["a"].generation), "no note of it");
            self.unknown += 1;
        }
        if new_secret {
            let world = &self.world;
            self.doors =
                NAMES.into_iter().map(|name| (name, Door::of_account(world, name))).collect();
        }
        self.serve(&after, lost, grace);
        self.mend(lost && grace.is_zero());
    }

    /// Every account serves, but for a login whose outcome nobody can know.
    fn serve(&self, after: &BTreeMap<String, AccountStats>, lost: bool, grace: Duration) {
        let world = &self.world;
        let status = world.status();
        let listed = status["accounts"].as_array().unwrap();
        for account in listed {
            assert!(account["state"] != "needs_login", "{account}");
            assert_eq!(account["enabled"], account["state"] != "disabled", "{account}");
        }
        let pin = &status["pin"]["account"];
        assert!(pin.is_null() || *pin == self.ids["d"].as_str(), "{status}");
        let gone = lost && grace.is_zero();
        for (name, door) in &self.doors {
            let account = listed.iter().find(|account| account["id"] == self.ids[*name].as_str());
            let Some(account) = account else {
                assert_eq!(*name, "e");
                let removed = format!("{}-", self.ids["e"]);
                let waits = files(&world.root().join("removed")).into_iter().any(|path| {
                    path.file_name().unwrap().to_str().unwrap().starts_with(&removed)
                        && sealed(&path).is_some()
                });
                assert!(waits, "a login was lost while it was removed");
                continue;
            };
            if account["state"] == "disabled" {
                assert_eq!(*name, "c");
                continue;
            }
            let answer = door.send(&door.turn()).unwrap();
            let serves = !(gone && *name == "a");
            assert_eq!(answer.is_complete(), serves, "{name}: {} {}", answer.status, answer.text());
        }
        let now = settled(world);
        for name in NAMES {
            let twice =
                now[name].replayed + now[name].reused - (after[name].replayed + after[name].reused);
            assert_eq!(twice, u64::from(lost && name == "a"), "{name}: sent twice");
            let reused = now[name].reused - after[name].reused;
            assert_eq!(reused, u64::from(gone && name == "a"), "{name}: spent again");
        }
        if gone {
            let status = world.status();
            let accounts = status["accounts"].as_array().unwrap();
            let a =
                accounts.iter().find(|account| account["id"] == self.ids["a"].as_str()).unwrap();
            let reason = a["reason"].as_str().unwrap();
            assert!(reason.contains("refresh outcome unknown"), "{reason}");
            assert!(a["until"].as_u64().is_some_and(|at| at > 1_600_000_000), "{a}");
        }
    }

    /// Puts the pool back to what the next round expects.
    fn mend(&self, gone: bool) {
        if gone {
            assert_eq!(self.import("a"), 0);
        }
        if !on_disk(&self.world).contains_key("e") {
            assert_eq!(self.import("e"), 0);
        }
        // A login that was removed in the same second as the one before takes its place there; each
        // round is to find the folder empty.
        drop(fs::remove_dir_all(self.world.root().join("removed")));
        self.world.ctl(&format!("enable {}", self.ids["c"])).ok();
        self.world.ctl("unpin").ok();
    }
}

#[test]
fn nothing_is_lost_at_any_crash_point() {
    let seed = number("CMA_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds = usize::try_from(number("CMA_CRASH_ROUNDS").unwrap_or(50)).unwrap();
    eprintln!("CMA_CRASH_SEED={seed} CMA_CRASH_ROUNDS={rounds}");
    let (begun, mut matrix) = (Instant::now(), Matrix::new(seed));
    let mut points = matrix.points();
    // Files without a login are written in the same steps; two daemons are gone through in `handover`.
    points.retain(|point| !point.starts_with("other.") && !point.starts_with("handover."));
    assert!(points.len() > 40, "{points:?}");
    matrix.rng.shuffle(&mut points);
    for round in 0..rounds {
        // All of them once, then any of them for the first or the second time.
        let (point, times) = match points.get(round) {
            Some(point) => (point.clone(), 1),
            None => (matrix.rng.choice(&points).unwrap().clone(), matrix.rng.u32(1..=2)),
        };
        eprintln!("round {round}: {point}:{times}");
        matrix.round(&point, times, round);
    }
    let starts = quick_starts(&mut matrix.starts);
    eprintln!(
        "{rounds} crashes in {:?}, {} outcomes unknown; {starts}",
        begun.elapsed(),
        matrix.unknown,
    );
    let missed: Vec<_> =
        points.iter().take(rounds).filter(|point| !matrix.reached.contains(*point)).collect();
    assert!(missed.is_empty(), "points that nothing reaches: {missed:?}");
    matrix.world.assert_clean();
}

/// A point is honoured with simulated upstreams only.
#[test]
fn a_crash_point_does_nothing_to_a_daemon_that_serves_a_person() {
    let world = World::new(SimConfig::default());
    let start = |backend: &str, point: &str| {
        let mut command = world.command("cmactl");
        command.args(["daemon", "start"]);
        command.env("CMA_UPSTREAM_BACKEND", backend).env("CMA_CRASH_AT", point);
        let ran = world.finish(command);
        let lives = world.daemon_pid().is_some();
        world.kill_daemon();
        fs::remove_file(world.root().join("root.key")).ok();
        (ran.code, lives)
    };
    assert_eq!(start("https://127.0.0.1:9/backend-api", "secret.renamed"), (0, true));
    let (code, lives) = start(&world.sim().backend(), "secret.renamed");
    assert!(code != 0 && !lives);
    assert_eq!(start(&world.sim().backend(), "no.such.point"), (3, false));
}
