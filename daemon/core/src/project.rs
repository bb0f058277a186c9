//! Which project a folder belongs to: the rules, over what was read from the disk.
//!
//! A project is the nearest folder above with a `.git`; all linked worktrees of a repository are one
//! project, that of the main one. A linked worktree's `.git` is a file that names a folder
//! elsewhere, and a file can name anything: an unpacked archive could name the repository whose
//! accounts it would like to use. So the name alone proves nothing. It counts when the folder that
//! it names lies in the `worktrees/` of the repository that it names as its common one, and that
//! folder (which only the repository's owner can write) names this `.git` file back. Anything else
//! is a project of its own, without the other's accounts.
//!
//! Pure: paths come in canonical, as text or as components; nothing is looked up here.

use std::path::{Path, PathBuf};

/// What makes a folder a project where there is no `.git`.
pub const MARKERS: [&str; 6] =
    [".cma.toml", "package.json", "Cargo.toml", "go.mod", "pyproject.toml", ".codex"];
/// A `.git` file and the pointers in a worktree's folder are one line.
pub const MAX_POINTER: u64 = 4096;
/// Letters of the folder's name that a key shows.
const SHOWN: usize = 40;
/// Hex digits of the path's hash in a key: 48 bits.
const HASHED: usize = 12;

/// The path in a `.git` file (`gitdir: PATH`), as it is written there.
pub fn gitdir(text: &str) -> Option<&str> {
    line(text)?.strip_prefix("gitdir:").map(str::trim).filter(|path| !path.is_empty())
}

/// The one line of a pointer file.
pub fn line(text: &str) -> Option<&str> {
    let mut lines = text.lines();
    let line = lines.next()?.trim_end();
    let clean =
        !line.is_empty() && !line.contains('\0') && lines.all(|more| more.trim().is_empty());
    clean.then_some(line)
}

/// What was found behind a `.git` file; every path canonical.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The `.git` file itself.
    pub dot_git: PathBuf,
    /// The folder that it names.
    pub gitdir: PathBuf,
    /// What that folder's `commondir` names.
    pub common: Option<PathBuf>,
    /// What that folder's `gitdir` names.
    pub back: Option<PathBuf>,
    /// Whether the common folder is a repository's (`HEAD` and `objects` are there).
    pub repository: bool,
}

/// Why a `.git` file is not that of a linked worktree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// It names a folder outside of any `worktrees/`: a submodule, or a repository kept apart.
    Apart,
    /// It claims to be a worktree of a repository that doesn't know it.
    Forged(&'static str),
}

/// The main folder of the repository that a `.git` file belongs to.
///
/// # Errors
/// Why the folder is a project of its own.
pub fn main_of(evidence: &Evidence) -> Result<PathBuf, Own> {
    let Evidence { dot_git, gitdir, common, back, repository } = evidence;
    let worktrees =
        gitdir.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "worktrees"));
    let Some(home) = worktrees.and_then(Path::parent) else { return Err(Own::Apart) };
    let Some(common) = common else {
        return Err(Own::Forged("the folder it names has no `commondir`"));
    };
    if common != home {
        return Err(Own::Forged("its `commondir` is another repository"));
    }
    if !repository {
        return Err(Own::Forged("the folder it names is no repository"));
    }
    if back.as_ref() != Some(dot_git) {
        return Err(Own::Forged("the repository doesn't name it back"));
    }
    // A bare repository has no folder of its own beside it.
    let inside = common.file_name().is_some_and(|name| name == ".git");
    Ok(common.parent().filter(|_| inside).unwrap_or(common).to_path_buf())
}

/// A path as it is hashed: forward slashes, and one spelling where the file system knows no case.
pub fn spelling(path: &str, caseless: bool) -> String {
    let path = path.strip_prefix(r"\\?\").unwrap_or(path).replace('\\', "/");
    let path = if path.len() > 1 { path.trim_end_matches('/') } else { &path };
    if caseless { path.to_lowercase() } else { path.to_owned() }
}

/// A project's key: its folder's name as far as a file name may show it, and the first digits of
/// the SHA-256 (`hex`) of its path's [`spelling`].
pub fn key(path: &str, hex: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = name.chars().map(safe).take(SHOWN).collect();
    let name = name.trim_matches(['.', '-']);
    let name = if name.is_empty() { "project" } else { name };
    format!("{name}-{}", hex.get(..HASHED).unwrap_or(hex))
}

/// Whether a text has the form of a [`key`], so that it may be a folder's name.
pub fn is_key(text: &str) -> bool {
    let safe = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let hash = |hash: &str| {
        hash.len() == HASHED && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    text.rsplit_once('-').is_some_and(|(name, tail)| {
        !name.is_empty() && !name.starts_with('.') && name.len() <= SHOWN && hash(tail)
    }) && text.chars().all(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence() -> Evidence {
        Evidence {
            dot_git: "/w/linked/.git".into(),
            gitdir: "/r/main/.git/worktrees/linked".into(),
            common: Some("/r/main/.git".into()),
            back: Some("/w/linked/.git".into()),
            repository: true,
        }
    }

    #[test]
    fn a_linked_worktree_belongs_to_the_main_one() {
        assert_eq!(main_of(&evidence()), Ok("/r/main".into()));
        let bare = Evidence {
            gitdir: "/r/bare.git/worktrees/linked".into(),
            common: Some("/r/bare.git".into()),
            ..evidence()
        };
        assert_eq!(main_of(&bare), Ok("/r/bare.git".into()));
    }

    #[test]
    fn what_the_repository_does_not_confirm_is_a_project_of_its_own() {
        let forged = |change: fn(&mut Evidence)| {
            let mut evidence = evidence();
            change(&mut evidence);
            main_of(&evidence).unwrap_err()
        };
        assert!(matches!(forged(|e| e.back = None), Own::Forged(_)));
        assert!(matches!(forged(|e| e.back = Some("/w/other/.git".into())), Own::Forged(_)));
        assert!(matches!(forged(|e| e.common = None), Own::Forged(_)));
        assert!(matches!(forged(|e| e.common = Some("/r/victim/.git".into())), Own::Forged(_)));
        assert!(matches!(forged(|e| e.repository = false), Own::Forged(_)));
        assert_eq!(forged(|e| e.gitdir = "/r/main/.git/modules/sub".into()), Own::Apart);
        assert_eq!(forged(|e| e.gitdir = "/worktrees".into()), Own::Apart);
        // The repository itself named as a worktree's folder: it is not under `worktrees/`.
        assert_eq!(forged(|e| e.gitdir = "/r/victim/.git".into()), Own::Apart);
        // Deeper than one folder below `worktrees/` is nothing git makes.
        assert_eq!(forged(|e| e.gitdir = "/r/main/.git/worktrees/a/b".into()), Own::Apart);
    }

    #[test]
    fn a_pointer_is_one_clean_line() {
        assert_eq!(gitdir("gitdir: /a/b\n"), Some("/a/b"));
        assert_eq!(gitdir("gitdir: ../x y\r\n"), Some("../x y"));
        for bad in ["", "gitdir:", "gitdir:  \n", "/a/b", "gitdir: /a\ngitdir: /b", "gitdir: /a\0b"]
        {
            assert_eq!(gitdir(bad), None, "{bad:?}");
        }
        assert_eq!(line("../..\n"), Some("../.."));
    }

    #[test]
    fn a_key_shows_the_folder_and_is_a_safe_file_name() {
        let hex = "0123456789abcdef";
        assert_eq!(key("/home/a/My Project", hex), "My-Project-0123456789ab");
        assert_eq!(key("/", hex), "project-0123456789ab");
        assert_eq!(key("/x/..", hex), "project-0123456789ab");
        assert_eq!(key("/x/.dot", hex), "dot-0123456789ab");
        for path in ["/a/ü", "/a/b c", "/", "/x/..", "/x/.dot", &format!("/{}", "n".repeat(99))] {
            let key = key(path, hex);
            assert!(is_key(&key) && key != "global", "{key}");
        }
        for bad in [
            "global",
            "",
            "-0123456789ab",
            "../a-0123456789ab",
            "a-0123456789AB",
            "a-0",
            "a/b-0123456789ab",
        ] {
            assert!(!is_key(bad), "{bad}");
        }
    }

    #[test]
    fn one_folder_has_one_spelling() {
        assert_eq!(spelling(r"C:\Src\App\", true), "c:/src/app");
        assert_eq!(spelling(r"\\?\C:\Src", true), "c:/src");
        assert_eq!(spelling("/Src/App/", false), "/Src/App");
        assert_eq!(spelling("/", false), "/");
    }
}
