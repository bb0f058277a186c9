//! The terminal interface of the official CLI through a whole working session, with the daemon in
//! between and without: the same on the screen.
//!
//! Ten turns, two of them with a tool; in the fourth the account's limit is reached in the middle of an
//! answer; then `/status`, a compaction, the end, and the thread taken up again. Alone, the CLI has an
//! account that has no limit: with the pool nobody sees that one was hit.

use crate::{
    clients::{Screen, tmux},
    codex_kit::{VERSION, bare, official, upstream},
};
use cma_tests::{
    sim::{Inside, Route, SimConfig, What, Window},
    world::{World, eventually, write_script},
};
use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

/// Enough of them that one which is dry is no reason for the CLI to warn.
const POOL: [&str; 5] = ["a", "b", "c", "d", "e"];
const TURNS: u32 = 10;
/// Turns that run a command.
const WITH_TOOL: [u32; 2] = [2, 7];
/// The turn within which the account runs dry.
const DRY: u32 = 4;
/// A screen that hasn't changed for this long is still.
const STILL: Duration = Duration::from_millis(1500);
const LIMIT: Duration = Duration::from_secs(60);

/// Windows that no request moves, so that both sides show the same.
fn config(names: &[&str]) -> SimConfig {
    let mut config = upstream(names);
    for spec in &mut config.accounts {
        *spec = spec
            .clone()
            .primary(Window::new(0.0, 300, Duration::from_secs(7200)).used(20.0))
            .secondary(Window::new(0.0, 10_080, Duration::from_secs(86_400)).used(30.0));
    }
    SimConfig { input_tokens: Some(1000), websocket: true, reasoning: true, ..config }
}

fn machine(names: &[&str]) -> Option<World> {
    let world = bare(config(names), VERSION)?.with_env("CMA_WEBSOCKET", "on");
    let work = world.path("work").display().to_string();
    // Two sandboxes that both guard the folder all programs share fail by chance: one takes away what
    // the other is about to mount (0.169.0, observed).
    let config = format!(
        "[sandbox_workspace_write]\nexclude_slash_tmp = true\n\
         [projects.\"{work}\"]\ntrust_level = \"trusted\"\n"
    );
    fs::write(world.codex_home().join("config.toml"), config).unwrap();
    Some(world)
}

/// A script that starts the official CLI without anything of ours.
fn alone(world: &World) -> String {
    let backend = world.sim().backend();
    fs::write(world.codex_home().join("auth.json"), world.sim().auth_json("a")).unwrap();
    let script = format!(
        "#!/bin/sh\nexport NO_PROXY=127.0.0.1 no_proxy=127.0.0.1 \
         CODEX_REFRESH_TOKEN_URL_OVERRIDE={}/oauth/token\nexec {} --no-daemon \
         -c 'openai_base_url=\"{backend}/./codex\"' -c 'chatgpt_base_url=\"{backend}\"' \"$@\"\n",
        world.sim().issuer(),
        official(VERSION).display(),
    );
    let file = world.path("tmp/alone.sh");
    write_script(&file, &script);
    file.display().to_string()
}

/// What is on the screen once it doesn't change any more.
fn still(screen: &Screen<'_>) -> String {
    let (mut last, mut since, begun) = (screen.text(), Instant::now(), Instant::now());
    while since.elapsed() < STILL {
        assert!(begun.elapsed() < LIMIT, "it never rests:\n{last}");
        thread::sleep(Duration::from_millis(150));
        let now = screen.text();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

/// One way to replace what two sessions may differ in: ids, times, folders, ports, and the hints that
/// the interface picks by chance.
fn plain(world: &World, text: &str) -> Vec<String> {
    let dir = world.path("").display().to_string();
    let name = dir.trim_end_matches('/').rsplit('/').next().unwrap().to_owned();
    let line = |line: &str| {
        let line = line.replace(&name, "cma-DIR").trim_end().to_owned();
        let words: Vec<String> = line.split(' ').map(word).collect();
        let line = words.join(" ");
        // Seconds, of which a busy machine makes one more.
        let told = line.split_once("Worked for ").and_then(|(before, after)| {
            let (_took, rest) = after.split_once(" • ")?;
            Some(format!("{before}Worked for TIME • {rest}"))
        });
        told.unwrap_or(line)
    };
    let kept = text.lines().filter(|line| !line.trim().is_empty());
    // By chance: the tip, and the example in the empty line for the next words.
    let kept = kept.filter(|line| !line.contains("Tip:"));
    // The pool's own; and the workspace, of which only the account it speaks for is known.
    let own = ["5h limit:", "Weekly limit:", "ChatGPT workspace:"];
    let kept = kept.filter(|line| !own.iter().any(|own| line.contains(own)));
    let kept =
        kept.filter(|line| !line.starts_with('›') || line.contains("words") || line.contains('/'));
    kept.map(line).collect()
}

/// A word without ids and times.
fn word(word: &str) -> String {
    let id = |part: &str| part.len() == 36 && part.matches('-').count() == 4;
    let clock = |part: &str| {
        let bytes = part.as_bytes();
        bytes.len() == 5
            && bytes[2] == b':'
            && bytes[0].is_ascii_digit()
            && bytes[4].is_ascii_digit()
    };
    let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    if id(bare) {
        word.replace(bare, "ID")
    } else if clock(bare) {
        word.replace(bare, "CLOCK")
    } else {
        word.to_owned()
    }
}

/// The whole session; what was on the screen at each stage.
///
/// `/status` shows what the accounts have left (`left`, the short window): of the pool the mean.
fn session(
    world: &World,
    command: &str,
    (limit, left): (bool, [&str; 2]),
) -> BTreeMap<&'static str, Vec<String>> {
    let mut stages = BTreeMap::new();
    let screen = Screen::start(world, command);
    screen.shows("gpt-5.5");
    for turn in 1..=TURNS {
        world.sim().set_reply_text(&format!("answer number {turn} is given"));
        if WITH_TOOL.contains(&turn) {
            world.sim().script_another_tool_call(&format!("echo heron-{turn}"));
        }
        if limit && turn == DRY {
            let dry = Inside::within_the_answer(What::UsageLimit(3600));
            world.sim().fault(Some("a"), Route::Frame, dry, Some(1));
        }
        screen.types(&format!("words for turn {turn}"));
        let text = screen.shows(&format!("answer number {turn} is given"));
        assert!(!WITH_TOOL.contains(&turn) || text.contains(&format!("heron-{turn}")), "{text}");
        world.sim().clear_tool_call();
        still(&screen);
    }
    stages.insert("1 ten turns", plain(world, &still(&screen)));
    screen.types("/status");
    screen.shows(left[0]);
    let status = still(&screen);
    assert!(status.contains(left[1]), "{status}");
    stages.insert("2 status", plain(world, &still(&screen)));
    screen.types("/compact");
    screen.shows("Context compacted");
    stages.insert("3 compaction", plain(world, &still(&screen)));
    screen.types("/quit");
    eventually("the interface has ended", || screen.tmux(&["has-session"]).code != 0);
    drop(screen);
    let screen = Screen::start(world, &format!("{command} resume --last"));
    screen.shows("answer number 10 is given");
    stages.insert("4 resumed", plain(world, &still(&screen)));
    world.sim().set_reply_text("an answer after all that");
    screen.types("words after it");
    screen.shows("an answer after all that");
    stages.insert("5 went on", plain(world, &still(&screen)));
    screen.types("/quit");
    eventually("the interface has ended", || screen.tmux(&["has-session"]).code != 0);
    stages
}

#[test]
fn a_long_session_with_a_limit_in_it_looks_as_without_the_pool() {
    if !tmux() {
        return;
    }
    let (Some(without), Some(with)) = (machine(&["a"]), machine(&POOL)) else { return };
    // The CLI alone wants an https origin; with these base addresses it changes no route.
    without.sim().set_workspace("a", Some("https://chatgpt.com"), None);
    let command = alone(&without);
    with.import_all();
    let (wanted, shown) = thread::scope(|scope| {
        let wanted = scope.spawn(|| session(&without, &command, (false, ["80% left", "70% left"])));
        let shown = session(&with, "codex", (true, ["64% left", "56% left"]));
        (wanted.join().unwrap(), shown)
    });
    // The limit was met, and met once: the thread went on with the other account.
    assert_eq!(with.sim().stats().accounts["a"].faults, 1);
    assert_eq!(with.account("a")["state"], "cooling");
    assert!(with.sim().stats().accounts["b"].served > 6);
    for (stage, wanted) in &wanted {
        let shown = &shown[stage];
        let (w, s) = (wanted.join("\n"), shown.join("\n"));
        assert!(w == s, "{stage}\n--- without the pool\n{w}\n--- with it\n{s}");
    }
    with.assert_clean();
}
