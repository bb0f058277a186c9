//! What the roster does with backups and the seal: one change at a time, and what follows in memory.
//!
//! All functions here block on the disk, and some on a key derivation.

use super::{Roster, name};
use crate::{
    fault::Fault,
    store::{
        State,
        backup::{Listed, Worth},
        keyring::Keyring,
        record::Record,
        seal::{Method, SealReport},
    },
};
use cma_core::identity::AccountId;
use cma_proto::error::ErrorCode;
use secrecy::SecretString;
use std::sync::Arc;

/// One line of a restore.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) what: &'static str,
    pub(crate) why: String,
    /// What goes into the pool; none when the pool's own stays.
    record: Option<Record>,
}

/// What a restore did or would do.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) lines: Vec<Line>,
    /// The automatic backup made first.
    pub(crate) before: Option<String>,
    /// Accounts that are new or changed.
    pub(crate) changed: Vec<Arc<Record>>,
    /// The pin that came back.
    pub(crate) pin: Option<AccountId>,
}

/// What an unlock has left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unlocked {
    /// The root was open.
    Nothing,
    /// The accounts were read; what lies beside them is to be.
    Accounts,
    /// As [`Self::Accounts`], but those were read by an unlock before, which couldn't read the rest.
    Beside,
}

impl Roster {
    /// Reads the accounts and choices, once the root is open.
    pub(super) fn read_in(&self) -> Result<(), Fault> {
        self.read_in_as(&mut self.writer.lock())
    }

    /// The same as the writer that one is already.
    fn read_in_as(&self, state: &mut State) -> Result<(), Fault> {
        *state = self.store.state()?;
        if self.is_locked() {
            return Ok(());
        }
        let begun = std::time::Instant::now();
        let records: Vec<_> = self.store.accounts()?.into_iter().map(Arc::new).collect();
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::info!(accounts = records.len(), micros, "accounts read");
        // Choices that were lost must not give a place twice.
        let last = records.iter().map(|record| record.order).max().unwrap_or(0);
        state.last_order = state.last_order.max(last);
        for record in &records {
            self.entrust(record);
        }
        *self.records.write() = records;
        Ok(())
    }

    /// Whether the root is sealed and nobody has opened it.
    pub(crate) fn is_locked(&self) -> bool {
        self.store.is_locked()
    }

    /// Makes a backup.
    pub(crate) fn back_up(&self, name: Option<&str>) -> Result<Listed, Fault> {
        let _writer = self.writer.lock();
        let made_up;
        let name = match name {
            Some(name) => name,
            None => {
                made_up = format!("b{}", crate::clock::unix());
                &made_up
            },
        };
        self.store.backup(name, None)
    }

    /// Removes the oldest automatic backups.
    pub(crate) fn prune(&self, keep: usize) -> Result<Vec<String>, Fault> {
        let _writer = self.writer.lock();
        self.store.prune(keep)
    }

    /// Brings back what the pool no longer has, or says what that would be.
    ///
    /// # Errors
    /// [`ErrorCode::Ambiguous`] when a label of the backup is another account's by now: nothing is
    /// changed then.
    pub(crate) fn restore(&self, backup: &str, preview: bool) -> Result<Outcome, Fault> {
        let mut state = self.writer.lock();
        let kept = self.store.open_backup(backup)?;
        let lines: Vec<_> = kept.accounts.iter().map(|record| self.weigh(record)).collect();
        let taken = self.taken_labels(&lines);
        if !taken.is_empty() {
            return Err(Fault::new(
                ErrorCode::Ambiguous,
                format!(
                    "nothing was restored: {} in the backup is another account in the pool",
                    taken.join(", ")
                ),
                "give those accounts other names with `cmactl label`, then restore again",
            ));
        }
        let pin = kept.state.pin.filter(|_pin| state.pin.is_none());
        let mut outcome = Outcome { lines, before: None, changed: Vec::new(), pin: None };
        let some = outcome.lines.iter().any(|line| line.record.is_some());
        if preview || !some {
            return Ok(outcome);
        }
        outcome.before = self.store.auto_backup("restore")?;
        for line in &mut outcome.lines {
            let Some(mut record) = line.record.take() else { continue };
            let id = AccountId::from_written(&record.id);
            if self.get(&id).is_none() {
                let order = state.last_order + 1;
                record.order = order;
                let new = State { last_order: order, ..state.clone() };
                self.store.save_state(&new)?;
                *state = new;
            }
            outcome.changed.push(self.save(record)?);
        }
        if let Some((id, since)) =
            pin.filter(|(id, _)| self.get(&AccountId::from_written(id)).is_some())
        {
            outcome.pin = Some(AccountId::from_written(&id));
            let new = State { pin: Some((id, since)), ..state.clone() };
            self.store.save_state(&new)?;
            *state = new;
        }
        Ok(outcome)
    }

    /// What becomes of one account of a backup.
    fn weigh(&self, kept: &Record) -> Line {
        let current = self.get(&AccountId::from_written(&kept.id));
        let line = |what, why: &str, record| Line {
            id: kept.id.clone(),
            name: name(kept).to_owned(),
            what,
            why: why.to_owned(),
            record,
        };
        if let Some(current) = current {
            let why = match &current.gone {
                Some(_) => "the pool has it; its login is gone and the backup's is no newer",
                None if current.same_refresh_token(kept) => "the pool has it as it is",
                None => "the pool has it with a newer credential",
            };
            return line("kept", why, None);
        }
        match self.store.worth(kept, None) {
            Worth::Whole(record) => line("added", "with its login", Some(record)),
            Worth::Stripped(record) if record.gone.is_none() => line(
                "added",
                "it serves until its access token expires and then needs a login: its refresh token \
                 may have been used since",
                Some(record),
            ),
            Worth::Stripped(record) => line(
                "added",
                "it needs a login: its refresh token may have been used since",
                Some(record),
            ),
        }
    }

    fn taken_labels(&self, lines: &[Line]) -> Vec<String> {
        let records = self.all();
        let new = lines.iter().filter_map(|line| line.record.as_ref());
        new.filter_map(|record| {
            let label = record.label.as_deref()?;
            let taken = records.iter().any(|other| {
                other.id != record.id
                    && other.label.as_deref().is_some_and(|known| known.eq_ignore_ascii_case(label))
            });
            taken.then(|| format!("`{label}`"))
        })
        .collect()
    }

    /// Seals the root.
    pub(crate) fn seal_on(
        &self,
        by: &Method,
        keyring: &Result<Keyring, String>,
    ) -> Result<SealReport, Fault> {
        let _writer = self.writer.lock();
        self.store.seal_on(by, keyring)
    }

    /// Writes the root in clear again.
    pub(crate) fn seal_off(&self, keyring: &Result<Keyring, String>) -> Result<SealReport, Fault> {
        let _writer = self.writer.lock();
        self.store.seal_off(keyring)
    }

    /// Seals the root under a new key.
    pub(crate) fn rekey(
        &self,
        by: &Method,
        keyring: &Result<Keyring, String>,
    ) -> Result<SealReport, Fault> {
        let _writer = self.writer.lock();
        self.store.rekey(by, keyring)
    }

    /// Opens a sealed root and reads the accounts in. What lies beside them is unread from here on, until
    /// whoever asked has read it.
    pub(crate) fn unlock(
        &self,
        passphrase: Option<&SecretString>,
        keyring: &Result<Keyring, String>,
    ) -> Result<Unlocked, Fault> {
        // One writer from the first look to the last: a change that waits meanwhile must find what is
        // there, or it would be written as if the root were empty.
        let mut state = self.writer.lock();
        if self.is_locked() {
            self.store.set_unread(true);
            match passphrase {
                Some(passphrase) => self.store.unlock(passphrase)?,
                None => self.store.unlock_by(keyring)?,
            }
        } else if !self.store.is_unread() {
            return Ok(Unlocked::Nothing);
        } else if !self.records.read().is_empty() {
            return Ok(Unlocked::Beside);
        }
        self.read_in_as(&mut state)?;
        Ok(Unlocked::Accounts)
    }
}
