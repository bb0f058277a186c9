//! `daemon run|start|stop|restart|status`.
//!
//! A daemon is gone when nobody answers at its endpoint *and* its lock is free: only then can the
//! next one have the root. Its process id is for messages; it may be a zombie of a parent that
//! doesn't look, or be somebody else's by now.

use super::{Context, PROGRAM};
use crate::{
    cli::Daemon,
    error::{Failure, unexpected},
    render::{Patience, Screen, Tone, clean},
};
use cma_proto::{
    client::{self, Client, ConnectError, StartLine},
    endpoint::Root,
    error::{ErrorCode, Refusal},
    message::{Reply, Request},
};
use serde::Serialize;
use std::{
    fs::{File, TryLockError},
    io,
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

/// How often a daemon that goes down is looked at, at first and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));
/// How long one may answer neither yes nor no.
const STUCK: Duration = Duration::from_secs(10);

/// `daemon status`, `start`, `stop` and `restart` as JSON.
#[derive(Debug, Default, Serialize)]
struct Shown {
    running: bool,
    root: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

pub(super) fn daemon(
    context: &Context,
    command: Daemon,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    match command {
        Daemon::Run => run(&context.root, screen),
        Daemon::Start => start(context, screen),
        Daemon::Stop { now } => {
            let stopped = stop(context, now, screen)?;
            screen.answer(&not_running(context), |_shown| match stopped {
                Some(pid) => format!("The daemon (pid {pid}) is stopped.\n"),
                None => "No daemon was running.\n".to_owned(),
            })?;
            Ok(ExitCode::SUCCESS)
        },
        Daemon::Restart { now } => restart(context, now, screen),
        Daemon::Status => status(context, screen),
    }
}

/// Becomes the daemon.
fn run(root: &Root, screen: &Screen) -> Result<ExitCode, Failure> {
    let program = client::daemon_program()?;
    let mut command = Command::new(&program);
    command.arg("run").env("CODEX_MULTI_AUTH_DIR", root.path());
    if screen.json() {
        command.arg("--json");
    }
    become_it(command).map_err(|error| {
        let said = format!("`{}` could not be run: {error}", program.display());
        let hint = "install `cmad` in the same folder as `cmactl`";
        Refusal::new(ErrorCode::Unreachable, said, hint).into()
    })
}

#[cfg(unix)]
pub(super) fn become_it(mut command: Command) -> io::Result<ExitCode> {
    use std::os::unix::process::CommandExt as _;
    Err(command.exec())
}

#[cfg(not(unix))]
pub(super) fn become_it(mut command: Command) -> io::Result<ExitCode> {
    let code = command.status()?.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(ErrorCode::Internal.exit_code())))
}

fn start(context: &Context, screen: &mut Screen) -> Result<ExitCode, Failure> {
    let before = context.connect_running()?.is_some();
    let (pid, url) = match client::start(&context.root)? {
        StartLine::Ready { pid, url } => (pid, url),
        StartLine::Failed(refusal) => return Err(refusal.into()),
    };
    let shown = Shown { running: true, pid: Some(pid), url: Some(url), ..not_running(context) };
    screen.answer(&shown, |shown| {
        let url = clean(shown.url.as_deref().unwrap_or_default());
        let done = if before { "was already running" } else { "is running" };
        format!("The daemon (pid {pid}) {done} at {url}.\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Puts a new daemon in the place of the one that runs, with no connection refused in between; where
/// that can't be, the old one stops first.
fn restart(context: &Context, now: bool, screen: &mut Screen) -> Result<ExitCode, Failure> {
    let Some(before) = context.connect_running()? else { return start(context, screen) };
    let old = before.daemon_pid;
    drop(before);
    let (pid, url) = match client::restart(&context.root, now) {
        Ok(StartLine::Ready { pid, url }) => (pid, url),
        // An older daemon, another system, or one that is going down already.
        Ok(StartLine::Failed(refusal)) | Err(refusal)
            if matches!(refusal.code, ErrorCode::BadRequest | ErrorCode::Draining) =>
        {
            stop(context, now, screen)?;
            return start(context, screen);
        },
        Ok(StartLine::Failed(refusal)) | Err(refusal) => return Err(refusal.into()),
    };
    let shown = Shown { running: true, pid: Some(pid), url: Some(url), ..not_running(context) };
    screen.answer(&shown, |shown| {
        let url = clean(shown.url.as_deref().unwrap_or_default());
        let rest = if now { "its responses are cut" } else { "its responses run to their end" };
        format!("The daemon (pid {pid}) is running at {url}, in the place of pid {old}; {rest}.\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

fn status(context: &Context, screen: &mut Screen) -> Result<ExitCode, Failure> {
    let Some(mut client) = context.connect_running()? else {
        screen.answer(&not_running(context), |shown| {
            format!("{} for `{}`.\n", Tone::Warn.paint("No daemon is running"), clean(&shown.root))
        })?;
        if !screen.json() {
            screen.say(Tone::Strong, "hint", "run `cmactl daemon start`")?;
        }
        return Ok(ExitCode::from(ErrorCode::Unreachable.exit_code()));
    };
    let status = match client.call(&Request::Status)? {
        Reply::Status(status) => status,
        other => return Err(unexpected(other).into()),
    };
    let shown = Shown {
        running: true,
        pid: Some(status.daemon.pid),
        version: Some(status.daemon.version),
        phase: Some(status.daemon.phase),
        url: Some(status.proxy.url),
        ..not_running(context)
    };
    screen.answer(&shown, |shown| {
        let text = |text: &Option<String>| clean(text.as_deref().unwrap_or("?"));
        let (phase, version, url) = (text(&shown.phase), text(&shown.version), text(&shown.url));
        let pid = shown.pid.unwrap_or_default();
        format!("The daemon is {phase} at {url} (version {version}, pid {pid}).\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

fn not_running(context: &Context) -> Shown {
    Shown { root: context.root.path().to_string_lossy().into_owned(), ..Shown::default() }
}

/// Asks the daemon to go and waits until it is gone. The process id it had, if one ran.
fn stop(context: &Context, now: bool, screen: &mut Screen) -> Result<Option<u32>, Failure> {
    let Some(mut client) = context.connect_running()? else { return Ok(None) };
    let (pid, instance) = (client.daemon_pid, client.instance.clone());
    let active = match client.call(&Request::Shutdown { now }) {
        Ok(Reply::ShuttingDown { active }) => active,
        Ok(other) => return Err(unexpected(other).into()),
        // It is on its way already: wait with whoever asked first.
        Err(refusal) if refusal.code == ErrorCode::Draining => 0,
        Err(refusal) => return Err(refusal.into()),
    };
    drop(client);
    wait_until_gone(context, &instance, active, screen)?;
    Ok(Some(pid))
}

fn wait_until_gone(
    context: &Context,
    instance: &str,
    mut active: u32,
    screen: &mut Screen,
) -> Result<(), Failure> {
    let mut patience = Patience::new();
    let (mut pause, longest) = LOOK;
    let mut heard = Instant::now();
    loop {
        match Client::connect(&context.root, PROGRAM, context.codec) {
            Err(ConnectError::NobodyThere) => {
                if !is_locked(&context.root) {
                    return Ok(());
                }
                if heard.elapsed() > STUCK {
                    return Err(Refusal::new(
                        ErrorCode::Unreachable,
                        format!(
                            "a process holds `{}` and can't be asked anything",
                            context.root.daemon_lock().display()
                        ),
                        "end the process that this file names, then run `cmactl daemon start`",
                    )
                    .into());
                }
            },
            // Somebody, a shim perhaps, has started the next one already.
            Ok(client) if client.instance != instance => return Ok(()),
            Ok(mut client) => {
                heard = Instant::now();
                if let Ok(Reply::Status(status)) = client.call(&Request::Status) {
                    active = status.proxy.active;
                }
            },
            Err(ConnectError::Refused(refusal)) if heard.elapsed() > STUCK => {
                return Err(refusal.into());
            },
            // It may be closing its door this very moment.
            Err(ConnectError::Refused(_)) => {},
        }
        patience.tick(screen, &waiting_for(active))?;
        thread::sleep(pause);
        pause = (pause * 2).min(longest);
    }
}

fn waiting_for(active: u32) -> String {
    match active {
        0 => "waiting for the daemon to end".to_owned(),
        1 => "waiting for 1 running response to end; `--now` cuts it".to_owned(),
        n => format!("waiting for {n} running responses to end; `--now` cuts them"),
    }
}

/// Whether a process holds the root's lock for life.
fn is_locked(root: &Root) -> bool {
    // Shared, and given back at once. It is tried only while nobody answers at the endpoint, so a
    // daemon that is just being started can miss the lock at most once; starters retry.
    let Ok(file) = File::open(root.daemon_lock()) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests;
