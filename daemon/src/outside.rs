//! Other programs' files, opened read only and bounded.
//!
//! A link is followed (dotfile tools make them), but only a regular file is read: a pipe would never
//! end and a device may do something.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    path::Path,
};

/// Opens a regular file.
///
/// # Errors
/// The system's, and [`io::ErrorKind::InvalidInput`] for what is no regular file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    // A pipe without a writer would hold the open itself.
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NONBLOCK | libc::O_NOCTTY,
    );
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
}

/// All of a regular file, of at most `limit` bytes.
///
/// # Errors
/// As [`open`], and [`io::ErrorKind::FileTooLarge`] for a larger one.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_is_read_and_only_so_much_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "four").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("zeros")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RUSR).unwrap();
        let kind = |name: &str, limit| read(&at(name), limit).map_err(|error| error.kind());
        assert_eq!(kind("file", 4).unwrap(), b"four");
        assert_eq!(kind("link", 4).unwrap(), b"four");
        assert_eq!(kind("file", 3), Err(io::ErrorKind::FileTooLarge));
        assert_eq!(kind("none", 3), Err(io::ErrorKind::NotFound));
        for no_file in ["zeros", "pipe", "."] {
            assert_eq!(kind(no_file, 3), Err(io::ErrorKind::InvalidInput), "{no_file}");
        }
    }
}
