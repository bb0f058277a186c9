//! What other programs get wrong about choosing, each as a story in which this one gets it right.
//!
//! | what goes wrong elsewhere | held here by |
//! | --- | --- |
//! | least-used starves accounts that are new | [`least_used_takes_a_new_account_first`] |
//! | random draws from half of the pool | [`random_uses_the_whole_pool_each_as_likely`] |
//! | weighted has no second choice; attempts go to accounts that were tried | [`weighted_has_a_second_choice_and_asks_nobody_twice`] |
//! | presets fail at 0 and 100 percent; thresholds are shown and never act | [`presets_hold_whatever_is_left_and_thresholds_act`] |
//! | another preset or strategy wipes weights; weights outlive their account | [`a_change_of_strategy_keeps_weights_and_a_removed_account_has_none`] |
//! | any word is taken for a strategy | [`a_word_that_is_no_strategy_is_refused`] |
//! | a strategy that is changed under a force is lost | [`a_strategy_changed_under_a_force_counts_after_it`] |
//! | a forced account that is out is stepped in for, or nobody says why not | [`a_force_is_strict_and_its_refusal_says_so`] |
//! | round robin drifts when accounts come and go | [`round_robin_does_not_drift_when_accounts_come_and_go`] |
//! | a new login wipes tags, weights, counters, the pin | [`a_new_login_keeps_what_is_known_and_said_of_the_account`] |
//! | a local bucket throttles accounts that are well | [`a_healthy_account_is_never_throttled_by_us`] |
//! | an account that was idle for long outranks a thread's own | [`an_idle_account_is_not_worth_more_than_a_thread_s_own`] |
//! | what is left and when it is renewed don't count | [`what_is_left_and_when_it_is_renewed_decide`] |
//! | a limit holds for one family of models; a missing model blocks the account | [`a_quota_limit_holds_for_all_models_and_a_missing_model_for_that_one_alone`] |
//! | limits of a model's own aren't read | [`a_limit_of_one_model_moves_that_model_alone`] |
//! | one good answer's windows end any rest; old ones end a limit | [`old_news_and_good_windows_end_no_other_rest`] |
//! | a reset told in seconds is taken for a minute's; a full week is tried every two hours | [`a_limit_rests_for_as_long_as_it_says_however_it_says_it`] |
//! | a week with room draws out a short limit | [`a_limit_rests_for_as_long_as_it_says_however_it_says_it`] |
//! | a window that says nothing counts as full | [`a_window_that_says_nothing_keeps_nobody_out`] |
//! | pins go by place and shift with the list | [`a_pin_stays_on_its_account_when_the_list_changes`] |
//! | a drain is a pause | [`a_drained_account_finishes_its_threads_and_a_paused_one_does_not`] |
//! | processes choose without knowing each other; a swarm runs onto one account | [`callers_at_once_are_spread_without_knowing_each_other`] |
//! | no affinity; a thread is moved whatever it has cached | [`a_thread_with_little_cached_makes_room_and_one_with_much_stays`] and the property `c3` |
//! | a healthy pool answers 429 when all rest for moments | [`when_everybody_is_out_a_request_waits_only_as_long_as_it_is_told_to`] |
//! | when all are out, one that is blocked is chosen | [`when_all_are_out_nobody_is_chosen_and_the_first_return_is_told`] |
//! | explanations model neither pin nor thread, and always say "full health" | the properties `p9` and `c1`: explained is what is chosen |

use super::choosing::{Desk, id, seed, window};
use crate::{
    account::Terms,
    cooldown::Cause,
    identity::AccountId,
    pool::{Effect, Grant, Input, Release, Seed, Ticket},
    quota::{Place, Window},
    select::{self, Need},
    strategy::{Preset, Rules, Strategy, Wait},
    time::{Now, Span},
    token::Generation,
    verdict::{self, Mark, Outcome},
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

fn many(desk: &mut Desk, count: usize) -> BTreeMap<AccountId, u32> {
    let mut served = BTreeMap::new();
    for _ in 0..count {
        *served.entry(desk.pick(Need::default()).unwrap()).or_default() += 1;
    }
    served
}

fn cool(desk: &mut Desk, n: u32, cause: Cause) {
    desk.input(Input::Learn(id(n), Mark::Cool(cause))).unwrap();
}

#[test]
fn least_used_takes_a_new_account_first() {
    let mut desk = Desk::new(2);
    desk.rules(Strategy::LeastUsed);
    many(&mut desk, 20);
    desk.input(Input::Upsert(seed(2, true, Terms::default()))).unwrap();
    assert_eq!(desk.pick(Need::default()), Some(id(2)));
    // And it goes on getting its part, also beside accounts whose quota is known.
    desk.input(Input::QuotaSeen(id(0), vec![window(desk.now, 40, 600)])).unwrap();
    assert!(many(&mut desk, 10).contains_key(&id(2)));
}

#[test]
fn random_uses_the_whole_pool_each_as_likely() {
    for accounts in [2, 3, 4, 9] {
        let mut desk = Desk::new(accounts);
        desk.rules(Strategy::Random);
        let served = many(&mut desk, 3000);
        assert_eq!(served.len(), accounts as usize);
        let even = 3000 / accounts;
        for count in served.values() {
            assert!(count.abs_diff(even) < even / 4, "{served:?}");
        }
    }
}

#[test]
fn weighted_has_a_second_choice_and_asks_nobody_twice() {
    let mut desk = Desk::new(0);
    for (n, weight) in [(0, 9000), (1, 500), (2, 500)] {
        desk.input(Input::Upsert(seed(n, true, Terms { weight, ..Terms::default() }))).unwrap();
    }
    desk.rules(Strategy::WeightedRoundRobin);
    let mut tried = Vec::new();
    while let Some(next) = desk.pick(Need { exclude: tried.clone(), ..Need::default() }) {
        assert!(!tried.contains(&next), "asked twice");
        tried.push(next);
    }
    assert_eq!(tried.len(), 3, "everybody was asked before it was given up");
}

#[test]
fn presets_hold_whatever_is_left_and_thresholds_act() {
    for preset in Preset::ALL {
        let mut desk = Desk::new(3);
        let rules = Rules { reserve: preset.reserve(), ..Rules::default() };
        desk.input(Input::Rules(rules)).unwrap();
        for (n, used) in [(0, 100), (1, 0), (2, 99)] {
            desk.input(Input::QuotaSeen(id(n), vec![window(desk.now, used, 3600)])).unwrap();
        }
        assert_eq!(desk.pick(Need::default()), Some(id(1)), "{preset:?}");
    }
    // What is enough under one preset is the reserve under another.
    let first = |preset: Preset| {
        let mut desk = Desk::new(2);
        let rules = Rules { reserve: preset.reserve(), ..Rules::default() };
        desk.input(Input::Rules(rules)).unwrap();
        // A thread is at work on one; of the other 15 % are left, to be used within minutes.
        desk.input(Input::QuotaSeen(id(0), vec![window(desk.now, 85, 600)])).unwrap();
        desk.input(Input::QuotaSeen(id(1), vec![window(desk.now, 60, 17_900)])).unwrap();
        for thread in 1..4 {
            desk.input(Input::Pin(Some(id(1)))).unwrap();
            desk.pick(Desk::need(Some(thread)));
        }
        desk.input(Input::Pin(None)).unwrap();
        desk.pick(Need::default())
    };
    assert_eq!(first(Preset::Balanced), Some(id(0)), "15 % are enough");
    assert_eq!(first(Preset::Conservative), Some(id(1)), "15 % are the reserve");
}

#[test]
fn a_change_of_strategy_keeps_weights_and_a_removed_account_has_none() {
    let mut desk = Desk::new(0);
    for (n, weight) in [(0, 3000), (1, 1000)] {
        desk.input(Input::Upsert(seed(n, true, Terms { weight, ..Terms::default() }))).unwrap();
    }
    for strategy in [Strategy::Random, Strategy::Balanced, Strategy::WeightedRoundRobin] {
        desk.rules(strategy);
    }
    assert_eq!(many(&mut desk, 40)[&id(0)], 30);
    desk.input(Input::Remove(id(0))).unwrap();
    assert_eq!(many(&mut desk, 4)[&id(1)], 4);
    // Who comes back comes without debts.
    desk.input(Input::Upsert(seed(0, true, Terms { weight: 1000, ..Terms::default() }))).unwrap();
    assert_eq!(many(&mut desk, 10)[&id(0)], 5);
}

#[test]
fn a_strategy_changed_under_a_force_counts_after_it() {
    let mut desk = Desk::new(3);
    let until = desk.now.wall.plus(Span::from_secs(60));
    desk.input(Input::Force(Some(([id(2)].into(), until)))).unwrap();
    desk.rules(Strategy::RoundRobin);
    assert_eq!(many(&mut desk, 6)[&id(2)], 6);
    desk.wait(Span::from_secs(61)).unwrap();
    assert_eq!(desk.pool.rules().strategy, Strategy::RoundRobin);
    assert_eq!(many(&mut desk, 6).len(), 3);
}

#[test]
fn a_force_is_strict_and_its_refusal_says_so() {
    let mut desk = Desk::new(2);
    let until = desk.now.wall.plus(Span::from_secs(600));
    desk.input(Input::Force(Some(([id(1)].into(), until)))).unwrap();
    let resets = desk.now.wall.plus(Span::from_secs(60));
    cool(&mut desk, 1, Cause::UsageLimit(Some(resets)));
    let effects = desk.input(Input::Select(Ticket(900), Need::default())).unwrap();
    let Some(Effect::Reply(_, Grant::Refused(refused))) = effects.last() else {
        panic!("{effects:?}")
    };
    assert_eq!(refused.retry_at, Some(desk.now.wall.plus(Span::from_secs(60))));
    assert_eq!(refused.reasons[0].1, "another account is forced");
    assert_eq!(refused.reasons[1].1, "usage limit reached");
}

#[test]
fn round_robin_does_not_drift_when_accounts_come_and_go() {
    let mut desk = Desk::new(4);
    desk.rules(Strategy::RoundRobin);
    let mut served = BTreeMap::new();
    for round in 0..100 {
        // Another one is out each time.
        let out = round % 4;
        desk.input(Input::Upsert(seed(out, false, Terms::default()))).unwrap();
        for (account, count) in many(&mut desk, 3) {
            *served.entry(account).or_insert(0) += count;
        }
        desk.input(Input::Upsert(seed(out, true, Terms::default()))).unwrap();
    }
    assert!(served.values().all(|count| (70..=80).contains(count)), "{served:?}");
}

#[test]
fn a_healthy_account_is_never_throttled_by_us() {
    let mut desk = Desk::new(1);
    assert_eq!(many(&mut desk, 500)[&id(0)], 500);
}

#[test]
fn an_idle_account_is_not_worth_more_than_a_thread_s_own() {
    let mut desk = Desk::new(2);
    let home = desk.pick(Desk::need(Some(1))).unwrap();
    // The other one has never served, for weeks; the thread goes on all the time.
    for _day in 0..21 {
        desk.wait(Span::from_secs(23 * 3600)).unwrap();
        assert_eq!(desk.pick(Desk::need(Some(1))), Some(home.clone()));
    }
}

#[test]
fn what_is_left_and_when_it_is_renewed_decide() {
    let mut desk = Desk::new(3);
    for (n, used, resets) in [(0, 90, 14_000), (1, 20, 14_000), (2, 60, 14_000)] {
        desk.input(Input::QuotaSeen(id(n), vec![window(desk.now, used, resets)])).unwrap();
    }
    assert_eq!(desk.pick(Need::default()), Some(id(1)));
    // With equal use the one that is renewed soon goes first: the rest of it would be lost.
    let mut desk = Desk::new(2);
    for (n, resets) in [(0, 17_000), (1, 7_200)] {
        desk.input(Input::QuotaSeen(id(n), vec![window(desk.now, 50, resets)])).unwrap();
    }
    assert_eq!(desk.pick(Need::default()), Some(id(1)));
}

#[test]
fn a_quota_limit_holds_for_all_models_and_a_missing_model_for_that_one_alone() {
    let need = |model: &str| Need { model: Some(model.into()), ..Need::default() };
    let mut desk = Desk::new(2);
    desk.input(Input::Select(Ticket(700), need("large"))).unwrap();
    let (lease, account) = desk.leases.pop().unwrap();
    let release =
        Release { mark: Mark::ModelNotIncluded, served: false, model: Some("large".into()) };
    desk.input(Input::Release(lease, release)).unwrap();
    let other = if account == id(0) { id(1) } else { id(0) };
    assert_eq!(desk.pick(need("large")), Some(other.clone()));
    let all: BTreeSet<_> = (0..8)
        .map(|n| desk.pick(Need { session: Some(format!("s{n}").into()), ..need("small") }))
        .collect();
    assert!(all.contains(&Some(account)), "it serves what it has");
    let n = u32::from(other == id(1));
    cool(&mut desk, n, Cause::UsageLimit(None));
    assert_eq!(desk.pick(need("large")), None, "one lacks it, the other is out for every model");
}

#[test]
fn a_limit_of_one_model_moves_that_model_alone() {
    let need = |model: &str| Need { model: Some(model.into()), ..Need::default() };
    let served = |desk: &mut Desk, model: &str| -> BTreeSet<_> {
        (0..8).map(|_turn| desk.pick(need(model))).collect()
    };
    let mut desk = Desk::new(2);
    desk.rules(Strategy::RoundRobin);
    desk.input(Input::Select(Ticket(700), need("spark"))).unwrap();
    let (lease, account) = desk.leases.pop().unwrap();
    let reset = desk.now.wall.plus(Span::from_secs(600));
    let limit: Arc<str> = "codex_bengalfox".into();
    let mark = Mark::ModelLimit { limit: limit.clone(), reset: Some(reset) };
    desk.input(Input::Release(lease, Release { mark, served: false, model: Some("spark".into()) }))
        .unwrap();
    let other = if account == id(0) { id(1) } else { id(0) };
    assert_eq!(served(&mut desk, "spark"), BTreeSet::from([Some(other.clone())]));
    assert_eq!(served(&mut desk, "large").len(), 2, "other models go on everywhere");
    // The other's is full by its windows: who asks is told the first reset, as for any limit.
    let mut full = window(desk.now, 100, 900);
    (full.limit, full.model) = (limit.clone(), Some("spark".into()));
    desk.input(Input::QuotaSeen(other.clone(), vec![full.clone()])).unwrap();
    let effects = desk.input(Input::Select(Ticket(900), need("spark"))).unwrap();
    let Some(Effect::Reply(_, Grant::Refused(refused))) = effects.last() else {
        panic!("{effects:?}")
    };
    assert_eq!((refused.retry_at, refused.quota), (Some(reset), true));
    assert_eq!(served(&mut desk, "large").len(), 2);
    // Room in a newer snapshot ends it before its time, on both.
    desk.wait(Span::from_secs(1)).unwrap();
    let room = Window { used_percent: 10.0, seen: desk.now.wall, ..full };
    for one in [account, other] {
        desk.input(Input::QuotaSeen(one, vec![room.clone()])).unwrap();
    }
    assert_eq!(served(&mut desk, "spark").len(), 2);
}

#[test]
fn a_word_that_is_no_strategy_is_refused() {
    for word in ["", "fastest", "Balanced", "round_robin", "weighted", "balanced "] {
        assert_eq!(Strategy::of(word), None, "{word:?}");
    }
    for strategy in Strategy::ALL {
        assert_eq!(Strategy::of(strategy.name()), Some(strategy));
    }
}

#[test]
fn a_new_login_keeps_what_is_known_and_said_of_the_account() {
    let mut desk = Desk::new(2);
    many(&mut desk, 6);
    desk.input(Input::Pin(Some(id(0)))).unwrap();
    desk.input(Input::QuotaSeen(id(0), vec![window(desk.now, 40, 600)])).unwrap();
    let reset = desk.now.wall.plus(Span::from_secs(600));
    cool(&mut desk, 0, Cause::UsageLimit(Some(reset)));
    let terms = Terms { weight: 2500, tags: ["night".into()].into(), ..Terms::default() };
    desk.input(Input::Upsert(seed(0, true, terms.clone()))).unwrap();
    let before = desk.pool.accounts()[0].clone();
    let again = Seed { generation: Generation(2), ..seed(0, true, terms.clone()) };
    desk.input(Input::Upsert(again)).unwrap();
    let after = &desk.pool.accounts()[0];
    assert_eq!(after.token.generation, Generation(2));
    assert_eq!((&after.terms, after.served, &after.quota), (&terms, before.served, &before.quota));
    assert!(after.rest(desk.now).is_some(), "a login renews no quota");
    assert_eq!(desk.pool.pin().map(|(pin, _since)| pin), Some(&id(0)));
}

#[test]
fn old_news_and_good_windows_end_no_other_rest() {
    let mut desk = Desk::new(1);
    let old = window(desk.now, 10, 3600);
    desk.wait(Span::from_secs(60)).unwrap();
    let reset = desk.now.wall.plus(Span::from_secs(600));
    cool(&mut desk, 0, Cause::UsageLimit(Some(reset)));
    desk.input(Input::QuotaSeen(id(0), vec![old])).unwrap();
    assert_eq!(desk.pick(Need::default()), None, "it was asked for before the limit came");
    desk.wait(Span::from_secs(1)).unwrap();
    desk.input(Input::QuotaSeen(id(0), vec![window(desk.now, 10, 3600)])).unwrap();
    assert_eq!(desk.pick(Need::default()), Some(id(0)), "its window was renewed");
    for cause in [Cause::Throttled(Some(Span::from_secs(60))), Cause::Forbidden] {
        let mut desk = Desk::new(1);
        cool(&mut desk, 0, cause.clone());
        desk.wait(Span::from_secs(1)).unwrap();
        desk.input(Input::QuotaSeen(id(0), vec![window(desk.now, 10, 3600)])).unwrap();
        assert_eq!(desk.pick(Need::default()), None, "{cause:?}");
    }
}

#[test]
fn a_limit_rests_for_as_long_as_it_says_however_it_says_it() {
    let day = Span::from_secs(86_400);
    let rests = |body: serde_json::Value, windows: fn(Now) -> Vec<Window>| {
        let mut desk = Desk::new(1);
        desk.input(Input::QuotaSeen(id(0), windows(desk.now))).unwrap();
        let (status, headers) = (http::StatusCode::TOO_MANY_REQUESTS, http::HeaderMap::new());
        let outcome = Outcome::Head { status, headers: &headers, body: Some(&body) };
        let mark = verdict::classify(&outcome, desk.now.wall).mark;
        desk.input(Input::Learn(id(0), mark)).unwrap();
        let account = &desk.pool.accounts()[0];
        select::excluded(account, &Need::default(), desk.now)
            .and_then(|out| out.until)
            .map(|until| until.since(desk.now.wall))
    };
    let said =
        |field: &str, value: u64| json!({"error": {"type": "usage_limit_reached", field: value}});
    assert_eq!(rests(said("resets_in_seconds", 86_400), |_now| Vec::new()), Some(day));
    let at = 1_800_000_000 + 86_400;
    assert_eq!(rests(said("resets_at", at), |_now| Vec::new()), Some(day));
    // The week is full and the answer names no time: the week's end, not some hours.
    let week = |now: Now, used: u32| Window {
        place: Place::Secondary,
        minutes: Some(10_080),
        ..window(now, used, 3 * 86_400)
    };
    let full: fn(Now) -> Vec<Window> = |now| {
        vec![Window {
            place: Place::Secondary,
            minutes: Some(10_080),
            ..window(now, 100, 3 * 86_400)
        }]
    };
    assert_eq!(rests(said("none", 0), full), Some(day.times(3)));
    // A week with room left draws nothing out.
    let mut desk = Desk::new(1);
    let windows = vec![window(desk.now, 100, 3600), week(desk.now, 50)];
    desk.input(Input::QuotaSeen(id(0), windows)).unwrap();
    cool(&mut desk, 0, Cause::UsageLimit(None));
    let out = select::excluded(&desk.pool.accounts()[0], &Need::default(), desk.now).unwrap();
    assert_eq!(out.until, Some(desk.now.wall.plus(Span::from_secs(3600))));
}

#[test]
fn a_window_that_says_nothing_keeps_nobody_out() {
    let mut desk = Desk::new(1);
    let full = window(desk.now, 100, 600);
    let month = Window { minutes: Some(43_200), ..window(desk.now, 50, 86_400) };
    for odd in [Window { resets: None, minutes: None, ..full }, month] {
        desk.input(Input::QuotaSeen(id(0), vec![odd])).unwrap();
        assert_eq!(desk.pick(Need::default()), Some(id(0)));
    }
}

#[test]
fn when_all_are_out_nobody_is_chosen_and_the_first_return_is_told() {
    let mut desk = Desk::new(3);
    for (n, secs) in [(0, 900), (1, 300), (2, 600)] {
        let reset = desk.now.wall.plus(Span::from_secs(secs));
        cool(&mut desk, n, Cause::UsageLimit(Some(reset)));
    }
    let effects = desk.input(Input::Select(Ticket(900), Need::default())).unwrap();
    let Some(Effect::Reply(_, Grant::Refused(refused))) = effects.last() else {
        panic!("{effects:?}")
    };
    assert_eq!(refused.retry_at, Some(desk.now.wall.plus(Span::from_secs(300))));
    assert!(refused.quota && !refused.tried && refused.reasons.len() == 3);
}

#[test]
fn a_pin_stays_on_its_account_when_the_list_changes() {
    let mut desk = Desk::new(4);
    desk.input(Input::Pin(Some(id(2)))).unwrap();
    desk.input(Input::Remove(id(0))).unwrap();
    assert_eq!(desk.pick(Need::default()), Some(id(2)));
    desk.input(Input::Upsert(seed(0, true, Terms::default()))).unwrap();
    assert_eq!(desk.pick(Need::default()), Some(id(2)));
}

#[test]
fn a_drained_account_finishes_its_threads_and_a_paused_one_does_not() {
    let mut desk = Desk::new(2);
    let home = desk.pick(Desk::need(Some(1))).unwrap();
    let n = u32::from(home == id(1));
    let terms = |drained, paused| Terms { drained, paused, ..Terms::default() };
    desk.input(Input::Upsert(seed(n, true, terms(true, false)))).unwrap();
    assert_eq!(desk.pick(Desk::need(Some(1))), Some(home.clone()));
    for thread in 2..6 {
        assert_ne!(desk.pick(Desk::need(Some(thread))), Some(home.clone()));
    }
    desk.input(Input::Upsert(seed(n, true, terms(false, true)))).unwrap();
    assert_ne!(desk.pick(Desk::need(Some(1))), Some(home));
}

#[test]
fn callers_at_once_are_spread_without_knowing_each_other() {
    let mut desk = Desk::new(4);
    for (thread, ticket) in (50..58).zip(500..) {
        desk.input(Input::Select(Ticket(ticket), Desk::need(Some(thread)))).unwrap();
    }
    let mut held = BTreeMap::new();
    for (_lease, account) in &desk.leases {
        *held.entry(account.clone()).or_insert(0) += 1;
    }
    assert!(held.len() == 4 && held.values().all(|count| *count == 2), "{held:?}");
}

#[test]
fn a_thread_with_little_cached_makes_room_and_one_with_much_stays() {
    let moved = |tokens: u32| {
        let mut desk = Desk::new(2);
        let home = desk.pick(Desk::need(Some(1))).unwrap();
        desk.input(Input::Warm(super::world::session(1), tokens)).unwrap();
        let mut nearly = window(desk.now, 99, 3600);
        nearly.used_percent = 99.5;
        desk.input(Input::QuotaSeen(home.clone(), vec![nearly])).unwrap();
        desk.pick(Desk::need(Some(1))) != Some(home)
    };
    assert!(moved(0) && moved(2000));
    assert!(!moved(100_000), "reading that anew costs more than what is left");
}

#[test]
fn when_everybody_is_out_a_request_waits_only_as_long_as_it_is_told_to() {
    let out = |wait: Wait, resets: u64| {
        let mut desk = Desk::new(1);
        desk.input(Input::Rules(Rules { wait, ..Rules::default() })).unwrap();
        let at = desk.now.wall.plus(Span::from_secs(resets));
        cool(&mut desk, 0, Cause::UsageLimit(Some(at)));
        let at_once = desk.input(Input::Select(Ticket(1), Need::default())).unwrap();
        let waits = desk.pool.waiting(desk.now).0 == 1;
        desk.wait(Span::from_secs(resets + 1)).unwrap();
        (waits, at_once.is_empty() && desk.leases.len() == 1)
    };
    assert_eq!(out(Wait::Off, 20), (false, false));
    assert_eq!(out(Wait::UpTo(Span::from_secs(30)), 20), (true, true));
    assert_eq!(out(Wait::UpTo(Span::from_secs(30)), 40), (false, false), "pointless to hold");
    assert_eq!(out(Wait::UntilReset, 86_400), (true, true));
}

#[test]
fn who_waits_for_a_place_is_not_given_an_account_that_just_met_its_limit() {
    let mut desk = Desk::new(1);
    desk.input(Input::Upsert(seed(0, true, Terms { cap: Some(1), ..Terms::default() }))).unwrap();
    desk.input(Input::Select(Ticket(1), Need::default())).unwrap();
    desk.input(Input::Select(Ticket(2), Need::default())).unwrap();
    let (lease, _account) = desk.leases.pop().unwrap();
    let mark = Mark::Cool(Cause::UsageLimit(Some(desk.now.wall.plus(Span::from_secs(600)))));
    let release = Release { mark, served: false, model: None };
    let effects = desk.input(Input::Release(lease, release)).unwrap();
    let granted = |effect: &Effect| matches!(effect, Effect::Reply(_, Grant::Lease { .. }));
    assert!(desk.leases.is_empty() && !effects.iter().any(granted), "{effects:?}");
}
