//! A world that is out of order: disk, clock, network. No account is to blame, `status` says what is
//! wrong, no refresh token is spent for nothing, and work goes on as soon as it can.

use cma_tests::{
    http::Door,
    sim::{AccountSpec, Fault, Route, SimConfig},
    world::{World, eventually, files},
};
use rustix::process::{Pid, Resource, Rlimit};
use serde_json::Value;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

fn config(names: &[&str]) -> SimConfig {
    let accounts = names.iter().map(|name| AccountSpec::new(name)).collect();
    SimConfig { accounts, ..SimConfig::default() }
}

/// All notes of `status`, in one text.
fn notes(status: &Value) -> String {
    status["notes"].to_string()
}

/// Nobody needs a login, and nobody rests.
#[track_caller]
fn nobody_is_to_blame(world: &World) -> Value {
    let status = world.status();
    for account in status["accounts"].as_array().unwrap() {
        let state = account["state"].as_str().unwrap();
        assert!(matches!(state, "ready" | "refreshing"), "{account}");
    }
    status
}

/// An account waits for its renewal and says why. While a try runs it says that instead.
#[track_caller]
fn says(world: &World, name: &str, why: &str) {
    eventually("the account says why it waits", || {
        let account = world.account(name);
        assert_eq!(account["state"], "refreshing", "{account}");
        account["reason"].as_str().is_some_and(|reason| reason.contains(why))
    });
}

/// A file system of its own, over a folder; taken away again at the end.
struct Mount(PathBuf);

impl Mount {
    /// `None`, with the reason printed, where this user may not mount.
    fn new(at: &Path, how: &[&[&str]]) -> Option<Self> {
        let at = at.to_path_buf();
        for (n, words) in how.iter().enumerate() {
            let ran = Command::new("mount").args(*words).arg(&at).output().expect("mount runs");
            if !ran.status.success() {
                let why = String::from_utf8_lossy(&ran.stderr).into_owned();
                assert!(n == 0, "half mounted: {why}");
                assert!(std::env::var("CI").as_deref() != Ok("true"), "mount is missing: {why}");
                eprintln!("skipped: this user can't mount ({})", why.trim());
                return None;
            }
        }
        Some(Self(at))
    }

    /// A small disk.
    fn disk(at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        Self::new(at, &[&["-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs"]])
    }

    /// The same files, read only.
    fn read_only(at: &Path) -> Option<Self> {
        let own = at.to_str().unwrap();
        Self::new(at, &[&["--bind", own], &["-o", "remount,ro,bind"]])
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).output());
    }
}

/// How a disk stops taking anything.
trait Full {
    fn fill(&self);
    fn free(&self);
}

/// The daemon's own limit of a file's size: for every user, on every disk.
struct Limited(u32);

impl Full for Limited {
    fn fill(&self) {
        self.limit(Some(0));
    }

    fn free(&self) {
        self.limit(None);
    }
}

impl Limited {
    fn limit(&self, current: Option<u64>) {
        let pid = Pid::from_raw(i32::try_from(self.0).unwrap());
        let limit = Rlimit { current, maximum: None };
        rustix::process::prlimit(pid, Resource::Fsize, limit).unwrap();
    }
}

/// A file that takes all there is.
struct Filled(PathBuf);

impl Full for Filled {
    fn fill(&self) {
        use std::io::Write as _;
        let mut file = File::create(&self.0).unwrap();
        // Single bytes at the end: not one must be left.
        for size in [4096, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// Starts the daemon so that a limit on its files is an error and not a signal.
fn start_tolerant(world: &World) -> u32 {
    let mut start = world.command("sh");
    start.args(["-c", "trap '' XFSZ; exec cmactl daemon start"]);
    world.finish(start).ok();
    world.daemon_pid().unwrap()
}

/// A disk that takes nothing, before a renewal and in the middle of one.
fn no_room(world: &World, disk: &dyn Full, says: &str) {
    let (a, b) = (Door::of_account(world, "a"), Door::of_account(world, "b"));
    world.sim().expire_access("a");
    std::thread::scope(|scope| {
        disk.fill();
        let turn = scope.spawn(|| a.send(&a.turn()).unwrap());
        eventually("the renewal waits", || {
            world.account("a")["reason"].as_str().is_some_and(|reason| reason.contains(says))
        });
        let status = nobody_is_to_blame(world);
        assert!(notes(&status).contains(says), "{status}");
        assert!(world.ctl("status").ok().stdout.contains(says));
        assert!(b.send(&b.turn()).unwrap().is_complete(), "the other account serves");
        let refused = world.ctl("label b other");
        assert_eq!(refused.code, 13, "{} {}", refused.stdout, refused.stderr);
        assert!(refused.stderr.contains(says), "{}", refused.stderr);
        let stats = world.sim().stats().accounts["a"].clone();
        assert_eq!(stats.refresh_requests, 0, "nothing is sent that can't be noted");
        disk.free();
        let answer = turn.join().unwrap();
        assert!(answer.is_complete(), "{} {}", answer.status, answer.text());
    });
    // In the middle: the new credential exists in memory alone until there is room again.
    world.sim().expire_access("a");
    let slow = Fault::DelayAnswer(Duration::from_millis(400));
    world.sim().fault(Some("a"), Route::Refresh, slow, Some(1));
    std::thread::scope(|scope| {
        let turn = scope.spawn(|| a.send(&a.turn()).unwrap());
        eventually("the request has left", || {
            world.sim().stats().accounts["a"].refresh_requests == 2
        });
        // The daemon gives the copy beside the account up for the new credential: not here.
        let id = world.account("a")["id"].as_str().unwrap().to_owned();
        fs::remove_file(world.root().join(format!("accounts/{id}.previous.json"))).unwrap();
        disk.fill();
        eventually("the credential can't be saved", || {
            notes(&nobody_is_to_blame(world)).contains("can't be saved")
        });
        disk.free();
        let answer = turn.join().unwrap();
        assert!(answer.is_complete(), "{} {}", answer.status, answer.text());
    });
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.replayed, stats.reused), (2, 0, 0));
    // The usage ledger says so with its next row.
    eventually("all is well again", || nobody_is_to_blame(world)["notes"] == serde_json::json!([]));
    world.ctl("label b other").ok();
    // And it is on the disk, not only in memory.
    world.kill_daemon();
    assert!(a.send(&a.turn()).is_err());
    world.ctl("daemon start").ok();
    assert!(a.send(&a.turn()).unwrap().is_complete());
    assert_eq!(world.sim().stats().accounts["a"].refresh_requests, 2);
    world.assert_clean();
}

#[test]
fn a_limit_on_files_costs_nothing() {
    let world = World::with_accounts(config(&["a", "b"]));
    world.kill_daemon();
    let pid = start_tolerant(&world);
    no_room(&world, &Limited(pid), "File too large");
}

#[test]
fn a_full_disk_costs_nothing() {
    let world = World::new(config(&["a", "b"]));
    let Some(_disk) = Mount::disk(&world.root()) else { return };
    world.import_all();
    no_room(&world, &Filled(world.root().join("filler")), "No space left");
    world.kill_daemon();
}

#[test]
fn a_root_that_became_read_only_costs_nothing() {
    let world = World::with_accounts(config(&["a", "b"]));
    let (a, b) = (Door::of_account(&world, "a"), Door::of_account(&world, "b"));
    let accounts = world.root().join("accounts");
    let Some(sealed) = Mount::read_only(&accounts) else { return };
    world.sim().expire_access("a");
    std::thread::scope(|scope| {
        let turn = scope.spawn(|| a.send(&a.turn()).unwrap());
        eventually("the renewal waits", || {
            let account = world.account("a");
            account["reason"].as_str().is_some_and(|reason| reason.contains("Read-only"))
        });
        assert!(notes(&nobody_is_to_blame(&world)).contains("Read-only"));
        assert!(b.send(&b.turn()).unwrap().is_complete());
        assert_eq!(world.sim().stats().accounts["a"].refresh_requests, 0);
        drop(sealed);
        let answer = turn.join().unwrap();
        assert!(answer.is_complete(), "{} {}", answer.status, answer.text());
    });
    assert_eq!(nobody_is_to_blame(&world)["notes"], serde_json::json!([]));
    // A start on such a root is refused with its path, and changes nothing.
    world.kill_daemon();
    let sealed = Mount::read_only(&world.root());
    let refused = world.ctl("status");
    assert_eq!(refused.code, 13, "{} {}", refused.stdout, refused.stderr);
    assert!(refused.stderr.contains("Read-only") && refused.stderr.contains("multi-auth"));
    drop(sealed);
    assert!(world.ctl("daemon start").ok().took < Duration::from_secs(2));
    assert!(a.send(&a.turn()).unwrap().is_complete());
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.reused), (1, 0));
    world.assert_clean();
}

#[test]
fn a_root_of_another_user_is_refused_and_left_alone() {
    let world = World::with_accounts(config(&["a"]));
    world.kill_daemon();
    let root = world.root();
    let own = rustix::process::geteuid();
    let before: Vec<_> = files(&root).iter().map(|path| fs::read(path).unwrap()).collect();
    let (refused, foreign) = if own.is_root() {
        std::os::unix::fs::chown(&root, Some(4_242), None).unwrap();
        (world.ctl("status"), root.display().to_string())
    } else {
        let mut command = world.command("cmactl");
        command.arg("status").env("CODEX_MULTI_AUTH_DIR", "/usr");
        (world.finish(command), "/usr".to_owned())
    };
    assert_eq!(refused.code, 13, "{} {}", refused.stdout, refused.stderr);
    let says = ["belongs to user id", &foreign, "CODEX_MULTI_AUTH_DIR"];
    assert!(says.iter().all(|part| refused.stderr.contains(part)), "{}", refused.stderr);
    let after: Vec<_> = files(&root).iter().map(|path| fs::read(path).unwrap()).collect();
    assert_eq!(before, after, "nothing was touched");
    std::os::unix::fs::chown(&root, Some(own.as_raw()), None).unwrap();
    let door = Door::of(&world);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    world.assert_clean();
}

#[test]
fn files_held_open_by_another_process_stop_nothing() {
    let world = World::with_accounts(config(&["a", "b"]));
    let a = Door::of_account(&world, "a");
    let held: Vec<_> = files(&world.root())
        .into_iter()
        .filter(|path| !path.starts_with(world.root().join("run")))
        .map(|path| {
            let file = File::options().read(true).write(true).open(path).unwrap();
            file.lock().unwrap();
            file
        })
        .collect();
    assert!(held.len() >= 4);
    for generation in 2..=3 {
        world.sim().expire_access("a");
        assert!(a.send(&a.turn()).unwrap().is_complete());
        assert_eq!(world.account("a")["generation"], generation);
    }
    world.ctl("switch b").ok();
    world.ctl("label b other").ok();
    world.ctl("daemon stop").ok();
    // What holds the daemon's own lock is named as what it is.
    let lock = File::options().write(true).open(world.root().join("run/daemon.lock")).unwrap();
    eventually("the daemon is gone", || world.daemon_pid().is_none());
    lock.lock().unwrap();
    let refused = world.ctl("daemon start");
    assert!(refused.code != 0 && refused.stderr.contains("held by another program"), "{refused:?}");
    drop(lock);
    world.ctl("daemon start").ok();
    assert!(a.send(&a.turn()).unwrap().is_complete());
    assert_eq!(world.account("other")["state"], "ready");
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.reused), (2, 0));
    drop(held);
    world.assert_clean();
}

const HOUR: i64 = 3_600_000;

/// A world whose daemon's wall clock can be set, by milliseconds.
fn with_clock(config: SimConfig) -> (World, impl Fn(&World, i64)) {
    let world = World::new(config);
    let file = world.path("tmp/shift");
    fs::write(&file, "0").unwrap();
    let world = world.with_env("CMA_CLOCK_SHIFT", file.to_str().unwrap());
    world.import_all();
    let set = move |world: &World, shift: i64| {
        let at = |world: &World| world.status()["accounts"].to_string().len();
        fs::write(&file, shift.to_string()).unwrap();
        // The daemon reads it every ten milliseconds.
        std::thread::sleep(Duration::from_millis(150));
        assert!(at(world) > 0);
    };
    (world, set)
}

#[test]
fn a_clock_that_jumps_a_day_costs_nobody_anything() {
    let names = ["a", "b"];
    let tokens_ttl = Duration::from_secs(3600);
    let (world, set) = with_clock(SimConfig { tokens_ttl, ..config(&names) });
    let mut asked = 0;
    for shift in [0, 24 * HOUR, 0, -24 * HOUR, 24 * HOUR, -24 * HOUR, 0] {
        set(&world, shift);
        for name in names {
            let door = Door::of_account(&world, name);
            for _ in 0..2 {
                let answer = door.send(&door.turn()).unwrap();
                assert!(answer.is_complete(), "{shift}: {} {}", answer.status, answer.text());
            }
        }
        let status = nobody_is_to_blame(&world);
        assert!(status["accounts"].to_string().matches("\"ready\"").count() == 2, "{status}");
        let stats = world.sim().stats().accounts;
        let now = names.iter().map(|name| stats[*name].refresh_requests).sum::<u64>();
        assert!(now - asked <= 2, "{} renewals by a jump of {shift} ms", now - asked);
        asked = now;
        assert!(names.iter().all(|name| stats[*name].reused + stats[*name].replayed == 0));
    }
    eprintln!("{asked} renewals in six jumps of two accounts");
    // A token that was revoked is noticed whatever the clock says, and renewed once.
    set(&world, -24 * HOUR);
    world.sim().expire_access("a");
    let door = Door::of_account(&world, "a");
    assert!(door.send(&door.turn()).unwrap().is_complete());
    assert_eq!(world.sim().stats().accounts["a"].reused, 0);
    world.assert_clean();
}

#[test]
fn after_eight_hours_of_sleep_work_goes_on_at_once() {
    let names = ["a", "b", "c", "d"];
    let tokens_ttl = Duration::from_secs(2 * 3600);
    let (world, set) = with_clock(SimConfig { tokens_ttl, ..config(&names) });
    let door = Door::of(&world);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    // A connection is kept, and is not trusted after a sleep: what was between may be gone.
    let connections = || world.sim().stats().connections;
    let before = connections();
    assert!(door.send(&door.turn()).unwrap().is_complete());
    assert_eq!(connections(), before);
    set(&world, 60_000);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    assert_eq!(connections(), before + 1);
    set(&world, 8 * HOUR);
    let begun = std::time::Instant::now();
    let answer = door.send(&door.turn()).unwrap();
    assert!(answer.is_complete(), "{} {}", answer.status, answer.text());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    nobody_is_to_blame(&world);
    for name in names {
        let door = Door::of_account(&world, name);
        assert!(door.send(&door.turn()).unwrap().is_complete());
        let stats = world.sim().stats().accounts[name].clone();
        assert!(stats.refresh_requests <= 1 && stats.reused == 0, "{name}: {stats:?}");
        assert_eq!(world.account(name)["state"], "ready");
    }
    world.assert_clean();
}

#[test]
fn without_name_resolution_no_account_is_touched() {
    let backend = "https://backend.cma-test.invalid/backend-api";
    let issuer = "https://issuer.cma-test.invalid";
    // Empty counts as unset: only config.toml may name a host that is not loopback.
    let world = World::new(config(&["a", "b"]))
        .with_env("CMA_UPSTREAM_BACKEND", "")
        .with_env("CMA_UPSTREAM_ISSUER", "")
        .with_env("CMA_HOST_WAIT", "3s");
    fs::create_dir_all(world.root()).unwrap();
    let settings = format!("[upstream]\nbackend = '{backend}'\nissuer = '{issuer}'\n");
    fs::write(world.root().join("config.toml"), settings).unwrap();
    world.import("a", &world.sim().auth_json_expired("a")).ok();
    world.import("b", &world.sim().auth_json("b")).ok();
    let (a, b) = (Door::of_account(&world, "a"), Door::of_account(&world, "b"));
    std::thread::scope(|scope| {
        let turns = [scope.spawn(|| a.send(&a.turn())), scope.spawn(|| b.send(&b.turn()))];
        eventually("status names both hosts", || {
            let notes = notes(&nobody_is_to_blame(&world));
            notes.contains("backend.cma-test.invalid") && notes.contains("issuer.cma-test.invalid")
        });
        for turn in turns {
            let answer = turn.join().unwrap().unwrap();
            assert_eq!(answer.status, 400, "{}", answer.text());
            assert!(answer.text().contains(".cma-test.invalid"), "{}", answer.text());
        }
    });
    assert_eq!(world.account("b")["state"], "ready");
    says(&world, "a", "could not connect");
    let noted = |path: &PathBuf| path.to_str().unwrap().ends_with(".renewal.json");
    assert!(!files(&world.root()).iter().any(noted), "nothing was sent, so nothing is noted");
    assert_eq!(world.sim().stats().requests, 0);
    world.assert_clean();
}

/// A network that is gone for a moment, for both hosts, and comes back.
#[test]
fn a_network_that_comes_back_is_noticed_by_those_who_wait() {
    let world = World::with_accounts(config(&["a", "b"]));
    let (a, b) = (Door::of_account(&world, "a"), Door::of_account(&world, "b"));
    world.sim().expire_access("a");
    // It is known to be over before the network goes: its renewal is what waits.
    world.sim().fault(Some("a"), Route::Refresh, Fault::server_error(500, None), Some(1));
    std::thread::scope(|scope| {
        let turns = [scope.spawn(|| a.send(&a.turn()))];
        eventually("the token is known to be over", || world.account("a")["state"] == "refreshing");
        world.sim().stop_listening().unwrap();
        let other = scope.spawn(|| b.send(&b.turn()));
        eventually("status names both troubles", || {
            let notes = notes(&nobody_is_to_blame(&world));
            notes.contains("can't be used: could not connect")
                && notes.contains("can't renew logins now: could not connect")
        });
        assert_eq!(world.account("b")["state"], "ready");
        world.sim().resume_listening().unwrap();
        for turn in turns.into_iter().chain([other]) {
            let answer = turn.join().unwrap().unwrap();
            assert!(answer.is_complete(), "{} {}", answer.status, answer.text());
        }
    });
    assert_eq!(nobody_is_to_blame(&world)["notes"], serde_json::json!([]));
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.replayed, stats.reused), (1, 0, 0));
    world.assert_clean();
}

/// What a network answers that wants a sign-in first.
fn portals() -> [(&'static str, Fault); 4] {
    let page = "<!DOCTYPE html><html><title>Free WiFi</title><body>Please sign in</body></html>";
    let status = |code: u16| Fault::Status {
        code,
        headers: vec![("content-type".to_owned(), "text/html; charset=utf-8".to_owned())],
        body: page.to_owned(),
    };
    [
        ("200", status(200)),
        ("302", status(302).with_header("location", "http://portal.invalid/login")),
        ("401", status(401)),
        ("511", status(511)),
    ]
}

#[test]
fn a_captive_portal_before_the_issuer_spends_no_login() {
    for (name, portal) in portals() {
        let world = World::with_accounts(config(&["a"]));
        let door = Door::of(&world);
        world.sim().expire_access("a");
        world.sim().fault(None, Route::Refresh, portal, None);
        std::thread::scope(|scope| {
            let turn = scope.spawn(|| door.send(&door.turn()).unwrap());
            eventually("status says why", || {
                notes(&nobody_is_to_blame(&world)).contains("this network wants a sign-in")
            });
            says(&world, "a", "web page");
            world.sim().clear_faults();
            let answer = turn.join().unwrap();
            assert!(answer.is_complete(), "{name}: {} {}", answer.status, answer.text());
        });
        let stats = world.sim().stats().accounts["a"].clone();
        assert_eq!((stats.refreshed, stats.replayed, stats.reused), (1, 0, 0), "{name}");
        assert_eq!(nobody_is_to_blame(&world)["notes"], serde_json::json!([]));
        world.assert_clean();
    }
}

#[test]
fn a_captive_portal_before_the_backend_blames_no_account() {
    for (name, portal) in portals() {
        let world = World::with_accounts(config(&["a", "b"]));
        let door = Door::of(&world);
        world.sim().fault(None, Route::Responses, portal, None);
        std::thread::scope(|scope| {
            let turn = scope.spawn(|| door.send(&door.turn()).unwrap());
            eventually("status says why", || {
                notes(&nobody_is_to_blame(&world)).contains("this network wants a sign-in")
            });
            assert_eq!(world.account("a")["state"], "ready");
            world.sim().clear_faults();
            let answer = turn.join().unwrap();
            assert!(answer.is_complete(), "{name}: {} {}", answer.status, answer.text());
        });
        let stats = world.sim().stats().accounts;
        assert!(stats.values().all(|account| account.refresh_requests == 0), "{name}");
        assert_eq!(nobody_is_to_blame(&world)["notes"], serde_json::json!([]));
        world.assert_clean();
    }
}
