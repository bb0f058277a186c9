//! `codex`, as it stands first on `PATH`: the official Codex CLI, started against the daemon.
//!
//! It decides one thing: with which environment and which extra arguments the real CLI runs. It
//! finds that CLI ([`resolve`]), tells commands that make requests from those that don't
//! ([`args`]), asks the daemon for a plan ([`launch`]) and becomes the CLI, so that exit status,
//! signals and the terminal are the CLI's own.
//!
//! It never writes to stdout, never edits a file of the person's, and never stands in the way:
//! whatever goes wrong with the daemon costs one line on stderr, and plain `codex` runs.
//!
//! No runtime, no argument parser, no file read that is not needed: the whole of it must cost less
//! than 2 ms over a plain exec.

mod args;
mod guard;
mod launch;
mod login;
mod resolve;
mod version;

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt,
    io::{self, Write as _},
    process::{Command, ExitCode},
};

/// Reads a variable. A function, not a map: Windows' names know no case, and tests need no
/// environment of their own.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Found, but it can't be run (as in a shell).
const CANNOT_RUN: u8 = 126;
/// Not found (as in a shell).
const NOT_FOUND: u8 = 127;

/// Why no CLI was started: the exit code and the line that says so.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    code: u8,
    line: String,
}

impl Failure {
    fn new(code: u8, line: impl Into<String>) -> Self {
        Self { code, line: line.into() }
    }
}

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    match start(&args) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            say(format_args!("{}", failure.line));
            ExitCode::from(failure.code)
        },
    }
}

/// Becomes `cmactl` for `codex auth`, else the real CLI.
fn start(args: &[OsString]) -> Result<u8, Failure> {
    if let Some((first, rest)) = args.split_first()
        && first == "auth"
    {
        let mut command = Command::new(resolve::beside("cmactl")?);
        command.args(rest);
        return run(command);
    }
    let lookup: Lookup<'_> = &|name| env::var_os(name);
    let guard = guard::Guard::read(lookup, std::process::id(), guard::parent());
    let own = env::current_exe().ok().and_then(|path| resolve::look(&path));
    let codex = resolve::find(lookup, own, guard.tried())?;
    let mut command = Command::new(&codex);
    if guard.recursion() {
        // What was found last time led back here, with the plan already in its environment and its
        // arguments: both go on as they are.
        command.args(args);
    } else {
        launch::prepare(&mut command, &codex, args, &guard, lookup)?;
    }
    guard.mark(&mut command);
    run(command)
}

/// One line for the person, on stderr. A closed stderr is no reason to fail.
fn say(line: fmt::Arguments<'_>) {
    drop(writeln!(io::stderr(), "cma: {line}"));
}

/// A variable that is set and not empty: the CLI reads an empty one as unset, and so do we.
fn set(lookup: Lookup<'_>, name: &str) -> Option<OsString> {
    lookup(name).filter(|value| !value.is_empty())
}

#[cfg(unix)]
fn run(mut command: Command) -> Result<u8, Failure> {
    use std::os::unix::process::CommandExt as _;
    let error = command.exec();
    Err(cannot_run(command.get_program(), &error))
}

/// Windows can't become another program: wait for it and pass its status on.
#[cfg(windows)]
fn run(mut command: Command) -> Result<u8, Failure> {
    let status = command.status().map_err(|error| cannot_run(command.get_program(), &error))?;
    Ok(status.code().map_or(1, |code| u8::try_from(code).unwrap_or(1)))
}

fn cannot_run(program: &OsStr, error: &io::Error) -> Failure {
    let program = program.display();
    Failure::new(
        CANNOT_RUN,
        format!(
            "`{program}` can't be run: {error}; check it with `{program} --version`, or set \
             `CMA_CODEX_BIN` to another codex"
        ),
    )
}
