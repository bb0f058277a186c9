//! What is remembered of threads, and what it leads to.

use super::*;
use proptest::prelude::*;

fn id(name: &str) -> AccountId {
    AccountId::of(name, "w")
}

fn text(text: &str) -> Arc<str> {
    text.into()
}

fn at(secs: u64) -> Wall {
    Wall::from_secs(1_800_000_000 + secs)
}

fn begin(threads: &mut Threads, key: &str, now: Wall) {
    let key = text(key);
    let begun =
        Begun { id: &key, session: Some(&key), scope: &Scope::Global, model: Some(&text("m")) };
    threads.begin(&key, &begun, now);
}

fn serve(threads: &mut Threads, key: &str, who: &str, turn: &str, state: Option<&'static str>) {
    let (account, workspace, turn) = (id(who), text(who), text(turn));
    let state = state.map(HeaderValue::from_static);
    let served = Served {
        host: Host { account: &account, workspace: &workspace },
        turn: Some(&turn),
        state: state.as_ref(),
        foreign: None,
        lost: None,
        reason: "why".to_owned(),
        dropped: Dropped::default(),
    };
    threads.served(key, served, at(1));
}

fn meet(
    threads: &Threads,
    key: &str,
    who: &str,
    turn: &str,
    shown: Option<&'static str>,
) -> Meeting {
    let shown = shown.map(HeaderValue::from_static);
    let (account, workspace) = (id(who), text(who));
    let host = Host { account: &account, workspace: &workspace };
    threads.meet(key, host, Some(&text(turn)), shown.as_ref(), at(2))
}

#[test]
fn a_turn_state_goes_only_to_the_account_that_gave_it() {
    let mut threads = Threads::default();
    begin(&mut threads, "t", at(0));
    serve(&mut threads, "t", "a", "1", Some("A1"));
    let state =
        |threads: &Threads, who: &str, turn: &str| meet(threads, "t", who, turn, Some("A1")).state;
    assert_eq!(state(&threads, "a", "1"), TurnState::Own(HeaderValue::from_static("A1")));
    assert_eq!(state(&threads, "b", "1"), TurnState::Drop);
    serve(&mut threads, "t", "b", "1", Some("B1"));
    // The client goes on showing the first one.
    assert_eq!(state(&threads, "b", "1"), TurnState::Own(HeaderValue::from_static("B1")));
    assert_eq!(state(&threads, "a", "1"), TurnState::Own(HeaderValue::from_static("A1")));
    serve(&mut threads, "t", "b", "2", None);
    assert_eq!(state(&threads, "a", "2"), TurnState::Drop, "of a turn that is over");
    assert_eq!(meet(&threads, "t", "b", "2", None).state, TurnState::Shown);
    assert_eq!(threads.get("t").unwrap().moves.len(), 1);
}

#[test]
fn a_refusal_holds_for_the_pair_and_for_a_day() {
    let mut threads = Threads::default();
    for key in ["t", "u"] {
        begin(&mut threads, key, at(0));
        serve(&mut threads, key, "a", "1", None);
    }
    assert_eq!(meet(&threads, "t", "b", "2", None).without, Without::default(), "sent as it is");
    threads.refused("t", &text("b"), at(1));
    let met = meet(&threads, "u", "b", "2", None);
    assert_eq!((met.from, met.without.reasoning), (Some(id("a")), Leave::All));
    assert_eq!(meet(&threads, "u", "a", "2", None).without, Without::default());
    assert_eq!(meet(&threads, "u", "c", "2", None).without, Without::default());
    serve(&mut threads, "u", "b", "2", None);
    assert_eq!(meet(&threads, "u", "a", "3", None).without.reasoning, Leave::All, "either way");
    let (account, workspace) = (id("a"), text("a"));
    let later = at(2).plus(BELIEVED);
    let host = Host { account: &account, workspace: &workspace };
    assert_eq!(threads.meet("u", host, None, None, later).without, Without::default());
    // Within one workspace nothing is learned: the item itself is broken.
    threads.refused("t", &text("a"), at(1));
    assert_eq!(threads.refusals().count(), 1);
}

#[test]
fn what_was_left_out_stays_out_and_a_compaction_that_cant_be_read_is_not_sent_again() {
    let mut threads = Threads::default();
    begin(&mut threads, "t", at(0));
    serve(&mut threads, "t", "a", "1", None);
    let (account, workspace) = (id("b"), text("b"));
    let served = Served {
        host: Host { account: &account, workspace: &workspace },
        turn: None,
        state: None,
        foreign: Some(Mark(7)),
        lost: Some(Mark(8)),
        reason: "usage limit reached".to_owned(),
        dropped: Dropped { reasoning: 3, ..Dropped::default() },
    };
    threads.served("t", served, at(9));
    let met = meet(&threads, "t", "b", "2", None);
    assert_eq!(met.without.reasoning, Leave::Upto(Mark(7)));
    assert_eq!(met.without.compaction, Leave::Upto(Mark(8)));
    let moved = &threads.get("t").unwrap().moves[0];
    assert_eq!((&moved.from, &moved.to, moved.at), (&id("a"), &id("b"), at(9)));
    threads.unread("t", &text("c"));
    assert!(
        meet(&threads, "t", "c", "2", None).unread && !meet(&threads, "t", "b", "2", None).unread
    );
    let by_hand = ByHand { account: id("c"), since: at(3), without_summary: false };
    threads.hand(&text("t"), Some(by_hand.clone()));
    assert_eq!(threads.by_hand().get("t"), Some(&by_hand));
    assert!(!meet(&threads, "t", "c", "2", None).unread);
}

#[test]
fn ten_thousand_threads_take_bounded_memory() {
    let mut threads = Threads::default();
    for n in 0..10_000_u64 {
        let key = format!("01a1fbe7-913e-7222-aa8a-{n:012}");
        begin(&mut threads, &key, at(n));
        for who in ["a", "b", "c"] {
            for turn in 0..5 {
                serve(&mut threads, &key, who, &turn.to_string(), Some("S"));
            }
        }
        threads.end(&key, at(n));
    }
    assert!(threads.all().count() <= CAPACITY);
    assert!(threads.get("01a1fbe7-913e-7222-aa8a-000000009999").is_some());
    assert!(threads.get("01a1fbe7-913e-7222-aa8a-000000000000").is_none());
    // What all of it can take at most: names, moves with their words, turn states.
    let bytes: usize = threads
        .all()
        .map(|(key, thread)| {
            let moves: usize =
                thread.moves.iter().map(|m| m.reason.len() + m.dropped.len() + 128).sum();
            let states: usize =
                thread.states.given.iter().map(|(_who, state)| state.len() + 64).sum();
            size_of::<Thread>() + 2 * key.len() + moves + states
        })
        .sum();
    assert!(bytes < 16 << 20, "{bytes}");
}

proptest! {
    /// Whatever comes in whatever order: bounded, and requests under way are never below none.
    #[test]
    fn any_order_is_survived(acts in prop::collection::vec((0_u8..7, 0_u8..4, 0_u8..3), 0..200)) {
        let mut threads = Threads::default();
        let mut live = [0_u32; 4];
        for (act, key, who) in acts {
            let (name, who) = (format!("t{key}"), ["a", "b", "c"][usize::from(who)]);
            let known = threads.get(&name).is_some();
            match act {
                0 => {
                    begin(&mut threads, &name, at(1));
                    live[usize::from(key)] += 1;
                },
                1 => {
                    threads.end(&name, at(2));
                    live[usize::from(key)] = live[usize::from(key)].saturating_sub(1);
                },
                2 => serve(&mut threads, &name, who, "1", Some("S")),
                3 => threads.refused(&name, &text(who), at(3)),
                4 => threads.unread(&name, &text(who)),
                5 => threads.used(&name, 10, 20),
                _ => threads.hand(&text(&name), None),
            }
            prop_assert_eq!(known || act == 0, threads.get(&name).is_some());
            if let Some(thread) = threads.get(&name) {
                prop_assert_eq!(thread.live, live[usize::from(key)]);
                prop_assert!(thread.moves.len() <= MOVES && thread.states.given.len() <= STATES);
                prop_assert!(thread.cached <= thread.input && thread.unread.len() <= MOVES);
                // Nobody gets a turn state of somebody else.
                if let TurnState::Own(_) = meet(&threads, &name, who, "1", Some("S")).state {
                    prop_assert!(thread.states.given.iter().any(|(whose, _)| *whose == id(who)));
                }
            }
        }
        prop_assert!(threads.refusals().count() <= 3);
    }
}
