//! Single stories: things that were wrong once, and rules too fine for random operations.

use super::world::{Act, Answer, Told, World, account};
use crate::{
    account::Login,
    pool::{Effect, Grant, Input, LeaseId, Release},
    quota::{MAIN_LIMIT, Place, Window},
    select::{self, Need},
    time::{Span, Wall},
    token::Generation,
    verdict::Mark,
};

fn one(life: Option<u64>) -> World {
    let mut world = World::bare();
    world.act(Act::Upsert { account: 0, enabled: true, at_home: true, fresh: true, life });
    world
}

fn select(world: &mut World) -> Option<LeaseId> {
    let step = world.act(Act::Need(Need::default()));
    step.replies().find_map(|(_, grant)| match grant {
        Grant::Lease { lease, .. } => Some(*lease),
        Grant::Refused(_) => None,
    })
}

#[test]
fn the_last_401_of_a_burst_says_nothing_about_the_new_token() {
    let mut world = one(None);
    assert!(select(&mut world).is_some() && select(&mut world).is_some());
    world.act(Act::Release { lease: 0, mark: Told::Unauthorized, served: false });
    world.act(Act::Issuer { renewal: 0, answer: Answer::Token(None) });
    let late = world.act(Act::Release { lease: 0, mark: Told::Unauthorized, served: false });
    assert_eq!(late.effects, []);
    assert!(select(&mut world).is_some());
}

#[test]
fn a_token_that_served_is_renewed_at_its_next_401_and_a_fresh_one_rests() {
    let mut world = one(None);
    let refuse = |world: &mut World, served: bool| {
        if served {
            select(world).unwrap();
            world.act(Act::Release { lease: 0, mark: Told::Fine, served });
        }
        select(world).unwrap();
        world.act(Act::Release { lease: 0, mark: Told::Unauthorized, served: false });
        std::mem::take(&mut world.renewals).len()
    };
    assert_eq!(refuse(&mut world, true), 1);
    world.act(Act::Upsert { account: 0, enabled: true, at_home: true, fresh: true, life: None });
    assert_eq!(refuse(&mut world, false), 1);
    let renewed = |world: &mut World| {
        world.generation += 1;
        let generation = Generation(world.generation);
        world.pool.handle(world.now, Input::Renewed(account(0), generation, None));
    };
    renewed(&mut world);
    assert_eq!(refuse(&mut world, true), 1, "it served in between");
    renewed(&mut world);
    assert_eq!(refuse(&mut world, false), 0, "refused right after its renewal");
    assert!(world.account(&account(0)).unwrap().rest(world.now).is_some());
}

#[test]
fn an_older_record_does_not_take_a_newer_credential_back() {
    let mut world = one(None);
    let old = world.act(Act::Upsert {
        account: 0,
        enabled: true,
        at_home: true,
        fresh: false,
        life: None,
    });
    world.act(Act::Upsert { account: 0, enabled: true, at_home: true, fresh: true, life: None });
    let newer = world.account(&account(0)).unwrap().token;
    world.pool.handle(world.now, old.input);
    assert_eq!(world.account(&account(0)).unwrap().token, newer);
}

#[test]
fn a_new_credential_serves_those_who_wait_at_once() {
    let mut world = one(Some(3));
    assert_eq!(select(&mut world), None);
    let step = world.act(Act::Upsert {
        account: 0,
        enabled: true,
        at_home: true,
        fresh: true,
        life: None,
    });
    assert_eq!(step.replies().count(), 1);
    assert_eq!(world.account(&account(0)).unwrap().login, Login::Good);
}

#[test]
fn a_burst_of_throttles_is_one_failure() {
    let mut world = one(None);
    for _ in 0..16 {
        select(&mut world).unwrap();
    }
    for _ in 0..16 {
        world.act(Act::Release { lease: 0, mark: Told::Throttle(None), served: false });
    }
    let rest = world.account(&account(0)).unwrap().rest(world.now).unwrap().due.left(world.now);
    assert_eq!(rest, Span::from_secs(5));
    world.wait(rest).unwrap();
    select(&mut world).unwrap();
    world.act(Act::Release { lease: 0, mark: Told::Throttle(None), served: false });
    let rest = world.account(&account(0)).unwrap().rest(world.now).unwrap().due.left(world.now);
    assert_eq!(rest, Span::from_secs(10));
}

#[test]
fn an_account_that_comes_back_still_carries_what_runs_on_it() {
    let mut world = one(None);
    let first = select(&mut world).unwrap();
    world.act(Act::Remove(0));
    world.act(Act::Upsert { account: 0, enabled: true, at_home: true, fresh: true, life: None });
    select(&mut world).unwrap();
    let release = Release { mark: Mark::Fine, served: true, model: None };
    world.pool.handle(world.now, Input::Release(first, release));
    assert_eq!(world.account(&account(0)).unwrap().in_flight, 1);
}

#[test]
fn a_clock_that_is_ahead_does_not_renew_again_and_again() {
    let mut world = one(Some(60));
    world.act(Act::Jump(7_200_000));
    let mut renewals = 0;
    for _ in 0..600 {
        renewals += world.renewals.len();
        while !world.renewals.is_empty() {
            world.act(Act::Issuer { renewal: 0, answer: Answer::Token(Some(3600)) });
        }
        world.wait(Span::from_secs(1)).unwrap();
    }
    assert_eq!(renewals, 1);
    assert!(select(&mut world).is_some());
}

#[test]
fn a_rest_shorter_than_a_full_window_names_the_windows_end() {
    let mut world = one(None);
    select(&mut world).unwrap();
    world.act(Act::Quota { account: 0, used: 100, primary: true, resets: 3600 });
    world.act(Act::Release { lease: 0, mark: Told::Throttle(Some(5)), served: false });
    let step = world.act(Act::Need(Need::default()));
    let Some(Effect::Reply(_, Grant::Refused(refused))) = step.effects.first() else { panic!() };
    assert_eq!(refused.retry_at, Some(world.now.wall.plus(Span::from_secs(3600))));
    assert!(refused.quota);
}

#[test]
fn garbage_resets_and_windows_from_a_future_clock_keep_nobody_out() {
    let mut world = one(None);
    let window = |resets, seen| Window {
        limit: MAIN_LIMIT.into(),
        model: None,
        place: Place::Primary,
        used_percent: 100.0,
        minutes: None,
        resets: Some(resets),
        seen,
    };
    let wall = world.now.wall;
    let hour = Span::from_secs(3600);
    for (window, free) in [
        (window(wall.plus(hour), wall), false),
        (window(Wall::from_secs(u64::MAX), wall), true),
        (window(wall.plus(hour.times(2)), wall.plus(hour)), true),
    ] {
        world.pool.handle(world.now, Input::QuotaSeen(account(0), vec![window]));
        world.pool.handle(world.now, Input::Tick);
        let one = world.account(&account(0)).unwrap();
        assert_eq!(select::excluded(one, &Need::default(), world.now).is_none(), free);
    }
}

#[test]
fn news_of_quota_ends_a_limit_and_no_other_rest() {
    for (mark, ends) in
        [(Told::Limit(None), true), (Told::Forbidden, false), (Told::Throttle(None), false)]
    {
        let mut world = one(None);
        select(&mut world).unwrap();
        world.act(Act::Release { lease: 0, mark, served: false });
        world.act(Act::Quota { account: 0, used: 100, primary: true, resets: 60 });
        assert_eq!(select(&mut world), None);
        world.wait(Span::from_secs(1)).unwrap();
        world.act(Act::Quota { account: 0, used: 0, primary: true, resets: 60 });
        assert_eq!(select(&mut world).is_some(), ends, "{mark:?}");
    }
}
