//! What beats what, one rule a test, and the order of rules.

use super::*;
use crate::{
    account::{Crowd, Terms},
    cooldown::Cooldown,
    quota::{MAIN_LIMIT, Place, Quota},
    time::{Due, Mono, Span},
    token::{Generation, Token},
};
use proptest::{prelude::*, strategy::Strategy};
use std::collections::BTreeMap;

const NOW: Now = Now { mono: Mono::from_millis(1_000), wall: Wall::from_secs(1_800_000_000) };

fn id(n: u32) -> AccountId {
    AccountId::of("u", &n.to_string())
}

fn account(n: u32) -> Account {
    Account {
        id: id(n),
        order: n,
        workspace: n.to_string().into(),
        pools: crate::scope::Pools::default(),
        plan: None,
        name: n.to_string().into(),
        enabled: true,
        at_home: true,
        login: Login::Good,
        token: Token::learned(NOW, Generation(1), None, 0.0),
        cooldown: None,
        quota: Quota::default(),
        in_flight: 0,
        served: 0,
        streak: 0,
        renewal: (0, None),
        stuck: None,
        shaky: None,
        without: BTreeMap::new(),
        limited: BTreeMap::new(),
        lists: None,
        unlisted: Vec::new(),
        refused_fresh: false,
        terms: Terms::default(),
        turn: 0,
        credit: 0,
        crowd: Crowd::default(),
    }
}

fn used(percent: u32, place: Place, resets_in: Span) -> Window {
    Window {
        limit: MAIN_LIMIT.into(),
        model: None,
        place,
        used_percent: f64::from(percent),
        minutes: Some(if place == Place::Primary { 300 } else { 10_080 }),
        resets: Some(NOW.wall.plus(resets_in)),
        seen: NOW.wall,
    }
}

fn quota(windows: &[Window]) -> Quota {
    let mut quota = Quota::default();
    quota.merge(windows);
    quota
}

fn cooling(secs: u64) -> Cooldown {
    Cooldown {
        cause: Cause::Forbidden,
        since: NOW.wall,
        due: Due::after(NOW, Span::from_secs(secs)),
    }
}

/// The account chosen, and why not the next best.
fn check(accounts: &[Account], pin: Option<u32>, last: Option<u32>, expected: u32, why: &str) {
    let pin = pin.map(id);
    let mut affinity = Affinity::default();
    if let Some(last) = last {
        affinity.set("s", &id(last), NOW.mono);
    }
    let view = View::new(accounts, pin.as_ref(), &affinity);
    let need = Need { session: Some("s".into()), ..Need::default() };
    let at = choose(&view, &need, NOW).expect("one can serve");
    assert_eq!(accounts[at].id, id(expected));
    let all = explain(&view, &need, NOW);
    let mut able = all.iter().filter(|candidate| candidate.excluded.is_none());
    let best = able.next().expect("one can serve");
    let reason =
        able.next().map_or("no other can serve", |next| best.key.decided_against(&next.key));
    assert_eq!(reason, why);
}

#[test]
fn a_pin_beats_affinity_and_affinity_beats_the_rest() {
    let mut accounts = [account(1), account(2), account(3)];
    accounts[2].quota = quota(&[used(97, Place::Primary, Span::from_secs(60))]);
    accounts[1].in_flight = 9;
    check(&accounts, Some(3), Some(2), 3, "it is pinned");
    check(&accounts, None, Some(2), 2, "the thread ran on it last");
    check(&accounts, None, None, 1, "it has less in flight");
}

#[test]
fn a_pin_yields_while_its_account_cannot_serve_and_returns_by_itself() {
    let mut accounts = [account(1), account(2)];
    accounts[1].cooldown = Some(cooling(60));
    check(&accounts, Some(2), None, 1, "no other can serve");
    let affinity = Affinity::default();
    let pin = id(2);
    let view = View::new(&accounts, Some(&pin), &affinity);
    let later = Now { mono: NOW.mono.plus(Span::from_secs(60)), wall: NOW.wall };
    assert_eq!(choose(&view, &Need::default(), later), Some(1));
    accounts[1].enabled = false;
    let view = View::new(&accounts, Some(&pin), &affinity);
    assert_eq!(choose(&view, &Need::default(), later), Some(0));
}

#[test]
fn a_ready_token_and_a_path_that_works_come_before_quota() {
    let mut accounts = [account(1), account(2)];
    accounts[0].login = Login::Renewing { refused: true };
    check(&accounts, None, None, 2, "its token is ready");
    accounts[0].login = Login::Good;
    accounts[0].shaky = Some(Due::after(NOW, Span::from_secs(9)));
    check(&accounts, None, None, 2, "nothing failed on it lately");
}

#[test]
fn an_account_nearly_out_is_kept_as_a_reserve() {
    let mut accounts = [account(1), account(2), account(3)];
    let in_a_week = Span::from_secs(7 * 86_400);
    accounts[0].quota = quota(&[used(96, Place::Primary, in_a_week)]);
    accounts[1].quota = quota(&[used(94, Place::Primary, in_a_week)]);
    accounts[2].quota = quota(&[used(100, Place::Primary, in_a_week)]);
    check(&accounts, None, None, 2, "it has more headroom");
    // Under the last percent comes after low, and a window whose reset has passed counts for nothing.
    accounts[1].quota = quota(&[used(100, Place::Secondary, Span::ZERO)]);
    check(&accounts[..2], None, None, 2, "it has more headroom");
    accounts[1].quota =
        quota(&[Window { used_percent: 99.5, ..used(0, Place::Primary, in_a_week) }]);
    check(&accounts[..2], None, None, 1, "it has more headroom");
}

#[test]
fn quota_that_would_be_lost_at_its_reset_is_used_first() {
    let lost = "it has fewer threads for the quota that it has to use by its resets";
    let mut accounts = [account(1), account(2)];
    accounts[0].quota = quota(&[used(20, Place::Secondary, Span::from_secs(6 * 86_400))]);
    accounts[1].quota = quota(&[used(50, Place::Secondary, Span::from_secs(3 * 3600))]);
    check(&accounts, None, None, 2, lost);
    // Threads that are at work on it already count against that.
    for _thread in 0..5 {
        accounts[1].crowd = accounts[1].crowd.joined(NOW.mono);
    }
    check(&accounts, None, None, 1, lost);
    accounts[1].crowd = Crowd::default();
    // What is left of the short window decides as well.
    accounts[1].quota = quota(&[
        used(50, Place::Secondary, Span::from_secs(3 * 3600)),
        used(90, Place::Primary, Span::from_secs(4 * 3600)),
    ]);
    check(&accounts, None, None, 1, lost);
}

#[test]
fn a_crowd_halves_every_half_hour() {
    let mut crowd = Crowd::default();
    for _thread in 0..4 {
        crowd = crowd.joined(NOW.mono);
    }
    let after = |minutes: u64| crowd.thousandths(NOW.mono.plus(Span::from_secs(60 * minutes)));
    assert_eq!([after(0), after(15), after(30), after(60)], [4000, 3000, 2000, 1000]);
    assert_eq!(after(100_000), 0);
}

#[test]
fn load_is_spread_and_then_the_list_decides() {
    let mut accounts = [account(1), account(2)];
    check(&accounts, None, None, 1, "it comes first in the list");
    accounts[0].in_flight = 1;
    check(&accounts, None, None, 2, "it has less in flight");
    accounts[1].in_flight = 1;
    accounts[0].quota = quota(&[Window { resets: None, ..used(50, Place::Primary, Span::ZERO) }]);
    check(&accounts, None, None, 2, "less of its quota is used");
}

#[test]
fn what_keeps_an_account_out_is_told_and_only_what_ends_by_itself_has_a_time() {
    let out = |change: fn(&mut Account), need: &Need| {
        let mut account = account(1);
        change(&mut account);
        let out = excluded(&account, need, NOW).expect("it is kept out");
        (out.said(&account, NOW), out.until.map(|at| at.since(NOW.wall)), out.quota)
    };
    let any = Need::default();
    let text = |text: &str| text.to_owned();
    assert_eq!(out(|a| a.enabled = false, &any), (text("disabled by you"), None, false));
    assert_eq!(
        out(|a| a.at_home = false, &any),
        (text("imported for another upstream"), None, false)
    );
    let gone = |a: &mut Account| a.login = Login::Gone { cause: "revoked".into(), since: NOW.wall };
    assert_eq!(out(gone, &any), (text("revoked"), None, false));
    let minute = Some(Span::from_secs(60));
    assert_eq!(
        out(|a| a.cooldown = Some(cooling(60)), &any),
        (text("forbidden by upstream"), minute, false)
    );
    let full = |a: &mut Account| a.quota = quota(&[used(100, Place::Primary, Span::from_secs(60))]);
    assert_eq!(out(full, &any), (text("its quota window is full"), minute, true));
    let elsewhere = Need { workspaces: [Arc::from("9")].into(), ..Need::default() };
    assert_eq!(
        out(|_| {}, &elsewhere),
        (text("its workspace is not allowed for this launch"), None, false)
    );
    let model = Need { model: Some("m".into()), ..Need::default() };
    let lacks = |a: &mut Account| {
        a.without.insert("m".into(), Due::after(NOW, Span::from_secs(9)));
        a.cooldown = Some(cooling(60));
    };
    assert_eq!(out(lacks, &model), (text("not included in its plan"), None, false));
}

fn any_account() -> impl Strategy<Value = Account> {
    (any::<[bool; 6]>(), 0_u32..3, 0_u32..6, 0_u32..101, 0_u64..1_000_000).prop_map(
        |([enabled, renewing, cold, shaky, lacks, primary], load, order, percent, resets)| {
            let place = if primary { Place::Primary } else { Place::Secondary };
            Account {
                enabled,
                order,
                login: if renewing { Login::Renewing { refused: cold } } else { Login::Good },
                cooldown: (cold && !renewing).then(|| cooling(60)),
                shaky: shaky.then(|| Due::after(NOW, Span::from_secs(9))),
                without: lacks
                    .then(|| ("m".into(), Due::after(NOW, Span::from_secs(9))))
                    .into_iter()
                    .collect(),
                in_flight: load,
                quota: quota(&[used(percent, place, Span::from_secs(resets))]),
                ..account(0)
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn explain_agrees_with_choose_and_order_of_insertion_changes_nothing(
        accounts in prop::collection::vec(any_account(), 0..8)
            .prop_map(|all| (0_u32..).zip(all).map(|(n, a)| Account { id: id(n), ..a }).collect::<Vec<_>>())
            .prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        pin in prop::option::of(0_u32..8),
        last in prop::option::of(0_u32..8),
        model in prop::option::of(Just("m")),
        exclude in prop::collection::vec(0_u32..8, 0..3),
    ) {
        let (one, other) = accounts;
        let pin = pin.map(id);
        let mut affinity = Affinity::default();
        if let Some(last) = last {
            affinity.set("s", &id(last), NOW.mono);
        }
        let need = Need {
            session: Some("s".into()),
            model: model.map(Arc::from),
            exclude: exclude.into_iter().map(id).collect(),
            ..Need::default()
        };
        let see = |accounts: &[Account]| {
            let view = View::new(accounts, pin.as_ref(), &affinity);
            let chosen = choose(&view, &need, NOW).map(|at| accounts[at].id.clone());
            let all = explain(&view, &need, NOW);
            (chosen, all.into_iter().map(|c| (c.id, c.excluded, c.key)).collect::<Vec<_>>())
        };
        let (chosen, all) = see(&one);
        let first = all.first().filter(|(_, excluded, _)| excluded.is_none()).map(|(id, ..)| id.clone());
        prop_assert_eq!(&chosen, &first);
        prop_assert_eq!(all.len(), one.len());
        prop_assert_eq!((chosen, all), see(&other));
    }
}
