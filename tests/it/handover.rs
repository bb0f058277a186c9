//! One daemon takes over from another: nobody notices, nothing is lost, no token is sent twice.

use crate::codex_kit;
use cma_tests::{
    http::{Answer, Door, Line},
    sim::{AccountSpec, Fault, Route, SimConfig},
    world::{Ran, World, eventually, signal},
};
use parking_lot::Mutex;
use rustix::process::Signal;
use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

const NAMES: [&str; 2] = ["a", "b"];
const TEXT: &str = "served by {account}, every word of it, from the first one to the last one";
/// Long enough for requests, short enough for a drain.
const WHILE: Duration = Duration::from_millis(700);

fn config() -> SimConfig {
    let accounts = NAMES.into_iter().map(AccountSpec::new).collect();
    SimConfig { accounts, reply_text: TEXT.to_owned(), ..SimConfig::default() }
}

fn world() -> World {
    World::with_accounts(config())
}

/// A turn that arrived whole: all of its events, and its account's words.
fn is_whole(answer: &Answer, name: &str, events: usize) -> bool {
    let text = answer.text();
    let said = TEXT.replace("{account}", name);
    answer.is_complete() && text.contains(&said) && text.matches("event: ").count() == events
}

/// How many events a turn has.
fn events(door: &Door) -> usize {
    let answer = door.send(&door.turn()).unwrap();
    assert!(answer.is_complete());
    answer.text().matches("event: ").count()
}

fn pid(ran: &Ran) -> u64 {
    ran.json()["pid"].as_u64().unwrap()
}

fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X'])
    })
}

/// Restarts and says who runs now.
#[track_caller]
fn restart(world: &World) -> u32 {
    let ran = world.ctl("daemon restart --json").ok();
    let pid = u32::try_from(pid(&ran)).unwrap();
    assert_eq!(world.daemon_pid(), Some(pid));
    pid
}

/// Clients that never rest, each for an account; half of them keep their connection.
struct Load {
    over: AtomicBool,
    done: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn run(&self, door: &Door, name: &str, events: usize, keeps: bool) {
        let mut kept: Option<Line> = None;
        while !self.over.load(Ordering::Relaxed) {
            let reused = kept.is_some();
            let asked = || {
                let mut line = match kept.take() {
                    Some(line) => line,
                    None => Line::open(door.addr)?,
                };
                line.write(&door.turn().bytes())?;
                let answer = line.answer()?;
                Ok::<_, std::io::Error>((line, answer))
            };
            match { asked }() {
                Ok((line, answer)) if is_whole(&answer, name, events) => {
                    self.done.fetch_add(1, Ordering::Relaxed);
                    let closes = answer.header("connection") == Some("close");
                    kept = (keeps && !closes).then_some(line);
                },
                Ok((_line, answer)) => {
                    let text = answer.text();
                    self.failures.lock().push(format!("{name}: {} {text}", answer.status));
                },
                Err(error) => {
                    self.failures.lock().push(format!("{name}, reused {reused}: {error}"));
                },
            }
        }
    }
}

#[test]
fn twenty_restarts_under_fifty_streams_are_noticed_by_nobody() {
    let world = world();
    let doors = NAMES.map(|name| Door::of_account(&world, name));
    let events = events(&doors[0]);
    world.sim().set_event_gap(Duration::from_secs(2) / u32::try_from(events).unwrap());
    let load = Load {
        over: AtomicBool::new(false),
        done: AtomicUsize::new(0),
        failures: Mutex::default(),
    };
    let mut pids = BTreeSet::from([world.daemon_pid().unwrap()]);
    let mut slowest = Duration::ZERO;
    thread::scope(|scope| {
        for n in 0..50 {
            let (door, name, load) = (&doors[n % 2], NAMES[n % 2], &load);
            scope.spawn(move || load.run(door, name, events, n % 4 < 2));
        }
        eventually("they run", || world.status()["proxy"]["active"].as_u64() >= Some(45));
        for n in 0..20 {
            let begun = Instant::now();
            pids.insert(restart(&world));
            slowest = slowest.max(begun.elapsed());
            let failures = load.failures.lock().clone();
            assert!(failures.is_empty(), "restart {n}: {failures:?}");
            thread::sleep(Duration::from_millis(250));
        }
        load.over.store(true, Ordering::Relaxed);
    });
    let done = load.done.load(Ordering::Relaxed);
    eprintln!("{done} streams over 20 restarts, the slowest {slowest:?}");
    assert_eq!(load.failures.lock().clone(), Vec::<String>::new());
    assert_eq!(pids.len(), 21, "each time another process");
    assert!(done >= 100, "{done}");
    let last = world.daemon_pid().unwrap();
    eventually("the old ones are gone", || pids.iter().all(|pid| *pid == last || !lives(*pid)));
    let stats = world.sim().stats().accounts;
    assert!(stats.values().all(|account| account.refresh_requests == 0 && account.limited == 0));
    world.assert_clean();
}

/// A turn whose first event has arrived; it pauses for some time after it.
fn slow_turn(world: &World, door: &Door, pause: Duration) -> (Line, Answer) {
    world.sim().fault(None, Route::Responses, Fault::StallMidStream { after: 1, pause }, Some(1));
    let mut line = Line::open(door.addr).unwrap();
    line.write(&door.turn().bytes()).unwrap();
    let mut answer = line.head().unwrap();
    answer.body = line.piece().unwrap().unwrap();
    assert_eq!(answer.status, 200);
    (line, answer)
}

#[track_caller]
fn ends_whole((mut line, mut answer): (Line, Answer), name: &str, events: usize) {
    answer.body.extend(line.rest().unwrap());
    assert!(is_whole(&answer, name, events), "{}", answer.text());
}

#[test]
fn the_old_daemon_serves_to_the_end_and_says_goodbye_on_kept_connections() {
    let world = world();
    let door = Door::of_account(&world, "a");
    let events = events(&door);
    let old = world.daemon_pid().unwrap();
    let url = world.status()["proxy"]["url"].clone();
    let mut kept = Line::open(door.addr).unwrap();
    kept.write(&door.turn().bytes()).unwrap();
    assert!(kept.answer().unwrap().header("connection").is_none());
    let mut idle = Line::open(door.addr).unwrap();
    idle.write(&door.turn().bytes()).unwrap();
    assert!(idle.answer().unwrap().is_complete());
    let running = slow_turn(&world, &door, Duration::from_secs(3));
    world.ctl("switch b").ok();
    world.sim().set_used("a", 40.0, 30.0);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    let new = restart(&world);
    assert!(new != old && lives(old));
    // The old one still answers what comes on its connections, for the last time.
    kept.write(&door.turn().bytes()).unwrap();
    let last = kept.answer().unwrap();
    assert!(is_whole(&last, "a", events) && last.header("connection") == Some("close"));
    // What was known goes on: address, choices, quota.
    let status = world.status();
    assert_eq!((&status["proxy"]["url"], &status["daemon"]["pid"]), (&url, &new.into()));
    assert_eq!(status["pin"]["account"], world.account("b")["id"]);
    eventually("its quota is known", || {
        let used = world.account("a")["windows"][0]["used_percent"].as_f64();
        used.is_some_and(|used| used >= 40.0)
    });
    assert_eq!(idle.head().map(|head| head.status).ok(), None, "it was closed, not answered");
    assert!(lives(old));
    ends_whole(running, "a", events);
    eventually("the old one is gone", || !lives(old));
    assert_eq!(world.daemon_pid(), Some(new));
    assert!(door.send(&door.turn()).unwrap().is_complete());
    world.assert_clean();
}

#[test]
fn a_new_one_that_cannot_start_changes_nothing() {
    let world = world();
    let door = Door::of_account(&world, "a");
    let events = events(&door);
    let old = world.daemon_pid();
    let running = slow_turn(&world, &door, Duration::from_secs(2));
    let settings = world.root().join("config.toml");
    fs::write(&settings, "head_timeout = 'soon'").unwrap();
    let refused = world.ctl("daemon restart");
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("soon"), "{}", refused.stderr);
    // One that finds out late: its own port is taken.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    fs::write(&settings, format!("listen = '{}'", taken.local_addr().unwrap())).unwrap();
    let refused = world.ctl("daemon restart");
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("is taken by"), "{}", refused.stderr);
    assert_eq!(world.daemon_pid(), old);
    assert_eq!(world.status()["daemon"]["phase"], "serving");
    // It is in charge again: it writes and renews.
    world.ctl("label a mine").ok();
    world.sim().expire_access("a");
    assert!(is_whole(&door.send(&door.turn()).unwrap(), "a", events));
    ends_whole(running, "a", events);
    assert_eq!(world.daemon_pid(), old);
    // Another address is taken up by a restart.
    drop(taken);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fs::write(&settings, format!("listen = '{free}'")).unwrap();
    restart(&world);
    assert_eq!(world.status()["proxy"]["url"], format!("http://{free}"));
    assert!(Door::of(&world).send(&Door::of(&world).turn()).unwrap().is_complete());
    world.assert_clean();
}

#[test]
fn tokens_that_run_out_during_hand_overs_are_renewed_once_each() {
    let world = world();
    let doors = NAMES.map(|name| Door::of_account(&world, name));
    let events = events(&doors[0]);
    let mut generation = world.account("a")["generation"].as_u64().unwrap();
    for round in 0..10_u64 {
        // Sometimes the renewal is under way when the restart comes, sometimes it comes after.
        let slow = Fault::DelayAnswer(Duration::from_millis(40 * (round % 4)));
        world.sim().fault(Some("a"), Route::Refresh, slow, Some(1));
        // Kept by the old daemon: what they ask for next they ask of it.
        let mut kept: Vec<_> = (0..4)
            .map(|_| {
                let mut line = Line::open(doors[0].addr).unwrap();
                line.write(&doors[0].turn().bytes()).unwrap();
                assert!(line.answer().unwrap().is_complete());
                line
            })
            .collect();
        world.sim().expire_access("a");
        thread::scope(|scope| {
            let restarting = scope.spawn(|| {
                thread::sleep(Duration::from_millis(15 * (round % 3)));
                restart(&world)
            });
            let turns: Vec<_> =
                (0..8).map(|_| scope.spawn(|| doors[0].send(&doors[0].turn()).unwrap())).collect();
            for turn in turns {
                let answer = turn.join().unwrap();
                assert!(is_whole(&answer, "a", events), "{} {}", answer.status, answer.text());
            }
            restarting.join().unwrap();
        });
        for line in &mut kept {
            line.write(&doors[0].turn().bytes()).unwrap();
            let answer = line.answer().unwrap();
            assert!(is_whole(&answer, "a", events), "{} {}", answer.status, answer.text());
            assert_eq!(answer.header("connection"), Some("close"));
        }
        generation += 1;
        assert_eq!(world.account("a")["generation"], generation, "round {round}");
    }
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refresh_requests, stats.refreshed), (10, 10));
    assert_eq!((stats.reused, stats.replayed, stats.refreshes_at_once), (0, 0, 1));
    world.assert_clean();
}

/// The old one has no right to renew any more, and gets a newer token all the same.
#[test]
fn a_request_that_the_old_daemon_still_serves_gets_a_token_from_the_new_one() {
    let world = world();
    let door = Door::of_account(&world, "a");
    let events = events(&door);
    for generation in 2..=4 {
        let old = world.daemon_pid().unwrap();
        let mut kept = Line::open(door.addr).unwrap();
        kept.write(&door.turn().bytes()).unwrap();
        assert!(kept.answer().unwrap().is_complete());
        let new = restart(&world);
        world.sim().expire_access("a");
        kept.write(&door.turn().bytes()).unwrap();
        let answer = kept.answer().unwrap();
        assert!(is_whole(&answer, "a", events), "{} {}", answer.status, answer.text());
        assert_eq!(answer.header("connection"), Some("close"), "{old} served it, not {new}");
        assert_eq!(world.account("a")["generation"], generation);
        assert!(is_whole(&door.send(&door.turn()).unwrap(), "a", events));
    }
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.reused, stats.replayed), (3, 0, 0));
    world.assert_clean();
}

/// Who dies where, and what the restart then comes to.
const POINTS: [(&str, bool, bool); 9] = [
    // The old one, which was started with the point; whether the restart still succeeds.
    ("handover.asked", true, true),
    ("handover.sent", true, true),
    ("handover.still", true, true),
    ("handover.given", true, true),
    ("handover.done", true, true),
    // The new one; the old one goes on but for the last.
    ("handover.taken", false, false),
    ("handover.owned", false, false),
    ("handover.built", false, false),
    ("handover.said", false, false),
];

#[test]
fn a_kill_at_any_point_of_a_hand_over_loses_nothing() {
    let world = world();
    let door = Door::of_account(&world, "a");
    let events = events(&door);
    for (point, old_dies, succeeds) in POINTS {
        world.kill_daemon();
        let mut start = world.command("cmactl");
        start.args(["daemon", "start"]);
        if old_dies {
            start.env("CMA_CRASH_AT", point);
        }
        world.finish(start).ok();
        let old = world.daemon_pid().unwrap();
        let generation = world.account("a")["generation"].as_u64().unwrap();
        let running = slow_turn(&world, &door, WHILE);
        let mut restart = world.command("cmactl");
        restart.args(["daemon", "restart", "--json"]);
        if !old_dies {
            restart.env("CMA_CRASH_AT", point);
        }
        let ran = world.finish(restart);
        assert_eq!(ran.code == 0, succeeds, "{point}: {} {}", ran.stdout, ran.stderr);
        eprintln!("{point}: {} after {:?}", ran.code, ran.took);
        if old_dies {
            eventually("the old one has ended", || !lives(old));
        } else {
            // Whoever served it still does, to its end.
            ends_whole(running, "a", events);
        }
        let goes_on = matches!(point, "handover.taken" | "handover.owned" | "handover.built");
        if goes_on {
            assert_eq!(world.daemon_pid(), Some(old), "{point}");
            assert_eq!(world.status()["daemon"]["phase"], "serving", "{point}");
        }
        // Whoever is there now, or is started now, has everything and the only right to it.
        world.ctl("daemon start").ok();
        world.sim().expire_access("a");
        let answer = door.send(&door.turn()).unwrap();
        assert!(is_whole(&answer, "a", events), "{point}: {} {}", answer.status, answer.text());
        assert_eq!(world.account("a")["generation"], generation + 1, "{point}");
        assert_eq!(world.status()["accounts"].as_array().unwrap().len(), 2);
        world.ctl("daemon restart").ok();
    }
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.reused, stats.replayed), (0, 0));
    assert_eq!(stats.refreshed, POINTS.len() as u64);
    world.assert_clean();
}

#[test]
fn signals_after_the_first_shorten_the_end() {
    let world = world();
    let door = Door::of_account(&world, "a");
    let begin = |signals: usize| {
        world.ctl("daemon start").ok();
        let (line, _answer) = slow_turn(&world, &door, Duration::from_secs(60));
        let pid = world.daemon_pid().unwrap();
        let begun = Instant::now();
        for n in 0..signals {
            signal(pid, Signal::TERM);
            if n == 0 {
                eventually("it drains", || world.status()["daemon"]["phase"] == "draining");
            }
            // Two of a kind that are sent at once may arrive as one.
            thread::sleep(Duration::from_millis(100));
        }
        eventually("it is gone", || !lives(pid));
        drop(line);
        begun.elapsed()
    };
    let (two, three) = (begin(2), begin(3));
    assert!(two > Duration::from_secs(4) && two < Duration::from_secs(8), "{two:?}");
    assert!(three < Duration::from_secs(2), "{three:?}");
    world.assert_clean();
}

#[test]
fn a_restart_now_cuts_what_ran_and_refuses_nobody() {
    let world = world();
    let door = Door::of_account(&world, "a");
    let old = world.daemon_pid().unwrap();
    let (mut line, _answer) = slow_turn(&world, &door, Duration::from_secs(60));
    world.ctl("daemon restart --now").ok();
    assert!(door.send(&door.turn()).unwrap().is_complete());
    eventually("the old one is gone", || !lives(old));
    assert!(line.rest().is_err(), "a cut stream must not look whole");
    world.assert_clean();
}

#[test]
fn the_official_cli_does_not_notice_a_hand_over() {
    let Some(world) = codex_kit::machine(&["a"]) else { return };
    let old = world.daemon_pid().unwrap();
    world.sim().set_event_gap(Duration::from_millis(300));
    let running = codex_kit::start(codex_kit::codex(&world, codex_kit::TURN));
    eventually("the stream has begun", || {
        codex_kit::posts(&world).iter().any(|seen| seen.status == Some(200))
    });
    let new = restart(&world);
    let ran = running.end(&world, Duration::from_secs(60)).ok();
    assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    assert_eq!(codex_kit::posts(&world).len(), 1, "it was not asked again");
    eventually("the old one is gone", || !lives(old));
    // One that starts during a hand-over finds a daemon.
    world.sim().set_event_gap(Duration::ZERO);
    thread::scope(|scope| {
        let turns: Vec<_> = (0..3).map(|_| scope.spawn(|| codex_kit::turn(&world))).collect();
        for _ in 0..5 {
            assert_ne!(restart(&world), new);
        }
        for turn in turns {
            let ran = turn.join().unwrap().ok();
            assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
        }
    });
    world.assert_clean();
}

#[test]
fn a_stop_now_ends_the_daemon_before_as_well_and_status_names_it() {
    let world = world();
    let door = Door::of_account(&world, "a");
    let old = world.daemon_pid().unwrap();
    let (mut line, _answer) = slow_turn(&world, &door, Duration::from_secs(60));
    let new = restart(&world);
    let note = format!("pid {old}) still serves");
    assert!(world.status()["notes"].to_string().contains(&note));
    assert!(lives(old));
    world.ctl("daemon stop --now").ok();
    eventually("both are gone", || !lives(old) && !lives(new));
    assert!(line.rest().is_err(), "a cut stream must not look whole");
    world.ctl("daemon start").ok();
    let idle = world.daemon_pid().unwrap();
    restart(&world);
    eventually("one that had nothing to do is gone", || !lives(idle));
    assert_eq!(world.status()["notes"], serde_json::json!([]));
    world.assert_clean();
}

/// An upgrade: other files under the same names, then a restart.
#[test]
fn a_restart_puts_a_replaced_program_to_work() {
    use std::os::unix::fs::MetadataExt as _;
    let world = world();
    world.kill_daemon();
    let place = world.path("bin");
    fs::create_dir(&place).unwrap();
    for name in ["cmad", "cmactl"] {
        fs::copy(cma_tests::world::bin_dir().join(name), place.join(name)).unwrap();
    }
    let ctl = place.join("cmactl");
    world.run(&ctl, ["daemon", "start"]).ok();
    let door = Door::of_account(&world, "a");
    let events = events(&door);
    let running = slow_turn(&world, &door, WHILE);
    let before = fs::metadata(place.join("cmad")).unwrap().ino();
    fs::copy(place.join("cmad"), place.join("new")).unwrap();
    fs::rename(place.join("new"), place.join("cmad")).unwrap();
    let after = fs::metadata(place.join("cmad")).unwrap().ino();
    assert_ne!(before, after);
    world.run(&ctl, ["daemon", "restart"]).ok();
    let runs = fs::metadata(format!("/proc/{}/exe", world.daemon_pid().unwrap())).unwrap();
    assert_eq!(runs.ino(), after);
    assert!(is_whole(&door.send(&door.turn()).unwrap(), "a", events));
    ends_whole(running, "a", events);
    world.assert_clean();
}

/// A root that is sealed and open stays open, or the old one stays.
#[test]
fn a_sealed_root_is_taken_over_only_by_a_daemon_that_can_open_it() {
    let world = world().with_env("CMA_PASSPHRASE", "correct horse battery");
    world.ctl("seal on").ok();
    let door = Door::of_account(&world, "a");
    assert!(door.send(&door.turn()).unwrap().is_complete());
    let old = world.daemon_pid();
    let mut blind = world.command("cmactl");
    blind.args(["daemon", "restart"]).env_remove("CMA_PASSPHRASE");
    let refused = world.finish(blind);
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    assert!(refused.stderr.contains("CMA_PASSPHRASE"), "{}", refused.stderr);
    assert_eq!(world.daemon_pid(), old);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    restart(&world);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    world.assert_clean();
}
