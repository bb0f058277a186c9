//! One person's machine in a temporary folder: home, Codex home, root, the built programs.
//!
//! Everything a scenario starts is a child of its world and ends with it, by process id. Nothing of
//! the machine's own environment leaks in: a child's environment is built from nothing. Every output
//! that passes through here is kept, so that at the end [`World::assert_no_secrets`] can search all
//! of it, the files outside the vault and the command lines, those at the end and those while a command
//! ran, for the canary that the simulated upstream puts in every token.

use crate::sim::{Sim, SimConfig};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// Between two looks at the command line of a child that is waited for.
const LOOK: Duration = Duration::from_millis(30);

/// See the module's documentation.
#[derive(Debug)]
pub struct World {
    dir: tempfile::TempDir,
    sim: Sim,
    env: Vec<(String, String)>,
    children: Mutex<Vec<Child>>,
    outputs: Mutex<Vec<(String, Vec<u8>)>>,
}

/// How a finished command ended, as text.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Exit status; 128 + signal when a signal ended it.
    pub code: i32,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
    /// Wall time.
    pub took: Duration,
}

impl Ran {
    /// The run itself, when it ended well.
    ///
    /// # Panics
    /// With both outputs when it did not.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// The one JSON value on stdout.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}\nstderr: {}", self.stdout, self.stderr))
    }
}

/// Where the built programs are: `CMA_BIN_DIR`, else beside the test's own folder.
pub fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("CMA_BIN_DIR") {
        return dir.into();
    }
    let own = std::env::current_exe().unwrap_or_default();
    own.parent().and_then(Path::parent).map(Path::to_path_buf).unwrap_or_default()
}

/// Copies a program that is then run: by another process, since a file that this one has open for writing,
/// and so has whatever another test starts meanwhile, can't be run.
///
/// # Panics
/// When it can't be copied.
#[track_caller]
pub fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").args([from, to]).status().expect("`cp` runs");
    assert!(copied.success(), "{} to {}", from.display(), to.display());
}

/// Writes a script that is then run; by another process, for [`copy_program`]'s reason.
///
/// # Panics
/// When it can't be written.
#[track_caller]
pub fn write_script(to: &Path, text: &str) {
    let mut shell = Command::new("sh")
        .args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(to)
        .stdin(Stdio::piped())
        .spawn()
        .expect("`sh` runs");
    let mut stdin = shell.stdin.take().expect("its stdin");
    stdin.write_all(text.as_bytes()).expect("it reads");
    drop(stdin);
    assert!(shell.wait().is_ok_and(|ended| ended.success()), "{}", to.display());
}

/// The official CLI of a version, where the test set-up has installed it (`CMA_TEST_CODEX_DIR`, one
/// folder for each version, installed by npm). Without it: a printed reason, or a failure under
/// `CI=true`.
pub fn real_codex(version: &str) -> Option<PathBuf> {
    let found = std::env::var_os("CMA_TEST_CODEX_DIR")
        .map(|dir| Path::new(&dir).join(version).join("node_modules/.bin/codex"))
        .filter(|path| path.exists());
    if found.is_none() {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "the official CLI {version} is missing: run tests/run, which installs it"
        );
        eprintln!("skipped: the official CLI {version} is not installed (tests/run does that)");
    }
    found
}

impl World {
    /// A machine with nothing imported and no daemon running.
    pub fn new(config: SimConfig) -> Self {
        let sim = Sim::start(config).expect("the simulated upstream starts");
        let dir = tempfile::Builder::new().prefix("cma-").tempdir().expect("a temporary folder");
        for folder in ["home/.codex", "work", "tmp"] {
            fs::create_dir_all(dir.path().join(folder)).expect("a folder");
        }
        let home = dir.path().join("home");
        let env = vec![
            ("HOME".to_owned(), home.display().to_string()),
            ("TMPDIR".to_owned(), dir.path().join("tmp").display().to_string()),
            ("LANG".to_owned(), "C.UTF-8".to_owned()),
            ("TERM".to_owned(), "dumb".to_owned()),
            ("CMA_UPSTREAM_BACKEND".to_owned(), sim.backend()),
            ("CMA_UPSTREAM_ISSUER".to_owned(), sim.issuer()),
            ("CMA_LOG".to_owned(), "debug".to_owned()),
        ];
        let world = Self {
            dir,
            sim,
            env,
            children: Mutex::new(Vec::new()),
            outputs: Mutex::new(Vec::new()),
        };
        world.with_path(&[])
    }

    /// A machine with the simulated upstream's accounts imported.
    pub fn with_accounts(config: SimConfig) -> Self {
        let world = Self::new(config);
        world.import_all();
        world
    }

    /// Sets a variable for everything started from here on.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Puts folders behind the built programs on PATH, in front of the system's.
    #[must_use]
    pub fn with_path(self, folders: &[&Path]) -> Self {
        let mut all = vec![bin_dir()];
        all.extend(folders.iter().map(|folder| folder.to_path_buf()));
        // node is wherever the machine has it; the rest is the system's.
        let own = std::env::var_os("PATH").unwrap_or_default();
        all.extend(std::env::split_paths(&own));
        let path = std::env::join_paths(all).expect("a PATH");
        self.with_env("PATH", &path.to_string_lossy())
    }

    /// The upstream.
    pub fn sim(&self) -> &Sim {
        &self.sim
    }

    /// A path inside the world.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The Codex home folder.
    pub fn codex_home(&self) -> PathBuf {
        self.path("home/.codex")
    }

    /// The root of the pool.
    pub fn root(&self) -> PathBuf {
        self.path("home/.codex/multi-auth")
    }

    /// Imports a login of each of the upstream's accounts, labelled by its name there.
    pub fn import_all(&self) {
        for name in self.sim.accounts() {
            self.import(&name, &self.sim.auth_json(&name)).ok();
        }
    }

    /// Imports a login from a file of its own, which is removed afterwards.
    pub fn import(&self, label: &str, auth_json: &str) -> Ran {
        let file = self.path(&format!("tmp/{label}.auth.json"));
        fs::write(&file, auth_json).expect("a login file");
        let ran =
            self.run("cmactl", ["import", &file.display().to_string(), "--label", label, "--json"]);
        fs::remove_file(&file).expect("removed");
        ran
    }

    /// A command of this machine, not started: built programs by name, others as they are found.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let built = bin_dir().join(program.as_ref());
        let mut command =
            Command::new(if built.is_file() { built.as_os_str() } else { program.as_ref() });
        command
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(self.path("work"))
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end (two minutes at most).
    pub fn run<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Ran {
        let mut command = self.command(program);
        command.args(args);
        self.finish(command)
    }

    /// Runs a prepared command to its end (two minutes at most) and keeps what it said.
    pub fn finish(&self, mut command: Command) -> Ran {
        let begun = Instant::now();
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (output, lines) = wait(child, Duration::from_secs(120))
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        self.keep(&format!("{command:?}"), &output);
        let told = lines.into_iter().map(|line| (format!("a command line of {command:?}"), line));
        self.outputs.lock().extend(told);
        ran(&output, begun.elapsed())
    }

    /// Starts a command that runs on; it ends with the world.
    pub fn spawn(&self, mut command: Command) -> u32 {
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let pid = child.id();
        self.children.lock().push(child);
        pid
    }

    /// `cmactl` with arguments, by words.
    pub fn ctl(&self, words: &str) -> Ran {
        self.run("cmactl", words.split_whitespace())
    }

    /// `cmactl status --json`.
    pub fn status(&self) -> serde_json::Value {
        self.ctl("status --json").ok().json()
    }

    /// The account of a label in `status`.
    pub fn account(&self, label: &str) -> serde_json::Value {
        let status = self.status();
        let accounts = status["accounts"].as_array().cloned().unwrap_or_default();
        accounts
            .into_iter()
            .find(|account| account["label"] == label)
            .unwrap_or_else(|| panic!("no account {label} in {status}"))
    }

    /// The daemon's process id, as its lock file says; none when no such process lives.
    pub fn daemon_pid(&self) -> Option<u32> {
        let text = fs::read_to_string(self.root().join("run/daemon.lock")).ok()?;
        let pid: u32 = text.trim().parse().ok()?;
        // A zombie has ended; only its parent hasn't noticed.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let state = stat.rsplit(')').next()?.trim_start().chars().next()?;
        (!matches!(state, 'Z' | 'X')).then_some(pid)
    }

    /// Ends the daemon without giving it a chance, and waits until it is gone.
    pub fn kill_daemon(&self) {
        if let Some(pid) = self.daemon_pid() {
            signal(pid, rustix::process::Signal::KILL);
            eventually("the daemon is gone", || self.daemon_pid().is_none());
        }
    }

    /// Asks the daemon to end, and waits for it for a while: one that was built to count what it runs
    /// writes that down at its end.
    pub fn end_daemon(&self) {
        let Some(pid) = self.daemon_pid() else { return };
        signal(pid, rustix::process::Signal::TERM);
        let begun = Instant::now();
        while self.daemon_pid().is_some() && begun.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A key for requests by hand, and the base address: `cmactl launch --print --json`.
    pub fn launch(&self) -> serde_json::Value {
        self.ctl("launch --print --json").ok().json()
    }

    /// Keeps an output for the search at the end.
    pub fn keep(&self, what: &str, output: &Output) {
        let mut outputs = self.outputs.lock();
        outputs.push((format!("stdout of {what}"), output.stdout.clone()));
        outputs.push((format!("stderr of {what}"), output.stderr.clone()));
    }

    /// Searches everything that was printed, every file outside the vault and every command line of
    /// this user for the canary in the tokens.
    ///
    /// # Panics
    /// When it is found anywhere.
    #[track_caller]
    pub fn assert_no_secrets(&self) {
        let canary = self.sim.canary();
        let has = |bytes: &[u8]| bytes.windows(canary.len()).any(|part| part == canary.as_bytes());
        for (what, bytes) in self.outputs.lock().iter() {
            assert!(!has(bytes), "the canary is in {what}");
        }
        let vault = ["accounts", "removed", "backups", "damaged", "mirror"]
            .map(|name| self.root().join(name));
        for file in files(self.dir.path()) {
            // A person's own logins, where the official CLI has them.
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let login = name == "auth.json" || name.starts_with("auth.json.before-cma-");
            if login || vault.iter().any(|folder| file.starts_with(folder)) {
                continue;
            }
            if let Ok(bytes) = fs::read(&file) {
                assert!(!has(&bytes), "the canary is in {}", file.display());
            }
        }
        assert!(!command_lines().any(|line| has(&line)), "the canary is in a command line");
    }

    /// No rule of the upstream was broken, and no secret leaked: the end of every scenario.
    ///
    /// # Panics
    /// When one was.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.sim.violations(), Vec::<String>::new());
        self.assert_no_secrets();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in self.children.lock().iter_mut() {
            let _ended_already = child.kill();
            let _reaped = child.wait();
        }
        if let Some(pid) = self.daemon_pid() {
            signal(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Sends a signal to a process that this world started.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ended_already = rustix::process::kill_process(pid, signal);
    }
}

/// Waits until something holds, at most ten seconds: the level, never an edge.
///
/// # Panics
/// When it doesn't come to hold.
#[track_caller]
pub fn eventually(what: &str, holds: impl FnMut() -> bool) {
    within(Duration::from_secs(10), what, holds);
}

/// As [`eventually`], for what takes longer.
pub fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < limit, "not within {} s: {what}", limit.as_secs());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Every file under a folder, without following links.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {},
        }
    }
    found.sort();
    found
}

/// Waits for a child's end; the command lines that were seen on the way, its own and now and then
/// those of everything that runs.
fn wait(mut child: Child, limit: Duration) -> io::Result<(Output, BTreeSet<Vec<u8>>)> {
    let pid = child.id();
    let (done, over) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        let (begun, mut lines) = (Instant::now(), BTreeSet::new());
        for look in 1_u32.. {
            if over.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                break;
            }
            lines.extend(fs::read(format!("/proc/{pid}/cmdline")));
            if look % 16 == 0 {
                lines.extend(command_lines());
            }
            if begun.elapsed() > limit {
                signal(pid, rustix::process::Signal::KILL);
                break;
            }
        }
        lines
    });
    drop(child.stdin.take());
    let output = child.wait_with_output();
    drop(done);
    let lines = watchdog.join().unwrap_or_default();
    output.map(|output| (output, lines))
}

/// The command line of every process.
fn command_lines() -> impl Iterator<Item = Vec<u8>> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok())
}

fn ran(output: &Output, took: Duration) -> Ran {
    let code = output.status.code().unwrap_or_else(|| {
        use std::os::unix::process::ExitStatusExt as _;
        128 + output.status.signal().unwrap_or_default()
    });
    Ran {
        code,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took,
    }
}
