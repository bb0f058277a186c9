//! The stage: a temporary folder, a simulated upstream and a daemon in it, and their removal.
//!
//! Both children are ours alone and end with us: the simulator when its stdin closes, the daemon
//! when it is told to, or killed by its process id. Nothing outside the folder is written.

use super::super::PROGRAM;
use crate::error::Failure;
use cma_proto::{
    client::{self, Client, ConnectError, StartLine},
    codec::Codec,
    endpoint::Root,
    error::{ErrorCode, Refusal},
    message::Request,
};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    env, fs,
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long a child may take until it is ready.
const READY: Duration = Duration::from_secs(10);
/// How long a child may take to end by itself.
const END: Duration = Duration::from_secs(2);
/// Milliseconds between two events of a simulated answer: slow enough to be seen.
const EVENT_GAP: &str = "15";

/// The simulator's first line.
#[derive(Debug, Deserialize)]
struct SimReady {
    backend: String,
    issuer: String,
    accounts: Vec<SimAccount>,
}

/// One simulated account.
#[derive(Debug, Deserialize)]
pub(super) struct SimAccount {
    pub(super) name: String,
    pub(super) auth_file: String,
}

/// The temporary folder and what lies where in it.
#[derive(Debug)]
pub(super) struct Folder(TempDir);

impl Folder {
    fn make() -> Result<Self, Refusal> {
        let made = builder().tempdir().and_then(|dir| {
            let folder = Self(dir);
            for sub in [folder.auth(), folder.codex_home(), folder.work()] {
                fs::create_dir(sub)?;
            }
            Ok(folder)
        });
        made.map_err(|error| {
            Refusal::new(
                ErrorCode::Store,
                format!("no temporary folder could be made: {error}"),
                "set `TMPDIR` to a folder you can write to",
            )
        })
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    fn auth(&self) -> PathBuf {
        self.0.path().join("auth")
    }

    /// The Codex home of a real CLI.
    pub(super) fn codex_home(&self) -> PathBuf {
        self.0.path().join("home")
    }

    /// Where a real CLI works.
    pub(super) fn work(&self) -> PathBuf {
        self.0.path().join("work")
    }

    /// What a program says on stderr.
    pub(super) fn said(&self, program: &str) -> PathBuf {
        self.0.path().join(format!("{program}.stderr"))
    }

    /// The last line a program said on stderr.
    pub(super) fn last_words(&self, program: &str) -> String {
        let said = fs::read(self.said(program)).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
    }
}

fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("cma-demo-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    builder
}

/// Everything that has to go when the demo ends.
#[derive(Debug)]
pub(super) struct Stage {
    daemon: Option<Child>,
    simulator: Option<Child>,
    accounts: Vec<SimAccount>,
    root: Root,
    codec: Codec,
    folder: Folder,
}

impl Stage {
    /// Starts the simulator with these quotas (percent a request, one an account), and the daemon.
    pub(super) fn set(
        quotas: &str,
        codec: Codec,
        interrupted: &AtomicBool,
    ) -> Result<Self, Failure> {
        let folder = Folder::make()?;
        let root = Root::at(&folder.root());
        let mut stage =
            Self { daemon: None, simulator: None, accounts: Vec::new(), root, codec, folder };
        let ready = stage.start_simulator(quotas, interrupted)?;
        stage.start_daemon(&ready, interrupted)?;
        stage.accounts = ready.accounts;
        Ok(stage)
    }

    pub(super) fn accounts(&self) -> &[SimAccount] {
        &self.accounts
    }

    pub(super) const fn folder(&self) -> &Folder {
        &self.folder
    }

    /// A new conversation with the stage's daemon.
    pub(super) fn connect(&self) -> Result<Client, Refusal> {
        Client::connect(&self.root, PROGRAM, self.codec).map_err(|error| match error {
            ConnectError::Refused(refusal) => refusal,
            ConnectError::NobodyThere => self.daemon_is_gone(),
        })
    }

    pub(super) fn daemon_is_gone(&self) -> Refusal {
        Refusal::new(
            ErrorCode::Unreachable,
            format!("the demo's daemon ended too early: {}", self.folder.last_words("cmad")),
            "run `cmactl demo --plain` again and report it",
        )
    }

    fn start_simulator(
        &mut self,
        quotas: &str,
        interrupted: &AtomicBool,
    ) -> Result<SimReady, Failure> {
        let program = simulator_program()?;
        let count = quotas.split(',').count().to_string();
        let mut command = bare(&program);
        command
            .args(["serve", "--accounts", &count, "--quota-per-request", quotas])
            .args(["--event-gap", EVENT_GAP, "--until-stdin-closes", "--auth-dir"])
            .arg(self.folder.auth())
            .stdin(Stdio::piped());
        let (child, lines) = spawn(command, &self.folder, "cma-sim")?;
        self.simulator = Some(child);
        self.first_line(&lines, "cma-sim", interrupted)
    }

    fn start_daemon(&mut self, ready: &SimReady, interrupted: &AtomicBool) -> Result<(), Failure> {
        let mut command = bare(&client::daemon_program()?);
        command
            .arg("run")
            .env("CODEX_MULTI_AUTH_DIR", self.root.path())
            .env("CODEX_HOME", self.folder.codex_home())
            .env("CMA_UPSTREAM_BACKEND", &ready.backend)
            .env("CMA_UPSTREAM_ISSUER", &ready.issuer)
            .stdin(Stdio::null());
        let (child, lines) = spawn(command, &self.folder, "cmad")?;
        self.daemon = Some(child);
        match self.first_line(&lines, "cmad", interrupted)? {
            StartLine::Ready { .. } => Ok(()),
            StartLine::Failed(refusal) => Err(refusal.into()),
        }
    }

    /// The one line with which a child says that it is ready.
    fn first_line<T: DeserializeOwned>(
        &self,
        lines: &Receiver<String>,
        program: &str,
        interrupted: &AtomicBool,
    ) -> Result<T, Failure> {
        let failed = |why: String| {
            Refusal::new(
                ErrorCode::Unreachable,
                format!("`{program}` did not get ready: {why}"),
                "install `cmactl`, `cmad` and `cma-sim` of one version in one folder",
            )
        };
        let began = Instant::now();
        loop {
            match lines.recv_timeout(Duration::from_millis(20)) {
                Ok(line) => {
                    let read = serde_json::from_str(&line);
                    return read.map_err(|error| failed(error.to_string()).into());
                },
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(failed(self.folder.last_words(program)).into());
                },
                Err(RecvTimeoutError::Timeout) if interrupted.load(Ordering::Relaxed) => {
                    return Err(failed("interrupted".to_owned()).into());
                },
                Err(RecvTimeoutError::Timeout) if began.elapsed() > READY => {
                    return Err(failed(format!("no word within {} s", READY.as_secs())).into());
                },
                Err(RecvTimeoutError::Timeout) => {},
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            if let Ok(mut client) = self.connect() {
                drop(client.call(&Request::Shutdown { now: true }));
            }
            end(&mut daemon);
        }
        if let Some(mut simulator) = self.simulator.take() {
            drop(simulator.stdin.take());
            end(&mut simulator);
        }
        // The folder goes with its field, after the processes that write to it.
    }
}

/// Waits for a child that was asked to end, and kills it when it doesn't.
pub(super) fn end(child: &mut Child) {
    let asked = Instant::now();
    while asked.elapsed() < END {
        match child.try_wait() {
            Ok(Some(_)) => return,
            Ok(None) => thread::sleep(Duration::from_millis(10)),
            Err(_gone) => break,
        }
    }
    // It may have ended this very moment; all that counts is that it is gone and waited for.
    drop(child.kill());
    drop(child.wait());
}

/// The `cma-sim` beside this program's own real path.
pub(super) fn simulator_program() -> Result<PathBuf, Refusal> {
    let program =
        client::daemon_program()?.with_file_name(format!("cma-sim{}", env::consts::EXE_SUFFIX));
    if program.is_file() {
        return Ok(program);
    }
    Err(Refusal::new(
        ErrorCode::Unreachable,
        format!("the demo's simulator is missing: no `{}`", program.display()),
        "install `cma-sim` in the same folder as `cmactl`",
    ))
}

/// A command without the settings of this person's own pool, CLI and proxies.
pub(super) fn bare(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy().to_uppercase();
        let ours = ["CMA_", "CODEX_", "OPENAI_"].iter().any(|prefix| text.starts_with(prefix));
        if ours || text.ends_with("_PROXY") {
            command.env_remove(&name);
        }
    }
    command
}

/// Starts a child whose lines on stdout arrive by channel and whose stderr goes to the folder.
pub(super) fn spawn(
    mut command: Command,
    folder: &Folder,
    program: &str,
) -> Result<(Child, Receiver<String>), Refusal> {
    let failed = |error: io::Error| {
        Refusal::new(
            ErrorCode::Unreachable,
            format!("`{program}` could not be started: {error}"),
            "install `cmactl`, `cmad` and `cma-sim` of one version in one folder",
        )
    };
    let stderr = File::create(folder.said(program)).map_err(failed)?;
    let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().map_err(failed)?;
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || {
            // Read to the end even if nobody listens any more: a full pipe would stop the child.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                drop(sender.send(line));
            }
        });
    }
    Ok((child, receiver))
}
