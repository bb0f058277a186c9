//! Going down and coming back: streams end whole, renewals are waited for, clients find us again.

use cma_tests::{
    http::{Answer, Door, Line},
    sim::{AccountSpec, Fault, Route, SimConfig},
    world::{World, eventually, signal},
};
use serde_json::Value;
use std::{fs, process::Stdio, time::Duration};

const WHOAMI: &str = "/api/accounts/v1/user-auth-credential/whoami";

fn world() -> (World, Door) {
    let accounts = vec![AccountSpec::new("a"), AccountSpec::new("b")];
    let world = World::with_accounts(SimConfig { accounts, ..SimConfig::default() });
    let door = Door::of(&world);
    (world, door)
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

fn phase(world: &World) -> Value {
    world.ctl("--no-start daemon status --json").json()["phase"].clone()
}

/// The first request after a start finds what was known of limits: nobody is asked who said that it is out.
#[test]
fn a_limit_that_was_met_is_known_at_the_next_start() {
    let (world, door) = world();
    let limit = Fault::UsageLimitReached { resets_in: Duration::from_secs(3600) };
    world.sim().fault(Some("a"), Route::Responses, limit, Some(1));
    assert!(door.send(&door.turn()).unwrap().is_complete());
    for again in [&["daemon stop", "daemon start"][..], &["daemon restart"]] {
        for words in again {
            world.ctl(words).ok();
        }
        assert_eq!(world.account("a")["state"], "cooling", "{again:?}");
        assert!(door.send(&door.turn()).unwrap().is_complete());
    }
    let asked = world.sim().seen().into_iter().filter(|seen| seen.path.ends_with("/responses"));
    let asked: Vec<_> = asked.filter_map(|seen| seen.account).collect();
    assert_eq!(asked, ["a", "b", "b", "b"]);
    world.assert_clean();
}

#[test]
fn a_stop_lets_streams_end_and_tells_newcomers_to_wait() {
    let (world, door) = world();
    let pid = world.daemon_pid().unwrap();
    let me = door.get(WHOAMI).unwrap().json();
    // Kept from before: idle ones end with the stop.
    let mut idle = Line::open(door.addr).unwrap();
    idle.write(&door.ask("GET", WHOAMI).bytes()).unwrap();
    assert_eq!(idle.answer().unwrap().status, 200);
    let (mut line, mut answer) = slow_turn(&world, &door, Duration::from_millis(1500));
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| world.ctl("daemon stop"));
        eventually("it drains", || phase(&world) == "draining");
        for _ in 0..20 {
            let identity = door.get(WHOAMI).unwrap();
            assert_eq!((identity.status, identity.json()), (200, me.clone()));
            let refused = door.send(&door.turn()).unwrap();
            assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
            assert_eq!(refused.header("x-cma-error"), Some("draining"));
        }
        assert_eq!(door.get("/backend-api/wham/accounts/check").unwrap().status, 200);
        // What would change the pool is refused meanwhile; looking is not.
        let switch = world.ctl("switch a --json");
        assert_eq!(switch.code, 11, "{}", switch.stderr);
        assert_eq!(world.status()["daemon"]["phase"], "draining");
        world.ctl("status").ok();
        world.ctl("list").ok();
        answer.body.extend(line.rest().unwrap());
        assert!(answer.is_complete(), "{}", answer.text());
        let stop = stop.join().unwrap().ok();
        assert!(stop.took < Duration::from_secs(4), "{:?}", stop.took);
    });
    assert!(fs::metadata(format!("/proc/{pid}/exe")).is_err(), "the process is still there");
    assert_eq!(world.ctl("--no-start status").code, 4);
    assert_eq!(world.sim().stats().accounts.values().map(|stats| stats.completed).sum::<u64>(), 1);
    world.assert_clean();
}

#[test]
fn a_stop_now_cuts_and_is_quick() {
    let (world, door) = world();
    let (mut line, _answer) = slow_turn(&world, &door, Duration::from_secs(60));
    let stop = world.ctl("daemon stop --now").ok();
    assert!(stop.took < Duration::from_secs(2), "{:?}", stop.took);
    assert!(line.rest().is_err(), "a cut stream must not look whole");
    // The same by signals: one drains, the second cuts.
    world.ctl("daemon start").ok();
    let (mut line, _answer) = slow_turn(&world, &door, Duration::from_secs(60));
    let pid = world.daemon_pid().unwrap();
    signal(pid, rustix::process::Signal::TERM);
    eventually("it drains", || phase(&world) == "draining");
    assert_eq!(world.daemon_pid(), Some(pid));
    signal(pid, rustix::process::Signal::TERM);
    eventually("it is gone", || world.daemon_pid().is_none());
    assert!(line.rest().is_err(), "a cut stream must not look whole");
    // And a stop that is made impatient by another.
    world.ctl("daemon start").ok();
    let (_line, _answer) = slow_turn(&world, &door, Duration::from_secs(60));
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| world.ctl("daemon stop"));
        eventually("it drains", || phase(&world) == "draining");
        world.ctl("daemon stop --now").ok();
        patient.join().unwrap().ok();
    });
    world.assert_clean();
}

#[test]
fn the_port_and_the_keys_outlive_the_daemon() {
    let (world, door) = world();
    let url = world.status()["proxy"]["url"].clone();
    world.ctl("switch b").ok();
    let identity = door.get(WHOAMI).unwrap().json();
    let mut starts = Vec::new();
    for how in ["restart", "kill", "stop", "kill"] {
        match how {
            "restart" => drop(world.ctl("daemon restart --json").ok()),
            "stop" => drop(world.ctl("daemon stop").ok()),
            _ => world.kill_daemon(),
        }
        let started = world.ctl("daemon start --json").ok();
        starts.push(started.took);
        let status = world.status();
        assert_eq!(status["proxy"]["url"], url, "{how}");
        assert_eq!(status["pin"]["account"], world.account("b")["id"], "{how}");
        assert_eq!(door.get(WHOAMI).unwrap().json(), identity, "{how}");
        assert!(door.send(&door.turn()).unwrap().is_complete(), "{how}");
    }
    // The third of four: one may meet a machine that is busy with other scenarios.
    starts.sort_unstable();
    assert!(starts[2] < Duration::from_millis(300), "{starts:?}");
    let stats = world.sim().stats().accounts;
    assert_eq!((stats["a"].served, stats["b"].served), (0, 4));
    world.assert_clean();
}

#[test]
fn a_stop_waits_for_a_renewal_and_saves_it() {
    let (world, door) = world();
    world.ctl("switch a").ok();
    world.sim().expire_access("a");
    let late = Fault::DelayAnswer(Duration::from_secs(1));
    world.sim().fault(Some("a"), Route::Refresh, late, Some(1));
    let generation = world.account("a")["generation"].as_u64().unwrap();
    std::thread::scope(|scope| {
        let turn = scope.spawn(|| door.send(&door.turn()));
        eventually("the renewal is sent", || {
            world.sim().stats().accounts.get("a").is_some_and(|stats| stats.refreshed == 1)
        });
        // Not even "now" gives up a token that the issuer has rotated.
        let stop = world.ctl("daemon stop --now").ok();
        assert!(stop.took > Duration::from_millis(400), "{:?}", stop.took);
        drop(turn.join().unwrap());
    });
    assert_eq!(world.daemon_pid(), None);
    let account = world.account("a");
    assert_eq!(
        (account["generation"].as_u64(), &account["state"]),
        (Some(generation + 1), &"ready".into())
    );
    assert!(door.send(&door.turn()).unwrap().is_complete());
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refresh_requests, stats.reused, stats.replayed), (1, 0, 0));
    world.assert_clean();
}

#[test]
fn a_daemon_in_the_foreground_says_when_it_is_ready() {
    let (world, door) = world();
    world.ctl("daemon stop").ok();
    let mut command = world.command("cmactl");
    command.args(["daemon", "run"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&ready["state"], &ready["pid"]), (&"ready".into(), &child.id().into()), "{line}");
    assert!(door.send(&door.turn()).unwrap().is_complete());
    signal(child.id(), rustix::process::Signal::INT);
    assert!(child.wait().unwrap().success());
    world.assert_clean();
}

/// A command that comes while a daemon is on its last steps gets the next one.
#[test]
fn a_command_during_the_last_steps_of_a_stop_waits_for_the_next_daemon() {
    let (world, door) = world();
    for _ in 0..3 {
        let pid = world.daemon_pid().unwrap();
        world.ctl("switch a").ok();
        world.sim().expire_access("a");
        // It serves nobody any more, and waits for this.
        let late = Fault::DelayAnswer(Duration::from_millis(600));
        world.sim().fault(Some("a"), Route::Refresh, late, Some(1));
        std::thread::scope(|scope| {
            scope.spawn(|| drop(door.send(&door.turn())));
            eventually("the renewal is under way", || {
                world
                    .sim()
                    .seen()
                    .iter()
                    .any(|seen| seen.path == "/oauth/token" && seen.status.is_none())
            });
            scope.spawn(|| world.ctl("daemon stop --now").ok());
            eventually("it answers no more", || world.ctl("--no-start status").code == 4);
            let asked = world.ctl("status --json").ok();
            assert_ne!(asked.json()["daemon"]["pid"], pid, "{:?}", asked.took);
        });
        assert!(door.send(&door.turn()).unwrap().is_complete());
    }
    assert_eq!(world.sim().stats().accounts["a"].reused, 0);
    world.assert_clean();
}

/// A daemon lives for days: whoever starts it by the way must not wait for its end.
#[test]
fn what_a_starter_left_open_or_secret_stays_with_it() {
    let (world, door) = world();
    world.kill_daemon();
    for words in ["daemon start", "daemon restart"] {
        let ctl = world.command("cmactl").get_program().to_string_lossy().into_owned();
        let mut command = world.command("sh");
        command.args(["-c", &format!("exec 9>held; exec \"{ctl}\" {words}")]);
        command.env("CMA_NEW_PASSPHRASE", "nobody must keep this");
        world.finish(command).ok();
        let process = format!("/proc/{}", world.daemon_pid().unwrap());
        let open: Vec<_> = fs::read_dir(format!("{process}/fd"))
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .collect();
        assert!(open.len() > 3, "{open:?}");
        assert!(!open.iter().any(|path| path.ends_with("held")), "{words}: {open:?}");
        let environment = fs::read(format!("{process}/environ")).unwrap();
        assert!(
            !String::from_utf8_lossy(&environment).contains("nobody must keep this"),
            "{words}"
        );
    }
    assert!(door.send(&door.turn()).unwrap().is_complete());
    world.assert_clean();
}
