//! `cmad`: parse, run, exit code.
//!
//! `run` serves in the foreground and prints one line when it is ready; `start` does the same
//! detached and ends with that line; both are what `cmactl daemon` uses.

mod actor;
mod app;
mod blocking;
mod budgets;
mod cache;
mod choosing;
mod clock;
mod config;
mod crash;
mod dirs;
mod disk;
mod fault;
mod gather;
mod handover;
mod head_timer;
mod ipc;
mod launch;
mod ledger;
mod lifecycle;
mod login;
mod mirror;
mod names;
mod network;
mod notices;
mod outside;
mod probes;
mod project;
mod proxy;
mod renewal;
mod roster;
mod simulate;
mod store;
mod sys;
mod takeover;
mod telemetry;
mod tokens;
mod trouble;
mod truth;
mod upstream;
mod vault;

use cma_proto::{
    client::{Client, StartLine},
    codec::Codec,
    endpoint::Root,
    error::{ErrorCode, Refusal},
    message::{Reply, Request},
};
use fault::Fault;
use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a start waits for a daemon that answers nobody any more and still holds the root. Below
/// what a client waits for a start.
const GOING_DOWN: Duration = Duration::from_millis(2500);

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let command = args.next().unwrap_or_default();
    if command == "simulate" {
        let json = std::env::args_os().any(|arg| arg == "--json");
        return match simulate::simulate(args) {
            Ok(text) => {
                say(text.trim_end());
                ExitCode::SUCCESS
            },
            Err(fault) => {
                if json {
                    enveloped(&fault.refusal);
                } else {
                    complain(&fault.refusal);
                }
                ExitCode::from(fault.code().exit_code())
            },
        };
    }
    let flag = args.next();
    let ended = match (command.to_str(), flag.as_ref().and_then(|flag| flag.to_str())) {
        (Some("run"), None) => run(&Run::default()),
        // For programs: what is wrong is told as `cmactl` tells it, and nothing on stdout.
        (Some("run"), Some("--json")) => {
            return run(&Run::default()).map_or_else(
                |fault| {
                    enveloped(&fault.refusal);
                    ExitCode::from(fault.code().exit_code())
                },
                |()| ExitCode::SUCCESS,
            );
        },
        (Some("run"), Some("--detached")) => run(&Run::detached()),
        // Detached, and in the place of the daemon that runs.
        (Some("run"), Some("--take-over")) => run(&Run { take_over: true, ..Run::detached() }),
        (Some("run"), Some("--take-over-now")) => {
            run(&Run { take_over: true, now: true, ..Run::detached() })
        },
        (Some("start"), None) => return start(&["run", "--detached"], false),
        (Some("restart"), None) => return start(&["run", "--take-over"], true),
        (Some("restart"), Some("--now")) => return start(&["run", "--take-over-now"], true),
        (Some("--version" | "-V"), None) => {
            say(&format!("cmad {}", cma_proto::VERSION));
            return ExitCode::SUCCESS;
        },
        // For tests, which go through all of them.
        (Some("crash-points"), None) => {
            crash::all().iter().for_each(|name| say(name));
            return ExitCode::SUCCESS;
        },
        // For measurements: a ledger with that many rows.
        (Some("ledger-rows"), Some(count)) => fill_ledger(count),
        _ => Err(Fault::new(
            ErrorCode::BadRequest,
            "cmad knows `run`, `start`, `restart` and `--version`",
            "run `cmactl daemon start`",
        )),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            lifecycle::answer(&StartLine::Failed(fault.refusal.clone()));
            complain(&fault.refusal);
            ExitCode::from(fault.code().exit_code())
        },
    }
}

fn fill_ledger(count: &str) -> Result<(), Fault> {
    let root = Root::from_env().map_err(|refusal| Fault { refusal })?;
    dirs::prepare(&root)?;
    let _held = lifecycle::hold(&root)?;
    let count = count.parse().map_err(|_none| {
        Fault::new(ErrorCode::BadRequest, format!("`{count}` is no number of rows"), "")
    })?;
    ledger::fill(root.path(), count)
}

/// How a daemon is run.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    detached: bool,
    /// From the daemon that runs, if one does.
    take_over: bool,
    /// Its running responses are cut.
    now: bool,
}

impl Run {
    fn detached() -> Self {
        Self { detached: true, ..Self::default() }
    }
}

fn run(how: &Run) -> Result<(), Fault> {
    if how.detached {
        #[cfg(unix)]
        sys::close_inherited();
        #[cfg(unix)]
        // Fails only for a process that already leads its session, which is as good.
        let _already_leads = rustix::process::setsid();
    }
    let root = Root::from_env().map_err(|refusal| Fault { refusal })?;
    sys::keep_large_pieces_apart();
    dirs::prepare(&root)?;
    // The path is canonical only now that it exists.
    let root = Root::at(root.path());
    let load = || config::Config::load(&root, |name| std::env::var(name).ok());
    // One that takes over has to be sure of its settings first; else who runs is told first.
    let early = if how.take_over { Some(load()?) } else { None };
    let held = if how.take_over { None } else { Some(lifecycle::hold(&root)?) };
    let config = early.map_or_else(load, Ok)?;
    let log = telemetry::start(&root, config.log)?;
    crash::arm(&config)?;
    clock::follow_test(&config);
    let whence = whence(&root, held, how)?;
    sys::raise_file_limit();
    let workers = std::env::var("CMA_WORKERS").ok().and_then(|n| n.parse::<usize>().ok());
    let mut builder = match workers {
        Some(n) if n > 1 => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(n);
            builder
        },
        // One thread: no wake-up crosses cores on a request's way, and that is what a loopback hop
        // consists of. Disk work runs on threads of its own. Measured: docs/performance.md.
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    gather::in_rounds(&mut builder);
    let runtime = builder
        .enable_all()
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .map_err(|error| Fault::internal(format!("no runtime: {error}")))?;
    let app = runtime.block_on(async {
        let mut built = app::build(root.clone(), config, whence)?;
        lifecycle::watch_signals(Arc::clone(&built.app))?;
        let at = built
            .address()
            .map_err(|error| Fault::internal(format!("own address unknown: {error}")))?;
        tracing::info!(url = built.app.url, version = cma_proto::VERSION, %at, "listening");
        built.claim()?;
        lifecycle::answer(&StartLine::Ready {
            pid: std::process::id(),
            url: built.app.url.clone(),
        });
        let app = Arc::clone(&built.app);
        built.run().await;
        Ok::<_, Fault>(app)
    })?;
    gather::end_round();
    // Connections that were cut and idle ones go with the runtime.
    runtime.shutdown_background();
    let property = app.doors.take();
    // One that is being given the socket needs its name; one that isn't taken is found dead.
    if property.is_some() && !app.is_handing_over() {
        ipc::unlink(&root);
    }
    tracing::info!("stopped");
    drop(log);
    // The lock goes last: without it nobody is left here.
    drop(app);
    drop(property);
    Ok(())
}

/// The root's lock, or all that the daemon before gives.
fn whence(root: &Root, held: Option<lifecycle::Held>, how: &Run) -> Result<app::Whence, Fault> {
    #[cfg(unix)]
    if how.take_over
        && let Some(taken) = handover::take::take(root, how.now)?
    {
        return Ok(app::Whence::Taken(taken));
    }
    #[cfg(not(unix))]
    let _only_there = how;
    held.map_or_else(|| lifecycle::hold(root), Ok).map(app::Whence::Fresh)
}

/// Starts a detached daemon unless one is there, and passes its line on.
fn start(run: &[&str], replace: bool) -> ExitCode {
    let line = start_line(run, replace).unwrap_or_else(|fault| StartLine::Failed(fault.refusal));
    lifecycle::answer(&line);
    match line {
        StartLine::Ready { .. } => ExitCode::SUCCESS,
        StartLine::Failed(refusal) => ExitCode::from(refusal.code.exit_code()),
    }
}

fn start_line(run: &[&str], replace: bool) -> Result<StartLine, Fault> {
    let root = Root::from_env().map_err(|refusal| Fault { refusal })?;
    dirs::prepare(&root)?;
    let root = Root::at(root.path());
    let _start = lifecycle::hold_start(&root)?;
    let until = Instant::now() + GOING_DOWN;
    loop {
        // One that takes over finds out itself whether there is somebody to take over from.
        if !replace && let Ok(mut client) = Client::connect(&root, "cmad start", Codec::Bincode) {
            let url = match client.call(&Request::Status) {
                Ok(Reply::Status(status)) => status.proxy.url,
                Ok(_) | Err(_) => String::new(),
            };
            return Ok(StartLine::Ready { pid: client.daemon_pid, url });
        }
        match launch(run)? {
            // Nobody answers and the root is still held: that one is going down.
            StartLine::Failed(refusal)
                if refusal.code == ErrorCode::Negative && Instant::now() < until =>
            {
                std::thread::sleep(Duration::from_millis(20));
            },
            line => return Ok(line),
        }
    }
}

/// Starts a detached daemon and waits for its line.
fn launch(run: &[&str]) -> Result<StartLine, Fault> {
    let own = std::env::current_exe()
        .map_err(|error| Fault::internal(format!("own path unknown: {error}")))?;
    let mut command = Command::new(own);
    // Meant from here; the daemon works elsewhere.
    for name in network::ROOTS_VARIABLES {
        let Some(path) = std::env::var_os(name) else { continue };
        if path.is_empty() {
            // To the system's own roots an empty one is a place with none.
            command.env_remove(name);
        } else if let Ok(path) = std::path::absolute(path) {
            command.env(name, path);
        }
    }
    let mut child = command
        .args(run)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Fault::internal(format!("can't start cmad: {error}")))?;
    let stdout = child.stdout.take().ok_or_else(|| Fault::internal("no pipe to cmad"))?;
    let mut line = String::new();
    drop(BufReader::new(stdout).read_line(&mut line));
    let line = serde_json::from_str(&line).map_err(|_nothing| {
        Fault::new(
            ErrorCode::Unreachable,
            "the daemon ended without a word",
            "run `cmactl daemon run` to see what it says",
        )
    })?;
    if let StartLine::Failed(_) = line {
        // It ends with its line.
        drop(child.wait());
    }
    Ok(line)
}

fn complain(refusal: &Refusal) {
    let mut stderr = std::io::stderr().lock();
    // Nobody may be reading.
    drop(writeln!(stderr, "cmad: {}", refusal.message));
    if !refusal.hint.is_empty() {
        drop(writeln!(stderr, "  {}", refusal.hint));
    }
}

/// The same for programs, as `cmactl --json` says it.
fn enveloped(refusal: &Refusal) {
    let error = serde_json::to_string(refusal).unwrap_or_default();
    drop(writeln!(std::io::stderr().lock(), "{{\"schema\":1,\"error\":{error}}}"));
}

fn say(text: &str) {
    drop(writeln!(std::io::stdout().lock(), "{text}"));
}
