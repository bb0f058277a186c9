//! Who is renewing now, so that leaving and coming back can't send a refresh token twice.
//!
//! The pool starts one renewal for each of its accounts; an account that leaves it and comes back is
//! a new one there and would start another, while the first is still at the issuer. So the right to
//! send is held here, by account, whatever the pool thinks: a renewal takes it first, and so does
//! the removal of an account. Generations of accounts that left are remembered for the same reason:
//! the number of a credential never names another one while anybody may still speak of it.

use cma_core::identity::AccountId;
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

/// See the module's documentation. Bounded by the accounts that this process ever saw.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    turns: Mutex<BTreeMap<AccountId, Arc<Turn<()>>>>,
    retired: Mutex<BTreeMap<AccountId, u64>>,
}

impl Flights {
    /// Waits until nobody else renews or removes the account; nobody does while the guard lives.
    ///
    /// Cancellation-safe.
    pub(crate) async fn alone(&self, id: &AccountId) -> OwnedMutexGuard<()> {
        let turn = Arc::clone(self.turns.lock().entry(id.clone()).or_default());
        turn.lock_owned().await
    }

    /// The account left with this generation.
    pub(super) fn retire(&self, id: &AccountId, generation: u64) {
        let mut retired = self.retired.lock();
        let last = retired.entry(id.clone()).or_default();
        *last = generation.max(*last);
    }

    /// The number of an account's next credential.
    pub(super) fn next(&self, id: &AccountId, known: Option<u64>) -> u64 {
        let retired = self.retired.lock().get(id).copied().unwrap_or_default();
        known.unwrap_or_default().max(retired) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_generation_never_comes_again() {
        let (flights, id) = (Flights::default(), AccountId::of("u", "w"));
        assert_eq!(flights.next(&id, None), 1);
        assert_eq!(flights.next(&id, Some(4)), 5);
        flights.retire(&id, 7);
        flights.retire(&id, 3);
        // Its file was taken away by hand: the number goes on all the same.
        assert_eq!(flights.next(&id, None), 8);
        assert_eq!(flights.next(&id, Some(9)), 10);
        assert_eq!(flights.next(&AccountId::of("u", "x"), None), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_for_each_account() {
        let (flights, id) = (Flights::default(), AccountId::of("u", "w"));
        let held = flights.alone(&id).await;
        let other = AccountId::of("u", "x");
        assert!(tokio::time::timeout(Duration::from_secs(1), flights.alone(&other)).await.is_ok());
        assert!(tokio::time::timeout(Duration::from_secs(1), flights.alone(&id)).await.is_err());
        drop(held);
        assert!(tokio::time::timeout(Duration::from_secs(1), flights.alone(&id)).await.is_ok());
    }
}
