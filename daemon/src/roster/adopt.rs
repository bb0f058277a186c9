//! Taking a login that another program had.
//!
//! What is taken is decided again here, under the writer lock: between a plan and its execution a
//! renewal may have made the pool's own credential the newer one.

use super::{MAX_LABEL, Roster};
use crate::{
    clock,
    fault::Fault,
    store::record::Record,
    takeover::{
        Found,
        plan::{self, Choices, Line},
    },
};
use cma_core::identity::AccountId;
use std::sync::Arc;

/// What came of one login.
#[derive(Debug)]
pub(crate) struct Adopted {
    pub(crate) record: Arc<Record>,
    pub(crate) line: Line,
    pub(crate) notes: Vec<String>,
}

impl Roster {
    /// What the pool has of an account, or had when it was removed.
    pub(crate) fn known(&self, id: &AccountId) -> Option<Arc<Record>> {
        self.get(id)
    }

    /// Takes a login if it is new or newer, and names, tags and remarks where the pool has none.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// [`ErrorCode::Store`](cma_proto::error::ErrorCode::Store).
    pub(crate) fn adopt(&self, found: &Found, choices: &Choices) -> Result<Adopted, Fault> {
        let mut state = self.writer.lock();
        let id = found.login.id();
        let mut notes = Vec::new();
        let current = self.get(&id);
        let line = plan::compare(found, current.as_deref());
        let label = self.label_for(&id, choices, current.as_deref(), &mut notes);
        if let Some(known) = current.as_ref().filter(|_| !line.state.takes()) {
            let record = filled((**known).clone(), choices, label);
            let record = self.keep(known, record)?;
            return Ok(Adopted { record, line, notes });
        }
        let removed = if current.is_none() { self.store.removed_account(&id) } else { None };
        let order = match &current {
            Some(known) => known.order,
            None => {
                state.last_order += 1;
                self.store.save_state(&state)?;
                state.last_order
            },
        };
        // One that was removed and comes back with a login that was spent since: what came of that
        // waits aside.
        let back =
            removed.filter(|removed| removed.knows(found.login.tokens.refresh_token.as_ref()));
        if let Some(removed) = back {
            notes.push("it was removed from the pool; its last login here comes back".to_owned());
            let enabled = choices.enabled.unwrap_or(true);
            let record =
                Record { label: None, enabled, order, pools: choices.pools.clone(), ..removed };
            let record = self.save(filled(record, choices, label))?;
            return Ok(Adopted { record, line, notes });
        }
        let record = self.made(found, current.as_deref(), choices, order);
        let record = self.save(filled(record, choices, label))?;
        self.store.clear_renewal_note(&id)?;
        Ok(Adopted { record, line, notes })
    }

    fn made(&self, found: &Found, known: Option<&Record>, choices: &Choices, order: u32) -> Record {
        let login = &found.login;
        Record {
            id: login.id().as_str().to_owned(),
            user: login.user.clone(),
            workspace: login.workspace.clone(),
            email: login.claims.email.clone().or_else(|| known?.email.clone()),
            plan: login.claims.plan.clone().or_else(|| known?.plan.clone()),
            fedramp: login.claims.fedramp,
            label: known.and_then(|known| known.label.clone()),
            enabled: known.map_or(choices.enabled.unwrap_or(true), |known| known.enabled),
            order,
            issuer: self.config.issuer.base.clone(),
            backend: self.config.backend.base.clone(),
            imported_at: clock::unix(),
            generation: self.flights.next(&login.id(), known.map(|known| known.generation)),
            expires_at: login.claims.expires_at,
            renewed_at: None,
            tokens: login.tokens.clone(),
            gone: found.gone.clone(),
            spent: known.map(Record::spent_with_current).unwrap_or_default(),
            tags: known.map(|known| known.tags.clone()).unwrap_or_default(),
            notes: known.and_then(|known| known.notes.clone()),
            pools: known.map_or_else(|| choices.pools.clone(), |known| known.pools.clone()),
            terms: known.map(|known| known.terms.clone()).unwrap_or_default(),
        }
    }

    /// Takes names, tags and remarks alone, where the pool has none. Blocks on the disk.
    ///
    /// # Errors
    /// [`ErrorCode::Store`](cma_proto::error::ErrorCode::Store).
    pub(crate) fn fill(&self, id: &AccountId, choices: &Choices) -> Result<(), Fault> {
        let _writer = self.writer.lock();
        let Some(known) = self.get(id) else { return Ok(()) };
        let label = self.label_for(id, choices, Some(&known), &mut Vec::new());
        self.keep(&known, filled((*known).clone(), choices, label)).map(drop)
    }

    /// The label it gets: its own, else the other program's where that is free.
    fn label_for(
        &self,
        id: &AccountId,
        choices: &Choices,
        known: Option<&Record>,
        notes: &mut Vec<String>,
    ) -> Option<String> {
        if let Some(own) = known.and_then(|known| known.label.clone()) {
            return Some(own);
        }
        let wanted = choices.label.as_deref()?;
        let wanted: String = wanted.chars().take(MAX_LABEL).collect();
        match self.free_label(id, &wanted) {
            Ok(label) => Some(label).filter(|label| !label.is_empty()),
            Err(_taken) => {
                notes.push(format!(
                    "another account is already called `{wanted}`: name this one with `cmactl label`"
                ));
                None
            },
        }
    }

    /// Saves a record if it differs from what is there.
    fn keep(&self, known: &Arc<Record>, record: Record) -> Result<Arc<Record>, Fault> {
        let same = known.label == record.label
            && known.tags == record.tags
            && known.notes == record.notes
            && known.pools == record.pools;
        if same { Ok(Arc::clone(known)) } else { self.save(record) }
    }
}

/// A record with what its person said elsewhere, where nothing was said here.
fn filled(mut record: Record, choices: &Choices, label: Option<String>) -> Record {
    record.label = record.label.or(label);
    if record.tags.is_empty() {
        record.tags.clone_from(&choices.tags);
    }
    record.notes = record.notes.or_else(|| choices.remark.clone());
    record
}
