//! Runs a case's steps, with the daemon in between and without.

use super::{
    case::{Case, Expect, Step, Wire, numbers},
    normal::Normal,
    sent,
};
use crate::codex_kit::{bare, finish, official};
use cma_tests::{
    sim::{AccountSpec, Seen, SimConfig, Window},
    world::{Ran, World},
};
use parking_lot::Mutex;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// What one step may take: the CLI's own retries end after 26 s, a stated wait is 30 s.
const LIMIT: Duration = Duration::from_secs(150);
/// What the daemon asks beside a turn reaches the upstream within this.
const BESIDE: Duration = Duration::from_secs(5);
/// Upstream attempts after which something turns in a circle.
const MAX_ATTEMPTS: usize = 30;

/// What a run showed.
#[derive(Debug, Clone, Default)]
pub(super) struct Shown {
    /// Exit statuses, output and talk, step by step.
    pub(super) lines: Vec<String>,
    /// Exit statuses only.
    pub(super) codes: Vec<i32>,
    /// All of stderr as it was.
    pub(super) talk: String,
    /// Lines of the CLI's log: what was said, not how often or in which order.
    pub(super) log: BTreeSet<String>,
    /// Files of the Codex home.
    pub(super) files: BTreeMap<String, Vec<String>>,
    /// The last turn that the upstream got.
    pub(super) sent: Vec<String>,
    /// Whose turns and compactions reached the upstream.
    pub(super) asked: Vec<String>,
    /// Turns that reached the upstream, in whatever form.
    pub(super) attempts: usize,
    /// Those that came over HTTP.
    pub(super) posts: usize,
    /// Frames, prewarms too.
    pub(super) frames: usize,
    /// Of each scripted fault whether it applied; empty where none was scripted.
    pub(super) met: Vec<bool>,
    /// Rules that the upstream saw broken.
    pub(super) violations: BTreeSet<String>,
    pub(super) took: Duration,
}

fn config(case: &Case, accounts: &[&str]) -> SimConfig {
    let still = Window { per_request: 0.0, ..Window::new(0.0, 300, Duration::from_secs(3 * 3600)) };
    let week = Window { minutes: 10_080, reset_in: Duration::from_secs(5 * 86_400), ..still };
    let spec =
        |name: &&str| AccountSpec::new(name).primary(still.used(12.0)).secondary(week.used(34.0));
    let mut config = SimConfig {
        accounts: accounts.iter().map(spec).collect(),
        input_tokens: Some(1000),
        websocket: case.wire == Wire::Ws,
        ..SimConfig::default()
    };
    (case.tune)(&mut config);
    config
}

fn machine(case: &Case, version: &str, accounts: &[&str]) -> Option<World> {
    let world = bare(config(case, accounts), version)?;
    fs::write(world.codex_home().join("auth.json"), world.sim().auth_json("a")).unwrap();
    fs::write(world.path("work/picture.png"), PICTURE).unwrap();
    fs::write(world.path("work/schema.json"), SCHEMA).unwrap();
    let git = world.run("git", ["-c", "init.defaultBranch=main", "init", "-q", "."]);
    if git.code == 0 {
        fs::write(world.path("work/changed.txt"), "one line\n").unwrap();
    }
    Some(world)
}

/// The CLI alone; what nothing goes wrong in is done once for all cases that are held against it.
pub(super) fn alone(case: &Case, version: &str) -> Option<Shown> {
    static KNOWN: Mutex<BTreeMap<String, Shown>> = Mutex::new(BTreeMap::new());
    if !matches!(case.expect, Expect::Hidden) {
        return directly(case, version);
    }
    let key = format!("{version} {:?} {:?} {:?} {:?}", case.wire, case.steps, case.tool, case.tune);
    if let Some(known) = KNOWN.lock().get(&key) {
        return Some(known.clone());
    }
    let shown = directly(case, version)?;
    KNOWN.lock().insert(key, shown.clone());
    Some(shown)
}

/// The CLI straight at the upstream, with a login of its own.
fn directly(case: &Case, version: &str) -> Option<Shown> {
    let accounts = &case.accounts[..1];
    let world = machine(case, version, accounts)?;
    let faults = !matches!(case.expect, Expect::Hidden);
    // The CLI would insist on https for an address that ends as the real one does.
    let base = format!("{}/./codex", world.sim().backend());
    let make = |world: &World| {
        let mut command = world.command(official(version));
        command
            .args(["-c", &format!("openai_base_url=\"{base}\"")])
            .args(["-c", &format!("chatgpt_base_url=\"{}\"", world.sim().backend())])
            .env(
                "CODEX_REFRESH_TOKEN_URL_OVERRIDE",
                format!("{}/oauth/token", world.sim().issuer()),
            )
            .env(
                "CODEX_REVOKE_TOKEN_URL_OVERRIDE",
                format!("{}/oauth/revoke", world.sim().issuer()),
            )
            .env("NO_PROXY", "127.0.0.1,localhost")
            .env("no_proxy", "127.0.0.1,localhost");
        if reads_environment(version) {
            command.env("OPENAI_BASE_URL", &base);
        }
        command
    };
    Some(shown(case, &world, faults, make))
}

/// The same with the daemon in between.
pub(super) fn through(case: &Case, version: &str) -> Option<Shown> {
    let world = machine(case, version, case.accounts)?;
    let websocket = if case.wire == Wire::Ws { "on" } else { "off" };
    // A host that stays out of reach is given up by its own row's end.
    let world = world.with_env("CMA_WEBSOCKET", websocket).with_env("CMA_HOST_WAIT", "15s");
    for name in case.accounts {
        let login = match *name {
            "a" => fs::read_to_string(world.codex_home().join("auth.json")).unwrap(),
            other => world.sim().auth_json(other),
        };
        world.import(name, &login).ok();
    }
    let make = |world: &World| {
        if takes_key(version) {
            return world.command("codex");
        }
        // Its login can't be given by the environment: it stays on its own, by a printed plan.
        let plan = world.ctl("launch --print --own-auth --json").ok().json();
        let mut command = world.command(official(version));
        command.args(plan["args"].as_array().unwrap().iter().filter_map(Value::as_str));
        for (name, value) in plan["env"].as_object().unwrap() {
            command.env(name, value.as_str().unwrap());
        }
        if reads_environment(version) {
            command.env("OPENAI_BASE_URL", plan["base_url"].as_str().unwrap());
        }
        command
    };
    let shown = shown(case, &world, true, make);
    if !takes_key(version) {
        forget_its_log(&world);
    }
    world.assert_no_secrets();
    Some(shown)
}

/// An older CLI has a login of its own, and as an app-server writes it into a log of its own.
fn forget_its_log(world: &World) {
    for entry in fs::read_dir(world.codex_home()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("logs_") {
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// Whichever way the list of models can't be had, the daemon says that it isn't there; the CLI then has
/// its own, and logs why.
fn said_of_models(line: &str) -> &str {
    const FAILED: &str = "failed to refresh available models: ";
    line.find(FAILED).map_or(line, |at| line.get(..at + FAILED.len()).unwrap_or(line))
}

/// Whether it takes its login from the environment, and so goes through the shim.
fn takes_key(version: &str) -> bool {
    numbers(version) >= numbers("0.149.0")
}

/// Whether its base address is an environment variable.
fn reads_environment(version: &str) -> bool {
    numbers(version) < numbers("0.128.0")
}

fn shown(case: &Case, world: &World, faults: bool, make: impl Fn(&World) -> Command) -> Shown {
    let begun = Instant::now();
    let normal = Normal::new(&world.path(""));
    if let Some(command) = case.tool {
        world.sim().script_tool_call(command);
    }
    let (mut shown, mut before) = (Shown::default(), None);
    let dir = world.path("").display().to_string();
    for (at, step) in case.steps.iter().enumerate() {
        if at == case.faults_at && faults {
            before = Some(world.sim().seen().last().map_or(0, |seen| seen.number));
            for script in &case.faults {
                let account = script.first_only.then_some("a");
                world.sim().fault(account, script.route, script.fault.clone(), script.times);
            }
        }
        let ran = match step {
            Step::Run(words) => {
                let mut command = make(world);
                let thread = first_thread(world);
                let filled = words.iter().map(|word| {
                    word.replace("{dir}", dir.trim_end_matches('/')).replace("{thread}", &thread)
                });
                command.args(filled);
                finish(world, command, LIMIT)
            },
            Step::Serve(messages) => serve(world, make(world), messages),
        };
        shown.add(&normal, &ran);
    }
    shown.files = normal.tree(&world.codex_home());
    let turns = world.sim().seen().into_iter().filter(|seen| seen.path.contains("/responses"));
    shown.asked = turns
        .map(|seen| format!("{} {} {}", seen.method, seen.path, seen.account.unwrap_or_default()))
        .collect();
    shown.attempts = world.sim().seen().iter().filter(|seen| is_attempt(seen)).count();
    shown.posts = world.sim().seen().iter().filter(|seen| is_post(seen)).count();
    shown.frames = world.sim().seen().iter().filter(|seen| seen.method == "WS").count();
    shown.met = before.map(|number| met(case, world, number)).unwrap_or_default();
    shown.violations = world.sim().violations().iter().map(|it| rule(it)).collect();
    let mut turns = world.sim().seen();
    turns.retain(|seen| seen.path.ends_with("/codex/responses"));
    shown.sent = sent::last(case.wire, &turns, &normal);
    shown.took = begun.elapsed();
    shown
}

/// Of each fault whether it applied; they were scripted when this was the number of the last request.
fn met(case: &Case, world: &World, before: u64) -> Vec<bool> {
    let until = Instant::now() + BESIDE;
    loop {
        let mut seen = world.sim().seen();
        seen.retain(|seen| seen.number > before);
        let applied: u64 = world.sim().stats().accounts.values().map(|stats| stats.faults).sum();
        let met: Vec<_> = case.faults.iter().map(|script| script.is_met(&seen, applied)).collect();
        let missing = case.faults.iter().zip(&met).any(|(script, met)| script.sure && !met);
        if !missing || Instant::now() > until {
            return met;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The id of the oldest thread, which is the end of its file's name.
fn first_thread(world: &World) -> String {
    let all = cma_tests::world::files(&world.codex_home().join("sessions"));
    let name = all
        .first()
        .and_then(|file| file.file_stem())
        .map(|name| name.to_string_lossy().into_owned());
    name.and_then(|name| name.get(name.len().saturating_sub(36)..).map(str::to_owned))
        .unwrap_or_default()
}

/// A broken rule without the number of its request.
fn rule(violation: &str) -> String {
    violation.split(" (request ").next().unwrap_or_default().to_owned()
}

fn is_attempt(seen: &Seen) -> bool {
    seen.path.ends_with("/codex/responses")
        && (seen.method != "WS" || seen.body["generate"] != false)
}

fn is_post(seen: &Seen) -> bool {
    seen.method == "POST" && is_attempt(seen)
}

impl Shown {
    fn add(&mut self, normal: &Normal, ran: &Ran) {
        self.codes.push(ran.code);
        self.lines.push(format!("exit {}", ran.code));
        self.lines.extend(ran.stdout.lines().map(|line| format!("out: {}", normal.line(line))));
        for line in ran.stderr.lines() {
            let line = normal.text(line);
            match line.strip_prefix("<when> ") {
                Some(said) => {
                    self.log.insert(said_of_models(said.trim()).to_owned());
                },
                None => self.lines.push(format!("err: {line}")),
            }
        }
        self.talk.push_str(&ran.stderr);
        self.talk.push_str(&ran.stdout);
    }

    /// Whether the number of attempts is bounded.
    pub(super) fn is_bounded(&self) -> bool {
        self.attempts <= MAX_ATTEMPTS && self.took < LIMIT
    }
}

/// Talks to an app-server: what was answered, and what it says of items and turns. What else it writes is
/// only searched for secrets.
fn serve(world: &World, mut command: Command, messages: &[Value]) -> Ran {
    let errors = fs::File::create(world.path("tmp/app-server.log")).unwrap();
    command.arg("app-server").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
    let begun = Instant::now();
    let mut server = command.spawn().unwrap();
    let pid = server.id();
    let (done, over) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if over.recv_timeout(LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            cma_tests::world::signal(pid, rustix::process::Signal::KILL);
        }
    });
    let mut input = server.stdin.take().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map_while(Result::ok);
    let (mut said, mut thread, mut early) = (Vec::new(), Value::Null, BTreeMap::new());
    let mut stdout = String::new();
    for message in messages {
        let awaited = message["await"].as_str();
        if let Some(method) = awaited {
            if early.remove(method).is_some() {
                continue;
            }
        } else {
            let text = message.to_string().replace("{thread}", thread.as_str().unwrap_or_default());
            writeln!(input, "{text}").unwrap();
        }
        for line in lines.by_ref() {
            stdout.push_str(&line);
            let Ok(heard) = serde_json::from_str::<Value>(&line) else { continue };
            let method = heard["method"].as_str().unwrap_or_default();
            let answers = awaited.is_none() && heard["id"] == message["id"];
            if answers && heard["result"]["thread"]["id"].is_string() {
                thread = heard["result"]["thread"]["id"].clone();
            }
            if answers || ["item/completed", "turn/completed", "error"].contains(&method) {
                said.push(line);
            }
            if answers || awaited == Some(method) {
                break;
            }
            early.insert(method.to_owned(), ());
        }
    }
    drop(input);
    let status = server.wait().unwrap();
    drop(done);
    watchdog.join().unwrap();
    let all = Output { status, stdout: stdout.into_bytes(), stderr: Vec::new() };
    world.keep("an app-server", &all);
    let code = status.code().unwrap_or(-1);
    Ran { code, stdout: said.join("\n"), stderr: String::new(), took: begun.elapsed() }
}

/// The smallest picture: one pixel.
const PICTURE: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 0x0d, 0x49, 0x48, 0x44, 0x52, 0, 0, 0,
    1, 0, 0, 0, 1, 8, 6, 0, 0, 0, 0x1f, 0x15, 0xc4, 0x89, 0, 0, 0, 0x0d, 0x49, 0x44, 0x41, 0x54,
    0x78, 0x9c, 0x63, 0xf8, 0xcf, 0xc0, 0xf0, 0x1f, 0, 5, 0, 1, 0xff, 0x56, 0xc7, 0x2f, 0x0d, 0, 0,
    0, 0, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82,
];
/// What an answer may look like.
const SCHEMA: &str = r#"{"type":"object","properties":{"answer":{"type":"string"}},"required":["answer"],"additionalProperties":false}"#;
