//! One daemon takes over from another: nobody notices, nothing is lost, no token is sent twice.

mod load;

use crate::codex_kit;
use cma_tests::{
    http::{Answer, Ask, Door, Line, turn_body},
    sim::{AccountSpec, Fault, Route, SimConfig},
    world::{Ran, World, bin_dir, copy_program, eventually, signal},
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

const NAMES: [&str; 2] = ["a", "b"];
const TEXT: &str = "served by {account}, every word of it, from the first one to the last one";
/// Long enough for requests, short enough for a drain.
const WHILE: Duration = Duration::from_millis(700);

fn config() -> SimConfig {
    let accounts = NAMES.into_iter().map(AccountSpec::new).collect();
    // Not by its size: the same turn is a few bytes more in a frame.
    let input_tokens = Some(40);
    SimConfig { accounts, reply_text: TEXT.to_owned(), input_tokens, ..SimConfig::default() }
}

fn world() -> World {
    World::with_accounts(config())
}

/// What stands before the number of a response, in all names that upstream makes of it.
const NUMBERED: &str = "_sim_";
/// What upstream says over a WebSocket before a response, by its kinds.
const PREAMBLE: [&str; 3] = ["codex.rate_limits", "response.metadata", "codex.response.metadata"];

/// The number of the response that a text is about, and the text without it. A name with another
/// number stays as it is: it belongs to another response.
fn unnumbered(text: &str) -> Option<(u64, String)> {
    let (_before, rest) = text.split_once(NUMBERED)?;
    let (number, _after) = rest.split_once('"')?;
    let name = format!("{NUMBERED}{number}\"");
    Some((number.parse().ok()?, text.replace(&name, &format!("{NUMBERED}N\""))))
}

/// The events of an answer over HTTP, as JSON.
fn events_of(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// What each account's turn is to its last byte, without its number: asked for at upstream, with no
/// daemon in between.
struct Whole(BTreeMap<&'static str, String>);

impl Whole {
    fn of(world: &World) -> Self {
        Self(NAMES.into_iter().map(|name| (name, Self::ask(world, name))).collect())
    }

    fn ask(world: &World, name: &str) -> String {
        // A login of its own, which the pool knows nothing of.
        let login: Value = serde_json::from_str(&world.sim().auth_json(name)).unwrap();
        let token = login["tokens"]["access_token"].as_str().unwrap();
        let addr = world.sim().addr();
        let ask = Ask::new("POST", "/backend-api/codex/responses")
            .header("host", &addr.to_string())
            .header("authorization", &format!("Bearer {token}"))
            .header("chatgpt-account-id", &format!("acct-{name}"))
            .header("accept", "text/event-stream")
            .header("content-type", "application/json")
            .body(turn_body(0));
        let mut line = Line::open(addr).unwrap();
        line.write(&ask.bytes()).unwrap();
        let answer = line.answer().unwrap();
        let text = answer.text();
        assert!(answer.is_complete(), "{text}");
        assert!(events_of(&text).len() > 10 && text.contains(&TEXT.replace("{account}", name)));
        unnumbered(&text).unwrap().1
    }

    /// How many events a turn has.
    fn events(&self) -> usize {
        events_of(&self.0[NAMES[0]]).len()
    }

    /// The number of a turn of that account that arrived whole.
    fn number(&self, answer: &Answer, name: &str) -> Option<u64> {
        let (number, text) = unnumbered(std::str::from_utf8(&answer.body).ok()?)?;
        (answer.status == 200 && text == self.0[name]).then_some(number)
    }

    fn is(&self, answer: &Answer, name: &str) -> bool {
        self.number(answer, name).is_some()
    }

    /// The same over a WebSocket: the events that follow what upstream says first.
    fn number_told(&self, events: &[Value], name: &str) -> Option<u64> {
        let (first, events) = events.split_at_checked(PREAMBLE.len())?;
        let said_first = first.iter().map(|event| event["type"].as_str().unwrap_or_default());
        let (number, text) = unnumbered(&Value::from(events).to_string())?;
        let told: Vec<Value> = serde_json::from_str(&text).ok()?;
        (said_first.eq(PREAMBLE) && told == events_of(&self.0[name])).then_some(number)
    }
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

/// A turn whose first event has arrived; it pauses for some time after it.
fn slow_turn(world: &World, door: &Door, pause: Duration) -> (Line, Answer) {
    world.sim().fault(None, Route::Responses, Fault::StallMidStream { after: 2, pause }, Some(1));
    let mut line = Line::open(door.addr).unwrap();
    line.write(&door.turn().bytes()).unwrap();
    let mut answer = line.head().unwrap();
    answer.body = line.piece().unwrap().unwrap();
    assert_eq!(answer.status, 200);
    (line, answer)
}

#[track_caller]
fn ends_whole((mut line, mut answer): (Line, Answer), name: &str, whole: &Whole) {
    answer.body.extend(line.rest().unwrap());
    assert!(whole.is(&answer, name), "{}", answer.text());
}

#[test]
fn the_old_daemon_serves_to_the_end_and_says_goodbye_on_kept_connections() {
    let world = world();
    let door = Door::of_account(&world, "a");
    let whole = Whole::of(&world);
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
    assert!(whole.is(&last, "a") && last.header("connection") == Some("close"));
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
    ends_whole(running, "a", &whole);
    eventually("the old one is gone", || !lives(old));
    assert_eq!(world.daemon_pid(), Some(new));
    assert!(door.send(&door.turn()).unwrap().is_complete());
    world.assert_clean();
}

#[test]
fn a_new_one_that_cannot_start_changes_nothing() {
    let world = world();
    let door = Door::of_account(&world, "a");
    let whole = Whole::of(&world);
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
    assert!(whole.is(&door.send(&door.turn()).unwrap(), "a"));
    ends_whole(running, "a", &whole);
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
fn a_restart_right_after_one_that_failed_is_a_hand_over_too() {
    let world = world();
    let door = Door::of_account(&world, "a");
    let settings = world.root().join("config.toml");
    for _ in 0..8 {
        let old = world.daemon_pid().unwrap();
        fs::write(&settings, "head_timeout = 'soon'").unwrap();
        assert_eq!(world.ctl("daemon restart").code, 3);
        fs::write(&settings, "").unwrap();
        let done = world.ctl("daemon restart").ok();
        assert!(done.stdout.contains(&format!("in the place of pid {old}")), "{}", done.stdout);
        assert!(door.send(&door.turn()).unwrap().is_complete());
    }
    world.assert_clean();
}

#[test]
fn tokens_that_run_out_during_hand_overs_are_renewed_once_each() {
    let world = world();
    let doors = NAMES.map(|name| Door::of_account(&world, name));
    let whole = Whole::of(&world);
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
                assert!(whole.is(&answer, "a"), "{} {}", answer.status, answer.text());
            }
            restarting.join().unwrap();
        });
        for line in &mut kept {
            line.write(&doors[0].turn().bytes()).unwrap();
            let answer = line.answer().unwrap();
            assert!(whole.is(&answer, "a"), "{} {}", answer.status, answer.text());
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
    let whole = Whole::of(&world);
    for generation in 2..=4 {
        let old = world.daemon_pid().unwrap();
        let mut kept = Line::open(door.addr).unwrap();
        kept.write(&door.turn().bytes()).unwrap();
        assert!(kept.answer().unwrap().is_complete());
        let new = restart(&world);
        world.sim().expire_access("a");
        kept.write(&door.turn().bytes()).unwrap();
        let answer = kept.answer().unwrap();
        assert!(whole.is(&answer, "a"), "{} {}", answer.status, answer.text());
        assert_eq!(answer.header("connection"), Some("close"), "{old} served it, not {new}");
        assert_eq!(world.account("a")["generation"], generation);
        assert!(whole.is(&door.send(&door.turn()).unwrap(), "a"));
    }
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.reused, stats.replayed), (3, 0, 0));
    world.assert_clean();
}

/// `Connection: close`, which ends every other answer of the old daemon, would make it none.
#[test]
fn a_handshake_that_the_old_daemon_answers_is_one() {
    let world = world();
    let door = Door::of_account(&world, "a");
    let whole = Whole::of(&world);
    let mut kept = Line::open(door.addr).unwrap();
    kept.write(&door.turn().bytes()).unwrap();
    assert!(kept.answer().unwrap().is_complete());
    let running = slow_turn(&world, &door, Duration::from_secs(2));
    restart(&world);
    kept.write(&door.handshake("late").bytes()).unwrap();
    let head = kept.head().unwrap();
    assert_eq!((head.status, head.header("connection")), (101, Some("Upgrade")), "{head:?}");
    ends_whole(running, "a", &whole);
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
    let whole = Whole::of(&world);
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
            ends_whole(running, "a", &whole);
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
        assert!(whole.is(&answer, "a"), "{point}: {} {}", answer.status, answer.text());
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
        copy_program(&bin_dir().join(name), &place.join(name));
    }
    let ctl = place.join("cmactl");
    world.run(&ctl, ["daemon", "start"]).ok();
    let door = Door::of_account(&world, "a");
    let whole = Whole::of(&world);
    let running = slow_turn(&world, &door, WHILE);
    let before = fs::metadata(place.join("cmad")).unwrap().ino();
    copy_program(&place.join("cmad"), &place.join("new"));
    fs::rename(place.join("new"), place.join("cmad")).unwrap();
    let after = fs::metadata(place.join("cmad")).unwrap().ino();
    assert_ne!(before, after);
    world.run(&ctl, ["daemon", "restart"]).ok();
    let runs = fs::metadata(format!("/proc/{}/exe", world.daemon_pid().unwrap())).unwrap();
    assert_eq!(runs.ino(), after);
    assert!(whole.is(&door.send(&door.turn()).unwrap(), "a"));
    ends_whole(running, "a", &whole);
    world.assert_clean();
}

/// A root that is sealed and open stays open, or the old one stays.
/// A hand-over waits for the renewals under way. A stop that comes meanwhile is a stop, and not the
/// start of a daemon that nobody finds.
#[test]
fn a_stop_while_a_hand_over_waits_ends_both() {
    let world = world();
    let door = Door::of_account(&world, "a");
    world.sim().expire_access("a");
    let slow = Fault::DelayAnswer(Duration::from_secs(3));
    world.sim().fault(Some("a"), Route::Refresh, slow, Some(1));
    thread::scope(|scope| {
        let turn = scope.spawn(|| door.send(&door.turn()));
        thread::sleep(WHILE);
        let mut command = world.command("cmactl");
        command.args(["daemon", "restart"]);
        let restart = codex_kit::start(command);
        thread::sleep(WHILE);
        // It would start one by itself after the stop: its person has thought better of it.
        signal(restart.pid(), Signal::INT);
        restart.end(&world, Duration::from_secs(10));
        world.ctl("daemon stop").ok();
        drop(turn.join().unwrap());
    });
    assert_eq!(world.daemon_pid(), None);
    // What was begun was finished, and the next one finds everything.
    world.ctl("daemon start").ok();
    assert!(door.send(&door.turn()).unwrap().is_complete());
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.reused, stats.replayed), (1, 0, 0));
    world.ctl("daemon restart").ok();
    world.assert_clean();
}

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
