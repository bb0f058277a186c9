//! Does what we started lead back to us?
//!
//! A launcher script may call `codex` by name and so find this shim again. The shim therefore
//! leaves its process id in the environment before it becomes the CLI. Found again with our own id
//! (the launcher used `exec`) or our parent's (it spawned), we are inside what we started, and the
//! next candidate on `PATH` is taken; `CMA_SHIM_TRIED` counts them, so every chain ends.
//!
//! Any other id is an ancestor's and means nothing. Nor does any id mean something when the CLI
//! started us as a tool command: a native CLI *has* the shim's process id, so its tools see it as
//! their parent's, and in a sandbox with its own process ids every small number matches sooner or
//! later. The CLI gives its tools `CODEX_THREAD_ID`; one that is not the one we had ourselves when
//! we started the CLI (`CMA_SHIM_THREAD`) came from it.

use crate::{Lookup, set};
use std::{ffi::OsString, process::Command};

const PID: &str = "CMA_SHIM_PID";
const TRIED: &str = "CMA_SHIM_TRIED";
const THREAD: &str = "CMA_SHIM_THREAD";

/// What the environment says of earlier shims, and what the next one shall know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Guard {
    own: u32,
    tried: usize,
    thread: Option<OsString>,
}

impl Guard {
    /// Reads the guard as the process `own`, child of `parent` (0 when unknown).
    pub(crate) fn read(lookup: Lookup<'_>, own: u32, parent: u32) -> Self {
        let number = |name| lookup(name).and_then(|value| value.to_str()?.parse::<u32>().ok());
        let thread = set(lookup, "CODEX_THREAD_ID");
        let tool = thread.is_some() && thread != set(lookup, THREAD);
        let inside = number(PID).is_some_and(|pid| pid != 0 && (pid == own || pid == parent));
        let tried = match inside && !tool {
            true => number(TRIED).unwrap_or(0).saturating_add(1),
            false => 0,
        };
        Self { own, tried: usize::try_from(tried).unwrap_or(usize::MAX), thread }
    }

    /// How many candidates led back here.
    pub(crate) fn tried(&self) -> usize {
        self.tried
    }

    /// Whether what we started led back here.
    pub(crate) fn recursion(&self) -> bool {
        self.tried > 0
    }

    /// Leaves our traces for a shim that the command might lead to.
    pub(crate) fn mark(&self, command: &mut Command) {
        command.env(PID, self.own.to_string());
        match self.recursion() {
            true => command.env(TRIED, self.tried.to_string()),
            false => command.env_remove(TRIED),
        };
        match &self.thread {
            Some(thread) => command.env(THREAD, thread),
            None => command.env_remove(THREAD),
        };
    }
}

/// The parent's process id, 0 when the platform doesn't tell.
pub(crate) fn parent() -> u32 {
    #[cfg(unix)]
    return std::os::unix::process::parent_id();
    #[cfg(not(unix))]
    return 0;
}

#[cfg(test)]
mod tests;
