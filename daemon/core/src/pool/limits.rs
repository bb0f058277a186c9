//! What limits mean for an account: windows that upstream tells of, and limits that belong to one
//! model alone.
//!
//! A limit of a model's own never rests the account: other models go on. It ends at its reset, or as
//! soon as newer windows of that limit have room.

use super::{Pool, Topic, parked::Woken};
use crate::{
    cooldown::{self, Cause},
    identity::AccountId,
    quota::Window,
    time::{Now, Wall},
};
use std::sync::Arc;

/// Percent used below which newer windows end a rest that a limit brought.
const ROOM: f64 = 99.0;

impl Pool {
    pub(super) fn quota_seen(&mut self, now: Now, id: &AccountId, windows: &[Window]) {
        let Some(account) = self.find_mut(id) else { return };
        let was_full = account.quota.full_until(None, now).is_some();
        if !account.quota.merge(windows) {
            return;
        }
        let is_full = account.quota.full_until(None, now).is_some();
        // Knowledge newer than the limit that cooled it ends the rest: windows were reset early.
        // What was seen before the limit is no news, unless the clock was set back since.
        let room = |since: Wall| {
            let new = |window: &&Window| window.seen >= since || since > now.wall;
            windows.iter().filter(new).any(|window| window.used_percent < ROOM)
        };
        let freed = account.cooldown.as_ref().is_some_and(|rest| {
            matches!(rest.cause, Cause::UsageLimit(_))
                && room(rest.since)
                && account.quota.headroom(None, now) > 1.0
        }) && !is_full;
        if freed {
            account.cooldown = None;
            account.streak = 0;
        }
        let before = account.limited.len();
        if before > 0 {
            account.limited.retain(|_model, (limit, _due)| {
                let mut told = windows.iter().filter(|one| one.limit == *limit).peekable();
                told.peek().is_none() || told.any(|one| one.used_percent >= ROOM)
            });
        }
        if freed || account.limited.len() < before || is_full != was_full {
            self.changed(Topic::State(id.clone()));
        }
        self.changed(Topic::Quota(id.clone()));
        self.unpark(now, Woken::Room);
    }

    /// A model's own limit is used up on an account.
    pub(super) fn model_limit(
        &mut self,
        now: Now,
        id: &AccountId,
        model: Option<&Arc<str>>,
        (limit, reset): (&Arc<str>, Option<Wall>),
    ) {
        // Whose limit it is can't be told: the account rests, as after any other.
        let Some(model) = model else { return self.cool(now, id, Cause::UsageLimit(reset)) };
        let Some(account) = self.find_mut(id) else { return };
        let own = account.quota.windows().iter().filter(|window| window.limit == *limit);
        let full = own.filter(|window| window.used_at(now) >= 100.0).filter_map(|one| one.resets);
        let rest = cooldown::rest(now, Cause::UsageLimit(reset), 1, full.max());
        account.limited.retain(|_model, (_limit, due)| !due.reached(now));
        let known = account.limited.get(model);
        if known.is_none_or(|(_limit, due)| rest.due.later_than(*due)) {
            account.limited.insert(Arc::clone(model), (Arc::clone(limit), rest.due));
            self.changed(Topic::State(id.clone()));
        }
    }
}
