//! Which account a session ran on last, so that its prompt cache is found again.
//!
//! Bounded in number and age. Losing an entry costs a cold cache, nothing else.

use crate::{
    identity::AccountId,
    time::{Mono, Span},
};
use std::{collections::BTreeMap, sync::Arc};

/// A prompt cache is long gone after this time without a request.
const TTL: Span = Span::from_secs(24 * 3600);
/// More sessions than a person has open; the oldest go first.
const CAPACITY: usize = 4096;

/// Session → account.
#[derive(Debug, Clone, Default)]
pub struct Affinity {
    sessions: BTreeMap<Arc<str>, (AccountId, Mono)>,
}

impl Affinity {
    /// The account a session ran on.
    pub fn get(&self, session: &str, now: Mono) -> Option<&AccountId> {
        let (account, used) = self.sessions.get(session)?;
        (now.since(*used) <= TTL).then_some(account)
    }

    /// Remembers it. Returns whether the session moved or is new.
    pub fn set(&mut self, session: &str, account: &AccountId, now: Mono) -> bool {
        if let Some(known) = self.sessions.get_mut(session) {
            known.1 = now;
            if known.0 == *account {
                return false;
            }
            known.0 = account.clone();
            return true;
        }
        if self.sessions.len() >= CAPACITY {
            self.shrink();
        }
        self.sessions.insert(session.into(), (account.clone(), now));
        true
    }

    /// Forgets an account that left the pool.
    pub fn forget(&mut self, account: &AccountId) {
        self.sessions.retain(|_session, (known, _used)| known != account);
    }

    /// Number of sessions remembered.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Drops the older half: one pass now and then instead of an ordered index on every request.
    fn shrink(&mut self) {
        let mut ages: Vec<Mono> = self.sessions.values().map(|(_account, used)| *used).collect();
        ages.sort_unstable();
        let median = ages.get(ages.len() / 2).copied().unwrap_or_default();
        let mut spare = CAPACITY / 2;
        self.sessions.retain(|_session, (_account, used)| {
            let keep = *used >= median && spare > 0;
            spare -= usize::from(keep);
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_bounded_and_keeps_the_newest() {
        let mut affinity = Affinity::default();
        let account = AccountId::of("u", "w");
        for n in 0..3 * CAPACITY {
            affinity.set(&format!("s{n}"), &account, Mono::from_millis(n as u64));
            assert!(affinity.len() <= CAPACITY);
        }
        let now = Mono::from_millis(3 * CAPACITY as u64);
        assert!(affinity.get(&format!("s{}", 3 * CAPACITY - 1), now).is_some());
        assert!(affinity.get("s0", now).is_none());
        assert!(affinity.get(&format!("s{}", 3 * CAPACITY - 1), now.plus(TTL.times(2))).is_none());
    }
}
