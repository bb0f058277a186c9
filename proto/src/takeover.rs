//! Taking over logins from other programs, and giving the pool's own away: messages and places.
//!
//! The daemon reads the files, so that no credential crosses the socket; what crosses is where to
//! look and what was found. The one exception is the passphrase of a sealed store, which a person
//! types at a client.

use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TakeoverRequest {
    /// Look for what can be taken over, and take it if asked. Answer: [`TakeoverReply::Report`].
    Scan(Scan),
    /// Write down what the pool has. Answer: [`TakeoverReply::Exported`].
    Export {
        /// Absolute path of a new file that gets the credentials too; none for metadata in the
        /// answer alone.
        secrets_to: Option<String>,
    },
}

/// Where to look, and whether to take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan {
    /// Take what was found; otherwise only tell.
    pub apply: bool,
    /// One absolute path (a file or a folder) instead of the usual places.
    pub from: Option<String>,
    /// The person's home folder.
    pub home: String,
    /// The Codex home folder.
    pub codex_home: String,
    /// Those of [`VARIABLES`] that are set.
    pub environment: Vec<(String, String)>,
    /// Opens sealed stores.
    pub passphrase: Option<Passphrase>,
}

/// A passphrase on its way to the daemon. `Debug` doesn't show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Passphrase(String);

impl Passphrase {
    /// Takes in what a person typed.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// Gives the text away.
    pub fn into_inner(self) -> String {
        self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TakeoverReply {
    /// To [`TakeoverRequest::Scan`].
    Report(Report),
    /// To [`TakeoverRequest::Export`].
    Exported(Exported),
}

/// What was found, and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether it was taken, or only looked at.
    pub applied: bool,
    /// The files that were there.
    pub sources: Vec<SourceInfo>,
    /// Every login in them.
    pub accounts: Vec<FoundInfo>,
    /// What else they hold.
    pub kept: Vec<KeptInfo>,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

/// One file of another program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceInfo {
    /// Whose format.
    pub format: String,
    /// Where.
    pub path: String,
    /// `read`, `sealed` (a passphrase is missing or wrong), `refused`, `empty`.
    pub state: String,
    /// Why it is not `read`.
    pub reason: Option<String>,
    /// How many logins it holds.
    pub accounts: u32,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

/// One login as a file gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundInfo {
    /// The account's id in the pool; none when nobody can say whose login it is.
    pub account: Option<String>,
    /// What the other program calls it.
    pub name: String,
    /// E-mail from the login.
    pub email: Option<String>,
    /// Plan from the login.
    pub plan: Option<String>,
    /// Workspace id from the login.
    pub workspace: Option<String>,
    /// Whose format.
    pub format: String,
    /// The file.
    pub path: String,
    /// `new`, `newer`, `same`, `older`, `conflicting`, `unusable`, as compared with the pool and
    /// with the other files.
    pub state: String,
    /// Why it is in that state.
    pub reason: String,
    /// Whether its credential is (or would be) taken.
    pub taken: bool,
    /// Its name in the pool afterwards.
    pub label: Option<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether it may serve.
    pub enabled: bool,
    /// The other program set it aside; it is kept and not used.
    pub flagged: bool,
    /// The project pool it was in; none for the global one.
    pub pool: Option<String>,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

/// Something else than a login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptInfo {
    /// What it is.
    pub what: String,
    /// The file.
    pub path: String,
    /// How many entries.
    pub count: u32,
    /// `kept` (durable under the root until something uses it) or `no_equivalent`.
    pub fate: String,
    /// Why, for a person.
    pub reason: String,
}

/// The pool written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Names the format, so that it can be told from others.
    pub format: String,
    /// Of the file's layout.
    pub layout: u32,
    /// Seconds since 1970.
    pub exported_at: u64,
    /// The file that got the credentials.
    pub secrets_in: Option<String>,
    /// The pinned account.
    pub pin: Option<String>,
    /// The pool, in order.
    pub accounts: Vec<ExportedAccount>,
}

/// One account without its credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedAccount {
    /// Stable short id.
    pub id: String,
    /// User id from the login.
    pub user: String,
    /// Workspace id from the login.
    pub workspace: String,
    /// E-mail from the login.
    pub email: Option<String>,
    /// Plan from the login.
    pub plan: Option<String>,
    /// A label given by the person.
    pub label: Option<String>,
    /// Whether it may serve.
    pub enabled: bool,
    /// Words its person put on it.
    pub tags: Vec<String>,
    /// A person's remark.
    pub notes: Option<String>,
    /// The pools it is in; none written is the global one.
    pub pools: Vec<String>,
    /// Where it is renewed.
    pub issuer: String,
    /// Where it is used.
    pub backend: String,
    /// When the access token expires.
    pub expires_at: Option<u64>,
    /// Why its login is gone, when it is.
    pub gone: Option<String>,
}

/// The name in [`Exported::format`].
pub const EXPORT_FORMAT: &str = "cma-export";

/// Variables with which other programs move their files.
pub const VARIABLES: [&str; 9] = [
    "CODEX_MULTI_AUTH_DIR",
    "CODEX_MULTI_AUTH_CONFIG_PATH",
    "CODEX_CLI_AUTH_PATH",
    "OPENCODE_MULTI_AUTH_STORE_DIR",
    "OPENCODE_MULTI_AUTH_STORE_FILE",
    "OPENCODE_MULTI_AUTH_CODEX_AUTH_FILE",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "CODEX_HOME",
];

/// Whose files may lie at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The official CLI's `auth.json`.
    Codex,
    /// A folder of `codex-multi-auth`.
    MultiAuth,
    /// A store of the OpenCode plugin.
    Plugin,
    /// OpenCode's own `auth.json`.
    OpenCode,
}

/// The accounts file of `codex-multi-auth` (2.8.7) in one of its folders.
pub const MULTI_AUTH_FILE: &str = "openai-codex-accounts.json";

/// Where other programs keep their logins, most telling first: folders for [`Kind::MultiAuth`],
/// files for the rest. `var` reads one of [`VARIABLES`].
pub fn places(
    home: &Path,
    codex_home: &Path,
    var: impl Fn(&str) -> Option<String>,
) -> Vec<(Kind, PathBuf)> {
    let named = |name: &str| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut found = Vec::new();
    // The variable names a pool of ours as well as a folder of theirs: who moved ours away from
    // theirs still has theirs at the usual place.
    found.extend(named("CODEX_MULTI_AUTH_DIR").map(|folder| (Kind::MultiAuth, folder)));
    found.push((Kind::MultiAuth, codex_home.join("multi-auth")));
    found.push((Kind::MultiAuth, home.join(".codex/multi-auth")));
    found.push((Kind::MultiAuth, home.join("DevTools/config/codex/multi-auth")));
    found.push((Kind::MultiAuth, home.join(".codex")));
    let config = named("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
    if let Some(file) = named("OPENCODE_MULTI_AUTH_STORE_FILE") {
        found.push((Kind::Plugin, file));
    } else if let Some(folder) = named("OPENCODE_MULTI_AUTH_STORE_DIR") {
        found.push((Kind::Plugin, folder.join("accounts.json")));
    } else {
        for config in [&config, &home.join(".config")] {
            found.push((Kind::Plugin, config.join("opencode-multi-auth/accounts.json")));
        }
    }
    for config in [&config, &home.join(".config")] {
        let array = "opencode/opencode-multi-auth-codex-accounts.json";
        found.push((Kind::Plugin, config.join(array)));
    }
    let data = named("XDG_DATA_HOME").unwrap_or_else(|| home.join(".local/share"));
    found.push((Kind::OpenCode, data.join("opencode/auth.json")));
    found.push((Kind::Codex, codex_home.join("auth.json")));
    for name in ["CODEX_CLI_AUTH_PATH", "OPENCODE_MULTI_AUTH_CODEX_AUTH_FILE"] {
        found.extend(named(name).map(|file| (Kind::Codex, file)));
    }
    let mut seen = Vec::new();
    found.retain(|place| {
        let first = !seen.contains(place);
        seen.push(place.clone());
        first
    });
    found
}

/// Whether anything lies at one of the usual places. Looks at names alone, reads nothing.
pub fn anything_there(
    home: &Path,
    codex_home: &Path,
    var: impl Fn(&str) -> Option<String>,
) -> bool {
    places(home, codex_home, var).into_iter().any(|(kind, path)| match kind {
        Kind::MultiAuth => path.join(MULTI_AUTH_FILE).is_file(),
        Kind::Codex | Kind::Plugin | Kind::OpenCode => path.is_file(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(vars: &[(&str, &str)]) -> Vec<(Kind, String)> {
        let var = |name: &str| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        places(Path::new("/h"), Path::new("/h/.codex"), var)
            .into_iter()
            .map(|(kind, path)| (kind, path.display().to_string()))
            .collect()
    }

    #[test]
    fn places_follow_the_variables_and_none_is_named_twice() {
        let usual = at(&[]);
        assert_eq!(usual.first(), Some(&(Kind::MultiAuth, "/h/.codex/multi-auth".to_owned())));
        assert!(usual.contains(&(Kind::Codex, "/h/.codex/auth.json".to_owned())));
        for (at, place) in usual.iter().enumerate() {
            assert!(!usual[..at].contains(place), "{place:?} twice");
        }
        let moved = at(&[("CODEX_MULTI_AUTH_DIR", "/m"), ("OPENCODE_MULTI_AUTH_STORE_FILE", "/s")]);
        assert_eq!(moved.first(), Some(&(Kind::MultiAuth, "/m".to_owned())));
        assert!(moved.contains(&(Kind::Plugin, "/s".to_owned())));
        assert!(moved.contains(&(Kind::MultiAuth, "/h/.codex/multi-auth".to_owned())));
        assert_eq!(moved.iter().filter(|(kind, _)| *kind == Kind::Plugin).count(), 2);
    }

    #[test]
    fn a_passphrase_is_not_shown() {
        let shown = format!("{:?}", Passphrase::new("open sesame".to_owned()));
        assert!(!shown.contains("sesame"));
    }
}
