//! The calls by which the root's truth reaches the disk: the one layer below `store` and `dirs`.
//!
//! Nothing else writes truth. So this is where a killed daemon and a lost supply of power are
//! simulated: after each call stands a named crash point ([`crate::crash`]), and in unit tests each
//! call is put on a tape, from which every state that a disk may legally show after a loss of power
//! is made (`store/tests/power.rs`).

use crate::crash::{self, Kind, Step};
use std::{
    io::{self, Write as _},
    path::Path,
};

#[cfg(test)]
pub(crate) mod tape;

/// Puts a call on the tape of a test.
#[cfg(test)]
use tape::put;

/// No tape outside tests.
#[cfg(not(test))]
macro_rules! put {
    ($($call:tt)*) => {};
}

/// Replaces `path` by `bytes`: a temporary file beside it (0600, its name begins with `prefix`),
/// durable, renamed, the name durable.
pub(crate) fn replace(path: &Path, prefix: &str, bytes: &[u8]) -> io::Result<()> {
    replace_after(path, prefix, bytes, || Ok(()))
}

/// The same, with something to do between the moment from which a start would find the new content
/// and the one at which the old loses its name.
pub(crate) fn replace_after(
    path: &Path,
    prefix: &str,
    bytes: &[u8],
    between: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let (folder, kind) = (folder_of(path), Kind::of(path));
    // tempfile makes it 0600 and removes it again on every way out but `persist`.
    let mut temp = tempfile::Builder::new().prefix(prefix).tempfile_in(folder)?;
    put!(Create(temp.path().to_owned()));
    crash::step(kind, Step::Created);
    temp.write_all(bytes)?;
    put!(Write(temp.path().to_owned(), bytes.to_vec()));
    crash::step(kind, Step::Written);
    temp.as_file().sync_all()?;
    put!(Sync(temp.path().to_owned()));
    crash::step(kind, Step::Synced);
    between()?;
    put!(Rename(temp.path().to_owned(), path.to_owned()));
    persist(temp, path)?;
    crash::step(kind, Step::Renamed);
    sync_folder(folder)?;
    crash::step(kind, Step::FolderSynced);
    Ok(())
}

#[cfg(unix)]
fn persist(temp: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    temp.persist(path).map(drop).map_err(|error| error.error)
}

/// A scanner or a backup that holds the file open lets go after moments; until then Windows refuses
/// (openai/codex#41578 shows what it costs to give up at once).
#[cfg(windows)]
fn persist(mut temp: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    let mut pause = std::time::Duration::from_millis(10);
    loop {
        match temp.persist(path) {
            Ok(_file) => return Ok(()),
            Err(failed)
                if failed.error.kind() == io::ErrorKind::PermissionDenied
                    && pause < std::time::Duration::from_secs(2) =>
            {
                temp = failed.file;
                std::thread::sleep(pause);
                pause *= 2;
            },
            Err(failed) => return Err(failed.error),
        }
    }
}

/// Gives the file a second name, not yet durable.
pub(crate) fn link(path: &Path, second: &Path) -> io::Result<()> {
    std::fs::hard_link(path, second)?;
    put!(Link(path.to_owned(), second.to_owned()));
    crash::step(Kind::of(second), Step::Linked);
    Ok(())
}

/// Takes a name away, not yet durably.
pub(crate) fn unlink(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)?;
    put!(Unlink(path.to_owned()));
    crash::step(Kind::of(path), Step::Unlinked);
    Ok(())
}

/// Takes a name away, durably.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    unlink(path)?;
    sync_folder(folder_of(path))?;
    crash::step(Kind::of(path), Step::UnlinkSynced);
    Ok(())
}

/// Moves a file into another folder. At each moment, and after a loss of power at each moment, it
/// has at least one of the two names: the new one is durable before the old one goes.
pub(crate) fn shift(from: &Path, to: &Path, prefix: &str) -> io::Result<()> {
    match link(from, to) {
        Ok(()) => {
            sync_folder(folder_of(to))?;
            crash::step(Kind::of(to), Step::FolderSynced);
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
        Err(_no_links_here) => replace(to, prefix, &std::fs::read(from)?)?,
    }
    remove(from)
}

/// Makes a folder, durably where the system can. `Ok(false)` when something is there already.
pub(crate) fn make_folder(path: &Path) -> io::Result<bool> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Ok(()) => {
            put!(MakeFolder(path.to_owned()));
            sync_folder(folder_of(path))?;
            Ok(true)
        },
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// The folder a name stands in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Makes the names in a folder durable.
#[cfg(unix)]
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    std::fs::File::open(folder)?.sync_all()?;
    put!(SyncFolder(folder.to_owned()));
    Ok(())
}

/// NTFS journals names; a folder can't be opened for flushing.
#[cfg(windows)]
#[expect(clippy::unnecessary_wraps, reason = "the signature is the other systems'")]
pub(crate) fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}
