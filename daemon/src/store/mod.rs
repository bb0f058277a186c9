//! Durable truth: accounts, the person's choices, the root's secret.
//!
//! Few small files, each replaced whole ([`atomic`]), each with a checksum ([`record`]), in clear or
//! sealed ([`disk`], [`seal`]). This module is their only writer; the order of writes is its
//! business: a renewal's note is durable before the request leaves, a new credential before anyone
//! may use it. What is found damaged is mended from what is still whole ([`repair`], [`backup`]).
//!
//! All functions here block on the disk. The daemon calls them off its event loop, one at a time
//! (`Roster`'s writer lock), so two changes of one account can't cross.

pub(crate) mod aside;
pub(crate) mod atomic;
pub(crate) mod backup;
mod crypt;
mod disk;
pub(crate) mod import;
pub(crate) mod keyring;
pub(crate) mod pins;
pub(crate) mod record;
mod repair;
pub(crate) mod seal;

use crate::fault::Fault;
use crate::truth::Truth;
use cma_core::identity::AccountId;
use cma_proto::endpoint::Root;
use disk::Disk;
use record::{Record, RenewalNote};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc};

/// What is kept besides the accounts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The pinned account and since when (seconds since 1970). Required, so that another file's
    /// content is not taken for choices.
    #[serde(deserialize_with = "Option::deserialize")]
    pub(crate) pin: Option<(String, u64)>,
    /// The port picked for this root.
    pub(crate) port: Option<u16>,
    /// The highest place ever given to an account, so that a place is never given twice.
    #[serde(default)]
    pub(crate) last_order: u32,
    /// When the notice on terms was given to a client to show (seconds since 1970).
    #[serde(default)]
    pub(crate) notice_at: Option<u64>,
    /// Workspaces that new launches are limited to everywhere; empty for no limit.
    #[serde(default)]
    pub(crate) workspaces: Vec<String>,
}

/// The root's files.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
    disk: Arc<Disk>,
}

/// The root's secret: what client keys are made from.
const SECRET_BYTES: usize = 32;

impl Store {
    pub(crate) fn new(root: &Root) -> Self {
        Self { root: root.path().to_path_buf(), disk: Arc::default() }
    }

    /// Who may write here.
    pub(crate) fn ownership(&self) -> Truth {
        Truth::new(Root::at(&self.root), self.disk.given.clone())
    }

    /// One account as it stands on the disk.
    pub(crate) fn account(&self, id: &AccountId) -> Result<Option<Record>, Fault> {
        self.get(&self.account_file(id.as_str(), ""))
    }

    fn account_file(&self, id: &str, kind: &str) -> PathBuf {
        self.root.join("accounts").join(format!("{id}{kind}.json"))
    }

    /// Saves an account; the generation before is kept beside it, without its refresh token when
    /// that is or may be spent.
    pub(crate) fn save_account(&self, record: &Record) -> Result<(), Fault> {
        let path = self.account_file(&record.id, "");
        // A renewed credential exists nowhere else: what can't be kept of the old one must not keep
        // the new one from the disk.
        if let Err(fault) = self.keep_previous(&path, record) {
            // A renewed credential exists nowhere else: a copy of the old one that can't be made must
            // not keep it from the disk. A stale copy could hold a spent token, so it goes.
            tracing::warn!(account = record.id, error = %fault, "the generation before is not kept");
            self.drop_file(&self.account_file(&record.id, ".previous"))?;
        }
        self.put(&path, record)
    }

    /// Moves an account's file to `removed/`, where the login waits for second thoughts.
    pub(crate) fn remove_account(&self, id: &AccountId, at: u64) -> Result<PathBuf, Fault> {
        let folder = self.root.join("removed");
        crate::dirs::private_dir(&folder)?;
        self.disk.writable()?;
        let from = self.account_file(id.as_str(), "");
        let to = folder.join(format!("{id}-{at}.json"));
        atomic::shift(&from, &to)?;
        self.drop_file(&self.account_file(id.as_str(), ".previous"))?;
        // The note of a renewal without an answer stays: should this credential come back, what was
        // sent of it was sent. One of an older generation says nothing and is dropped when read.
        self.remove_asides(id)?;
        Ok(to)
    }

    /// Keeps what came of a removed account's renewal, newer than what waits there.
    pub(crate) fn save_removed(&self, record: &Record, at: u64) -> Result<(), Fault> {
        let folder = self.root.join("removed");
        crate::dirs::private_dir(&folder)?;
        let path = folder.join(format!("{}-{at}.json", record.id));
        self.put(&path, record)
    }

    /// What an account was when it was last removed. A file that can't be read is as good as none.
    pub(crate) fn removed_account(&self, id: &AccountId) -> Option<Record> {
        let entries = std::fs::read_dir(self.root.join("removed")).ok()?;
        let theirs = format!("{id}-");
        let newest = entries
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(theirs.as_bytes()))
            .map(|entry| entry.path())
            .max()?;
        self.get(&newest).ok().flatten()
    }

    /// The note of a renewal whose outcome was not stored.
    pub(crate) fn renewal_note(&self, id: &AccountId) -> Result<Option<RenewalNote>, Fault> {
        self.note_or_doubt(id)
    }

    /// Makes "renewal of generation g sent at t" durable.
    pub(crate) fn note_renewal(&self, id: &AccountId, note: &RenewalNote) -> Result<(), Fault> {
        self.put(&self.account_file(id.as_str(), ".renewal"), note)
    }

    /// Takes the note back, when its outcome is stored or nothing can have been sent.
    pub(crate) fn clear_renewal_note(&self, id: &AccountId) -> Result<(), Fault> {
        self.drop_file(&self.account_file(id.as_str(), ".renewal"))
    }

    /// Makes the person's choices durable.
    pub(crate) fn save_state(&self, state: &State) -> Result<(), Fault> {
        let path = self.root.join("state.json");
        self.keep_aside(&path, &self.root.join("state.previous.json"))?;
        self.put(&path, state)?;
        self.tell_seal_the_port(state.port)
    }

    /// The root's secret, made at the first start. It is never sealed: it opens nothing but this
    /// daemon's own loopback port to this user's own programs, and CLIs that run while a sealed root
    /// is locked have to be told so instead of being refused.
    pub(crate) fn secret(&self) -> Result<[u8; SECRET_BYTES], Fault> {
        let path = self.root.join("root.key");
        match std::fs::read(&path) {
            Ok(bytes) => match bytes.try_into() {
                Ok(secret) => Ok(secret),
                Err(_length) => {
                    let what = "it has another length; CLIs that run need a new start";
                    self.set_aside(&path, what)?;
                    self.mended(&path, what, "nothing: a new one was made");
                    atomic::remove(&path)?;
                    self.secret()
                },
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut secret = [0; SECRET_BYTES];
                getrandom::fill(&mut secret)
                    .map_err(|error| Fault::internal(format!("no randomness: {error}")))?;
                atomic::write(&path, &secret)?;
                Ok(secret)
            },
            Err(error) => Err(Fault::file(&path, "read", &error)),
        }
    }
}

#[cfg(test)]
mod tests;
