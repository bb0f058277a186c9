//! What the scenarios with the official CLI share.
//!
//! Nothing may leave loopback, whatever a CLI tries: every world has a dead proxy in its
//! environment, past which only the loopback exceptions lead. The shim has to add these by itself;
//! a run without it gets them here.

use cma_tests::{
    sim::{AccountSpec, Seen, SimConfig},
    world::{Ran, World, real_codex},
};
use std::{
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// The version that everything has to work with.
pub(crate) const VERSION: &str = "0.169.0";
/// One turn.
pub(crate) const TURN: [&str; 3] = ["exec", "--skip-git-repo-check", "say hi"];
/// Nothing listens on the discard port.
const DEAD_PROXY: &str = "http://127.0.0.1:9";

/// An upstream with these accounts, each of which says who it is.
pub(crate) fn upstream(names: &[&str]) -> SimConfig {
    SimConfig {
        accounts: names.iter().map(|name| AccountSpec::new(name)).collect(),
        reply_text: "served by {account}".to_owned(),
        ..SimConfig::default()
    }
}

/// A machine with the CLI installed and nothing imported, or none when there is no CLI. Its daemon
/// tells the CLI to use HTTP: that is what these scenarios are about. Those of `ws` turn WebSockets on
/// again, as they are for everybody.
pub(crate) fn bare(config: SimConfig, version: &str) -> Option<World> {
    let codex = real_codex(version)?;
    let mut world = World::new(config).with_path(&[codex.parent().unwrap()]);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"] {
        world = world.with_env(name, DEAD_PROXY);
    }
    Some(world.with_env("CMA_WEBSOCKET", "off"))
}

/// A machine with the newest CLI and these accounts in the pool, in this order.
pub(crate) fn machine(names: &[&str]) -> Option<World> {
    let world = bare(upstream(names), VERSION)?;
    world.import_all();
    Some(world)
}

/// The official CLI itself.
pub(crate) fn official(version: &str) -> PathBuf {
    real_codex(version).expect("checked before")
}

/// `codex` with arguments, not started.
pub(crate) fn codex<'a>(world: &World, args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = world.command("codex");
    command.args(args);
    command
}

/// One turn through the shim, to its end.
pub(crate) fn turn(world: &World) -> Ran {
    finish(world, codex(world, TURN), Duration::from_secs(60))
}

/// The POSTs of turns that reached the upstream.
pub(crate) fn posts(world: &World) -> Vec<Seen> {
    let seen = world.sim().seen().into_iter();
    seen.filter(|seen| seen.method == "POST" && seen.path.ends_with("/codex/responses")).collect()
}

/// The daemon's log, a JSON object a line.
pub(crate) fn log(world: &World) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(world.root().join("log/cmad.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// How many lines of the daemon's log have this message.
pub(crate) fn logged(world: &World, message: &str) -> usize {
    log(world).iter().filter(|line| line["fields"]["message"] == message).count()
}

/// A command that runs, with all it starts: a group of its own.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    what: String,
    begun: Instant,
    stdout: Reader,
    stderr: Reader,
}

type Reader = Option<thread::JoinHandle<Vec<u8>>>;

/// Starts a command.
pub(crate) fn start(mut command: Command) -> Running {
    let what = format!("{command:?}");
    let begun = Instant::now();
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{what}: {error}"));
    let stdout = child.stdout.take().map(reader);
    let stderr = child.stderr.take().map(reader);
    Running { child, what, begun, stdout, stderr }
}

fn reader(mut pipe: impl std::io::Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).ok();
        bytes
    })
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end; after `limit` the whole group is killed and the status is 137.
    pub(crate) fn end(mut self, world: &World, limit: Duration) -> Ran {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let (over, ended) = mpsc::channel::<()>();
        let watchdog = thread::spawn(move || {
            if ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout)
                && let Some(pid) = pid
            {
                rustix::process::kill_process_group(pid, rustix::process::Signal::KILL).ok();
            }
        });
        let status: ExitStatus = self.child.wait().expect("waited for");
        let took = self.begun.elapsed();
        let mut text = |pipe: fn(&mut Self) -> &mut Reader| {
            pipe(&mut self).take().and_then(|thread| thread.join().ok()).unwrap_or_default()
        };
        let (stdout, stderr) = (text(|run| &mut run.stdout), text(|run| &mut run.stderr));
        drop(over);
        watchdog.join().expect("the watchdog ends");
        let output = Output { status, stdout, stderr };
        world.keep(&self.what, &output);
        Ran {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took,
        }
    }
}

/// Runs a command to its end; see [`Running::end`].
pub(crate) fn finish(world: &World, command: Command, limit: Duration) -> Ran {
    start(command).end(world, limit)
}
