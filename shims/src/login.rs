//! What `codex login` and `codex logout` mean for the pool, said before they run.
//!
//! They work on the person's own `auth.json` and go on as they are: environment untouched, nothing
//! asked. A line or two on stderr, and only where the root has accounts: that is one look into a
//! folder, with no daemon started for it.

use crate::{Lookup, say, set};
use cma_proto::endpoint::Root;
use std::{ffi::OsString, fs, path::Path};

/// Which of the two an invocation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Login,
    Logout,
}

/// Says it, if there is anything to say.
pub(crate) fn explain(args: &[OsString], lookup: Lookup<'_>) {
    let Some(verb) = verb(args) else { return };
    let Ok(root) = Root::from_env() else { return };
    if !has_accounts(root.path()) {
        return;
    }
    let mirrored = root.path().join("mirror").join("state.json").is_file();
    for line in lines(verb, mirrored, set(lookup, "CMA_SHIM_PID").is_some()) {
        say(format_args!("{line}"));
    }
}

/// `login` and `logout` are commands where they are the first word; `login status` and help change
/// nothing.
fn verb(args: &[OsString]) -> Option<Verb> {
    let mut words = args.iter().filter_map(|arg| arg.to_str());
    let verb = match words.next()? {
        "login" => Verb::Login,
        "logout" => Verb::Logout,
        _ => return None,
    };
    let harmless = words.any(|word| ["status", "help", "-h", "--help"].contains(&word));
    (!harmless).then_some(verb)
}

fn has_accounts(root: &Path) -> bool {
    let entries = fs::read_dir(root.join("accounts")).into_iter().flatten().flatten();
    // `<id>.json`; what stands beside an account has a second dot.
    entries.into_iter().any(|entry| {
        let name = entry.file_name();
        name.to_str()
            .and_then(|name| name.strip_suffix(".json"))
            .is_some_and(|id| !id.contains('.'))
    })
}

fn lines(verb: Verb, mirrored: bool, inside: bool) -> Vec<&'static str> {
    if inside {
        // A tool of a running codex: nobody reads it there.
        return Vec::new();
    }
    let mut lines = match verb {
        Verb::Login => vec![
            "this signs in for plain codex and first revokes the login that is in auth.json; if the \
             pool has that one, it needs a new login too",
            "the pool learns of the new login by `cmactl import`",
        ],
        Verb::Logout => vec![
            "this revokes the login in auth.json at the issuer; if the pool has that one, it needs a \
             new login afterwards (`cmactl status` says so)",
            "to keep the pool's login, move auth.json away instead of logging out",
        ],
    };
    if mirrored {
        lines.push(
            "auth.json is a mirror of a pool account: run `cmactl mirror off` before, or it is the \
             pool's login that ends",
        );
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verb_of(words: &str) -> Option<Verb> {
        verb(&words.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn only_what_changes_the_login_is_explained() {
        assert_eq!(verb_of("login"), Some(Verb::Login));
        assert_eq!(verb_of("login --device-auth"), Some(Verb::Login));
        assert_eq!(verb_of("logout"), Some(Verb::Logout));
        for other in ["login status", "logout --help", "exec logout", "", "features"] {
            assert_eq!(verb_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_mirror_is_named_and_tools_are_left_in_peace() {
        assert_eq!(lines(Verb::Logout, false, false).len(), 2);
        assert!(lines(Verb::Login, true, false).iter().any(|line| line.contains("mirror off")));
        assert_eq!(lines(Verb::Logout, true, true), Vec::<&str>::new());
    }
}
