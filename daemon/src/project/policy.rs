//! A folder's policy file, `.cma.toml`: which pool, which workspaces, which accounts.
//!
//! It comes with a repository, so it comes from anybody. It counts only when a person has allowed
//! exactly this content, and it can say nothing but names of things that the person has: there is no
//! key for an address, a token or a command, and an unknown key makes the whole file void.

use serde::Deserialize;
use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

/// Its name, in the working tree's main folder.
pub(crate) const FILE: &str = ".cma.toml";
/// A policy is a few lines.
const MAX_FILE: u64 = 16 * 1024;
/// Names in a list.
const MAX_NAMES: usize = 64;

/// What a policy file says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Policy {
    /// Which pool serves launches here; none leaves it to whether the project has accounts.
    pub(crate) pool: Option<Which>,
    /// Whether the global pool steps in when the project's own accounts can't serve.
    pub(crate) fallback: bool,
    /// Workspace ids that launches are limited to; empty for no limit.
    pub(crate) workspaces: Vec<String>,
    /// Labels, e-mails or ids of accounts that launches are limited to; empty for no limit.
    pub(crate) accounts: Vec<String>,
}

/// A pool by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Which {
    /// The project's own.
    Project,
    /// The one of everywhere else.
    Global,
}

/// A policy file as it was read once: what is hashed is what is parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where.
    pub(crate) path: PathBuf,
    /// SHA-256 of the content.
    pub(crate) sha256: String,
    /// What it says, or why it can't be understood.
    pub(crate) policy: Result<Policy, String>,
}

/// The policy file of a working tree, if it has one.
pub(crate) fn find(tree: &Path) -> Option<Found> {
    let path = tree.join(FILE);
    // Looked at before it is opened: opening a pipe would wait for ever.
    fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
    let file = fs::File::open(&path).ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).ok()?;
    let sha256 = super::place::hex(&bytes);
    let policy = match (bytes.len() as u64 > MAX_FILE, str::from_utf8(&bytes)) {
        (true, _) => Err("it is larger than any policy".to_owned()),
        (false, Err(_not_text)) => Err("it is no text".to_owned()),
        (false, Ok(text)) => parse(text),
    };
    Some(Found { path, sha256, policy })
}

/// Reads a policy.
///
/// # Errors
/// The line and what is wrong there, without quoting it.
pub(crate) fn parse(text: &str) -> Result<Policy, String> {
    let policy: Policy = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        // The first line alone: the message may go on with an excerpt.
        let said = error.message().lines().next().unwrap_or_default().to_owned();
        format!("line {}: {said}", 1 + before.matches('\n').count())
    })?;
    for (what, names) in [("workspaces", &policy.workspaces), ("accounts", &policy.accounts)] {
        let bad = |name: &String| {
            name.trim().is_empty() || name.len() > 256 || name.chars().any(char::is_control)
        };
        if names.len() > MAX_NAMES || names.iter().any(bad) {
            return Err(format!("`{what}` holds something that is no name"));
        }
    }
    if policy.fallback && policy.pool == Some(Which::Global) {
        return Err("`fallback` says nothing where `pool` is `global`".to_owned());
    }
    Ok(policy)
}

impl Policy {
    /// Names and values, for a person.
    pub(crate) fn says(&self) -> Vec<(String, String)> {
        let pool = match self.pool {
            Some(Which::Project) => "project",
            Some(Which::Global) => "global",
            None => "project if it has accounts, else global",
        };
        let mut says = vec![("pool", pool.to_owned()), ("fallback", self.fallback.to_string())];
        for (name, list) in [("workspaces", &self.workspaces), ("accounts", &self.accounts)] {
            if !list.is_empty() {
                says.push((name, list.join(", ")));
            }
        }
        says.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_names_things_and_nothing_else() {
        let policy = parse("pool = 'project'\nfallback = true\naccounts = ['work']\n").unwrap();
        assert_eq!((policy.pool, policy.fallback), (Some(Which::Project), true));
        assert_eq!(policy.says().len(), 3);
        assert_eq!(parse(""), Ok(Policy::default()));
        for bad in [
            "pool = 'other'",
            "upstream = 'https://evil.test'",
            "issuer = 'https://evil.test'",
            "access_token = 'x'",
            "command = 'rm'",
            "[env]\nA = '1'",
            "accounts = 'work'",
            "accounts = ['']",
            "workspaces = [\"a\\u0007\"]",
            "pool = 'global'\nfallback = true",
            "not toml",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let fault = parse("pool = 'project'\nhook = 'curl secret'").unwrap_err();
        assert!(fault.starts_with("line 2") && !fault.contains("curl"), "{fault}");
    }

    #[test]
    fn a_file_is_hashed_as_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(dir.path()), None);
        fs::write(dir.path().join(FILE), "fallback = true\n").unwrap();
        let one = find(dir.path()).unwrap();
        fs::write(dir.path().join(FILE), "fallback = true \n").unwrap();
        let other = find(dir.path()).unwrap();
        assert_eq!(one.policy, other.policy);
        assert_ne!(one.sha256, other.sha256, "any change is a change");
        fs::write(dir.path().join(FILE), vec![b'#'; 20_000]).unwrap();
        assert!(find(dir.path()).unwrap().policy.is_err());
        fs::remove_file(dir.path().join(FILE)).unwrap();
        fs::create_dir(dir.path().join(FILE)).unwrap();
        assert_eq!(find(dir.path()), None);
    }
}
