//! The system's keyring: one wrapping key in it, and an honest look whether it works.
//!
//! On Linux this is the desktop's Secret Service, through libsecret's `secret-tool`: the secret goes
//! by pipes, never by an argument. The kernel's own keyring is no place for it: a restart forgets it.
//! A library for the same would bring a D-Bus stack of some sixty crates for four calls. Other
//! systems have no backend yet; asking for one says so, and a passphrase does the same work.
//!
//! The tool is looked for in the system's folders only: `PATH` may lead into a repository. Tests
//! name another one by `CMA_TEST_SECRET_TOOL`, which counts only while tokens go to loopback.

use crate::config::Config;
use secrecy::{ExposeSecret as _, SecretString};
use std::{
    ffi::OsStr,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Where a system keeps its programs.
const FOLDERS: [&str; 4] = ["/usr/bin", "/bin", "/usr/local/bin", "/run/current-system/sw/bin"];
/// What tests may name instead.
const TEST_TOOL: &str = "CMA_TEST_SECRET_TOOL";
/// A locked keyring asks its person; a start can't wait for that (a client waits three seconds for
/// the whole start).
const AT_START: Duration = Duration::from_millis(1500);
/// A person at a prompt. Below a client's 30 s for an answer.
const AT_A_PROMPT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);
/// A key is 64 digits.
const MAX_ANSWER: u64 = 4096;

/// A keyring that can be asked.
#[derive(Debug, Clone)]
pub(crate) struct Keyring {
    tool: PathBuf,
    patience: Duration,
}

impl Keyring {
    /// The keyring of this machine, or why there is none.
    pub(crate) fn find(config: &Config) -> Result<Self, String> {
        let patience = AT_START;
        if let Some(tool) = std::env::var_os(TEST_TOOL) {
            if !config.loopback() {
                return Err(format!("`{TEST_TOOL}` is for tests on loopback only"));
            }
            return Ok(Self { tool: tool.into(), patience });
        }
        if !cfg!(target_os = "linux") {
            return Err("there is no support for this system's keyring yet".to_owned());
        }
        let tool = FOLDERS.iter().map(|folder| Path::new(folder).join("secret-tool"));
        let tool = tool.into_iter().find(|tool| tool.is_file());
        let tool = tool.ok_or("`secret-tool` (libsecret) is not installed")?;
        Ok(Self { tool, patience })
    }

    /// The same for somebody who sits at a prompt.
    pub(crate) fn patient(self) -> Self {
        Self { patience: AT_A_PROMPT, ..self }
    }

    /// Writes, reads and deletes a probe.
    ///
    /// # Errors
    /// Which of the three didn't work, for a person.
    pub(crate) fn probe(&self) -> Result<(), String> {
        let entry = format!("probe-{}", std::process::id());
        let secret: SecretString = "probe".to_owned().into();
        self.store(&entry, &secret).map_err(|why| format!("writing to it failed ({why})"))?;
        let read = self.load(&entry).map_err(|why| format!("reading from it failed ({why})"))?;
        self.delete(&entry).map_err(|why| format!("deleting from it failed ({why})"))?;
        match read {
            Some(read) if read.expose_secret() == secret.expose_secret() => {},
            _ => return Err("it didn't give back what was written".to_owned()),
        }
        match self.load(&entry) {
            Ok(None) => Ok(()),
            _ => Err("it keeps what was deleted".to_owned()),
        }
    }

    /// Keeps a secret.
    pub(crate) fn store(&self, entry: &str, secret: &SecretString) -> Result<(), String> {
        let label = format!("--label=cma {entry}");
        match self.run(["store", &label, "service", "cma", "entry", entry], Some(secret))? {
            (true, _) => Ok(()),
            (false, _) => Err("it refused".to_owned()),
        }
    }

    /// A kept secret; `None` when there is none of that name.
    pub(crate) fn load(&self, entry: &str) -> Result<Option<SecretString>, String> {
        let (found, text) = self.run(["lookup", "service", "cma", "entry", entry], None)?;
        Ok(Some(text).filter(|text| found && !text.is_empty()).map(Into::into))
    }

    /// Deletes a secret.
    pub(crate) fn delete(&self, entry: &str) -> Result<(), String> {
        self.run(["clear", "service", "cma", "entry", entry], None).map(drop)
    }

    fn run<A: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
        secret: Option<&SecretString>,
    ) -> Result<(bool, String), String> {
        let failed = |error: std::io::Error| format!("`{}`: {error}", self.tool.display());
        let mut child = Command::new(&self.tool)
            .args(args)
            .stdin(if secret.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        if let (Some(secret), Some(mut stdin)) = (secret, child.stdin.take()) {
            stdin.write_all(secret.expose_secret().as_bytes()).map_err(failed)?;
        }
        let begun = Instant::now();
        let status = loop {
            match child.try_wait().map_err(failed)? {
                Some(status) => break status,
                None if begun.elapsed() > self.patience => {
                    drop(child.kill());
                    drop(child.wait());
                    return Err("it gave no answer in time".to_owned());
                },
                // Off the event loop, like everything in this module.
                None => std::thread::sleep(POLL),
            }
        };
        let mut text = String::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_ANSWER).read_to_string(&mut text).map_err(failed)?;
        }
        Ok((status.success(), text))
    }
}
