//! The pool's promises, each under random operations in a simulated world with two clocks.

mod choosing;
mod defects;
mod regressions;
mod scopes;
mod threads;
mod world;

use crate::{
    account::{Account, Login},
    cooldown::Cause,
    pool::{Effect, Grant, Input},
    select::{self, Need},
    time::Span,
    token::Generation,
    verdict::Mark,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use world::{ACCOUNTS, Act, SESSIONS, World, account, acts, calm_acts};

const HOUR: Span = Span::from_secs(3600);

proptest! {
    #![proptest_config(choosing::config(1))]

    #[test]
    fn p1_a_lease_is_granted_only_on_an_account_that_can_serve_at_that_instant(acts in acts()) {
        World::run(acts, |world, step| {
            for (ticket, grant) in step.replies() {
                let Grant::Lease { account: id, generation, .. } = grant else { continue };
                let need = &world.asked[ticket].need;
                let one = world.account(id).expect("granted on an account of the pool");
                prop_assert!(one.enabled && one.at_home);
                let refused = matches!(one.login, Login::Gone { .. } | Login::Renewing { refused: true });
                prop_assert!(!refused);
                prop_assert!(one.token.usable(world.now) && one.token.generation == *generation);
                prop_assert!(one.cooldown.as_ref().is_none_or(|rest| rest.due.reached(world.now)));
                prop_assert!(one.quota.full_until(None, world.now).is_none());
                prop_assert!(!need.exclude.contains(id) && need.only.as_ref().is_none_or(|o| o == id));
                prop_assert!(need.workspaces.is_empty() || need.workspaces.contains(&one.workspace));
                prop_assert!(!one.lacks(need.model.as_deref(), world.now));
            }
            Ok(())
        })?;
    }

    #[test]
    fn p2_an_account_that_was_cooled_is_not_granted_before_it_is_due(acts in calm_acts()) {
        let mut rests: BTreeMap<_, Vec<(Cause, u64)>> = BTreeMap::new();
        let mut known = BTreeMap::new();
        World::run(acts, |world, step| {
            match &step.input {
                // News may end a limit, and the shorter rests that it stood for.
                Input::QuotaSeen(id, _) | Input::Remove(id) => drop(rests.remove(id)),
                // So does a new credential, which nothing was refused to yet.
                Input::Upsert(seed) if known.get(&seed.id) != Some(&seed.generation) => {
                    rests.remove(&seed.id);
                },
                _ => {},
            }
            for (_ticket, grant) in step.replies() {
                let Grant::Lease { account, .. } = grant else { continue };
                for (cause, due) in rests.get(account).into_iter().flatten() {
                    prop_assert!(world.now.mono.millis() >= *due, "granted during {cause:?}");
                }
            }
            let told = match &step.input {
                Input::Learn(id, mark) => Some((id, mark)),
                _ => step.released.as_ref().map(|(id, mark)| (id, mark)),
            };
            if let Some((id, Mark::Cool(cause))) = told
                && let Some(account) = world.account(id)
            {
                // A limit that names no end ends with the window that is known to be full.
                let full = account.quota.full_until(None, world.now);
                let rest = match cause {
                    Cause::UsageLimit(Some(at)) => at.since(world.now.wall),
                    Cause::UsageLimit(None) if let Some(at) = full => at.since(world.now.wall),
                    Cause::Throttled(Some(wait)) => (*wait).min(Span::from_secs(300)),
                    Cause::Throttled(None) => Span::from_secs(5),
                    Cause::Forbidden => Span::from_secs(60),
                    Cause::UsageLimit(None) | Cause::NotEntitled | Cause::PaymentRequired
                    | Cause::Unauthorized | Cause::RenewalFailed => Span::from_secs(300),
                };
                let due = world.now.mono.plus(rest).millis();
                rests.entry(id.clone()).or_default().push((cause.clone(), due));
            }
            known = world.pool.accounts().iter().map(|a| (a.id.clone(), a.token.generation)).collect();
            Ok(())
        })?;
    }

    #[test]
    fn p3_pins_affinities_and_leases_never_name_a_missing_or_disabled_account(acts in acts()) {
        let mut ran_on: BTreeMap<usize, _> = BTreeMap::new();
        World::run(acts, |world, step| {
            if let Some((pin, _since)) = world.pool.pin() {
                let pinned = world.account(pin).expect("the pin is in the pool");
                // A pin on an account that can't serve says so, and never keeps others out.
                prop_assert!(pinned.enabled || world.pool.pin_yields(world.now).is_some());
            }
            if let Input::Remove(id) = &step.input {
                ran_on.retain(|_, account| account != id);
            }
            for (ticket, grant) in step.replies() {
                let Grant::Lease { account, .. } = grant else { continue };
                prop_assert!(world.account(account).is_some_and(|account| account.enabled));
                if let Some(session) = world.asked[ticket].session {
                    ran_on.insert(session, account.clone());
                }
            }
            for session in 0..SESSIONS {
                let need = Need { session: Some(world::session(session)), ..Need::default() };
                for candidate in world.pool.explain(&need, world.now) {
                    if candidate.key.affinity == 0 {
                        prop_assert_eq!(ran_on.get(&session), Some(&candidate.id));
                    }
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn p4_grants_are_releases_plus_outstanding_and_zero_at_the_end(acts in acts()) {
        let mut world = World::run(acts, |world, _step| {
            prop_assert_eq!(world.pool.outstanding(), world.leases.len());
            prop_assert_eq!(world.granted, world.released + world.leases.len());
            for account in world.pool.accounts() {
                let held = world.leases.iter().filter(|(_, id)| *id == account.id).count();
                prop_assert_eq!(account.in_flight as usize, held);
            }
            Ok(())
        })?;
        world.end_all();
        prop_assert_eq!(world.pool.outstanding(), 0);
        prop_assert!(world.pool.accounts().iter().all(|account| account.in_flight == 0));
    }

    #[test]
    fn p5_one_renewal_at_most_and_an_old_generation_changes_nothing(acts in acts()) {
        let facts = |world: &World| -> BTreeMap<_, _> {
            let of = |a: &Account| (a.id.clone(), (a.login.clone(), a.token, a.cooldown.clone()));
            world.pool.accounts().iter().map(of).collect()
        };
        let mut before = facts(&World::new());
        World::run(acts, |world, step| {
            for id in (0..ACCOUNTS).map(account) {
                let current = world.renewals.iter().filter(|r| r.current && r.id == id).count();
                prop_assert!(current <= 1, "{current} renewals of {id} at once");
                let renewing = world.account(&id).is_some_and(|a| matches!(a.login, Login::Renewing { .. }));
                prop_assert_eq!(current == 1, renewing);
            }
            if let Some(id) = &step.stale {
                let after = facts(world);
                prop_assert_eq!(before.get(id), after.get(id));
                prop_assert!(step.effects.iter().all(|effect| matches!(effect, Effect::Note(_))));
            }
            before = facts(world);
            Ok(())
        })?;
    }

    #[test]
    fn p6_a_refusal_names_the_earliest_return_and_holds_its_word(acts in acts()) {
        World::run(acts, |world, step| {
            for (ticket, grant) in step.replies() {
                let Grant::Refused(refused) = grant else { continue };
                let asked = &world.asked[ticket].need;
                let need = Need { exclude: Vec::new(), only: None, ..asked.clone() };
                let out: Vec<_> = world.pool.accounts().iter()
                    .map(|account| (account.id.clone(), select::excluded(account, &need, world.now)))
                    .collect();
                let least = out.iter().filter_map(|(_, out)| out.as_ref()?.until).min();
                prop_assert_eq!(refused.retry_at, least);
                prop_assert_eq!(refused.reasons.len(), world.pool.accounts().len());
                let Some(at) = refused.retry_at else { continue };
                prop_assert!(at > world.now.wall, "a time in the past");
                let mut later = world.fork();
                later.wait(at.since(world.now.wall))?;
                for (id, before) in &out {
                    if before.as_ref().and_then(|out| out.until) != refused.retry_at { continue }
                    let after = select::excluded(later.account(id).expect("still there"), &need, later.now);
                    // Its token may have expired meanwhile with a renewal failed before.
                    prop_assert!(
                        after.as_ref().is_none_or(|out| out.bar == select::Bar::Waiting),
                        "{before:?} became {after:?}"
                    );
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn p7_next_wake_lies_in_the_future_and_every_wake_makes_progress(acts in acts()) {
        // `World::wait` fails on a wake that comes at once or that does nothing.
        let mut world = World::run(acts, |world, _step| {
            prop_assert!(world.pool.next_wake(world.now).is_none_or(|wake| wake > Span::ZERO));
            Ok(())
        })?;
        world.wait(HOUR.times(100))?;
        // What nobody answers leaves nothing to wake for but returns, and those have ended.
        prop_assert!(world.pool.parked.is_empty());
    }

    #[test]
    fn p8_every_parked_request_is_answered_once_by_its_deadline(acts in acts()) {
        let mut world = World::run(acts, |world, step| {
            for asked in world.asked.values() {
                prop_assert!(asked.answers <= 1);
                prop_assert!(!asked.cancelled || asked.answers == 0);
                let waited = world.now.mono.since(asked.at);
                prop_assert!(asked.answers == 1 || asked.cancelled || waited < super::PARK,
                    "unanswered after {waited:?} at {:?}", step.input);
            }
            Ok(())
        })?;
        world.wait(super::PARK)?;
        prop_assert!(world.asked.values().all(|asked| asked.cancelled || asked.answers == 1));
    }

    #[test]
    fn p9_explain_agrees_with_choose_and_insertion_order_changes_nothing(
        acts in acts(),
        order in Just((0..ACCOUNTS).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        // Without expiries nothing depends on chance, so two pools must do exactly the same.
        let filled = |order: Vec<usize>| {
            let mut world = World::bare();
            for n in order {
                world.generation = n as u64;
                world.act(Act::Upsert { account: n, enabled: true, at_home: true, fresh: true, life: None });
            }
            world.generation = ACCOUNTS as u64;
            world
        };
        let (mut one, mut other) = (filled((0..ACCOUNTS).collect()), filled(order));
        for act in acts {
            let act = act.timeless();
            let (a, b) = (one.act(act.clone()), other.act(act));
            prop_assert_eq!(a.effects, b.effects);
            for session in [None, Some(0), Some(1)] {
                let need = Need { session: session.map(world::session), ..Need::default() };
                let all = one.pool.explain(&need, one.now);
                let first = all.first().filter(|first| first.excluded.is_none()).map(|first| &first.id);
                let chosen = select::choose(&one.pool.view(&need, one.now), &need, one.now);
                prop_assert_eq!(first, chosen.map(|at| &one.pool.accounts()[at].id));
                let same: Vec<_> = other.pool.explain(&need, other.now).into_iter().map(|c| c.id).collect();
                prop_assert_eq!(all.into_iter().map(|c| c.id).collect::<Vec<_>>(), same);
            }
        }
    }

    #[test]
    fn p10_any_clock_jump_within_a_day_leaves_the_pool_live_within_its_caps(
        acts in acts(),
        jump in -86_400_000_i64..86_400_000,
    ) {
        let mut world = World::run(acts, |_world, _step| Ok(()))?;
        world.act(Act::Jump(jump));
        // From here on the issuer answers everything, and nothing else happens.
        for _ in 0..150 {
            world.renew_all();
            world.wait(Span::from_secs(60))?;
        }
        world.renew_all();
        for n in 0..ACCOUNTS {
            let Some(one) = world.account(&account(n)) else { continue };
            if !one.enabled || !one.at_home || matches!(one.login, Login::Gone { .. }) { continue }
            let need = Need { only: Some(account(n)), ..Need::default() };
            // A full window seen by a clock that was ahead counts once that time has come.
            let mut served = false;
            for _ in 0..3 {
                let step = world.act(Act::Need(need.clone()));
                let grant = step.replies().next().map(|(_, grant)| grant.clone());
                let Some(Grant::Refused(refused)) = grant else {
                    served = grant.is_some();
                    break;
                };
                let wait = refused.retry_at.expect("a rest that ends").since(world.now.wall);
                prop_assert!(wait <= HOUR.times(2), "{:?}", world.account(&account(n)));
                world.wait(wait)?;
            }
            prop_assert!(served, "{:?}", world.account(&account(n)));
        }
    }
}

#[test]
fn generations_only_grow_in_the_simulated_world() {
    // The simulation's own promise, on which p5 rests.
    let mut world = World::new();
    let step = world.act(Act::Upsert {
        account: 0,
        enabled: true,
        at_home: true,
        fresh: true,
        life: Some(60),
    });
    assert!(step.effects.iter().any(|effect| matches!(effect, Effect::Changed(_))));
    assert_eq!(
        world.account(&account(0)).map(|a| a.token.generation),
        Some(Generation(world.generation))
    );
}
