//! Files that are either the old one or the new one, whatever happens in between.
//!
//! temp file (0600, same folder) → write → fsync → rename → fsync of the folder. Nothing is durable
//! before the last step has returned. The calls themselves are [`crate::disk`]'s.

use crate::{disk, fault::Fault};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Replaces `path` by `bytes`, durably, mode 0600.
///
/// # Errors
/// [`ErrorCode::Store`](cma_proto::error::ErrorCode::Store); the old file is still whole then.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    disk::replace(path, PREFIX, bytes).map_err(|error| Fault::file(path, "write", &error))
}

/// What a file is called until it is whole.
const PREFIX: &str = ".new-";

/// What a killed daemon left in a folder before it took its name.
///
/// # Errors
/// [`ErrorCode::Store`](cma_proto::error::ErrorCode::Store).
pub(crate) fn unfinished(folder: &Path) -> Result<Vec<PathBuf>, Fault> {
    let failed = |error: io::Error| Fault::file(folder, "read", &error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes that: it may hold a credential. For the holder of the root's lock, before it writes there
/// itself.
///
/// # Errors
/// [`ErrorCode::Store`](cma_proto::error::ErrorCode::Store).
pub(crate) fn sweep(folder: &Path) -> Result<(), Fault> {
    unfinished(folder)?.iter().try_for_each(|path| remove(path))
}

/// Removes a file, durably; a missing one is fine.
///
/// # Errors
/// [`ErrorCode::Store`](cma_proto::error::ErrorCode::Store).
pub(crate) fn remove(path: &Path) -> Result<(), Fault> {
    match disk::remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Fault::file(path, "remove", &error))
        },
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Keeps what `path` holds under `aside` as well (a second name, not a copy); nothing when there is no
/// such file.
///
/// # Errors
/// [`ErrorCode::Store`](cma_proto::error::ErrorCode::Store).
pub(crate) fn keep_aside(path: &Path, aside: &Path) -> Result<(), Fault> {
    second_name(path, aside).map_err(|error| Fault::file(aside, "write", &error))
}

fn second_name(path: &Path, aside: &Path) -> io::Result<()> {
    match disk::unlink(aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {},
    }
    let linked = disk::link(path, aside).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _no_links_here => disk::replace(aside, PREFIX, &std::fs::read(path)?),
    });
    match linked {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Moves a file into another folder, durably; it never has neither name.
///
/// # Errors
/// [`ErrorCode::Store`](cma_proto::error::ErrorCode::Store); it may then have both.
pub(crate) fn shift(from: &Path, to: &Path) -> Result<(), Fault> {
    disk::shift(from, to, PREFIX).map_err(|error| Fault::file(from, "move", &error))
}
