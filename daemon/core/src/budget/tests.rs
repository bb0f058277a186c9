//! Budgets under any order of requests.

use super::*;
use proptest::prelude::*;

const HOUR: u64 = 3_600_000;

/// Hours from the epoch; a day is 24 of them.
fn calendar(span: Span, at: Wall) -> Period {
    let length = match span {
        Span::Hour => HOUR,
        Span::Day => 24 * HOUR,
        Span::Week => 7 * 24 * HOUR,
        Span::Month => 30 * 24 * HOUR,
    };
    let from = at.millis() / length * length;
    Period { from: Wall::from_millis(from), until: Wall::from_millis(from + length) }
}

fn budget(name: &str, whose: Whose, span: Span) -> Budget {
    Budget { name: name.into(), whose, span, requests: None, tokens: None, cost: None }
}

fn book(budgets: impl IntoIterator<Item = Budget>) -> Book {
    let mut book = Book::default();
    for budget in budgets {
        book.set(Wall::default(), budget, Spend::default(), &calendar);
    }
    book
}

const ASKER: Asker<'_> = Asker { project: Some("p"), client: "cli", token: Some("editor") };

fn reserve(book: &mut Book, now: u64) -> Result<Hold, Blocked> {
    book.reserve(Wall::from_millis(now), ASKER, &calendar)
}

fn settle(book: &mut Book, now: u64, hold: Hold, tokens: u64) {
    let came_to = Spend { requests: 1, tokens, cost: tokens * 10 };
    book.settle(Wall::from_millis(now), hold, Some(came_to), &calendar);
}

#[test]
fn a_budget_blocks_when_it_is_used_up_and_opens_with_the_next_period() {
    let limit = Budget { requests: Some(2), ..budget("h", Whose::All, Span::Hour) };
    let mut book = book([limit]);
    for _request in 0..2 {
        let hold = reserve(&mut book, 0).unwrap();
        settle(&mut book, 0, hold, 5);
    }
    let blocked = reserve(&mut book, 1).unwrap_err();
    assert_eq!((blocked.measure, blocked.limit, blocked.used), (Measure::Requests, 2, 2));
    assert_eq!(blocked.until, Wall::from_millis(HOUR));
    assert!(reserve(&mut book, HOUR).is_ok());
}

#[test]
fn only_the_budgets_of_a_request_count_it() {
    let one = |name, whose| Budget { requests: Some(1), ..budget(name, whose, Span::Day) };
    let mut book = book([
        one("other", Whose::Project("q".into())),
        one("printed", Whose::Client("custom".into())),
        one("account", Whose::Account(AccountId::of("u", "w"))),
    ]);
    let hold = reserve(&mut book, 0).unwrap();
    assert!(hold.general.is_empty());
    settle(&mut book, 0, hold, 1);
    assert!(book.standings(Wall::default(), &calendar).iter().all(|one| one.spent.requests == 0));
    let mut hold = reserve(&mut book, 0).unwrap();
    let (a, b) = (AccountId::of("u", "w"), AccountId::of("v", "w"));
    let with = |book: &mut Book, hold: &mut Hold, id| {
        book.reserve_with(Wall::default(), hold, id, &calendar)
    };
    with(&mut book, &mut hold, &a).unwrap();
    let mut second = reserve(&mut book, 0).unwrap();
    assert_eq!(&*with(&mut book, &mut second, &a).unwrap_err().name, "account");
    // The first one goes over to another account: its place is free.
    with(&mut book, &mut hold, &b).unwrap();
    with(&mut book, &mut second, &a).unwrap();
}

#[test]
fn the_longest_block_is_told_and_nothing_stays_reserved() {
    let none = |name, span| Budget { requests: Some(0), ..budget(name, Whose::All, span) };
    let open = Budget { tokens: Some(1_000_000), ..budget("open", Whose::All, Span::Hour) };
    let mut book = book([none("h", Span::Hour), none("m", Span::Month), open]);
    assert_eq!(&*reserve(&mut book, 0).unwrap_err().name, "m");
    let standings = book.standings(Wall::default(), &calendar);
    assert!(standings.iter().all(|one| one.reserved == Spend::default()));
}

#[test]
fn a_clock_set_back_gives_nothing_back() {
    let limit = Budget { requests: Some(1), ..budget("h", Whose::All, Span::Hour) };
    let mut book = book([limit]);
    let hold = reserve(&mut book, 5 * HOUR).unwrap();
    settle(&mut book, 5 * HOUR, hold, 1);
    assert!(reserve(&mut book, 2 * HOUR).is_err());
    assert!(reserve(&mut book, 3 * HOUR).is_ok(), "its own end still comes");
}

#[test]
fn requests_at_once_see_each_other() {
    let limit = Budget { tokens: Some(100), ..budget("d", Whose::All, Span::Day) };
    let mut book = book([limit]);
    let hold = reserve(&mut book, 0).unwrap();
    assert!(reserve(&mut book, 0).is_err(), "the first one may come to all of it");
    settle(&mut book, 0, hold, 30);
    // Now one is thought to come to 30: of 70 that are left two fit.
    let (one, two) = (reserve(&mut book, 0).unwrap(), reserve(&mut book, 0).unwrap());
    assert!(reserve(&mut book, 0).is_err());
    settle(&mut book, 0, one, 30);
    settle(&mut book, 0, two, 30);
    let last = reserve(&mut book, 0).unwrap();
    settle(&mut book, 0, last, 30);
    assert_eq!(book.standings(Wall::default(), &calendar)[0].spent.tokens, 120);
    assert!(reserve(&mut book, 0).is_err());
}

/// What happens to a book.
#[derive(Debug, Clone)]
enum Step {
    Begin,
    With(usize, u8),
    End(usize, Option<u64>),
    Pass(u64),
    Back(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Begin),
        2 => (any::<usize>(), 0..3_u8).prop_map(|(at, account)| Step::With(at, account)),
        4 => (any::<usize>(), proptest::option::of(0..50_u64)).prop_map(|(at, t)| Step::End(at, t)),
        1 => (0..2 * HOUR).prop_map(Step::Pass),
        1 => (0..2 * HOUR).prop_map(Step::Back),
    ]
}

fn account(number: u8) -> AccountId {
    AccountId::of("u", &number.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_keeps_the_promises(
        steps in proptest::collection::vec(step(), 0..120),
        requests in 0..6_u64,
        tokens in 0..200_u64,
    ) {
        let mut book = book([
            Budget { requests: Some(requests), ..budget("r", Whose::All, Span::Hour) },
            Budget { tokens: Some(tokens), ..budget("t", Whose::Project("p".into()), Span::Day) },
            Budget { requests: Some(2), ..budget("a", Whose::Account(account(0)), Span::Hour) },
        ]);
        let (mut now, mut running): (u64, Vec<Hold>) = (100 * 24 * HOUR, Vec::new());
        for step in steps {
            let wall = Wall::from_millis(now);
            match step {
                Step::Begin => {
                    let before = book.standings(wall, &calendar);
                    match book.reserve(wall, ASKER, &calendar) {
                        Ok(hold) => {
                            let used = |at: usize| (before[at].spent, before[at].reserved);
                            let ((r, rr), (t, tt)) = (used(1), used(2));
                            prop_assert!(r.requests + rr.requests < requests);
                            prop_assert!(t.tokens + tt.tokens < tokens);
                            running.push(hold);
                        },
                        Err(blocked) => {
                            prop_assert!(blocked.until > wall);
                            prop_assert_eq!(before, book.standings(wall, &calendar));
                        },
                    }
                },
                Step::With(at, number) if !running.is_empty() => {
                    let at = at % running.len();
                    let _may_be_blocked =
                        book.reserve_with(wall, &mut running[at], &account(number), &calendar);
                },
                Step::End(at, tokens) if !running.is_empty() => {
                    let hold = running.swap_remove(at % running.len());
                    let spend = tokens.map(|tokens| Spend { requests: 1, tokens, cost: tokens });
                    book.settle(wall, hold, spend, &calendar);
                },
                Step::Pass(ms) => now += ms,
                Step::Back(ms) => now -= ms,
                Step::With(..) | Step::End(..) => {},
            }
            for one in book.standings(Wall::from_millis(now), &calendar) {
                if &*one.budget.name == "r" {
                    let used = one.spent.requests + one.reserved.requests;
                    prop_assert!(used <= requests, "{used} of {requests}");
                    let here = running.len() as u64;
                    prop_assert!(one.reserved.requests <= here);
                }
            }
        }
        for hold in running {
            book.settle(Wall::from_millis(now), hold, None, &calendar);
        }
        for one in book.standings(Wall::from_millis(now), &calendar) {
            prop_assert_eq!(one.reserved, Spend::default());
        }
    }

    #[test]
    fn many_at_once_overshoot_by_less_than_one_request(
        limit in 1..5_000_u64,
        cost in 1..400_u64,
        at_once in 1..64_usize,
    ) {
        let mut book = book([Budget { tokens: Some(limit), ..budget("t", Whose::All, Span::Day) }]);
        // One request has told what they come to.
        book.learn(Spend { requests: 1, tokens: cost, cost });
        let mut spent = 0;
        loop {
            let holds: Vec<_> = (0..at_once).map_while(|_n| reserve(&mut book, 0).ok()).collect();
            if holds.is_empty() {
                break;
            }
            for hold in holds {
                settle(&mut book, 0, hold, cost);
                spent += cost;
            }
        }
        prop_assert!(spent >= limit.min(spent) && spent < limit + cost, "{spent} of {limit}");
        prop_assert!(spent + cost > limit, "{spent} of {limit}: nothing is left unused");
    }

    #[test]
    fn counted_requests_are_never_overshot(limit in 0..40_u64, at_once in 1..64_usize) {
        let mut book = book([Budget { requests: Some(limit), ..budget("r", Whose::All, Span::Day) }]);
        let mut sent = 0;
        for _round in 0..5 {
            let holds: Vec<_> = (0..at_once).map_while(|_n| reserve(&mut book, 0).ok()).collect();
            sent += holds.len() as u64;
            holds.into_iter().for_each(|hold| settle(&mut book, 0, hold, 1));
        }
        prop_assert_eq!(sent, limit.min(5 * at_once as u64));
    }
}
