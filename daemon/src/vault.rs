//! Secrets in memory, by account and generation.
//!
//! The only place that hands out a token, and the only one that knows two generations at once: a
//! request granted with generation g may still be sent with it while g+1 is already current.
//! Values are wiped on drop where the type allows it (`secrecy`); the ready-made header value is
//! marked sensitive, so that no logging of headers can show it.

use crate::store::record::{Record, Tokens};
use cma_core::{identity::AccountId, token::Generation};
use http::HeaderValue;
use parking_lot::RwLock;
use secrecy::{ExposeSecret as _, SecretString};
use std::{collections::BTreeMap, sync::Arc};

/// What a request needs to act for an account.
#[derive(Debug, Clone)]
pub(crate) struct Pass {
    /// `Bearer …`, sensitive.
    pub(crate) authorization: HeaderValue,
    /// The `chatgpt-account-id`.
    pub(crate) workspace: HeaderValue,
    /// The same, to be remembered with threads.
    pub(crate) workspace_id: Arc<str>,
    /// Whether requests must say that the account is a FedRAMP one.
    pub(crate) fedramp: bool,
    /// Where its Responses go, as its `accounts/check` says.
    pub(crate) way: Way,
}

/// What an account's workspace wants of the requests below the Responses base.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Way {
    /// The host in place of the backend's own.
    pub(crate) host: Option<HeaderValue>,
    /// `x-openai-account-routing-override`.
    pub(crate) routing: Option<HeaderValue>,
}

#[derive(Debug)]
struct Entry {
    generation: Generation,
    pass: Pass,
    refresh_token: Option<SecretString>,
    previous: Option<(Generation, Pass)>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Vault {
    entries: RwLock<BTreeMap<AccountId, Entry>>,
}

impl Vault {
    /// Takes in an account's current credential. The one before stays for requests in flight.
    pub(crate) fn put(&self, record: &Record) {
        let Some(mut pass) = pass(record) else { return };
        let generation = Generation(record.generation);
        let id = AccountId::from_written(&record.id);
        let refresh_token = record.tokens.refresh_token.clone();
        let mut entries = self.entries.write();
        if let Some(known) = entries.get(&id) {
            pass.way = known.pass.way.clone();
        }
        let previous = entries
            .remove(&id)
            .and_then(|old| (old.generation != generation).then_some((old.generation, old.pass)));
        entries.insert(id, Entry { generation, pass, refresh_token, previous });
    }

    /// Sets where an account's Responses go. Returns whether that is another way than before.
    pub(crate) fn set_way(&self, id: &AccountId, way: &Way) -> bool {
        let mut entries = self.entries.write();
        let Some(entry) = entries.get_mut(id).filter(|entry| entry.pass.way != *way) else {
            return false;
        };
        if let Some((_generation, pass)) = &mut entry.previous {
            pass.way = way.clone();
        }
        entry.pass.way = way.clone();
        true
    }

    /// Forgets an account.
    pub(crate) fn remove(&self, id: &AccountId) {
        self.entries.write().remove(id);
    }

    /// The pass of an account in a generation, or in the current one when that is gone.
    pub(crate) fn pass(&self, id: &AccountId, generation: Generation) -> Option<Pass> {
        let entries = self.entries.read();
        let entry = entries.get(id)?;
        match &entry.previous {
            Some((old, pass)) if *old == generation => Some(pass.clone()),
            _ => Some(entry.pass.clone()),
        }
    }

    /// The pass of an account's current generation.
    pub(crate) fn current(&self, id: &AccountId) -> Option<Pass> {
        self.entries.read().get(id).map(|entry| entry.pass.clone())
    }

    /// An account's current generation.
    pub(crate) fn generation(&self, id: &AccountId) -> Option<Generation> {
        self.entries.read().get(id).map(|entry| entry.generation)
    }

    /// The refresh token of exactly that generation.
    pub(crate) fn refresh_token(
        &self,
        id: &AccountId,
        generation: Generation,
    ) -> Option<SecretString> {
        let entries = self.entries.read();
        let entry = entries.get(id).filter(|entry| entry.generation == generation)?;
        entry.refresh_token.clone()
    }
}

fn pass(record: &Record) -> Option<Pass> {
    let Tokens { access_token, .. } = &record.tokens;
    let bearer = format!("Bearer {}", access_token.expose_secret());
    let mut authorization = HeaderValue::try_from(bearer).ok()?;
    authorization.set_sensitive(true);
    let workspace = HeaderValue::try_from(record.workspace.as_str()).ok()?;
    let workspace_id = record.workspace.as_str().into();
    Some(Pass {
        authorization,
        workspace,
        workspace_id,
        fedramp: record.fedramp,
        way: Way::default(),
    })
}
