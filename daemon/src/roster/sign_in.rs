//! An account out of a fresh sign-in: made, or mended in place.
//!
//! A known account keeps all that its person gave it (label, tags, order, on or off) and gets a new
//! credential and its `gone` mark wiped. Nobody sees the credential before it is on disk.

use super::{Roster, name};
use crate::{
    clock,
    fault::Fault,
    store::record::{Record, Tokens},
};
use cma_core::identity::{AccountId, Claims};
use cma_proto::error::ErrorCode;
use std::sync::Arc;

/// Tags kept of one account.
const MAX_TAGS: usize = 16;

/// What a sign-in brought, and what a new account is to be.
#[derive(Debug)]
pub(crate) struct SignIn {
    pub(crate) user: String,
    pub(crate) workspace: String,
    pub(crate) claims: Claims,
    pub(crate) tokens: Tokens,
    /// Base address of the issuer that answered.
    pub(crate) issuer: String,
    pub(crate) label: Option<String>,
    pub(crate) tags: Vec<String>,
    pub(crate) enabled: bool,
}

/// The account it became.
#[derive(Debug)]
pub(crate) struct SignedIn {
    pub(crate) record: Arc<Record>,
    pub(crate) created: bool,
    pub(crate) accounts: usize,
    pub(crate) notes: Vec<String>,
}

impl Roster {
    /// Makes a sign-in durable, then known. Blocks on the disk.
    ///
    /// # Errors
    /// [`ErrorCode::BadRequest`] when the account belongs to another issuer, [`ErrorCode::Store`].
    pub(crate) fn sign_in(&self, login: SignIn) -> Result<SignedIn, Fault> {
        let mut state = self.writer.lock();
        let id = AccountId::of(&login.user, &login.workspace);
        let current = self.get(&id);
        if let Some(other) = current.as_ref().filter(|known| known.issuer != login.issuer) {
            return Err(Fault::new(
                ErrorCode::BadRequest,
                format!(
                    "`{}` was signed in at `{}`, and this sign-in is from `{}`; nothing was changed",
                    name(other),
                    other.issuer,
                    login.issuer
                ),
                format!("run `cmactl remove {}` first, if that is meant", other.id),
            ));
        }
        let created = current.is_none();
        let mut notes = Vec::new();
        let label = login.label.filter(|_| created).and_then(|label| {
            self.free_label(&id, &label)
                .map_err(|fault| notes.push(format!("it got no label: {fault}")))
                .ok()
                .filter(|label| !label.is_empty())
        });
        // One that was removed and comes back must remember which tokens it has spent.
        let known = match current {
            Some(known) => Some(known),
            None => self.store.removed_account(&id).map(Arc::new),
        };
        let now = clock::unix();
        let tokens = login.tokens;
        let mut record = Record {
            id: id.as_str().to_owned(),
            user: login.user,
            workspace: login.workspace,
            email: login.claims.email,
            plan: login.claims.plan,
            fedramp: login.claims.fedramp,
            label,
            enabled: login.enabled,
            order: state.last_order + 1,
            issuer: login.issuer,
            backend: self.config.backend.base.clone(),
            imported_at: now,
            generation: self.flights.next(&id, known.as_ref().map(|known| known.generation)),
            expires_at: login.claims.expires_at,
            renewed_at: None,
            tokens,
            gone: None,
            spent: Vec::new(),
            tags: tags(login.tags),
            notes: None,
            pools: Vec::new(),
            terms: crate::store::record::Terms::default(),
        };
        if let Some(known) = known {
            record.spent = known.spent_with_current();
            record.email = record.email.or_else(|| known.email.clone());
            record.plan = record.plan.or_else(|| known.plan.clone());
            if !created {
                record = mended(&known, record, now);
            }
        }
        if created {
            state.last_order = record.order;
            self.store.save_state(&state)?;
        }
        let record = self.save(record)?;
        self.store.clear_renewal_note(&id)?;
        if !record.enabled {
            notes.push("it is disabled: `cmactl enable` lets it serve".to_owned());
        }
        if record.issuer != self.config.issuer.base {
            notes.push(format!(
                "the pool renews at `{}`: this account serves once the daemon runs with its issuer",
                self.config.issuer.base
            ));
        }
        Ok(SignedIn { record, created, accounts: self.records.read().len(), notes })
    }

    /// Whether the notice on terms is still to be shown; it counts as shown from now on. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// [`ErrorCode::Store`].
    pub(crate) fn take_notice(&self) -> Result<bool, Fault> {
        let mut state = self.writer.lock();
        if state.notice_at.is_some() {
            return Ok(false);
        }
        state.notice_at = Some(clock::unix());
        self.store.save_state(&state)?;
        Ok(true)
    }
}

/// A known account with a new credential: everything else stays, fields of other parts included.
fn mended(known: &Record, new: Record, now: u64) -> Record {
    Record {
        email: new.email,
        plan: new.plan,
        fedramp: new.fedramp,
        backend: new.backend,
        generation: new.generation,
        expires_at: new.expires_at,
        renewed_at: Some(now),
        tokens: new.tokens,
        gone: None,
        spent: new.spent,
        ..known.clone()
    }
}

/// Tags as they can be shown: trimmed, none empty, none twice, few.
fn tags(given: Vec<String>) -> Vec<String> {
    let mut tags: Vec<String> = Vec::new();
    for tag in given {
        let tag: String = tag.trim().chars().filter(|c| !c.is_control()).take(64).collect();
        if !tag.is_empty() && !tags.contains(&tag) && tags.len() < MAX_TAGS {
            tags.push(tag);
        }
    }
    tags
}
