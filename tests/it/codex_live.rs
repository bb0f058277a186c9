//! What happens to a running turn: the person switches, the daemon dies, somebody presses Ctrl-C.

use crate::codex_kit::{
    Running, TURN, VERSION, codex, finish, machine, official, posts, start, turn,
};
use cma_tests::{
    sim::Outcome,
    world::{World, eventually, signal},
};
use rustix::process::Signal;
use std::{process::Command, time::Duration};

const LIMIT: Duration = Duration::from_secs(60);

/// Starts a turn and waits until upstream has begun to answer it, slowly.
fn streaming(world: &World, command: Command, gap: Duration) -> Running {
    world.sim().set_event_gap(gap);
    let before = begun(world);
    let running = start(command);
    eventually("the stream has begun", || begun(world) > before);
    world.sim().set_event_gap(Duration::ZERO);
    running
}

fn begun(world: &World) -> usize {
    posts(world).iter().filter(|seen| seen.status == Some(200)).count()
}

#[test]
fn a_switch_leaves_the_running_stream_alone_and_takes_the_next_request() {
    let Some(world) = machine(&["a", "b"]) else { return };
    let running = streaming(&world, codex(&world, TURN), Duration::from_millis(400));
    let mut took: Vec<Duration> = Vec::new();
    for name in ["b", "a", "b", "a", "b", "a", "b", "a", "b"] {
        took.push(world.ctl(&format!("switch {name}")).ok().took);
    }
    took.sort();
    assert!(took[4] <= Duration::from_millis(50), "{took:?}");
    assert_eq!(turn(&world).ok().stdout.trim(), "served by b");
    let seen: Vec<_> = posts(&world).into_iter().map(|seen| (seen.account, seen.outcome)).collect();
    assert_eq!(
        seen,
        [(Some("a".to_owned()), Outcome::Open), (Some("b".to_owned()), Outcome::Completed)],
        "the first stream still runs"
    );
    assert_eq!(running.end(&world, LIMIT).ok().stdout.trim(), "served by a");
    assert_eq!(posts(&world)[0].outcome, Outcome::Completed);
    assert_eq!(world.status()["proxy"]["failed"], 0);
    world.assert_clean();
}

#[test]
fn a_daemon_that_is_killed_and_started_again_answers_the_same_cli() {
    let Some(world) = machine(&["a"]) else { return };
    let url = world.status()["proxy"]["url"].clone();
    let running = streaming(&world, codex(&world, TURN), Duration::from_millis(400));
    world.kill_daemon();
    world.ctl("daemon start").ok();
    let ran = running.end(&world, LIMIT).ok();
    assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    assert_eq!(world.status()["proxy"]["url"], url);
    assert_eq!(world.status()["proxy"]["refused"], 0, "its key still opens");
    let outcomes: Vec<_> = posts(&world).iter().map(|seen| seen.outcome).collect();
    assert_eq!(outcomes, [Outcome::ClientGone, Outcome::Completed]);
    world.assert_clean();
}

/// A signal to the process that was started as `codex`, during a turn: the exit status.
fn signalled(world: &World, command: Command, which: Signal) -> i32 {
    let running = streaming(world, command, Duration::from_secs(1));
    signal(running.pid(), which);
    let ran = running.end(world, LIMIT);
    assert!(ran.took < Duration::from_secs(8), "it ends at once: {ran:?}");
    ran.code
}

/// The official CLI by a printed plan, without the shim.
fn by_hand(world: &World) -> Command {
    let plan = world.launch();
    let mut command = world.command(official(VERSION));
    command.args(plan["args"].as_array().unwrap().iter().filter_map(|word| word.as_str()));
    for (name, value) in plan["env"].as_object().unwrap() {
        command.env(name, value.as_str().unwrap());
    }
    command.args(TURN);
    command
}

fn signal_reaches_the_cli(which: Signal) {
    let Some(world) = machine(&["a"]) else { return };
    let ours = signalled(&world, codex(&world, TURN), which);
    let theirs = signalled(&world, by_hand(&world), which);
    assert_eq!(ours, theirs);
    assert_ne!(ours, 0);
    eventually("the daemon has let go", || world.status()["proxy"]["active"] == 0);
    world.assert_clean();
}

#[test]
fn an_interrupt_reaches_the_cli() {
    signal_reaches_the_cli(Signal::INT);
}

#[test]
fn a_termination_reaches_the_cli() {
    signal_reaches_the_cli(Signal::TERM);
}

#[test]
fn a_failing_cli_keeps_its_exit_status() {
    let Some(world) = machine(&["a"]) else { return };
    let ran = finish(&world, codex(&world, ["exec", "--no-such-flag"]), LIMIT);
    assert_eq!(ran.code, 2, "{ran:?}");
    world.assert_clean();
}
