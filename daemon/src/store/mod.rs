//! Durable truth: accounts, the person's choices, the root's secret.
//!
//! Few small files, each replaced whole ([`atomic`]), each with a checksum ([`record`]). This module
//! is their only writer; the order of writes is its business: a renewal's note is durable before
//! the request leaves, a new credential before anyone may use it.
//!
//! All functions here block on the disk. The daemon calls them off its event loop, one at a time
//! (`Roster`'s writer lock), so two changes of one account can't cross.

pub(crate) mod atomic;
pub(crate) mod import;
pub(crate) mod record;

use crate::fault::Fault;
use cma_core::identity::AccountId;
use cma_proto::{endpoint::Root, error::ErrorCode};
use record::{Record, RenewalNote};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is kept besides the accounts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The pinned account and since when (seconds since 1970).
    pub(crate) pin: Option<(String, u64)>,
    /// The port picked for this root.
    pub(crate) port: Option<u16>,
    /// The highest place ever given to an account, so that a place is never given twice.
    #[serde(default)]
    pub(crate) last_order: u32,
    /// Workspaces that new launches are limited to everywhere; empty for no limit.
    #[serde(default)]
    pub(crate) workspaces: Vec<String>,
}

/// The root's files.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

/// The root's secret: what client keys are made from.
const SECRET_BYTES: usize = 32;

impl Store {
    pub(crate) fn new(root: &Root) -> Self {
        Self { root: root.path().to_path_buf() }
    }

    /// Settles what a killed daemon left behind. Before anything else is written.
    ///
    /// A temporary file that is whole and holds the credential right after the current one is that
    /// credential: the issuer gave it, and it exists nowhere else. It takes its place. Everything
    /// else is half-written and goes.
    ///
    /// # Errors
    /// [`ErrorCode::Store`].
    pub(crate) fn sweep(&self) -> Result<(), Fault> {
        let folder = self.root.join("accounts");
        for path in atomic::unfinished(&folder)? {
            let Ok(Some(found)) = record::open::<Record>(&path) else { continue };
            let Ok(Some(known)) = record::open::<Record>(&self.account_file(&found.id, "")) else {
                continue;
            };
            if found.id == known.id && found.generation == known.generation + 1 {
                self.save_account(&found)?;
            }
        }
        atomic::sweep(&self.root)?;
        atomic::sweep(&folder)
    }

    fn account_file(&self, id: &str, kind: &str) -> PathBuf {
        self.root.join("accounts").join(format!("{id}{kind}.json"))
    }

    /// All accounts, in order of their place.
    ///
    /// # Errors
    /// [`ErrorCode::Store`] when any is damaged: starting without it would look like a lost login.
    pub(crate) fn accounts(&self) -> Result<Vec<Record>, Fault> {
        let folder = self.root.join("accounts");
        let entries =
            std::fs::read_dir(&folder).map_err(|error| Fault::file(&folder, "read", &error))?;
        let mut records = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| Fault::file(&folder, "read", &error))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(id) = name.strip_suffix(".json").filter(|id| !id.contains('.')) else {
                continue;
            };
            let Some(record) = record::open::<Record>(&path)? else { continue };
            if record.id != id {
                return Err(Fault::new(
                    ErrorCode::Store,
                    format!("`{}` holds account {}, not {id}", path.display(), record.id),
                    format!("move it away: `mv {0} {0}.damaged`", path.display()),
                ));
            }
            records.push(record);
        }
        records.sort_by(|a, b| (a.order, &a.id).cmp(&(b.order, &b.id)));
        Ok(records)
    }

    /// Saves an account; the generation before is kept beside it.
    pub(crate) fn save_account(&self, record: &Record) -> Result<(), Fault> {
        let path = self.account_file(&record.id, "");
        atomic::keep_aside(&path, &self.account_file(&record.id, ".previous"))?;
        atomic::write(&path, &record::seal(record)?)
    }

    /// Moves an account's file to `removed/`, where the login waits for second thoughts.
    pub(crate) fn remove_account(&self, id: &AccountId, at: u64) -> Result<PathBuf, Fault> {
        let folder = self.root.join("removed");
        crate::dirs::private_dir(&folder)?;
        let from = self.account_file(id.as_str(), "");
        let to = folder.join(format!("{id}-{at}.json"));
        std::fs::rename(&from, &to).map_err(|error| Fault::file(&from, "move", &error))?;
        atomic::remove(&self.account_file(id.as_str(), ".previous"))?;
        // The note of a renewal without an answer stays: should this credential come back, what was
        // sent of it was sent. One of an older generation says nothing and is dropped when read.
        Ok(to)
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
        record::open(&newest).ok().flatten()
    }

    /// The note of a renewal whose outcome was not stored.
    pub(crate) fn renewal_note(&self, id: &AccountId) -> Result<Option<RenewalNote>, Fault> {
        record::open(&self.account_file(id.as_str(), ".renewal"))
    }

    /// Makes "renewal of generation g sent at t" durable.
    pub(crate) fn note_renewal(&self, id: &AccountId, note: &RenewalNote) -> Result<(), Fault> {
        atomic::write(&self.account_file(id.as_str(), ".renewal"), &record::seal(note)?)
    }

    /// Takes the note back, when its outcome is stored or nothing can have been sent.
    pub(crate) fn clear_renewal_note(&self, id: &AccountId) -> Result<(), Fault> {
        atomic::remove(&self.account_file(id.as_str(), ".renewal"))
    }

    pub(crate) fn state(&self) -> Result<State, Fault> {
        Ok(record::open(&self.root.join("state.json"))?.unwrap_or_default())
    }

    pub(crate) fn save_state(&self, state: &State) -> Result<(), Fault> {
        atomic::write(&self.root.join("state.json"), &record::seal(state)?)
    }

    /// The root's secret, made at the first start.
    pub(crate) fn secret(&self) -> Result<[u8; SECRET_BYTES], Fault> {
        let path = self.root.join("root.key");
        match std::fs::read(&path) {
            Ok(bytes) => bytes.try_into().map_err(|_length| {
                Fault::new(
                    ErrorCode::Store,
                    format!("`{}` is damaged", path.display()),
                    format!(
                        "remove it: `rm {}`; running CLIs must be started again",
                        path.display()
                    ),
                )
            }),
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
