//! The real CLI's version, without starting it where that can be helped.
//!
//! npm: the launcher's `package.json`. Homebrew: the folder's name. Else the CLI is asked, once:
//! the answer is kept in the person's cache folder under the file's path, device, inode, size and
//! time. A script may start another CLI tomorrow without having changed itself, so what it said is
//! believed for ten minutes only.
//!
//! An unknown version is an empty string; the daemon then decides, on the safe side.

use crate::{Lookup, guard::Guard, launch, set};
use std::{
    fs,
    io::Read as _,
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, SystemTime},
};

/// A CLI that says its version takes 60 ms with node; one that hangs must not hang the shim.
const ASK_DEADLINE: Duration = Duration::from_secs(5);
/// For how long a script's answer is believed.
const SCRIPT_AGE: Duration = Duration::from_secs(600);
/// How many answers are kept.
const KEPT: usize = 8;
/// `package.json` is under 4 KiB, a cache of 8 lines likewise.
const MAX_READ: u64 = 64 * 1024;

/// The version of the CLI at `codex`, `MAJOR.MINOR.PATCH`, empty when unknown.
pub(crate) fn of(codex: &Path, guard: &Guard, lookup: Lookup<'_>) -> String {
    let Ok(real) = fs::canonicalize(codex) else {
        return String::new();
    };
    packaged(&real)
        .or_else(|| cellar(&real))
        .unwrap_or_else(|| remembered(codex, &real, guard, lookup))
}

/// From the npm package that holds the launcher: `…/@openai/codex/bin/codex.js`.
fn packaged(real: &Path) -> Option<String> {
    let package = real.ancestors().skip(1).find(|folder| folder.ends_with("@openai/codex"))?;
    let json = read(&package.join("package.json"))?;
    (string_field(&json, "name")? == "@openai/codex").then_some(())?;
    number(string_field(&json, "version")?)
}

/// The first string of that name. Good enough for a file that npm wrote: its own name and version
/// come before anything nested, and a wrong answer is no version.
fn string_field<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = json.split_once(&format!("\"{name}\""))?;
    let (value, _) =
        rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?.split_once('"')?;
    Some(value)
}

/// From Homebrew's folders: `…/Cellar/codex/0.169.0_1/bin/codex`, `…/Caskroom/codex/0.169.0/…`.
fn cellar(real: &Path) -> Option<String> {
    let mut parts = real.components().skip_while(
        |part| !matches!(part, Component::Normal(name) if *name == "Cellar" || *name == "Caskroom"),
    );
    let (_cellar, _formula) = (parts.next()?, parts.next()?);
    number(parts.next()?.as_os_str().to_str()?)
}

/// `0.169.0` out of `0.169.0`, `0.169.0_1`, `0.170.0-alpha.3`.
fn number(text: &str) -> Option<String> {
    let end = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
    let text = text.get(..end)?;
    let mut parts = 0;
    let whole = text.split('.').all(|part| {
        parts += 1;
        part.parse::<u32>().is_ok()
    });
    (whole && parts == 3).then(|| text.to_owned())
}

/// From the cache, else from the CLI itself.
fn remembered(codex: &Path, real: &Path, guard: &Guard, lookup: Lookup<'_>) -> String {
    let (cache, key) = (cache_file(lookup), key(codex, real));
    let known = cache.as_deref().and_then(read).unwrap_or_default();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if let Some(key) = &key
        && let Some((at, version)) = recall(&known, key)
        && (!is_script(real) || now.abs_diff(at) <= SCRIPT_AGE)
    {
        return version.to_owned();
    }
    let version = ask(codex, guard, lookup, ASK_DEADLINE).unwrap_or_default();
    if !version.is_empty()
        && let (Some(cache), Some(key)) = (cache, key)
    {
        keep(&cache, &known, &key, now, &version);
    }
    version
}

/// The line of `key`: when it was written, and the version.
fn recall<'a>(known: &'a str, key: &str) -> Option<(Duration, &'a str)> {
    let line = known.lines().find_map(|line| line.strip_suffix(key)?.strip_suffix('\t'))?;
    let (at, version) = line.split_once('\t')?;
    number(version)?;
    Some((Duration::from_secs(at.parse().ok()?), version))
}

/// Writes the answer first and the latest others after it. A cache that can't be written is none.
fn keep(cache: &Path, known: &str, key: &str, now: Duration, version: &str) {
    let mut text = format!("{}\t{version}\t{key}\n", now.as_secs());
    let others = known.lines().filter(|line| !line.ends_with(key));
    for line in others.take(KEPT - 1) {
        text.push_str(line);
        text.push('\n');
    }
    let fresh = cache.with_extension(std::process::id().to_string());
    let kept = cache
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(&fresh, text))
        .and_then(|()| fs::rename(&fresh, cache));
    if kept.is_err() {
        drop(fs::remove_file(&fresh));
    }
}

/// What must be the same for an answer to hold. The file looked at is the one behind all links;
/// the path is the one that is started, because some launchers act by the name they are called.
fn key(codex: &Path, real: &Path) -> Option<String> {
    let meta = fs::metadata(real).ok()?;
    let changed = meta.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos();
    #[cfg(unix)]
    let (device, inode) = {
        use std::os::unix::fs::MetadataExt as _;
        (meta.dev(), meta.ino())
    };
    #[cfg(not(unix))]
    let (device, inode) = (0_u64, 0_u64);
    let path = codex.to_str().filter(|path| !path.contains(['\n', '\r', '\t']))?;
    Some(format!("{device}\t{inode}\t{}\t{changed}\t{path}", meta.len()))
}

fn is_script(real: &Path) -> bool {
    let mut start = [0; 2];
    let told = fs::File::open(real).and_then(|mut file| file.read_exact(&mut start));
    // A launcher of many tools (volta, mise) is native, but not called codex.
    let named = real.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"codex"));
    told.is_err() || start == *b"#!" || !named
}

fn cache_file(lookup: Lookup<'_>) -> Option<PathBuf> {
    let folder = |name| set(lookup, name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = match folder("XDG_CACHE_HOME") {
        Some(base) => base,
        None if cfg!(windows) => folder("LOCALAPPDATA")?,
        None => folder("HOME")?.join(".cache"),
    };
    Some(base.join("cma").join("codex-version"))
}

/// Runs `codex --version`, which prints `codex-cli 0.169.0`.
fn ask(codex: &Path, guard: &Guard, lookup: Lookup<'_>, deadline: Duration) -> Option<String> {
    let mut command = Command::new(codex);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    launch::forget_outer(&mut command, lookup);
    // Should it lead back to a shim, that one takes the next candidate.
    guard.mark(&mut command);
    let mut child = command.spawn().ok()?;
    let stdout = child.stdout.take()?;
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut text = String::new();
        let told = stdout.take(MAX_READ).read_to_string(&mut text);
        // Nobody waits any more when the deadline has passed.
        drop(sender.send(told.map(|_| text)));
    });
    let text = receiver.recv_timeout(deadline);
    if text.is_err() {
        drop(child.kill());
    }
    drop(child.wait());
    text.ok()?.ok()?.split_whitespace().find_map(number)
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(MAX_READ).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests;
