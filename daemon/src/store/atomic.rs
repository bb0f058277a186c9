//! Files that are either the old one or the new one, whatever happens in between.
//!
//! temp file (0600, same folder) → write → fsync → rename → fsync of the folder. Nothing is durable
//! before the last step has returned.

use crate::fault::Fault;
use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Replaces `path` by `bytes`, durably, mode 0600.
///
/// # Errors
/// [`ErrorCode::Store`](cma_proto::error::ErrorCode::Store); the old file is still whole then.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    replace(path, folder, bytes).map_err(|error| Fault::file(path, "write", &error))
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

fn replace(path: &Path, folder: &Path, bytes: &[u8]) -> io::Result<()> {
    // tempfile makes it 0600 and removes it again on every way out but `persist`.
    let mut temp = tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder)?;
    temp.write_all(bytes)?;
    temp.as_file().sync_all()?;
    temp.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// Removes a file, durably; a missing one is fine.
///
/// # Errors
/// [`ErrorCode::Store`](cma_proto::error::ErrorCode::Store).
pub(crate) fn remove(path: &Path) -> Result<(), Fault> {
    let removed = match std::fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_folder),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|error| Fault::file(path, "remove", &error))
}

/// Keeps the current content of `path` under `aside` as well (a second name, not a copy).
///
/// # Errors
/// [`ErrorCode::Store`](cma_proto::error::ErrorCode::Store).
pub(crate) fn keep_aside(path: &Path, aside: &Path) -> Result<(), Fault> {
    let linked = match std::fs::remove_file(aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => std::fs::hard_link(path, aside).or_else(|_no_links_here| {
            let bytes = std::fs::read(path)?;
            replace(aside, aside.parent().unwrap_or_else(|| Path::new(".")), &bytes)
        }),
    };
    match linked {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Fault::file(aside, "write", &error))
        },
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(windows)]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    // NTFS journals the rename; a folder can't be opened for flushing.
    Ok(())
}
