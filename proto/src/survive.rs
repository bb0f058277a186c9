//! What keeps logins from being lost: backups, and sealing at rest.
//!
//! Of the messages that carry a secret, this family has the other one: a passphrase on its way to the
//! daemon, and a recovery code once on its way back, both as [`Secret`].

use serde::{Deserialize, Serialize};
use std::fmt;

/// A passphrase or recovery code. `Debug` shows none of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What opens a sealed root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SealBy {
    /// A passphrase, asked for at every start.
    Passphrase(Secret),
    /// One key in the operating system's keyring, and a recovery code.
    Keyring,
}

/// What a client asks of this family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Survive {
    /// Keep all accounts and choices as they are now. Answer: [`Survived::Backup`].
    BackupCreate {
        /// Its name; one is made up without.
        name: Option<String>,
    },
    /// Answer: [`Survived::Backups`].
    BackupList,
    /// Bring back what the pool no longer has. Answer: [`Survived::Restored`].
    BackupRestore {
        /// Which.
        name: String,
        /// Only say what would happen.
        preview: bool,
    },
    /// Remove the oldest automatic backups. Answer: [`Survived::Pruned`].
    BackupPrune {
        /// How many of them stay.
        keep: u32,
    },
    /// Seal everything that holds a credential. Answer: [`Survived::Seal`].
    SealOn {
        /// What opens it.
        by: SealBy,
    },
    /// Write everything in clear again. Answer: [`Survived::Seal`].
    SealOff,
    /// Answer: [`Survived::Seal`].
    SealStatus,
    /// Seal everything under a new key. Answer: [`Survived::Seal`].
    SealRekey {
        /// What opens it from now on.
        by: SealBy,
    },
    /// Open a sealed root. Answer: [`Survived::Seal`].
    Unlock {
        /// A passphrase or recovery code; without one the keyring is asked.
        passphrase: Option<Secret>,
    },
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Survived {
    /// To [`Survive::BackupCreate`].
    Backup(BackupInfo),
    /// To [`Survive::BackupList`], newest first.
    Backups(Vec<BackupInfo>),
    /// To [`Survive::BackupRestore`].
    Restored(Restored),
    /// To [`Survive::BackupPrune`]: the names that went.
    Pruned(Vec<String>),
    /// To everything about the seal.
    Seal(SealInfo),
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupInfo {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub made_at: u64,
    /// What it was made before; none when a person made it.
    pub before: Option<String>,
    /// How many accounts it holds.
    pub accounts: u32,
    /// Its size.
    pub bytes: u64,
    /// Why it can't be used, when it can't.
    pub damaged: Option<String>,
}

/// What a restore did or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// The backup's name.
    pub name: String,
    /// Nothing was changed.
    pub preview: bool,
    /// Account by account.
    pub accounts: Vec<RestoredAccount>,
    /// The automatic backup that was made first.
    pub before: Option<String>,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

/// One account of a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredAccount {
    /// Account id.
    pub id: String,
    /// How it is called by its person.
    pub name: String,
    /// `added`, `mended`, `kept`.
    pub what: String,
    /// Why, and what its credential is worth.
    pub why: String,
}

/// The state of the seal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealInfo {
    /// `off`, `on`, `locked`, `sealing`, `unsealing`.
    pub state: String,
    /// What opens it: `passphrase`, `keyring`, `recovery`.
    pub by: Vec<String>,
    /// Since when it is sealed.
    pub since: Option<u64>,
    /// Files that are sealed.
    pub sealed: u32,
    /// Files that hold credentials or choices and are not.
    pub plain: u32,
    /// Told once, when a keyring is chosen: opens the root without it.
    pub recovery: Option<Secret>,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}
