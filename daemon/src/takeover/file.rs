//! Other programs' files, opened read only and bounded.
//!
//! A link is followed (dotfile tools make them), but only a regular file is read: a pipe would never
//! end and a device may do something. What can't be read is one sentence that quotes nothing.

use serde_json::Value;
use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    path::Path,
};

/// The predecessor refuses imports above this (2.8.7); no login file comes near.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Opens a regular file.
///
/// # Errors
/// A sentence for a person.
pub(super) fn open(path: &Path) -> Result<File, String> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    // A pipe without a writer would hold the open itself.
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NONBLOCK | libc::O_NOCTTY,
    );
    let file = options.open(path).map_err(|error| told(&error))?;
    let meta = file.metadata().map_err(|error| told(&error))?;
    if meta.is_file() { Ok(file) } else { Err("it is not a regular file".to_owned()) }
}

fn told(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it is not there".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "it may not be read: check its owner and mode".to_owned()
        },
        _ => format!("it can't be read: {error}"),
    }
}

/// All of a file, at most 4 MiB.
///
/// # Errors
/// A sentence for a person.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| told(&error))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("it is larger than {} MiB", MAX_FILE / 1024 / 1024));
    }
    Ok(bytes)
}

/// The one JSON value in a file.
///
/// # Errors
/// A sentence for a person; it names the line, never the content.
pub(super) fn json(path: &Path) -> Result<Value, String> {
    parse(&bytes(path)?)
}

/// The one JSON value in some bytes; a byte order mark in front is fine.
///
/// # Errors
/// As [`json`].
pub(super) fn parse(bytes: &[u8]) -> Result<Value, String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err("it is empty".to_owned());
    }
    serde_json::from_slice(bytes)
        .map_err(|error| format!("it is not whole JSON (line {})", error.line()))
}

/// Whether a process of that id lives, as far as this user can see.
pub(super) fn lives(pid: u64) -> bool {
    #[cfg(unix)]
    {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        pid.is_some_and(|pid| match rustix::process::test_kill_process(pid) {
            Ok(()) => true,
            Err(error) => error == rustix::io::Errno::PERM,
        })
    }
    #[cfg(windows)]
    {
        let _unknown_here = pid;
        false
    }
}
