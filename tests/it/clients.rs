//! Every client of the wire with the official CLI: each way to start it, and the server for IDEs.
//!
//! What counts is what upstream served and what the person sees, not by which transport: a client
//! may take the WebSocket where one is offered.

use crate::codex_kit::{VERSION, bare, codex, finish, machine, official, upstream};
use cma_tests::{
    sim::{SimConfig, Window},
    world::{Ran, World, eventually},
};
use serde_json::{Value, json};
use std::{
    fs,
    io::Write as _,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(60);

fn served(world: &World, name: &str) -> u64 {
    world.sim().stats().accounts[name].served
}

#[track_caller]
fn runs(world: &World, args: &[&str]) -> Ran {
    finish(world, codex(world, args.iter().copied()), LIMIT).ok()
}

/// The ids of the threads that were written down.
fn threads(world: &World) -> Vec<String> {
    let files = cma_tests::world::files(&world.codex_home().join("sessions"));
    let first = files.iter().filter_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        let line: Value = serde_json::from_str(text.lines().next()?).ok()?;
        Some(line["payload"]["id"].as_str()?.to_owned())
    });
    first.collect()
}

fn git(world: &World, words: &str) {
    let mut command = world.command("git");
    command.args(["-c", "user.name=a", "-c", "user.email=a@example.test"]);
    command.args(words.split_whitespace());
    world.finish(command).ok();
}

#[test]
fn exec_resume_and_fork_are_one_thread_and_its_copy() {
    let Some(world) = machine(&["a", "b"]) else { return };
    let skip = "--skip-git-repo-check";
    assert_eq!(runs(&world, &["exec", skip, "say hi"]).stdout.trim(), "served by a");
    let thread = threads(&world).pop().unwrap();
    let again = runs(&world, &["exec", skip, "resume", "--last", "and again"]);
    assert_eq!(again.stdout.trim(), "served by a");
    assert_eq!(threads(&world).len(), 1);
    let fork = runs(&world, &["exec", skip, "fork", &thread, "another way"]);
    assert_eq!(fork.stdout.trim(), "served by a");
    assert_eq!(threads(&world).len(), 2);
    // Its account runs dry: the fork goes on elsewhere, and nobody sees it.
    world.sim().set_used("a", 100.0, 10.0);
    let moved = runs(&world, &["exec", skip, "resume", "--last", "and on"]);
    assert_eq!(moved.stdout.trim(), "served by b");
    assert!(!moved.stderr.contains("limit") && !moved.stderr.contains("Reconnect"), "{moved:?}");
    world.assert_clean();
}

#[test]
fn a_review_is_served_in_both_its_forms() {
    let Some(world) = machine(&["a"]) else { return };
    git(&world, "init -q");
    fs::write(world.path("work/file"), "one\n").unwrap();
    git(&world, "add file");
    git(&world, "commit -qm one");
    fs::write(world.path("work/file"), "two\n").unwrap();
    let mut before = 0;
    for args in [&["review", "--uncommitted"][..], &["exec", "review", "--uncommitted"]] {
        let ran = runs(&world, args);
        assert!(ran.stdout.contains("served by a"), "{ran:?}");
        assert!(served(&world, "a") > before, "{args:?}");
        before = served(&world, "a");
    }
    assert_eq!(world.status()["proxy"]["refused"], 0);
    world.assert_clean();
}

/// A CLI with a provider of its own: the key as its bearer, another name, no aux calls; over WebSockets
/// where it says that its provider has them.
#[test]
fn a_custom_provider_is_served_with_a_printed_key() {
    for websockets in [false, true] {
        let config = SimConfig { websocket: true, ..upstream(&["a", "b"]) };
        let Some(world) = bare(config, VERSION) else { return };
        let world = world.with_env("CMA_WEBSOCKET", "on");
        world.import_all();
        let plan = world.launch();
        let run = |name: &str| {
            let provider = format!(
                "model_providers.lb={{name=\"{name}\",base_url={},wire_api=\"responses\",env_key=\"CMA_KEY\",supports_websockets={websockets}}}",
                plan["base_url"]
            );
            let mut command = world.command(official(VERSION));
            command.args(["exec", "--skip-git-repo-check", "-c", "model_provider=lb", "-c"]);
            command.args([&provider, "-c", "model=gpt-5.5", "say hi"]);
            command.env("CMA_KEY", plan["client_key"].as_str().unwrap());
            command.env("NO_PROXY", "127.0.0.1,localhost").env("no_proxy", "127.0.0.1,localhost");
            finish(&world, command, LIMIT).ok()
        };
        for name in ["OpenAI", "cma"] {
            let ran = run(name);
            assert_eq!(ran.stdout.trim(), "served by a", "{name}: {}", ran.stderr);
        }
        // Out of quota on one account: this client doesn't see it either.
        world.sim().set_used("a", 100.0, 1.0);
        assert_eq!(run("cma").stdout.trim(), "served by b");
        let turns = |method: &str| {
            let seen = world.sim().seen();
            seen.iter()
                .filter(|seen| seen.method == method && seen.path.ends_with("/codex/responses"))
                .count()
        };
        assert_eq!((turns("WS") > 0, turns("POST") > 0), (websockets, !websockets));
        world.assert_clean();
    }
}

/// The person's own `auth.json` stays in use, and everything around turns works on it too.
#[test]
fn own_auth_mode_has_the_same_surface() {
    let Some(world) = bare(upstream(&["a", "b"]), VERSION) else { return };
    let world = world.with_env("CMA_AUTH_MODE", "own");
    let auth = world.sim().auth_json("a");
    world.import("a", &auth).ok();
    world.import("b", &world.sim().auth_json("b")).ok();
    fs::write(world.codex_home().join("auth.json"), auth).unwrap();
    let before = fs::read(world.codex_home().join("auth.json")).unwrap();
    let mut server = Server::start(&world);
    let limits = server.ask("account/rateLimits/read", &json!({}));
    assert!(limits["rateLimits"]["primary"]["usedPercent"].is_number(), "{limits}");
    assert_eq!(server.turn(&world, "say hi"), "served by a");
    world.sim().set_used("a", 100.0, 10.0);
    assert_eq!(server.turn(&world, "say hi"), "served by b");
    server.end();
    assert_eq!(fs::read(world.codex_home().join("auth.json")).unwrap(), before);
    world.assert_clean();
}

/// `codex app-server` through the shim: JSON lines both ways.
struct Server {
    child: Child,
    input: ChildStdin,
    lines: Receiver<Value>,
    heard: Vec<Value>,
    next: u64,
    thread: Option<String>,
}

impl Server {
    fn start(world: &World) -> Self {
        let mut command = codex(world, ["app-server"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let output = child.stdout.take().unwrap();
        let (tell, lines) = channel();
        thread::spawn(move || {
            use std::io::BufRead as _;
            for line in std::io::BufReader::new(output).lines().map_while(Result::ok) {
                if let Ok(message) = serde_json::from_str(&line)
                    && tell.send(message).is_err()
                {
                    return;
                }
            }
        });
        let input = child.stdin.take().unwrap();
        let mut server = Self { child, input, lines, heard: Vec::new(), next: 1, thread: None };
        let client = json!({"clientInfo": {"name": "ide", "title": "IDE", "version": "0.1"}});
        server.ask("initialize", &client);
        writeln!(server.input, "{}", json!({"method": "initialized"})).unwrap();
        server
    }

    /// Waits for a message; what comes before it is kept.
    #[track_caller]
    fn hear(&mut self, what: &str, mut is: impl FnMut(&Value) -> bool) -> Value {
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            if let Ok(message) = self.lines.recv_timeout(Duration::from_millis(200)) {
                if is(&message) {
                    return message;
                }
                self.heard.push(message);
            }
        }
        panic!("{what} did not come: {:#?}", self.heard)
    }

    /// A request's result.
    #[track_caller]
    fn ask(&mut self, method: &str, params: &Value) -> Value {
        let id = self.next;
        self.next += 1;
        let message = json!({"id": id, "method": method, "params": params});
        writeln!(self.input, "{message}").unwrap();
        let answer =
            self.hear(method, |message| message["id"] == id && message.get("method").is_none());
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// One turn of the server's thread; what was said.
    #[track_caller]
    fn turn(&mut self, world: &World, text: &str) -> String {
        let thread = match self.thread.clone() {
            Some(thread) => thread,
            None => {
                let cwd = world.path("work").display().to_string();
                let started = self.ask("thread/start", &json!({ "cwd": cwd }));
                started["thread"]["id"].as_str().unwrap().to_owned()
            },
        };
        self.thread = Some(thread.clone());
        let input = json!([{"type": "text", "text": text}]);
        self.ask("turn/start", &json!({"threadId": thread, "input": input}));
        let mut said = String::new();
        let done = self.hear("turn/completed", |message| {
            let item = &message["params"]["item"];
            if message["method"] == "item/completed" && item["type"] == "agentMessage" {
                item["text"].as_str().unwrap_or_default().clone_into(&mut said);
            }
            message["method"] == "turn/completed"
        });
        assert_eq!(done["params"]["turn"]["status"], "completed", "{done}");
        said
    }

    fn end(self) {
        let Self { mut child, input, .. } = self;
        drop(input);
        child.wait().unwrap();
    }
}

#[test]
fn an_ide_server_session_is_served_from_the_pool() {
    let Some(world) = machine(&["a", "b"]) else { return };
    world.sim().set_used("a", 10.0, 20.0);
    world.sim().set_used("b", 30.0, 10.0);
    let mut server = Server::start(&world);
    let account = server.ask("account/read", &json!({}));
    assert_eq!(account["account"]["email"], "a@example.test", "{account}");
    let limits = server.ask("account/rateLimits/read", &json!({}));
    let limits = &limits["rateLimits"];
    assert_eq!(limits["primary"]["usedPercent"].as_f64(), Some(20.0), "{limits}");
    assert_eq!(limits["secondary"]["usedPercent"].as_f64(), Some(15.0), "{limits}");
    let models = server.ask("model/list", &json!({}));
    assert!(models.to_string().contains("gpt-5.5"), "{models}");
    assert_eq!(server.turn(&world, "hello"), "served by a");
    world.sim().set_used("a", 100.0, 10.0);
    assert_eq!(server.turn(&world, "hello again"), "served by b");
    let thread = server.thread.clone().unwrap();
    server.ask("thread/compact/start", &json!({ "threadId": thread }));
    server.hear("the compaction", |message| message["method"] == "turn/completed");
    assert_eq!(server.turn(&world, "and on"), "served by b");
    let errors: Vec<_> =
        server.heard.iter().filter(|message| message["method"] == "error").collect();
    assert!(errors.is_empty(), "{errors:?}");
    server.end();
    assert_eq!(world.status()["proxy"]["refused"], 0);
    assert!(world.sim().stats().accounts.values().all(|stats| stats.refresh_requests == 0));
    world.assert_clean();
}

#[test]
fn a_start_of_the_cli_asks_upstream_for_a_list_once() {
    let Some(world) = machine(&["a", "b"]) else { return };
    for _ in 0..3 {
        runs(&world, &["exec", "--skip-git-repo-check", "say hi"]);
    }
    let models = |name: &str| {
        let seen = world.sim().seen();
        seen.iter()
            .filter(|seen| seen.path.ends_with("/models") && seen.account.as_deref() == Some(name))
            .count()
    };
    // The account's tag differs from the pool's at each turn, and the CLI sees none of that.
    assert_eq!((models("a"), models("b")), (1, 1));
    world.assert_clean();
}

/// tmux, where it is installed; a failure under `CI=true` without it.
pub(crate) fn tmux() -> bool {
    let found = Command::new("tmux").arg("-V").output().is_ok_and(|out| out.status.success());
    let ci = std::env::var("CI").as_deref() == Ok("true");
    assert!(found || !ci, "tmux is missing: `apt-get install tmux`");
    if !found {
        eprintln!("skipped: tmux is not installed");
    }
    found
}

/// The terminal interface in a terminal of its own.
pub(crate) struct Screen<'w> {
    world: &'w World,
    socket: String,
}

impl<'w> Screen<'w> {
    pub(crate) fn start(world: &'w World, command: &str) -> Self {
        let socket = world.path("tmp/tmux.sock").display().to_string();
        let screen = Self { world, socket };
        screen.tmux(&["new-session", "-d", "-x", "110", "-y", "44", command]).ok();
        screen
    }

    pub(crate) fn tmux(&self, args: &[&str]) -> Ran {
        let mut command = self.world.command("tmux");
        command.args(["-f", "/dev/null", "-S", &self.socket]).args(args);
        command.env("TERM", "xterm-256color").env("SHELL", "/bin/sh");
        self.world.finish(command)
    }

    pub(crate) fn text(&self) -> String {
        let ran = self.tmux(&["capture-pane", "-p", "-S", "-200"]);
        ran.stdout + &ran.stderr
    }

    #[track_caller]
    pub(crate) fn shows(&self, what: &str) -> String {
        let begun = Instant::now();
        loop {
            let text = self.text();
            if text.contains(what) {
                return text;
            }
            assert!(begun.elapsed() < LIMIT, "`{what}` is not on the screen:\n{text}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Types a line and ends it.
    ///
    /// The interface takes keys that come at once for a paste, in which Enter is a new line, and reads
    /// none while it starts: so Enter comes a while after the words are to be seen.
    #[track_caller]
    pub(crate) fn types(&self, text: &str) {
        let seen = || self.text().matches(text).count();
        let before = seen();
        self.tmux(&["send-keys", "-l", text]);
        let begun = Instant::now();
        while seen() <= before {
            assert!(begun.elapsed() < LIMIT, "`{text}` isn't taken:\n{}", self.text());
            thread::sleep(Duration::from_millis(100));
        }
        thread::sleep(Duration::from_millis(400));
        self.tmux(&["send-keys", "Enter"]);
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn the_terminal_interface_shows_what_the_pool_has() {
    if !tmux() {
        return;
    }
    let mut config = upstream(&["a", "b"]);
    for (spec, used) in config.accounts.iter_mut().zip([20.0, 40.0]) {
        *spec = spec
            .clone()
            .primary(Window::new(0.0, 300, Duration::from_secs(7200)).used(used))
            .secondary(Window::new(0.0, 10_080, Duration::from_secs(86_400)).used(used / 2.0));
    }
    let Some(world) = bare(config, VERSION) else { return };
    world.import_all();
    let work = world.path("work").display().to_string();
    let trusted = format!("[projects.\"{work}\"]\ntrust_level = \"trusted\"\n");
    fs::write(world.codex_home().join("config.toml"), trusted).unwrap();
    let screen = Screen::start(&world, "codex");
    screen.shows("gpt-5.5");
    screen.types("say hi");
    screen.shows("served by a");
    // Left of the short window: 70 of a hundred, of the long one 85.
    screen.types("/status");
    let status = screen.shows("70% left");
    assert!(status.contains("85% left"), "{status}");
    assert!(status.contains("a@example.test"), "{status}");
    // The account runs dry in the middle of a thread; the screen knows nothing of it.
    world.sim().set_used("a", 100.0, 20.0);
    screen.types("say more");
    let more = screen.shows("served by b");
    for word in ["Reconnecting", "usage limit", "stream error", "unexpected status"] {
        assert!(!more.contains(word), "{word}:\n{more}");
    }
    screen.types("/quit");
    eventually("the interface has ended", || screen.tmux(&["has-session"]).code != 0);
    assert_eq!(world.status()["proxy"]["refused"], 0);
    drop(screen);
    world.assert_clean();
}
