//! What is done with a damaged file: set aside as evidence, and mended from what is still whole.
//!
//! The order, best first: the current file → one written whole and not yet named (`.new-…`, a
//! daemon killed in between) → a file that holds this account under another's name → the generation
//! before → the newest backup. The damaged file itself is kept in `damaged/`, whatever it looks like;
//! `status` says what was mended and from what.
//!
//! A refresh token is single-use, so an old copy of an account is dangerous: its token may have been
//! sent, and sending it again can make the issuer end the whole login. Hence two rules.
//!
//! *Writing*: a previous generation keeps its refresh token only while that token is still the
//! current one (an edit of a label, of `enabled`). As soon as a newer credential or the end of the
//! login is saved, the copy beside it is written first and without the token (files of schema 1, from
//! before this rule, count as if the token were spent). So a previous generation that has a token
//! proves that it is the current one, and nothing is lost by going back to it; when a renewal was
//! under way, its note is still there and the ordinary rule of the unknown outcome holds.
//!
//! *Reading*: what can't prove that (a stripped generation, a backup) gives back everything but the
//! refresh token. Its access token serves while it lives; after that the account says that it needs a
//! login and why.

use super::{
    State, Store, atomic,
    disk::Unread,
    record::{Gone, Record, RenewalNote, Unfit},
};
use crate::{clock, fault::Fault};
use cma_core::identity::AccountId;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// The first schema whose previous generations hold no spent token.
const STRIPPED_SINCE: u32 = 2;
/// An access token with less life than this is no reason to keep an account in service, in seconds.
const WORTHWHILE: u64 = 60;

/// What a look into `accounts/` found.
#[derive(Default)]
struct Found {
    whole: BTreeMap<String, Record>,
    /// Where an account should be and isn't, and why.
    hurt: Vec<(String, PathBuf, &'static str)>,
    /// Whole records under another account's name.
    strays: Vec<(Record, u32)>,
}

impl Store {
    /// Settles what a killed daemon left behind. Before anything else is written.
    ///
    /// A temporary file that is whole and holds the credential right after the current one is that
    /// credential: the issuer gave it, and it exists nowhere else. It takes its place; so it does
    /// when the current one is damaged. Everything else is half-written and goes.
    ///
    /// # Errors
    /// [`ErrorCode::Store`](cma_proto::error::ErrorCode::Store).
    pub(crate) fn sweep(&self) -> Result<(), Fault> {
        if self.is_locked() {
            // What it is can't be read yet: nothing goes before the root is open.
            return Ok(());
        }
        let folder = self.root.join("accounts");
        for path in atomic::unfinished(&folder)? {
            let Ok(Some((found, _schema))) = self.try_get_as::<Record>(&path, None) else {
                continue;
            };
            let current = self.account_file(&found.id, "");
            match self.try_get::<Record>(&current) {
                Ok(Some((known, _schema))) => {
                    if found.id == known.id && found.generation == known.generation + 1 {
                        self.save_account(&found)?;
                    }
                },
                Err(Unread::Unfit(Unfit::Damaged(what))) => {
                    self.set_aside(&current, what)?;
                    self.put(&current, &found)?;
                    self.mended(&current, what, "a newer file that was written whole, no loss");
                },
                Ok(None) | Err(_) => {},
            }
        }
        for folder in self.truth_folders() {
            atomic::sweep(&folder)?;
        }
        Ok(())
    }

    /// The folders that hold truth, as far as they exist.
    pub(super) fn truth_folders(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.root.clone()];
        folders.extend(["accounts", "removed", "backups", "damaged"].map(|n| self.root.join(n)));
        folders.retain(|folder| folder.is_dir());
        folders
    }

    /// All accounts, in order of their place. Damaged ones are mended on the way, or set aside.
    ///
    /// # Errors
    /// [`ErrorCode::Store`](cma_proto::error::ErrorCode::Store) when a file can't be read or is of a newer version.
    pub(crate) fn accounts(&self) -> Result<Vec<Record>, Fault> {
        let mut found = self.look_through()?;
        for (id, path, what) in std::mem::take(&mut found.hurt) {
            if let Some(record) = self.mend(&id, &path, what, &found.strays)? {
                found.whole.insert(id, record);
            }
        }
        let mut records: Vec<_> = found.whole.into_values().collect();
        records.sort_by(|a, b| (a.order, &a.id).cmp(&(b.order, &b.id)));
        Ok(records)
    }

    fn look_through(&self) -> Result<Found, Fault> {
        let folder = self.root.join("accounts");
        let failed = |error: std::io::Error| Fault::file(&folder, "read", &error);
        let mut found = Found::default();
        let (mut current, mut before) = (BTreeSet::new(), BTreeSet::new());
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(id) = name.strip_suffix(".previous.json") {
                before.insert(id.to_owned());
            }
            let Some(id) = name.strip_suffix(".json").filter(|id| !id.contains('.')) else {
                continue;
            };
            current.insert(id.to_owned());
            match self.try_get_as::<Record>(&path, None) {
                Ok(Some((record, _schema))) if record.id == id => {
                    found.whole.insert(record.id.clone(), record);
                },
                Ok(Some(stray)) => {
                    found.strays.push(stray);
                    found.hurt.push((id.to_owned(), path, "it holds another account"));
                },
                Ok(None) => {},
                Err(Unread::Unfit(Unfit::Damaged(what))) => {
                    found.hurt.push((id.to_owned(), path, what));
                },
                Err(Unread::Unfit(newer)) => return Err(newer.fault(&path)),
                Err(Unread::Fault(fault)) => return Err(fault),
            }
        }
        for id in before.difference(&current) {
            if self.removed_account(&AccountId::from_written(id)).is_some() {
                // Killed in the middle of a removal: what was meant is done.
                self.drop_file(&self.account_file(id, ".previous"))?;
                self.drop_file(&self.account_file(id, ".renewal"))?;
            } else {
                found.hurt.push((id.clone(), self.account_file(id, ""), "it is missing"));
            }
        }
        Ok(found)
    }

    /// Brings an account back from what is whole; `None` when nothing is.
    fn mend(
        &self,
        id: &str,
        path: &Path,
        what: &'static str,
        strays: &[(Record, u32)],
    ) -> Result<Option<Record>, Fault> {
        self.set_aside(path, what)?;
        let before = match self.try_get::<Record>(&self.account_file(id, ".previous")) {
            Ok(before) => before.filter(|(record, _schema)| record.id == id),
            Err(_damaged_too) => None,
        };
        let known = before.as_ref().map(|(record, _schema)| record.generation);
        let stray = strays
            .iter()
            .filter(|(record, _schema)| record.id == id)
            .max_by_key(|(record, _schema)| record.generation)
            // Without the generation before, only the very first one is surely the newest.
            .filter(|(record, _)| record.generation >= known.unwrap_or(1))
            .filter(|(record, _)| known.is_some() || record.generation == 1);
        let (record, from) = if let Some((record, _schema)) = stray {
            (record.clone(), "a file of another name, no loss")
        } else if let Some((record, schema)) = before {
            let live = schema >= STRIPPED_SINCE && record.tokens.refresh_token.is_some();
            if live {
                (record, "the generation before, which has the same credential")
            } else {
                (lost(&record), "the generation before; its refresh token was spent")
            }
        } else if let Some(record) = self.newest_backup_of(id) {
            (lost(&record), "a backup; its refresh token may be spent")
        } else {
            let before = self.account_file(id, ".previous");
            self.set_aside(&before, "nothing whole is left of its account")?;
            self.drop_file(path)?;
            self.drop_file(&before)?;
            let line = format!(
                "`{}` was damaged ({what}) and nothing whole is left of it: sign in again",
                self.shown(path)
            );
            tracing::error!(line, "store");
            self.disk.repairs.lock().push(line);
            return Ok(None);
        };
        self.put(path, &record)?;
        self.mended(path, what, from);
        Ok(Some(record))
    }

    /// Keeps the generation before the one that is about to be written. See the module's rules.
    pub(super) fn keep_previous(&self, path: &Path, next: &Record) -> Result<(), Fault> {
        let Ok(Some((known, schema))) = self.try_get::<Record>(path) else { return Ok(()) };
        let aside = self.account_file(&next.id, ".previous");
        let live = schema >= STRIPPED_SINCE
            && known.generation == next.generation
            && known.gone.is_none()
            && next.gone.is_none()
            && known.same_refresh_token(next);
        if live {
            self.keep_aside(path, &aside)
        } else {
            self.put(&aside, &known.without_refresh_token())
        }
    }

    /// A renewal's note. A damaged one still says that a token may have been sent: it counts as one
    /// sending of the current generation, so the token is sent once more at most.
    pub(super) fn note_or_doubt(&self, id: &AccountId) -> Result<Option<RenewalNote>, Fault> {
        let path = self.account_file(id.as_str(), ".renewal");
        match self.try_get(&path) {
            Ok(note) => Ok(note.map(|(note, _schema)| note)),
            Err(Unread::Unfit(Unfit::Damaged(what))) => {
                let Some(record) = self.get::<Record>(&self.account_file(id.as_str(), ""))? else {
                    return Ok(None);
                };
                self.set_aside(&path, what)?;
                let generation = record.generation;
                let note = RenewalNote { generation, sent_at: clock::unix(), attempts: 1 };
                self.put(&path, &note)?;
                self.mended(&path, what, "nothing: its renewal counts as sent");
                Ok(Some(note))
            },
            Err(Unread::Unfit(newer)) => Err(newer.fault(&path)),
            Err(Unread::Fault(fault)) => Err(fault),
        }
    }

    /// The person's choices, mended when they are damaged.
    pub(crate) fn state(&self) -> Result<State, Fault> {
        let path = self.root.join("state.json");
        if self.is_locked() {
            return Ok(State { port: self.port_of_the_seal(), ..State::default() });
        }
        let what = match self.try_get(&path) {
            Ok(Some((state, _schema))) => return Ok(state),
            Ok(None) => {
                let before = self.try_get(&self.root.join("state.previous.json"));
                let Ok(Some((state, _schema))) = before else { return Ok(State::default()) };
                self.put(&path, &state)?;
                self.mended(&path, "it was missing", "the one before");
                return Ok(state);
            },
            Err(Unread::Unfit(Unfit::Damaged(what))) => what,
            Err(Unread::Unfit(newer)) => return Err(newer.fault(&path)),
            Err(Unread::Fault(fault)) => return Err(fault),
        };
        self.set_aside(&path, what)?;
        let (state, from) = match self.try_get(&self.root.join("state.previous.json")) {
            Ok(Some((state, _schema))) => (state, "the one before"),
            Ok(None) | Err(_) => match self.newest_backup_state() {
                Some(state) => (state, "a backup"),
                None => (State::default(), "nothing: the pin is gone and the port is picked anew"),
            },
        };
        self.put(&path, &state)?;
        self.mended(&path, what, from);
        Ok(state)
    }

    /// Keeps a damaged file as evidence in `damaged/`. A missing one is fine.
    pub(super) fn set_aside(&self, path: &Path, what: &str) -> Result<(), Fault> {
        if !path.exists() {
            return Ok(());
        }
        let folder = self.root.join("damaged");
        crate::dirs::private_dir(&folder)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let at = clock::unix();
        let free = (0_u32..)
            .map(|n| {
                folder.join(format!(
                    "{name}.{at}{}",
                    if n == 0 { String::new() } else { format!("-{n}") }
                ))
            })
            .find(|aside| !aside.exists())
            .ok_or_else(|| Fault::internal("no free name for evidence"))?;
        tracing::warn!(file = %path.display(), what, evidence = %free.display(), "damaged");
        atomic::keep_aside(path, &free)
    }

    /// Remembers what was found and what came of it.
    pub(super) fn mended(&self, path: &Path, what: &str, from: &str) {
        let line = format!(
            "`{}` was damaged ({what}) and was mended from {from}; the damaged file is in `damaged/`",
            self.shown(path)
        );
        tracing::warn!(line, "store");
        self.disk.repairs.lock().push(line);
    }

    /// A path as people see it: from the root.
    pub(super) fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }
}

/// A record whose newest credential is lost: everything but the refresh token.
pub(super) fn lost(record: &Record) -> Record {
    let now = clock::unix();
    let mut record = record.without_refresh_token();
    record.generation += 1;
    if record.gone.is_none() && record.expires_at.is_none_or(|at| at < now + WORTHWHILE) {
        let cause = "its credential was lost to a damaged file; the copy's refresh token is spent";
        record.gone = Some(Gone { cause: cause.to_owned(), since: now });
    }
    record
}
