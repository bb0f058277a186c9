//! Pools of projects beside the global one: who serves whom, and that nothing mixes.

use crate::{
    identity::AccountId,
    pool::{Effect, Grant, Input, Pool, Refused, Release, RenewalFailure, Seed, Ticket},
    scope::{Pools, Scope},
    select::Need,
    time::{Mono, Now, Wall},
    token::Generation,
    verdict::Mark,
};
use proptest::prelude::*;

pub(super) const NOW: Now =
    Now { mono: Mono::from_millis(1_000), wall: Wall::from_secs(1_800_000_000) };

pub(super) fn id(name: &str) -> AccountId {
    AccountId::of(name, "w")
}

fn seed(name: &str, order: u32, pools: &[&str]) -> Seed {
    Seed {
        id: id(name),
        order,
        workspace: "w".into(),
        pools: Pools::of(pools),
        plan: Some(name.into()),
        name: name.into(),
        enabled: true,
        at_home: true,
        generation: Generation(1),
        expires: None,
        gone: None,
        terms: crate::account::Terms::default(),
    }
}

pub(super) fn pool(accounts: &[(&str, &[&str])]) -> Pool {
    let mut pool = Pool::new(7);
    for (order, (name, pools)) in (0..).zip(accounts) {
        pool.handle(NOW, Input::Upsert(seed(name, order, pools)));
    }
    while pool.poll_effect().is_some() {}
    pool
}

pub(super) fn project(key: &str, fallback: bool) -> Need {
    let scope = Scope::Project { key: key.into(), fallback };
    Need { scope, session: Some("thread".into()), ..Need::default() }
}

/// Who serves; none with the refusal.
pub(super) fn ask(pool: &mut Pool, need: &Need) -> Result<AccountId, Refused> {
    pool.handle(NOW, Input::Select(Ticket(1), need.clone()));
    while let Some(effect) = pool.poll_effect() {
        match effect {
            Effect::Reply(_, Grant::Lease { lease, account, .. }) => {
                let release = Release { mark: Mark::Fine, served: true, model: None };
                pool.handle(NOW, Input::Release(lease, release));
                return Ok(account);
            },
            Effect::Reply(_, Grant::Refused(refused)) => return Err(refused),
            Effect::Renew(..) | Effect::Changed(_) | Effect::Note(_) => {},
        }
    }
    panic!("no answer")
}

#[test]
fn a_project_is_served_by_its_own_accounts_alone() {
    let mut pool = pool(&[("g", &[]), ("p", &["x-1"]), ("q", &["y-1"])]);
    assert_eq!(ask(&mut pool, &Need::default()), Ok(id("g")));
    assert_eq!(ask(&mut pool, &project("x-1", false)), Ok(id("p")));
    assert_eq!(ask(&mut pool, &project("y-1", true)), Ok(id("q")));
    // A refusal speaks of the pool's own accounts only.
    pool.handle(NOW, Input::Learn(id("p"), Mark::Cool(crate::cooldown::Cause::Forbidden)));
    let refused = ask(&mut pool, &project("x-1", false)).unwrap_err();
    assert_eq!(refused.reasons.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["p"]);
    assert_eq!(refused.plan.as_deref(), Some("p"));
    let none = ask(&mut pool, &project("z-1", false)).unwrap_err();
    assert_eq!((none.reasons.len(), none.plan), (0, None));
    // An account's id is no way around its pool.
    let only = Need { only: Some(id("g")), ..project("x-1", false) };
    assert!(ask(&mut pool, &only).is_err());
    let explained = pool.explain(&project("y-1", false), NOW);
    assert_eq!(explained.iter().map(|one| one.id.clone()).collect::<Vec<_>>(), [id("q")]);
}

#[test]
fn the_global_pool_steps_in_only_where_it_may_and_only_when_it_must() {
    let mut pool = pool(&[("g", &[]), ("h", &[]), ("p", &["x-1"])]);
    let need = project("x-1", true);
    assert_eq!(ask(&mut pool, &need), Ok(id("p")), "its own first, whatever the order");
    pool.handle(NOW, Input::Pin(Some(id("h"))));
    assert_eq!(ask(&mut pool, &need), Ok(id("p")), "a global pin is not the project's");
    pool.handle(NOW, Input::Learn(id("p"), Mark::Cool(crate::cooldown::Cause::Forbidden)));
    assert_eq!(ask(&mut pool, &need), Ok(id("h")), "among those that step in it counts");
    let why = pool.explain(&need, NOW);
    assert_eq!(why[0].key.shown()[0].0, "pool");
    assert_eq!(pool.next_for(&need, NOW).map(|account| account.id.clone()), Some(id("h")));
}

#[test]
fn pins_are_per_pool() {
    let mut pool = pool(&[("a", &["global", "x-1"]), ("b", &["global", "x-1"]), ("c", &[])]);
    pool.handle(NOW, Input::PinIn("x-1".into(), Some(id("b"))));
    assert_eq!(ask(&mut pool, &Need::default()), Ok(id("a")));
    let fresh = Need { session: None, ..project("x-1", false) };
    assert_eq!(ask(&mut pool, &fresh), Ok(id("b")));
    let scope = fresh.scope.clone();
    assert_eq!(pool.pin_of(&scope).map(|(pin, _since)| pin.clone()), Some(id("b")));
    assert_eq!((pool.pin(), pool.pin_yields_in(&scope, NOW)), (None, None));
    pool.handle(NOW, Input::Upsert(seed("b", 1, &[])));
    assert!(pool.pin_yields_in(&scope, NOW).is_some(), "it left the project");
    assert_eq!(ask(&mut pool, &fresh), Ok(id("a")));
    pool.handle(NOW, Input::PinIn("x-1".into(), None));
    assert_eq!(pool.pin_of(&scope), None);
    pool.handle(NOW, Input::PinIn("x-1".into(), Some(id("a"))));
    pool.handle(NOW, Input::Remove(id("a")));
    assert_eq!(pool.pin_of(&scope), None);
}

#[test]
fn an_account_of_two_pools_is_renewed_once() {
    let mut pool = pool(&[("a", &["global", "x-1"])]);
    pool.handle(NOW, Input::Learn(id("a"), Mark::Unauthorized));
    for (ticket, need) in [(1, Need::default()), (2, project("x-1", false))] {
        pool.handle(NOW, Input::Select(Ticket(ticket), need));
    }
    let effects: Vec<_> = std::iter::from_fn(|| pool.poll_effect()).collect();
    let renewals = effects.iter().filter(|effect| matches!(effect, Effect::Renew(..))).count();
    assert_eq!(renewals, 1, "{effects:?}");
    pool.handle(NOW, Input::Renewed(id("a"), Generation(2), None));
    let effects: Vec<_> = std::iter::from_fn(|| pool.poll_effect()).collect();
    let served = |effect: &&Effect| matches!(effect, Effect::Reply(_, Grant::Lease { .. }));
    assert_eq!(effects.iter().filter(served).count(), 2, "{effects:?}");
    let lost = RenewalFailure::Transient("x".into());
    pool.handle(NOW, Input::RenewalFailed(id("a"), Generation(1), lost));
    assert_eq!(ask(&mut pool, &Need::default()), Ok(id("a")));
}

#[test]
fn only_the_accounts_that_a_policy_names_serve() {
    let mut pool = pool(&[("a", &[]), ("b", &[])]);
    let need = Need { accounts: Some([id("b")].into()), ..Need::default() };
    assert_eq!(ask(&mut pool, &need), Ok(id("b")));
    let need = Need { accounts: Some([].into()), ..Need::default() };
    let refused = ask(&mut pool, &need).unwrap_err();
    assert!(refused.reasons.iter().all(|(_, why)| why.contains("policy")), "{refused:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// Whatever happened before, whoever asks: who serves is in the asker's pool.
    #[test]
    fn no_order_of_events_mixes_two_pools(
        homes in prop::collection::vec(0_usize..6, 1..6),
        asks in prop::collection::vec((0_usize..4, any::<bool>(), 0_usize..3, 0_usize..6, 0_usize..8), 1..40),
    ) {
        const HOMES: [&[&str]; 6] =
            [&[], &["x-1"], &["y-1"], &["x-1", "global"], &["x-1", "y-1"], &["y-1", "global"]];
        let names: Vec<String> = (0..homes.len()).map(|n| format!("a{n}")).collect();
        let accounts: Vec<_> =
            names.iter().zip(&homes).map(|(name, home)| (name.as_str(), HOMES[*home])).collect();
        let mut pool = pool(&accounts);
        let mut pools: Vec<Pools> = homes.iter().map(|home| Pools::of(HOMES[*home])).collect();
        for (who, fallback, session, home, act) in asks {
            let at = home % names.len();
            match act {
                0 => {
                    pools[at] = Pools::of(HOMES[home]);
                    pool.handle(NOW, Input::Upsert(seed(&names[at], 0, HOMES[home])));
                },
                1 => pool.handle(NOW, Input::PinIn("x-1".into(), Some(id(&names[at])))),
                2 => pool.handle(NOW, Input::Pin(Some(id(&names[at])))),
                _ => {},
            }
            while pool.poll_effect().is_some() {}
            let scope = match who {
                0 => Scope::Global,
                n => Scope::Project { key: ["x-1", "y-1", "z-1"][n - 1].into(), fallback },
            };
            let session = Some(format!("s{session}").into());
            let need = Need { scope: scope.clone(), session, ..Need::default() };
            match ask(&mut pool, &need) {
                Ok(account) => {
                    let at = names.iter().position(|name| id(name) == account).unwrap();
                    let place = scope.place(&pools[at]);
                    prop_assert!(place.is_some(), "{scope:?} served by {:?}", pools[at]);
                    // One of its own always comes first.
                    let own = pools.iter().any(|pools| scope.place(pools) == Some(0));
                    prop_assert!(place == Some(0) || !own);
                },
                Err(_) => prop_assert!(pools.iter().all(|pools| scope.place(pools).is_none())),
            }
        }
    }
}
