//! What a request that asks gets: an account, a place to wait, or a refusal that says why.

use super::{
    Effect, Grant, LeaseId, PARK, Pool, Refused, Ticket,
    parked::{Parked, Waited, WaitsFor},
};
use crate::{
    account::Account,
    cooldown,
    select::{self, Bar, Excluded, Need},
    strategy::{Strategy, Wait},
    time::{Due, Now, Span},
};
use std::sync::Arc;

/// Longest a request waits for a place under a cap, where nothing else is said: about as long as an
/// answer takes.
const CAPPED: Span = Span::from_secs(60);

impl Refused {
    /// Whether nobody comes back by himself and no attempt more would change that: a person has to act,
    /// and the reasons say where.
    pub const fn is_final(&self) -> bool {
        self.retry_at.is_none() && !self.tried
    }
}

impl Pool {
    /// `waited` says since when a request that was parked before has been waiting.
    pub(super) fn select(&mut self, now: Now, ticket: Ticket, need: Need, waited: Waited) {
        let late = waited.renewal_by.is_some_and(|by| now.mono >= by);
        let mut need = need;
        loop {
            let mut scratch = std::mem::take(&mut self.scratch);
            select::decide(&self.view(&need, now), &need, now, &mut scratch);
            self.scratch = scratch;
            let Some(at) = self.scratch.chosen() else {
                self.refuse(now, ticket, need, waited);
                return;
            };
            let Some(account) = self.accounts.get_mut(at) else { return };
            if account.sendable(now) {
                self.grant(now, ticket, &need, at);
                return;
            }
            if late {
                // It waited long enough for this one: take any other.
                need.exclude.push(account.id.clone());
                continue;
            }
            let id = account.id.clone();
            self.renew(now, &id, false);
            let by = waited.renewal_by.unwrap_or_else(|| now.mono.plus(PARK));
            let waited = Waited { renewal_by: Some(by), ..waited };
            self.parked.push(Parked { ticket, need, waited, waits_for: WaitsFor::Renewal(id) });
            return;
        }
    }

    /// Nobody can serve it: it waits, where that is wanted and worth it, or is told so.
    fn refuse(&mut self, now: Now, ticket: Ticket, need: Need, waited: Waited) {
        let since = waited.dry_since.unwrap_or(now.mono);
        let due = if need.only.is_some() { None } else { self.room_due(&need, now) };
        let by = match self.rules.wait {
            // A place under a cap is free in moments, and the person set the cap: that is waited for.
            Wait::Off if due == Some(None) => Some(since.plus(CAPPED)),
            Wait::Off => Some(since),
            Wait::UpTo(span) if due == Some(None) => Some(since.plus(span.max(CAPPED))),
            Wait::UpTo(span) => Some(since.plus(span)),
            Wait::UntilReset => None,
        };
        if by.is_none_or(|by| by > now.mono)
            && let Some(due) = due
            && by.is_none_or(|by| due.is_none_or(|due| now.mono.plus(due.left(now)) <= by))
        {
            let waited = Waited { dry_since: Some(since), renewal_by: None };
            let need = Need { exclude: Vec::new(), ..need };
            let waits_for = WaitsFor::Room { due, by };
            self.parked.push(Parked { ticket, need, waited, waits_for });
            return;
        }
        let refused = self.refusal(&need, now);
        self.effects.push_back(Effect::Reply(ticket, Grant::Refused(refused)));
    }

    /// When one of the accounts that are out should be back for a need: at some time, as soon as a
    /// request ends (`Some(None)`), or not by itself (`None`).
    fn room_due(&self, need: &Need, now: Now) -> Option<Option<Due>> {
        // As in a refusal: what the request tried before is judged by the account's own state.
        let need = &Need { exclude: Vec::new(), ..need.clone() };
        let view = self.view(need, now);
        let mut first: Option<Due> = None;
        let mut capped = false;
        let barred = select::barred(&view, need, now);
        for account in &self.accounts {
            // One that can serve and was only tried: trying it again is the asker's business.
            let out = barred(account)?;
            capped |= out.bar == Bar::Capped;
            let due = out.until.map(|at| Due::at(now, at, cooldown::LONGEST));
            if let Some(due) = due.filter(|due| first.is_none_or(|first| first.later_than(*due))) {
                first = Some(due);
            }
        }
        if capped { Some(None) } else { first.map(Some) }
    }

    fn grant(&mut self, now: Now, ticket: Ticket, need: &Need, at: usize) {
        let view = self.view(need, now);
        let Some(choice) = self.scratch.choice(&view, need, now) else { return };
        if view.rules.strategy == Strategy::WeightedRoundRobin {
            self.settle_weights(now, need, at);
        }
        let Some(account) = self.accounts.get_mut(at) else { return };
        let lease = LeaseId(self.next_lease);
        self.next_lease += 1;
        self.turn += 1;
        self.draw = self.rng.u64(..);
        account.turn = self.turn;
        account.in_flight += 1;
        let (id, generation) = (account.id.clone(), account.token.generation);
        if let Some(thread) = need.thread() {
            if self.affinity.get(thread, now.mono) != Some(&id) {
                account.crowd = account.crowd.joined(now.mono);
            }
            self.affinity.runs(need, &id, now.mono);
        }
        self.leases.insert(lease, (id.clone(), generation));
        let choice = Box::new(choice);
        let grant = Grant::Lease { lease, account: id, generation, choice };
        self.effects.push_back(Effect::Reply(ticket, grant));
    }

    /// Everybody who could have served is owed their share of this choice, and who serves pays for
    /// it. So the shares come out exactly, whoever joins or leaves meanwhile.
    fn settle_weights(&mut self, now: Now, need: &Need, chosen: usize) {
        let shares: Vec<(usize, i64)> = {
            let view = self.view(need, now);
            let barred = select::barred(&view, need, now);
            let all = view.accounts.iter().enumerate();
            all.filter(|(_at, account)| barred(account).is_none())
                .map(|(at, account)| (at, i64::from(select::weight(&view, account))))
                .collect()
        };
        let total: i64 = shares.iter().map(|(_at, weight)| weight).sum();
        for (at, weight) in shares {
            let Some(account) = self.accounts.get_mut(at) else { continue };
            let pays = if at == chosen { total } else { 0 };
            // A thread that stays where it is can take more than its account's share: what is owed
            // for it is bounded, or the others would be paid back for days.
            account.credit = (account.credit + weight - pays).clamp(-4 * total, 4 * total);
        }
    }

    fn refusal(&self, need: &Need, now: Now) -> Refused {
        // What the request itself ruled out before is judged by the account's own state: the
        // answer is about when the pool can serve, not about this request's history.
        let need = Need { exclude: Vec::new(), only: None, ..need.clone() };
        let view = self.view(&need, now);
        let barred = select::barred(&view, &need, now);
        let out: Vec<_> = self
            .accounts
            .iter()
            .filter(|account| need.scope.place(&account.pools).is_some())
            .map(|account| (account, barred(account)))
            .collect();
        let first = out
            .iter()
            .filter_map(|(account, excluded)| {
                let excluded = excluded.as_ref()?;
                excluded.until.map(|until| (until, excluded.quota, *account))
            })
            .min_by(|a, b| (a.0, a.2.order).cmp(&(b.0, b.2.order)));
        // That one is tried again right now bars it no less.
        let unreached = |(account, excluded): &(&Account, Option<Excluded>)| {
            let waits = excluded.is_none_or(|it| it.bar == Bar::Waiting && !it.quota);
            let stuck = account.stuck.as_ref().is_some_and(|stuck| stuck.unreached);
            let limited = account.limited(need.model.as_deref(), now).is_some();
            waits && stuck && !limited && !account.sendable(now)
        };
        Refused {
            unreached: out.iter().any(unreached),
            tried: out.iter().any(|(_account, excluded)| excluded.is_none()),
            retry_at: first.map(|(until, _quota, _account)| until),
            quota: first.is_some_and(|(_until, quota, _account)| quota),
            reasons: out
                .iter()
                .map(|(account, excluded)| {
                    let text = excluded.as_ref().map_or_else(
                        || "already tried for this request".to_owned(),
                        |excluded| excluded.said(account, now),
                    );
                    (Arc::clone(&account.name), text)
                })
                .collect(),
            plan: first
                .map(|(_until, _quota, account)| account)
                .or_else(|| out.first().map(|(account, _excluded)| *account))
                .and_then(|account| account.plan.clone()),
        }
    }
}
