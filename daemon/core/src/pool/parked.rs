//! Requests that wait: for a token's renewal, or for any account when every one is out.

use super::{Pool, Ticket};
use crate::{
    identity::AccountId,
    select::Need,
    time::{Due, Mono, Now, Span},
};

#[derive(Debug, Clone)]
pub(super) struct Parked {
    pub(super) ticket: Ticket,
    pub(super) need: Need,
    pub(super) waited: Waited,
    pub(super) waits_for: WaitsFor,
}

/// Since when a request waits, for what each.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waited {
    /// Until when a renewal is waited for.
    pub(super) renewal_by: Option<Mono>,
    /// Since when every account has been out.
    pub(super) dry_since: Option<Mono>,
}

#[derive(Debug, Clone)]
pub(super) enum WaitsFor {
    /// That account's renewal.
    Renewal(AccountId),
    /// Any account that can serve: at that time one should, at the other it is given up.
    Room { due: Option<Due>, by: Option<Mono> },
}

impl Parked {
    /// When it is looked at again by itself.
    pub(super) fn wake(&self, now: Now) -> Option<Span> {
        match self.waits_for {
            WaitsFor::Renewal(_) => self.waited.renewal_by.map(|by| by.since(now.mono)),
            WaitsFor::Room { due, by } => {
                let due = due.map(|due| due.left(now));
                due.into_iter().chain(by.map(|by| by.since(now.mono))).min()
            },
        }
    }
}

/// What happened that may let a parked request go on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Woken<'a> {
    /// Time passed.
    Time,
    /// An account may serve more than before.
    Room,
    /// Something changed about that account.
    Account(&'a AccountId),
    /// How choices are made changed.
    All,
}

impl Pool {
    /// Chooses again for those whom `woken` concerns, and for all whose time is up.
    pub(super) fn unpark(&mut self, now: Now, woken: Woken<'_>) {
        if self.parked.is_empty() {
            return;
        }
        let concerns = |parked: &Parked| match (&parked.waits_for, woken) {
            (_, Woken::All) | (WaitsFor::Room { .. }, Woken::Room | Woken::Account(_)) => true,
            (WaitsFor::Renewal(waits_for), Woken::Account(id)) => waits_for == id,
            (_, Woken::Time | Woken::Room) => false,
        };
        let (ready, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.parked).into_iter().partition(|parked| {
                concerns(parked) || parked.wake(now).is_some_and(|wake| wake == Span::ZERO)
            });
        self.parked = waiting;
        for parked in ready {
            self.select(now, parked.ticket, parked.need, parked.waited);
        }
        // Who came first goes first, whatever was looked at when.
        self.parked.sort_by_key(|parked| parked.ticket);
    }
}
