//! The accounts as they are kept: who they are, what they are called, their credentials.
//!
//! The pool (`cma-core`) decides with generations and expiries; this is where the persons behind
//! them stand. Every change goes disk first, then memory, then the pool's input, under one writer
//! lock. Readers never wait for a disk: they take the current `Arc` of each record.

use crate::{
    clock,
    config::Config,
    crash::{self, Moment},
    fault::Fault,
    project::Bounds,
    store::{
        State, Store, import,
        record::{Gone, Record, Tokens},
    },
    trouble::Troubles,
    truth::Truth,
    vault::Vault,
};
use cma_core::{
    identity::AccountId,
    pool::Seed,
    scope::{GLOBAL, Pools},
    time::Wall,
    token::Generation,
};
use cma_proto::{error::ErrorCode, message::Imported};
use flights::Flights;
use parking_lot::{Mutex, RwLock};
use std::{path::Path, sync::Arc};

mod adopt;
mod flights;
pub(crate) mod keep;
mod members;
mod sign_in;
mod tagged;

pub(crate) use members::{members_of, written};
pub(crate) use sign_in::SignIn;

/// A label is shown in tables.
const MAX_LABEL: usize = 64;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Roster {
    store: Store,
    config: Arc<Config>,
    vault: Arc<Vault>,
    records: RwLock<Vec<Arc<Record>>>,
    truth: Truth,
    /// What stands in the way of all of them.
    troubles: Troubles,
    /// Held for the whole of a change, disk included; carries what stands in `state.json`.
    writer: Mutex<State>,
    /// Who is renewing, and which generations must not come again.
    pub(crate) flights: Flights,
}

/// A credential that a renewal brought.
#[derive(Debug)]
pub(crate) struct Renewed {
    pub(crate) tokens: Tokens,
    pub(crate) expires_at: Option<u64>,
    pub(crate) plan: Option<String>,
    pub(crate) email: Option<String>,
}

impl Roster {
    /// Reads everything the root holds.
    pub(crate) fn load(
        store: Store,
        config: Arc<Config>,
        vault: Arc<Vault>,
    ) -> Result<Self, Fault> {
        let roster = Self {
            truth: store.ownership(),
            store,
            config,
            vault,
            records: RwLock::default(),
            troubles: Troubles::default(),
            writer: Mutex::new(State::default()),
            flights: Flights::default(),
        };
        roster.read_in()?;
        Ok(roster)
    }

    /// Who may write what can't be lost.
    pub(crate) const fn truth(&self) -> &Truth {
        &self.truth
    }

    /// Takes in what another daemon saved of an account; `None` when it is not there any more. Blocks
    /// on the disk.
    pub(crate) fn reread(&self, id: &AccountId) -> Result<Option<Arc<Record>>, Fault> {
        let _writer = self.writer.lock();
        Ok(self.store.account(id)?.map(|record| self.known_as(record)))
    }

    /// What stands in the way of all accounts.
    pub(crate) const fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    pub(crate) const fn store(&self) -> &Store {
        &self.store
    }

    /// All records, in order of their place.
    pub(crate) fn all(&self) -> Vec<Arc<Record>> {
        self.records.read().clone()
    }

    /// One record, or what is kept of it when it has left the pool.
    pub(crate) fn get_or_removed(&self, id: &AccountId) -> Option<Arc<Record>> {
        self.get(id).or_else(|| self.store.removed_account(id).map(Arc::new))
    }

    /// One record.
    pub(crate) fn get(&self, id: &AccountId) -> Option<Arc<Record>> {
        self.records.read().iter().find(|record| record.id == id.as_str()).cloned()
    }

    /// The account that speaks for the pool where the CLI wants one identity: the launch's own, else
    /// the first in the list that is allowed. It stays the same while it is in the pool.
    pub(crate) fn face(&self, own: Option<&AccountId>, bounds: &Bounds) -> Option<Arc<Record>> {
        let records = self.records.read();
        let chosen = own.and_then(|id| records.iter().find(|record| record.id == id.as_str()));
        let first = || {
            let placed = records.iter().filter_map(|record| Some((bounds.place(record)?, record)));
            placed.min_by_key(|(place, _record)| *place).map(|(_place, record)| record)
        };
        chosen.filter(|record| bounds.place(record).is_some()).or_else(first).cloned()
    }

    /// Whether a record's credential was made for the issuer and backend of this daemon. It goes to no
    /// other: one that isn't at home is not in the vault, is not renewed and not revoked.
    pub(crate) fn is_home(&self, record: &Record) -> bool {
        record.issuer == self.config.issuer.base && record.backend == self.config.backend.base
    }

    /// Gives a credential to the vault, from which it is sent.
    fn entrust(&self, record: &Record) {
        if self.is_home(record) {
            self.vault.put(record);
        }
    }

    /// What the pool has to know of a record.
    pub(crate) fn seed(&self, record: &Record) -> Seed {
        Seed {
            id: AccountId::from_written(&record.id),
            order: record.order,
            workspace: record.workspace.as_str().into(),
            pools: Pools::of(&record.pools),
            plan: record.plan.as_deref().map(Into::into),
            name: name(record).into(),
            enabled: record.enabled,
            at_home: self.is_home(record),
            generation: Generation(record.generation),
            expires: record.expires_at.map(Wall::from_secs),
            gone: record
                .gone
                .as_ref()
                .map(|gone| (gone.cause.as_str().into(), Wall::from_secs(gone.since))),
            terms: tagged::terms(record),
        }
    }

    /// The record a person means by an index, e-mail, label, id or a unique prefix of these.
    pub(crate) fn select(&self, selector: &str) -> Result<Arc<Record>, Fault> {
        self.store.writable()?;
        let records = self.all();
        let wanted = selector.trim().to_lowercase();
        let exact: Vec<_> = records
            .iter()
            .enumerate()
            .filter(|(at, record)| {
                wanted == (at + 1).to_string()
                    || names(record).iter().any(|name| name.to_lowercase() == wanted)
            })
            .map(|(_at, record)| record)
            .collect();
        // A short number is an index: `remove 3` in a list of two must not find an id that begins
        // with 3.
        let index = wanted.len() < 4 && wanted.bytes().all(|byte| byte.is_ascii_digit());
        let matches = if exact.is_empty() && !index {
            let starts = |record: &&Arc<Record>| {
                names(record).iter().any(|name| name.to_lowercase().starts_with(&wanted))
            };
            records.iter().filter(starts).collect()
        } else {
            exact
        };
        match matches.as_slice() {
            [one] => Ok(Arc::clone(one)),
            [] => self.by_tag(selector),
            several => Err(Fault::new(
                ErrorCode::Ambiguous,
                format!(
                    "`{selector}` could be {}",
                    several
                        .iter()
                        .map(|record| format!("`{}` ({})", name(record), record.id))
                        .collect::<Vec<_>>()
                        .join(" or ")
                ),
                "name it by its id",
            )),
        }
    }

    /// Reads a login from a file and makes or updates its account in the global pool. Blocks on the
    /// disk.
    pub(crate) fn import(
        &self,
        path: &Path,
        label: Option<&str>,
    ) -> Result<(Imported, Arc<Record>), Fault> {
        self.import_into(GLOBAL, path, label)
    }

    /// The same for any pool: [`GLOBAL`] or a project's key. Blocks on the disk.
    ///
    /// An account has one record, whatever number of pools it is in: a login that is known already
    /// is no second owner of its refresh token, it joins.
    pub(crate) fn import_into(
        &self,
        pool: &str,
        path: &Path,
        label: Option<&str>,
    ) -> Result<(Imported, Arc<Record>), Fault> {
        let login = import::auth_json(path, &self.config)?;
        crash::moment(Moment::ImportRead);
        let mut state = self.writer.lock();
        let id = AccountId::of(&login.user, &login.workspace);
        let label = label.map(|label| self.free_label(&id, label)).transpose()?;
        let label = label.filter(|label| !label.is_empty());
        let current = self.get(&id);
        let created = current.is_none();
        // One that was removed and comes back: what came of its login since then waits aside.
        let known = current.or_else(|| {
            let removed = self.store.removed_account(&id)?;
            let order = state.last_order + 1;
            let pools = members::only(pool);
            Some(Arc::new(Record { label: None, enabled: true, order, pools, ..removed }))
        });
        let order = known.as_ref().map_or(state.last_order + 1, |known| known.order);
        if created {
            state.last_order = order;
            self.store.save_state(&state)?;
        }
        let (pools, mut notes) =
            members::joined(known.as_ref().map(|known| known.pools.as_slice()), pool);
        notes.extend(login.notes);
        if login.tokens.refresh_token.is_some() {
            notes.push(format!(
                "`{}` still holds the same login: sign in with plain `codex` no more, or one of the \
                 two will spend the other's refresh token",
                path.display()
            ));
        }
        if let Some(known) =
            known.as_ref().filter(|known| known.covers(login.tokens.refresh_token.as_ref()))
        {
            // The file is an older copy of what the pool has (or the very same): what came of it
            // since then is worth more.
            let record =
                Record { label: label.or_else(|| known.label.clone()), pools, ..(**known).clone() };
            let kept = "the pool already has this login or a newer credential of it; kept";
            let record = self.save(record)?;
            return Ok((imported(&record, created, vec![kept.to_owned()]), record));
        }
        let record = Record {
            id: id.as_str().to_owned(),
            user: login.user,
            workspace: login.workspace,
            email: login.claims.email.or_else(|| known.as_ref()?.email.clone()),
            plan: login.claims.plan.or_else(|| known.as_ref()?.plan.clone()),
            fedramp: login.claims.fedramp,
            label: label.or_else(|| known.as_ref()?.label.clone()),
            enabled: known.as_ref().is_none_or(|known| known.enabled),
            order,
            issuer: self.config.issuer.base.clone(),
            backend: self.config.backend.base.clone(),
            imported_at: clock::unix(),
            generation: self.flights.next(&id, known.as_ref().map(|known| known.generation)),
            expires_at: login.claims.expires_at,
            renewed_at: None,
            tokens: login.tokens,
            gone: None,
            spent: known.as_ref().map(|known| known.spent_with_current()).unwrap_or_default(),
            tags: known.as_ref().map(|known| known.tags.clone()).unwrap_or_default(),
            notes: known.as_ref().and_then(|known| known.notes.clone()),
            terms: known.as_ref().map(|known| known.terms.clone()).unwrap_or_default(),
            pools,
        };
        let record = self.save(record)?;
        self.store.clear_renewal_note(&id)?;
        crash::moment(Moment::ImportDone);
        Ok((imported(&record, created, notes), record))
    }

    /// Changes one record. Blocks on the disk.
    pub(crate) fn edit(
        &self,
        id: &AccountId,
        edit: impl FnOnce(&mut Record),
    ) -> Result<Arc<Record>, Fault> {
        let _writer = self.writer.lock();
        let known = self.get(id).ok_or_else(|| gone(id))?;
        let mut record = (*known).clone();
        edit(&mut record);
        let record = self.save(record)?;
        crash::moment(Moment::EditDone);
        Ok(record)
    }

    /// Gives an account a label, or takes it away with an empty one. Blocks on the disk.
    pub(crate) fn set_label(&self, id: &AccountId, label: &str) -> Result<Arc<Record>, Fault> {
        let label = self.free_label(id, label)?;
        self.edit(id, |record| record.label = Some(label).filter(|label| !label.is_empty()))
    }

    /// A label that may be shown and that no other account has.
    fn free_label(&self, id: &AccountId, label: &str) -> Result<String, Fault> {
        let label = checked_label(label)?;
        let taken = !label.is_empty()
            && self.all().iter().any(|other| {
                other.id != id.as_str()
                    && other.label.as_deref().is_some_and(|l| l.eq_ignore_ascii_case(&label))
            });
        if taken {
            return Err(Fault::new(
                ErrorCode::BadRequest,
                format!("another account is already called `{label}`"),
                "choose another label",
            ));
        }
        Ok(label)
    }

    /// Makes a renewed credential durable, then known. Blocks on the disk.
    pub(crate) fn renewed(
        &self,
        id: &AccountId,
        from: Generation,
        new: Renewed,
    ) -> Result<Arc<Record>, Fault> {
        let _writer = self.writer.lock();
        // It may have left the pool since the request did: its login waits in `removed/`, and what
        // waits there has to be the credential that still counts.
        let left = self.get(id).is_none();
        let known = self.get_or_removed(id).ok_or_else(|| gone(id))?;
        if known.generation != from.0 {
            return Err(Fault::internal(format!(
                "renewal of generation {} while {} is current",
                from.0, known.generation
            )));
        }
        let record = Record {
            generation: from.0 + 1,
            expires_at: new.expires_at,
            renewed_at: Some(clock::unix()),
            plan: new.plan.or_else(|| known.plan.clone()),
            email: new.email.or_else(|| known.email.clone()),
            tokens: new.tokens,
            gone: None,
            spent: known.spent_with_current(),
            ..(*known).clone()
        };
        if left {
            self.store.save_removed(&record, clock::unix())?;
            return Err(gone(id));
        }
        let record = self.save(record)?;
        crash::moment(Moment::RenewalSaved);
        // Only now is the note's question answered. A crash before this line asks it again, with
        // the new generation on disk: then the note is of an older generation and is dropped.
        self.store.clear_renewal_note(id)?;
        crash::moment(Moment::RenewalSettled);
        Ok(record)
    }

    /// Makes durable that a login is gone. Blocks on the disk.
    pub(crate) fn set_gone(
        &self,
        id: &AccountId,
        from: Generation,
        cause: &str,
        since: u64,
    ) -> Result<(), Fault> {
        let _writer = self.writer.lock();
        let known = self.get(id).ok_or_else(|| gone(id))?;
        if known.generation != from.0 {
            return Ok(());
        }
        let gone = Some(Gone { cause: cause.to_owned(), since });
        self.save(Record { gone, ..(*known).clone() })?;
        self.store.clear_renewal_note(id)
    }

    /// Takes an account out; its file waits in `removed/`. Blocks on the disk.
    pub(crate) fn remove(&self, id: &AccountId) -> Result<std::path::PathBuf, Fault> {
        let _writer = self.writer.lock();
        crash::moment(Moment::RemoveBegun);
        let known = self.get(id).ok_or_else(|| gone(id))?;
        let path = self.store.remove_account(id, clock::unix())?;
        self.flights.retire(id, known.generation);
        crash::moment(Moment::RemoveMoved);
        self.records.write().retain(|record| record.id != id.as_str());
        self.vault.remove(id);
        Ok(path)
    }

    /// Makes the pin durable. Blocks on the disk.
    pub(crate) fn save_pin(&self, pin: Option<(&AccountId, u64)>) -> Result<(), Fault> {
        let mut state = self.writer.lock();
        let new = State { pin: pin.map(|(id, at)| (id.as_str().to_owned(), at)), ..state.clone() };
        self.store.save_state(&new)?;
        crash::moment(Moment::PinSaved);
        *state = new;
        Ok(())
    }

    /// Makes the port of this root durable. Blocks on the disk.
    pub(crate) fn save_port(&self, port: u16) -> Result<(), Fault> {
        let mut state = self.writer.lock();
        if self.is_locked() {
            return Ok(());
        }
        let new = State { port: Some(port), ..state.clone() };
        self.store.save_state(&new)?;
        *state = new;
        Ok(())
    }

    /// What `state.json` holds.
    pub(crate) fn state(&self) -> State {
        self.writer.lock().clone()
    }

    /// Disk, then memory. The caller holds the writer lock.
    fn save(&self, record: Record) -> Result<Arc<Record>, Fault> {
        self.store.save_account(&record)?;
        crash::moment(Moment::BeforeAdoption);
        Ok(self.known_as(record))
    }

    /// Memory. The caller holds the writer lock.
    fn known_as(&self, record: Record) -> Arc<Record> {
        let record = Arc::new(record);
        self.entrust(&record);
        let mut records = self.records.write();
        records.retain(|known| known.id != record.id);
        records.push(Arc::clone(&record));
        records.sort_by(|a, b| (a.order, &a.id).cmp(&(b.order, &b.id)));
        record
    }
}

/// What an account is called: label, else e-mail, else id.
pub(crate) fn name(record: &Record) -> &str {
    record.label.as_deref().or(record.email.as_deref()).unwrap_or(&record.id)
}

/// Whether a name (label, e-mail or id, whole, in any case) is that of an account.
pub(crate) fn is_called(record: &Record, wanted: &str) -> bool {
    let wanted = wanted.trim().to_lowercase();
    names(record).iter().any(|name| name.to_lowercase() == wanted)
}

fn names(record: &Record) -> Vec<&str> {
    [Some(record.id.as_str()), record.email.as_deref(), record.label.as_deref()]
        .into_iter()
        .flatten()
        .collect()
}

fn checked_label(label: &str) -> Result<String, Fault> {
    let label = label.trim();
    if label.chars().count() > MAX_LABEL || label.chars().any(char::is_control) {
        return Err(Fault::new(
            ErrorCode::BadRequest,
            format!("a label has at most {MAX_LABEL} printable characters"),
            "choose a shorter label",
        ));
    }
    Ok(label.to_owned())
}

fn gone(id: &AccountId) -> Fault {
    Fault::new(
        ErrorCode::NotFound,
        format!("account {id} is no longer in the pool"),
        "run `cmactl list` to see them",
    )
}

fn imported(record: &Record, created: bool, notes: Vec<String>) -> Imported {
    Imported {
        id: record.id.clone(),
        email: record.email.clone(),
        plan: record.plan.clone(),
        workspace: record.workspace.clone(),
        created,
        notes,
    }
}

#[cfg(test)]
mod power;
