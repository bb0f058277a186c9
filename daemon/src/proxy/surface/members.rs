//! The accounts of a launch, as the pool knows them at this moment.

use super::super::Proxy;
use cma_core::{
    account::State,
    cooldown::Cause,
    identity::AccountId,
    pool::Pool,
    quota::Window,
    select::Need,
    time::{Now, Wall},
    token::Generation,
};
use std::sync::Arc;

/// One account that may serve a launch, now or later.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) id: AccountId,
    pub(super) name: Arc<str>,
    pub(super) plan: Option<Arc<str>>,
    pub(super) generation: Generation,
    /// Whether its token may be sent now.
    pub(super) sendable: bool,
    pub(super) state: State,
    /// Until when a limit that upstream told it keeps it out; a window that is full says so itself.
    pub(super) limited: Option<Wall>,
    /// Its windows; one whose reset has passed is empty.
    pub(super) windows: Vec<Window>,
    /// Whether it is the one that a new thread would get.
    pub(super) next: bool,
    /// Whether a person keeps it from taking over where another one ends.
    pub(super) held_back: bool,
}

impl Member {
    /// Whether it serves, or will by itself.
    pub(super) const fn counts(&self) -> bool {
        !matches!(self.state, State::NeedsLogin(..) | State::Disabled | State::Elsewhere)
    }

    /// When its quota was last learned.
    pub(super) fn seen(&self) -> Option<Wall> {
        self.windows.iter().map(|window| window.seen).max()
    }
}

/// All accounts that a need allows, in the person's order.
pub(super) async fn of(proxy: &Proxy, need: Need) -> Vec<Member> {
    proxy.actor.look(move |pool, now| list(pool, &need, now)).await.unwrap_or_default()
}

fn list(pool: &Pool, need: &Need, now: Now) -> Vec<Member> {
    let next = pool.next_for(need, now).map(|account| account.id.clone());
    let forced = pool.forced(now);
    let allowed = |id: &AccountId| need.accounts.as_ref().is_none_or(|all| all.contains(id));
    pool.states(now)
        .filter(|(account, _state)| {
            need.scope.place(&account.pools).is_some()
                && allowed(&account.id)
                && (need.workspaces.is_empty() || need.workspaces.contains(&account.workspace))
        })
        .map(|(account, state)| Member {
            id: account.id.clone(),
            name: Arc::clone(&account.name),
            plan: account.plan.clone(),
            generation: account.token.generation,
            sendable: account.sendable(now),
            state,
            limited: account
                .rest(now)
                .filter(|rest| matches!(rest.cause, Cause::UsageLimit(_)))
                .map(|rest| rest.due.shown(now)),
            windows: account
                .quota
                .windows()
                .iter()
                .map(|window| Window { used_percent: window.used_at(now), ..window.clone() })
                .collect(),
            next: next.as_ref() == Some(&account.id),
            held_back: account.terms.paused
                || account.terms.drained
                || forced.is_some_and(|forced| !forced.accounts.contains(&account.id)),
        })
        .collect()
}
