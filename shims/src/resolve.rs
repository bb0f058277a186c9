//! Where the real codex is: `CMA_CODEX_BIN`, else the first on `PATH` that is not this shim.
//!
//! "Not this shim" is a question of file identity, not of folders: the shim may be linked into any
//! folder, and the real CLI may lie beside it. A second *copy* of the shim is another file; it gets
//! started, sees by the [`guard`](crate::guard) that it was, and takes the next.

use crate::{CANNOT_RUN, Failure, Lookup, NOT_FOUND, set};
use std::{
    env, fs,
    path::{Path, PathBuf},
};

#[cfg(not(windows))]
const NAMES: &[&str] = &["codex"];
/// npm makes a `.cmd`; the extensions come in the order in which Windows prefers them.
#[cfg(windows)]
const NAMES: &[&str] = &["codex.exe", "codex.cmd", "codex.bat"];

/// Which file it is, whatever it is called.
#[cfg(unix)]
type Identity = (u64, u64);
#[cfg(windows)]
type Identity = PathBuf;

/// A file as far as a start needs to know it.
#[derive(Debug)]
pub(crate) struct Seen {
    identity: Identity,
    runnable: bool,
}

/// Looks at a file, through links; `None` when there is none.
#[cfg(unix)]
pub(crate) fn look(path: &Path) -> Option<Seen> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = fs::metadata(path).ok()?;
    let runnable = meta.is_file() && meta.mode() & 0o111 != 0;
    Some(Seen { identity: (meta.dev(), meta.ino()), runnable })
}

/// Looks at a file, through links; `None` when there is none.
#[cfg(windows)]
pub(crate) fn look(path: &Path) -> Option<Seen> {
    let identity = fs::canonicalize(path).ok()?;
    let runnable = identity.is_file();
    Some(Seen { identity, runnable })
}

/// The candidate to start, after `tried` others that led back to us.
pub(crate) fn find(
    lookup: Lookup<'_>,
    own: Option<Seen>,
    tried: usize,
) -> Result<PathBuf, Failure> {
    // Absolute: a bare name would be looked for on `PATH` by the start.
    let chosen = set(lookup, "CMA_CODEX_BIN")
        .map(|path| std::path::absolute(&path).unwrap_or_else(|_no_folder| path.into()));
    if let Some(path) = &chosen
        && tried == 0
    {
        return check(path, own.as_ref()).map(|()| path.clone());
    }
    let mut seen: Vec<Identity> = own.map(|own| own.identity).into_iter().collect();
    chosen
        .into_iter()
        .chain(on_path(lookup))
        .filter(|path| is_new(path, &mut seen))
        .nth(tried)
        .ok_or_else(|| match tried {
            0 => Failure::new(
                NOT_FOUND,
                "no codex was found on `PATH`, besides this one of cma's; install it with \
                 `npm install -g @openai/codex`, or set `CMA_CODEX_BIN` to its path",
            ),
            _ => Failure::new(
                CANNOT_RUN,
                "the `codex` found on `PATH` leads back to cma's own, and there is no other; set \
                 `CMA_CODEX_BIN` to the path of the real one",
            ),
        })
}

/// A program of ours, in the folder of our own real path.
pub(crate) fn beside(name: &str) -> Result<PathBuf, Failure> {
    let own = env::current_exe().and_then(fs::canonicalize).map_err(|error| {
        Failure::new(CANNOT_RUN, format!("own path unknown ({error}); run `{name}` itself"))
    })?;
    let path = own.with_file_name(format!("{name}{}", env::consts::EXE_SUFFIX));
    match path.is_file() {
        true => Ok(path),
        false => Err(Failure::new(
            NOT_FOUND,
            format!("`{}` is missing; install it in the same folder as this codex", path.display()),
        )),
    }
}

/// A path that the person named must do; nothing else is taken in its place.
fn check(path: &Path, own: Option<&Seen>) -> Result<(), Failure> {
    let shown = path.display();
    let (code, what) = match look(path) {
        None => (NOT_FOUND, "does not exist"),
        Some(seen) if own.is_some_and(|own| own.identity == seen.identity) => {
            (CANNOT_RUN, "is cma's own codex")
        },
        Some(seen) if !seen.runnable => (CANNOT_RUN, "is not a program that may be run"),
        Some(_) => return Ok(()),
    };
    Err(Failure::new(
        code,
        format!(
            "`CMA_CODEX_BIN` is `{shown}`, which {what}; set it to the real codex, or unset it"
        ),
    ))
}

/// Every place on `PATH` where a codex might be. An empty entry means the working directory to a
/// shell, mostly by accident; a repository's `codex` must not be run by accident.
fn on_path(lookup: Lookup<'_>) -> impl Iterator<Item = PathBuf> {
    let path = lookup("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> =
        env::split_paths(&path).filter(|folder| !folder.as_os_str().is_empty()).collect();
    folders.into_iter().flat_map(|folder| NAMES.iter().map(move |name| folder.join(name)))
}

/// Whether it can be run and has not been met before (`/bin` is `/usr/bin` on many systems).
fn is_new(path: &Path, met: &mut Vec<Identity>) -> bool {
    match look(path) {
        Some(seen) if seen.runnable && !met.contains(&seen.identity) => {
            met.push(seen.identity);
            true
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests;
