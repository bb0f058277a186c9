//! Who sends the requests: the real `codex` if a fitting one is found, else the built-in client of
//! the simulator.

use super::stage::{self, Folder};
use crate::{cli::DemoClient, error::Failure};
use cma_proto::{
    error::{ErrorCode, Refusal},
    message::LaunchPlan,
};
use serde::Deserialize;
use std::{
    env, fs,
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, TryRecvError},
    thread,
    time::{Duration, Instant},
};

/// The first CLI that takes its token from the environment.
const OLDEST: (u32, u32) = (0, 149);
/// The CLI whose requests the built-in client makes.
const BUILTIN_AS: &str = "0.169.0";
/// How long a CLI may take to say its version.
const VERSION_WAIT: Duration = Duration::from_secs(5);
/// When the real CLI is started no more. All of them take 10 to 18 s; a machine that is busy is left the
/// time to show both limits.
const CODEX_TIME: Duration = Duration::from_secs(60);

/// How much is sent, on which quotas.
#[derive(Debug, Clone, Copy)]
pub(super) struct Script {
    /// Percent of its window that a request costs each account.
    pub(super) quotas: &'static str,
    /// Requests in all.
    pub(super) requests: u32,
}

/// The built-in client is quick: more requests, finer steps.
const BUILTIN: Script = Script { quotas: "12,17,1", requests: 40 };
/// A CLI takes about a second to start: fewer requests, coarser steps.
const CODEX: Script = Script { quotas: "25,34,1", requests: 14 };

/// Who sends.
#[derive(Debug)]
pub(super) enum Sender {
    /// `cma-sim drive`.
    Builtin,
    /// The real CLI.
    Codex { program: PathBuf, version: String },
}

impl Sender {
    pub(super) const fn script(&self) -> Script {
        match self {
            Self::Builtin => BUILTIN,
            Self::Codex { .. } => CODEX,
        }
    }

    pub(super) fn codex_version(&self) -> &str {
        match self {
            Self::Builtin => BUILTIN_AS,
            Self::Codex { version, .. } => version,
        }
    }

    pub(super) fn describe(&self) -> String {
        match self {
            Self::Builtin => "the built-in client".to_owned(),
            Self::Codex { program, version } => {
                format!("the real codex {version} ({})", program.display())
            },
        }
    }
}

/// What the client saw of one request.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) n: u32,
    pub(super) ok: bool,
    #[serde(default)]
    pub(super) error: Option<String>,
}

/// Finds who sends.
pub(super) fn choose(wish: DemoClient) -> Result<Sender, Refusal> {
    let found = match wish {
        DemoClient::Builtin => None,
        DemoClient::Auto | DemoClient::Codex => find_codex(),
    };
    match (wish, found) {
        (_, Some((program, version))) => Ok(Sender::Codex { program, version }),
        (DemoClient::Auto | DemoClient::Builtin, None) => Ok(Sender::Builtin),
        (DemoClient::Codex, None) => Err(Refusal::new(
            ErrorCode::NotFound,
            format!("no real `codex` {}.{} or newer is on `PATH`", OLDEST.0, OLDEST.1),
            "install it with `npm install -g @openai/codex`, or run `cmactl demo`",
        )),
    }
}

/// The first real CLI that is new enough, and its version.
fn find_codex() -> Option<(PathBuf, String)> {
    let named = env::var_os("CMA_CODEX_BIN").filter(|path| !path.is_empty()).map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let file = format!("codex{}", env::consts::EXE_SUFFIX);
    let on_path = env::split_paths(&path).map(|folder| folder.join(&file));
    let candidates = named.into_iter().chain(on_path);
    candidates.filter(|path| path.is_file() && !is_shim(path)).find_map(|program| {
        let version = ask_version(&program)?;
        is_new_enough(&version).then_some((program, version))
    })
}

/// Ours stands in a folder with our daemon, wherever links lead from.
fn is_shim(program: &Path) -> bool {
    let Ok(real) = fs::canonicalize(program) else { return true };
    let daemon = format!("cmad{}", env::consts::EXE_SUFFIX);
    real.with_file_name(daemon).is_file()
}

fn ask_version(program: &Path) -> Option<String> {
    let mut command = stage::bare(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let asked = Instant::now();
    while child.try_wait().ok()?.is_none() {
        if asked.elapsed() > VERSION_WAIT {
            // Whatever that is, it is not a CLI that answers.
            drop(child.kill());
            drop(child.wait());
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let mut said = String::new();
    child.stdout.take()?.take(4096).read_to_string(&mut said).ok()?;
    said.split_whitespace().last().map(ToOwned::to_owned)
}

fn is_new_enough(version: &str) -> bool {
    let mut parts = version.split(['.', '-']).map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST,
        _ => false,
    }
}

/// Requests on their way.
#[derive(Debug)]
pub(super) enum Traffic<'a> {
    /// One process sends all and says a line about each.
    Builtin { child: Child, lines: Receiver<String>, over: bool },
    /// One process a request, one after another.
    Codex(CodexRuns<'a>),
}

impl<'a> Traffic<'a> {
    pub(super) fn start(
        sender: Sender,
        plan: &'a LaunchPlan,
        folder: &'a Folder,
    ) -> Result<Self, Failure> {
        match sender {
            Sender::Builtin => {
                let mut command = stage::bare(&stage::simulator_program()?);
                command
                    // A key on a command line could be read by others: it goes by stdin.
                    .args(["drive", "--base-url", &plan.base_url, "--key", "-"])
                    .args(["--requests", &BUILTIN.requests.to_string()])
                    .args(["--concurrency", "2", "--gap", "350"])
                    .stdin(Stdio::piped());
                let (mut child, lines) = stage::spawn(command, folder, "drive")?;
                if let Some(mut stdin) = child.stdin.take() {
                    // A client that is gone already says so on stderr and by its missing answers.
                    drop(stdin.write_all(plan.client_key.as_bytes()));
                }
                Ok(Self::Builtin { child, lines, over: false })
            },
            Sender::Codex { program, .. } => Ok(Self::Codex(CodexRuns {
                program,
                plan,
                folder,
                running: None,
                sent: 0,
                began: Instant::now(),
            })),
        }
    }

    /// What was answered since the last look.
    pub(super) fn poll(&mut self) -> Result<Vec<Answer>, Failure> {
        match self {
            Self::Builtin { child, lines, over } => {
                let mut answers = Vec::new();
                loop {
                    match lines.try_recv() {
                        // A line without a number is the client's own summary.
                        Ok(line) => answers.extend(serde_json::from_str::<Answer>(&line)),
                        Err(TryRecvError::Empty) => return Ok(answers),
                        Err(TryRecvError::Disconnected) => break,
                    }
                }
                if !*over {
                    *over = true;
                    stage::end(child);
                }
                Ok(answers)
            },
            Self::Codex(runs) => runs.poll(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Builtin { over, .. } => *over,
            Self::Codex(runs) => runs.is_last() && runs.running.is_none(),
        }
    }

    /// How many requests were sent, or will have been.
    pub(super) const fn sent(&self) -> u32 {
        match self {
            Self::Builtin { .. } => BUILTIN.requests,
            Self::Codex(runs) => runs.sent,
        }
    }
}

impl Drop for Traffic<'_> {
    fn drop(&mut self) {
        let child = match self {
            Self::Builtin { child, .. } => Some(child),
            Self::Codex(runs) => runs.running.as_mut(),
        };
        if let Some(child) = child {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// `codex exec`, again and again.
#[derive(Debug)]
pub(super) struct CodexRuns<'a> {
    program: PathBuf,
    plan: &'a LaunchPlan,
    folder: &'a Folder,
    running: Option<Child>,
    sent: u32,
    began: Instant,
}

impl CodexRuns<'_> {
    fn is_last(&self) -> bool {
        self.sent >= CODEX.requests || self.began.elapsed() > CODEX_TIME
    }

    fn poll(&mut self) -> Result<Vec<Answer>, Failure> {
        let mut answers = Vec::new();
        if let Some(child) = &mut self.running {
            match child.try_wait().map_err(not_started)? {
                None => return Ok(answers),
                Some(ended) => answers.push(self.answer(ended)),
            }
            self.running = None;
        }
        if !self.is_last() {
            self.sent += 1;
            self.running = Some(self.command()?.spawn().map_err(not_started)?);
        }
        Ok(answers)
    }

    fn answer(&self, ended: ExitStatus) -> Answer {
        let error =
            || format!("`codex exec` ended with {ended}: {}", self.folder.last_words("codex"));
        Answer { n: self.sent, ok: ended.success(), error: (!ended.success()).then(error) }
    }

    fn command(&self) -> Result<Command, Failure> {
        let stderr = File::create(self.folder.said("codex")).map_err(not_started)?;
        let mut command = stage::bare(&self.program);
        command
            .env("CODEX_HOME", self.folder.codex_home())
            .envs(self.plan.env.iter().map(|(name, value)| (name, value)))
            .args(&self.plan.args)
            .args(["exec", "--skip-git-repo-check", "-C"])
            .arg(self.folder.work())
            .arg(format!("Say hello, please. This is request {}.", self.sent))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        Ok(command)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "reads better at `map_err`")]
fn not_started(error: io::Error) -> Failure {
    let said = format!("`codex` could not be run: {error}");
    Refusal::new(ErrorCode::Unreachable, said, "run `cmactl demo --client builtin`").into()
}

#[cfg(test)]
mod tests;
