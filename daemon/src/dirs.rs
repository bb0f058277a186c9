//! The root's folders: made private, and found private.
//!
//! Permissions are asserted each time, not only set on creation: a root that others may enter, or
//! that belongs to somebody else, is refused before anything is read from it.

use crate::{disk, fault::Fault};
use cma_proto::{endpoint::Root, error::ErrorCode};
use std::{io, path::Path};

/// Makes the root and its folders where they are missing, and checks them.
///
/// # Errors
/// [`ErrorCode::Store`] naming the path, when one can't be made or isn't private.
pub(crate) fn prepare(root: &Root) -> Result<(), Fault> {
    let path = root.path();
    if let Some(parent) = path.parent() {
        parents(parent)?;
    }
    private_dir(path)?;
    for name in ["run", "accounts", "log"] {
        private_dir(&path.join(name))?;
    }
    if let Some(folder) = root.socket().parent() {
        private_dir(folder)?;
    }
    Ok(())
}

/// Makes a folder of mode 0700, or checks that it is one of ours.
pub(crate) fn private_dir(path: &Path) -> Result<(), Fault> {
    disk::make_folder(path).map_err(|error| cant_make(path, &error))?;
    assert_private(path)
}

/// Makes the folders above the root where they are missing, and their names durable: a login that
/// was saved below a folder that a loss of power takes away is lost.
fn parents(path: &Path) -> Result<(), Fault> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        parents(above)?;
    }
    std::fs::create_dir_all(path)
        .and_then(|()| disk::sync_folder(disk::folder_of(path)))
        .map_err(|error| cant_make(path, &error))
}

fn cant_make(path: &Path, error: &io::Error) -> Fault {
    Fault::new(
        ErrorCode::Store,
        format!("the folder `{}` can't be made: {error}", path.display()),
        "check what stands there, or choose another root with `CODEX_MULTI_AUTH_DIR`",
    )
}

#[cfg(unix)]
fn assert_private(path: &Path) -> Result<(), Fault> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let meta = std::fs::symlink_metadata(path).map_err(|e| Fault::file(path, "look at", &e))?;
    let refuse = |what: String, hint: String| Err(Fault::new(ErrorCode::Store, what, hint));
    if !meta.is_dir() {
        return refuse(
            format!("`{}` is not a folder", path.display()),
            "move it away, or choose another root with `CODEX_MULTI_AUTH_DIR`".to_owned(),
        );
    }
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != own {
        return refuse(
            format!("`{}` belongs to user id {}, not to yours ({own})", path.display(), meta.uid()),
            "choose a root of your own with `CODEX_MULTI_AUTH_DIR`".to_owned(),
        );
    }
    if meta.mode() & 0o077 != 0 {
        // Ours, but open to others: a umask or a copy did that, and closing it harms nobody.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
            .map_err(|error| Fault::file(path, "make private", &error))?;
    }
    Ok(())
}

#[cfg(windows)]
fn assert_private(_path: &Path) -> Result<(), Fault> {
    // A folder in the profile inherits the profile's access list: its owner and the system.
    Ok(())
}
