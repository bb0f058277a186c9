//! Files of those who had the logins before ([`outside`]). What can't be read is one sentence that
//! quotes nothing.

use crate::outside;
use serde_json::Value;
use std::{fs::File, io, path::Path};

/// The predecessor refuses imports above this (2.8.7); no login file comes near.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Opens a regular file.
///
/// # Errors
/// A sentence for a person.
pub(super) fn open(path: &Path) -> Result<File, String> {
    outside::open(path).map_err(|error| told(&error))
}

fn told(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it is not there".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "it may not be read: check its owner and mode".to_owned()
        },
        io::ErrorKind::InvalidInput => "it is not a regular file".to_owned(),
        io::ErrorKind::FileTooLarge => format!("it is larger than {} MiB", MAX_FILE / 1024 / 1024),
        _ => format!("it can't be read: {error}"),
    }
}

/// All of a file, at most 4 MiB.
///
/// # Errors
/// A sentence for a person.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    outside::read(path, MAX_FILE).map_err(|error| told(&error))
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
