//! `cmactl demo`, as somebody who has only just built it runs it.

use crate::{
    clients::{Screen, tmux},
    codex_kit::{VERSION, bare, finish, start, upstream},
};
use cma_tests::{
    sim::SimConfig,
    world::{Ran, World, eventually, signal},
};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};

/// A machine on which nothing is installed.
fn machine() -> World {
    World::new(SimConfig::default())
}

/// Processes that were started with this folder among their words or in their environment.
fn processes(folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let read =
        |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let (words, environment) = (read(&path.join("cmdline")), read(&path.join("environ")));
        (words.contains(&folder) || environment.contains(&folder)).then_some(words)
    });
    all.collect()
}

/// Neither a file nor a process, and no pool of one's own was made.
#[track_caller]
fn left_nothing(world: &World) {
    let temporary = world.path("tmp");
    eventually("its processes have ended", || processes(&temporary).is_empty());
    let left: Vec<_> = fs::read_dir(&temporary).unwrap().map(|it| it.unwrap().path()).collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    assert!(!world.root().exists(), "it made {}", world.root().display());
    world.assert_clean();
}

/// What it said, an object a line; the last one is the summary.
fn told(ran: &Ran) -> Vec<Value> {
    let lines = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap());
    let told: Vec<Value> = lines.collect();
    assert!(told.iter().all(|it| it["schema"] == 1), "{}", ran.stdout);
    told
}

/// Each request was answered, two accounts of three ran dry, and the third served what came then. (The
/// demo pins the second one again after the first move.)
#[track_caller]
fn all_is_answered(told: &[Value], requests: usize) {
    let served: Vec<&Value> = told.iter().filter(|it| it["event"] == "served").collect();
    let by: Vec<&str> = served.iter().map(|it| it["account"].as_str().unwrap()).collect();
    assert_eq!((by.len(), by.first(), by.last()), (requests, Some(&"A"), Some(&"C")), "{by:?}");
    assert!(by.contains(&"B"), "{by:?}");
    let summary = told.last().unwrap();
    let fields = ["event", "requests", "answered", "errors", "ran_dry", "moves"];
    let found: Vec<&Value> = fields.iter().map(|field| &summary[field]).collect();
    let wanted =
        [json!("summary"), json!(requests), json!(requests), json!(0), json!(["A", "B"]), json!(2)];
    assert_eq!(found, wanted.iter().collect::<Vec<_>>(), "{summary}");
}

#[test]
fn everything_is_answered_while_two_of_three_accounts_run_dry() {
    let world = machine();
    let ran = world.ctl("demo --client builtin --json").ok();
    all_is_answered(&told(&ran), 40);
    assert!(ran.took < Duration::from_secs(30), "{:?}", ran.took);
    left_nothing(&world);
}

#[test]
fn the_official_cli_is_used_where_there_is_one() {
    let Some(world) = bare(upstream(&["a"]), VERSION) else { return };
    let mut command = world.command("cmactl");
    command.args(["demo", "--json"]);
    let told = told(&finish(&world, command, Duration::from_secs(120)).ok());
    let client = told[0]["client"].as_str().unwrap();
    assert!(client.contains(VERSION), "{client}");
    all_is_answered(&told, 14);
    left_nothing(&world);
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    for what in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let world = machine();
        let mut command = world.command("cmactl");
        command.args(["demo", "--client", "builtin", "--json"]);
        let running = start(command);
        let temporary = world.path("tmp");
        eventually("its daemon runs", || {
            processes(&temporary).iter().any(|line| line.contains("cmad"))
        });
        signal(running.pid(), what);
        let ran = running.end(&world, Duration::from_secs(20));
        assert_eq!(ran.code, 130, "{}", ran.stderr);
        left_nothing(&world);
    }
}

#[test]
fn a_terminal_shows_who_serves_and_how_windows_fill() {
    if !tmux() {
        return;
    }
    let world = machine();
    let screen = Screen::start(&world, "cmactl demo --client builtin; sleep 60");
    screen.shows("▶ A");
    let end = screen.shows("cmactl status");
    for words in [
        "40 of 40 requests answered",
        "0 errors seen by the client",
        "(A, B)",
        "quota window is full",
    ] {
        assert!(end.contains(words), "{words}:\n{end}");
    }
    eventually("its folder is gone", || {
        let left = fs::read_dir(world.path("tmp")).unwrap().map(|entry| entry.unwrap().file_name());
        left.into_iter().all(|name| name == "tmux.sock")
    });
    drop(screen);
    fs::remove_file(world.path("tmp/tmux.sock")).unwrap();
    left_nothing(&world);
}
