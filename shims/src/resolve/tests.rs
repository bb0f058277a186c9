use super::*;
use std::{
    ffi::OsString,
    sync::atomic::{AtomicU32, Ordering},
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A folder of this test's own, gone at its end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("cma-shim-resolve-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }

    /// A program called codex in a folder of its own.
    fn codex(&self, folder: &str) -> PathBuf {
        let folder = self.0.join(folder);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(NAMES[0]);
        fs::write(&path, format!("#!/bin/sh\n# {}\n", folder.display())).unwrap();
        set_mode(&path, 0o755);
        path
    }

    /// `find` over `folders`, by the shim at `own`.
    fn find(
        &self,
        own: &Path,
        chosen: Option<&Path>,
        folders: &[&str],
        tried: usize,
    ) -> Result<PathBuf, Failure> {
        let join = |folder: &&str| match *folder {
            "" => PathBuf::new(),
            folder => self.0.join(folder),
        };
        let path = env::join_paths(folders.iter().map(join)).unwrap();
        let lookup = |name: &str| match name {
            "PATH" => Some(path.clone()),
            "CMA_CODEX_BIN" => chosen.map(OsString::from),
            _ => None,
        };
        find(&lookup, look(own), tried)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[cfg(windows)]
fn set_mode(_path: &Path, _mode: u32) {}

#[test]
fn the_first_that_is_not_us() {
    let place = Place::new();
    let (own, first, _second) = (place.codex("shim"), place.codex("a"), place.codex("b"));
    let found = place.find(&own, None, &["empty", "shim", "a", "b"], 0);
    assert_eq!(found, Ok(first.clone()));
    assert_eq!(place.find(&own, None, &["a", "shim", "b"], 0), Ok(first));
}

#[cfg(unix)]
#[test]
fn we_are_known_under_every_name() {
    let place = Place::new();
    let (own, real) = (place.codex("shim"), place.codex("real"));
    for folder in ["soft", "hard", "soft2"] {
        fs::create_dir_all(place.0.join(folder)).unwrap();
    }
    std::os::unix::fs::symlink(&own, place.0.join("soft/codex")).unwrap();
    std::os::unix::fs::symlink(place.0.join("soft/codex"), place.0.join("soft2/codex")).unwrap();
    fs::hard_link(&own, place.0.join("hard/codex")).unwrap();
    let all = ["shim", "soft", "soft2", "hard", "real"];
    assert_eq!(place.find(&own, None, &all, 0), Ok(real.clone()));
    // Started through the link, we are the file behind it.
    assert_eq!(place.find(&place.0.join("soft2/codex"), None, &all, 0), Ok(real));
}

#[cfg(unix)]
#[test]
fn what_cannot_run_is_passed_over() {
    let place = Place::new();
    let (own, dull, real) = (place.codex("shim"), place.codex("dull"), place.codex("real"));
    set_mode(&dull, 0o644);
    fs::create_dir_all(place.0.join("folder/codex")).unwrap();
    fs::create_dir_all(place.0.join("dangling")).unwrap();
    std::os::unix::fs::symlink("/nowhere", place.0.join("dangling/codex")).unwrap();
    let all = ["dull", "folder", "dangling", "", "real"];
    assert_eq!(place.find(&own, None, &all, 0), Ok(real));
}

#[cfg(unix)]
#[test]
fn a_round_of_recursion_takes_the_next_file() {
    let place = Place::new();
    let (own, first, second) = (place.codex("shim"), place.codex("a"), place.codex("b"));
    fs::create_dir_all(place.0.join("again")).unwrap();
    std::os::unix::fs::symlink(&first, place.0.join("again/codex")).unwrap();
    let all = ["a", "again", "shim", "b"];
    assert_eq!(place.find(&own, None, &all, 1), Ok(second.clone()));
    assert_eq!(place.find(&own, None, &all, 2).unwrap_err().code, CANNOT_RUN);
    // What was named comes first, and is not met again.
    assert_eq!(place.find(&own, Some(&first), &all, 1), Ok(second));
}

#[test]
fn none_says_how_to_get_one() {
    let place = Place::new();
    let own = place.codex("shim");
    let failure = place.find(&own, None, &["shim", "empty"], 0).unwrap_err();
    assert_eq!(failure.code, NOT_FOUND);
    assert!(failure.line.contains("npm install -g @openai/codex"), "{failure:?}");
    assert!(failure.line.contains("CMA_CODEX_BIN"), "{failure:?}");
}

#[test]
fn what_was_named_is_taken_or_refused() {
    let place = Place::new();
    let (own, named, _other) = (place.codex("shim"), place.codex("named"), place.codex("other"));
    let code = |chosen: &Path| {
        place.find(&own, Some(chosen), &["other"], 0).map_err(|failure| failure.code)
    };
    assert_eq!(code(&named), Ok(named.clone()));
    assert_eq!(code(&place.0.join("nothing")), Err(NOT_FOUND));
    assert_eq!(code(&own), Err(CANNOT_RUN));
    assert_eq!(code(&place.0.join("named")), Err(CANNOT_RUN));
}
