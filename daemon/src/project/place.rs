//! Where a folder's project lies: the file access behind `cma_core::project`.
//!
//! Every path is made canonical before it is compared or hashed, so that a symbolic link, `..` or
//! another spelling leads to the same project. Nothing found on the way is trusted to say where the
//! project is: a `.git` file's pointers are evidence, and the rules decide.

use cma_core::project::{self, Evidence, MARKERS, MAX_POINTER, Own};
use ring::digest;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A folder's project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Names it.
    pub(crate) key: String,
    /// Its main folder.
    pub(crate) main: PathBuf,
    /// The working tree that the folder is in: the main folder, or a linked worktree's.
    pub(crate) tree: PathBuf,
    /// Why a `.git` file that claims to belong to another repository was not believed.
    pub(crate) forged: Option<&'static str>,
}

impl Place {
    /// What is to be said of a `.git` file that was not believed.
    pub(crate) fn apart(&self, why: &str) -> String {
        format!(
            "the `.git` of `{}` claims another repository and isn't believed ({why}): it is a \
             project of its own; for a worktree that was moved run `git worktree repair` there",
            self.tree.display()
        )
    }
}

/// The project of a folder; none where there is no repository and no marker of one.
///
/// `root` is the folder of cma itself: what holds it (a home with its `.codex`) is no project.
pub(crate) fn locate(dir: &Path, root: &Path) -> io::Result<Option<Place>> {
    let dir = fs::canonicalize(dir)?;
    let root = fs::canonicalize(root).unwrap_or_else(|_unmade| root.to_path_buf());
    if let Some(tree) = dir.ancestors().find(|folder| exists(&folder.join(".git"))) {
        let (main, forged) = match main_of(&tree.join(".git")) {
            Ok(Some(main)) => (main, None),
            Ok(None) | Err(Own::Apart) => (tree.to_path_buf(), None),
            Err(Own::Forged(why)) => (tree.to_path_buf(), Some(why)),
        };
        let key = key_of(&main);
        return Ok(Some(Place { key, main, tree: tree.to_path_buf(), forged }));
    }
    let marked = |folder: &&Path| {
        let marker = |name: &&str| {
            let marker = folder.join(name);
            !root.starts_with(&marker) && exists(&marker)
        };
        MARKERS.iter().any(marker)
    };
    Ok(dir.ancestors().find(marked).map(|folder| Place {
        key: key_of(folder),
        main: folder.to_path_buf(),
        tree: folder.to_path_buf(),
        forged: None,
    }))
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// The main folder that a `.git` leads to; none when it is a folder itself.
fn main_of(dot_git: &Path) -> Result<Option<PathBuf>, Own> {
    if fs::metadata(dot_git).is_ok_and(|meta| meta.is_dir()) {
        return Ok(None);
    }
    let unreadable = Own::Forged("it can't be read");
    let here = dot_git.parent().ok_or(unreadable)?;
    // A link to a worktree's own file would borrow that worktree's proof.
    if fs::symlink_metadata(dot_git).is_ok_and(|meta| meta.is_symlink()) {
        return Err(Own::Forged("it is a symbolic link"));
    }
    let text = pointer(dot_git).ok_or(unreadable)?;
    let named = project::gitdir(&text).ok_or(Own::Forged("it is no `.git` file"))?;
    let missing = Own::Forged("the folder it names is not there");
    let gitdir = fs::canonicalize(here.join(named)).map_err(|_missing| missing)?;
    let inside = |name: &str| {
        let text = pointer(&gitdir.join(name))?;
        fs::canonicalize(gitdir.join(project::line(&text)?)).ok()
    };
    let common = inside("commondir");
    let repository = common
        .as_ref()
        .is_some_and(|common| common.join("HEAD").is_file() && common.join("objects").is_dir());
    let dot_git = fs::canonicalize(here).map_err(|_gone| unreadable)?.join(".git");
    project::main_of(&Evidence { dot_git, back: inside("gitdir"), gitdir, common, repository })
        .map(Some)
}

fn pointer(path: &Path) -> Option<String> {
    let small = fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_POINTER);
    small.then(|| fs::read_to_string(path).ok()).flatten()
}

fn key_of(main: &Path) -> String {
    // A path that is no Unicode is hashed by what can be shown of it; the rest is its parents.
    let path = project::spelling(&main.to_string_lossy(), caseless(main));
    project::key(&path, &hex(path.as_bytes()))
}

/// Whether the file system takes another case for the same folder.
fn caseless(folder: &Path) -> bool {
    let Some(name) = folder.file_name().and_then(|name| name.to_str()) else {
        return cfg!(windows);
    };
    let other: String = name
        .chars()
        .map(|c| if c.is_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
        .collect();
    if other == name {
        return cfg!(windows);
    }
    // Where both spellings are one file (and not a link to it), case means nothing here.
    same(folder, &folder.with_file_name(other))
}

#[cfg(unix)]
fn same(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (fs::symlink_metadata(one), fs::symlink_metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        (Ok(_), Err(_)) | (Err(_), _) => false,
    }
}

#[cfg(windows)]
fn same(one: &Path, other: &Path) -> bool {
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other,
        (Ok(_), Err(_)) | (Err(_), _) => true,
    }
}

/// SHA-256 in hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository as git lays it, and a linked worktree of it.
    fn repository(dir: &Path) -> (PathBuf, PathBuf) {
        let (main, linked) = (dir.join("main"), dir.join("linked"));
        let gitdir = main.join(".git/worktrees/linked");
        for folder in [&main.join("src"), &main.join(".git/objects"), &gitdir, &linked.join("deep")]
        {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(main.join(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
        fs::write(linked.join(".git"), format!("gitdir: {}\n", gitdir.display())).unwrap();
        fs::write(gitdir.join("commondir"), "../..\n").unwrap();
        fs::write(gitdir.join("gitdir"), format!("{}\n", linked.join(".git").display())).unwrap();
        (main, linked)
    }

    fn at(dir: &Path, root: &Path) -> Place {
        locate(dir, root).unwrap().unwrap()
    }

    #[test]
    fn a_linked_worktree_and_a_folder_below_are_the_main_project() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let (main, linked) = repository(dir.path());
        let of_main = at(&main, &root);
        assert_eq!(at(&main.join("src"), &root), of_main);
        let of_linked = at(&linked.join("deep"), &root);
        assert_eq!((&of_linked.key, &of_linked.main), (&of_main.key, &of_main.main));
        assert_eq!(
            (of_linked.tree.file_name().unwrap(), of_linked.forged),
            ("linked".as_ref(), None)
        );
        assert!(project::is_key(&of_main.key) && of_main.key.starts_with("main-"), "{of_main:?}");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&main, dir.path().join("alias")).unwrap();
            assert_eq!(at(&dir.path().join("alias/src"), &root), of_main);
            // A link in another case is no other spelling: it must not change the project's key.
            std::os::unix::fs::symlink(&main, dir.path().join("MAIN")).unwrap();
            assert_eq!(at(&main, &root), of_main);
        }
    }

    #[test]
    fn forged_pointers_lead_to_a_project_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let (main, linked) = repository(dir.path());
        let key = at(&main, &root).key;
        let evil = dir.path().join("evil");
        fs::create_dir_all(evil.join("fake/worktrees/linked")).unwrap();
        let write = |path: &str, text: String| fs::write(evil.join(path), text).unwrap();
        let shown = |path: &Path| path.display().to_string();
        let cases = [
            // The real worktree's folder, which names another `.git` back.
            format!("gitdir: {}\n", shown(&main.join(".git/worktrees/linked"))),
            // The repository itself.
            format!("gitdir: {}\n", shown(&main.join(".git"))),
            // A folder of its own whose commondir names the victim.
            "gitdir: fake/worktrees/linked\n".to_owned(),
            format!("gitdir: {}\n", shown(&main.join(".git/worktrees/none"))),
            "gitdir: /\n".to_owned(),
            "nonsense".to_owned(),
            String::new(),
        ];
        write("fake/worktrees/linked/commondir", format!("{}\n", shown(&main.join(".git"))));
        write("fake/worktrees/linked/gitdir", format!("{}\n", shown(&evil.join(".git"))));
        for text in cases {
            write(".git", text.clone());
            let place = at(&evil, &root);
            assert_ne!(place.key, key, "{text}");
            assert!(place.key.starts_with("evil-"), "{text}: {place:?}");
        }
        #[cfg(unix)]
        {
            fs::remove_file(evil.join(".git")).unwrap();
            std::os::unix::fs::symlink(linked.join(".git"), evil.join(".git")).unwrap();
            let place = at(&evil, &root);
            assert!(place.key.starts_with("evil-") && place.forged.is_some(), "{place:?}");
            fs::remove_file(evil.join(".git")).unwrap();
            std::os::unix::fs::symlink(main.join(".git"), evil.join(".git")).unwrap();
            assert!(at(&evil, &root).key.starts_with("evil-"));
        }
        // The real one stops counting when the repository no longer names it.
        fs::write(main.join(".git/worktrees/linked/gitdir"), "/elsewhere/.git\n").unwrap();
        let place = at(&linked, &root);
        assert!(place.key != key && place.forged.is_some(), "{place:?}");
    }

    #[test]
    fn without_a_repository_the_nearest_marker_counts_and_a_home_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("home/.codex/multi-auth");
        fs::create_dir_all(&root).unwrap();
        let plain = dir.path().join("home/plain/sub");
        fs::create_dir_all(&plain).unwrap();
        assert_eq!(
            locate(&plain, &root).unwrap(),
            None,
            "the home's own `.codex` makes no project"
        );
        fs::write(dir.path().join("home/plain/go.mod"), "").unwrap();
        assert!(at(&plain, &root).key.starts_with("plain-"));
        fs::write(plain.join("Cargo.toml"), "").unwrap();
        assert!(at(&plain, &root).key.starts_with("sub-"));
        fs::create_dir_all(dir.path().join("home/.git")).unwrap();
        assert!(at(&plain, &root).key.starts_with("home-"), "a repository comes before markers");
        assert!(locate(&dir.path().join("not there"), &root).is_err());
    }
}
