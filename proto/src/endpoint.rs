//! Which root, and where its daemon listens.
//!
//! A daemon belongs to a *root* (the folder with the pool). The socket lives in that root's `run/`
//! folder, named by a hash of the root's canonical path. It does not live in `XDG_RUNTIME_DIR`:
//! that variable is missing under cron, `sudo` and some terminals, and a client that then looked
//! elsewhere would miss a running daemon. Same root, same endpoint, whatever the environment says;
//! nobody ever guesses twice. Only a path over the platform's limit for socket names moves to a
//! short folder of the user's own under `/tmp`.

use crate::error::{ErrorCode, Refusal};
use std::{
    env, io,
    path::{Path, PathBuf},
};

/// Longest socket path that every Unix accepts (macOS has 104 bytes with the final zero).
pub const MAX_SOCKET_PATH: usize = 100;

/// The root of a pool and the names derived from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    path: PathBuf,
}

impl Root {
    /// The root named by the environment: `CODEX_MULTI_AUTH_DIR`, else `multi-auth` under a
    /// `CODEX_HOME` that is set, else `~/.codex/multi-auth`.
    ///
    /// The path is made canonical as far as it exists, so that two spellings are one root.
    ///
    /// # Errors
    /// [`ErrorCode::Config`] when no home folder is known or a variable is not absolute.
    pub fn from_env() -> Result<Self, Refusal> {
        let var = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let (name, path) = if let Some(dir) = var("CODEX_MULTI_AUTH_DIR") {
            ("CODEX_MULTI_AUTH_DIR", PathBuf::from(dir))
        } else {
            ("CODEX_HOME", codex_home()?.join("multi-auth"))
        };
        if !path.is_absolute() {
            return Err(Refusal::new(
                ErrorCode::Config,
                format!("`{name}` must be an absolute path, it is `{}`", path.display()),
                format!("set `{name}` to an absolute path, or unset it"),
            ));
        }
        Ok(Self::at(&path))
    }

    /// The root at `path`, made canonical as far as it exists.
    pub fn at(path: &Path) -> Self {
        Self { path: canonical(path) }
    }

    /// The root's canonical path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// 16 hex digits that stand for the canonical path.
    pub fn digest(&self) -> String {
        // FNV-1a, 64 bit: a name, not a secret. The hello carries the full path, and a client
        // compares it, so a collision would be seen.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in self.path.as_os_str().as_encoded_bytes() {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        format!("{hash:016x}")
    }

    /// Where the daemon of this root listens for its clients.
    #[cfg(unix)]
    pub fn socket(&self) -> PathBuf {
        let name = format!("{}.sock", self.digest());
        let near = self.path.join("run").join(&name);
        if near.as_os_str().len() <= MAX_SOCKET_PATH {
            return near;
        }
        let uid = rustix::process::geteuid().as_raw();
        PathBuf::from(format!("/tmp/cma-{uid}-{}", self.digest())).join("daemon.sock")
    }

    /// Where the daemon of this root listens for its clients (a pipe name).
    #[cfg(windows)]
    pub fn socket(&self) -> PathBuf {
        let user = env::var("USERNAME").unwrap_or_default();
        PathBuf::from(format!(r"\\.\pipe\cma-{user}-{}-v1", self.digest()))
    }

    /// Held by the daemon for life.
    pub fn daemon_lock(&self) -> PathBuf {
        self.path.join("run").join("daemon.lock")
    }

    /// Held by whoever starts a daemon, for the time of the start.
    pub fn start_lock(&self) -> PathBuf {
        self.path.join("run").join("daemon.start.lock")
    }

    /// The daemon's structured log.
    pub fn log_file(&self) -> PathBuf {
        self.path.join("log").join("cmad.jsonl")
    }

    /// The person's settings.
    pub fn config_file(&self) -> PathBuf {
        self.path.join("config.toml")
    }
}

/// The Codex home folder: `CODEX_HOME` when set, else `~/.codex`.
///
/// # Errors
/// [`ErrorCode::Config`] when neither it nor a home folder is known.
pub fn codex_home() -> Result<PathBuf, Refusal> {
    if let Some(home) = env::var_os("CODEX_HOME").filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(home));
    }
    env::home_dir()
        .filter(|home| !home.as_os_str().is_empty())
        .map(|home| home.join(".codex"))
        .ok_or_else(|| {
            Refusal::new(
                ErrorCode::Config,
                "no home folder is known: `HOME` is not set",
                "set `HOME`, or `CODEX_MULTI_AUTH_DIR` to a folder of your own",
            )
        })
}

/// Canonical form of the longest existing prefix, with the rest appended as it is.
fn canonical(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    let mut here = path;
    loop {
        if let Ok(found) = here.canonicalize() {
            return rest.iter().rev().fold(found, |path, part| path.join(part));
        }
        let (Some(parent), Some(name)) = (here.parent(), here.file_name()) else {
            return path.to_path_buf();
        };
        rest.push(name.to_owned());
        here = parent;
    }
}

/// Whether an error of connecting means that nobody listens there.
pub fn nobody_there(error: &io::Error) -> bool {
    // A root below a file has no daemon either; starting one tells the person what is wrong.
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_folder_are_one_root() {
        let dir = env::temp_dir();
        assert_eq!(Root::at(&dir.join(".").join("not-there")), Root::at(&dir.join("not-there")));
    }

    #[cfg(unix)]
    #[test]
    fn a_long_root_gets_a_short_socket() {
        let root = Root::at(&PathBuf::from("/nowhere").join("x".repeat(200)));
        assert!(root.socket().as_os_str().len() <= MAX_SOCKET_PATH);
        assert!(root.socket().to_string_lossy().contains(&root.digest()));
        let short = Root::at(Path::new("/nowhere/root"));
        assert!(short.socket().starts_with("/nowhere/root/run"));
    }
}
