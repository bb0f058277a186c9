//! Where threads and their turns go, and what moves them.

use super::scopes::{NOW, ask, id, pool, project};
use crate::{
    affinity::Told, cooldown::Cause, identity::AccountId, pool::Input, select::Need, time::Now,
    verdict::Mark,
};
use std::sync::Arc;

fn turn(need: Need, turn: &str) -> Need {
    Need { thread: Some("thread".into()), turn: Some(turn.into()), ..need }
}

fn later(ms: u64) -> Now {
    Now { mono: NOW.mono.plus(crate::time::Span::from_millis(ms)), ..NOW }
}

fn hand(to: Option<&str>) -> Input {
    Input::Thread(Told::Pin("thread".into(), to.map(id)))
}

fn why(pool: &crate::pool::Pool, need: &Need) -> (AccountId, &'static str) {
    let all = pool.explain(need, NOW);
    (all[0].id.clone(), all[0].key.decided_against(&all[1].key))
}

#[test]
fn what_only_steps_in_keeps_a_turn_to_its_end() {
    let mut pool = pool(&[("g", &[]), ("p", &["x-1"])]);
    let need = |n: &str| turn(project("x-1", true), n);
    pool.handle(NOW, Input::Learn(id("p"), Mark::Cool(Cause::Throttled(None))));
    assert_eq!(ask(&mut pool, &need("1")), Ok(id("g")));
    // The project's own account is back: not within the turn.
    let free = later(60_000);
    pool.handle(free, Input::Tick);
    assert!(pool.explain(&need("1"), free).iter().all(|one| one.excluded.is_none()));
    assert_eq!(ask(&mut pool, &need("1")), Ok(id("g")));
    assert_eq!(why(&pool, &need("1")), (id("g"), "its turn runs on it"));
    assert_eq!(ask(&mut pool, &need("2")), Ok(id("p")));
}

#[test]
fn a_pin_that_comes_during_a_turn_moves_it_and_one_that_was_there_does_not() {
    let mut pool = pool(&[("a", &[]), ("b", &[])]);
    let need = |n: &str| turn(Need::default(), n);
    pool.handle(NOW, Input::Pin(Some(id("b"))));
    pool.handle(NOW, Input::Learn(id("b"), Mark::Cool(Cause::Throttled(None))));
    pool.handle(later(1), Input::Select(crate::pool::Ticket(9), need("1")));
    while pool.poll_effect().is_some() {}
    pool.handle(later(60_000), Input::Tick);
    assert_eq!(why(&pool, &need("1")).0, id("a"), "it returns when the turn is over");
    assert_eq!(why(&pool, &need("2")), (id("b"), "it is pinned"));
    pool.handle(later(60_001), Input::Pin(Some(id("b"))));
    assert_eq!(why(&pool, &need("1")), (id("b"), "it is pinned"), "a person's word counts at once");
}

#[test]
fn a_thread_moved_by_hand_goes_there_while_that_can_serve() {
    let mut pool = pool(&[("a", &[]), ("b", &[]), ("c", &["x-1"])]);
    let need = |n: &str| turn(Need::default(), n);
    assert_eq!(ask(&mut pool, &need("1")), Ok(id("a")));
    pool.handle(NOW, Input::Pin(Some(id("a"))));
    pool.handle(NOW, hand(Some("b")));
    assert_eq!(why(&pool, &need("1")), (id("b"), "the thread was moved to it"));
    assert_eq!(ask(&mut pool, &need("1")), Ok(id("b")), "within a turn, and over the pool's pin");
    let other = Need { thread: Some(Arc::from("other")), ..Need::default() };
    assert_eq!(ask(&mut pool, &other), Ok(id("a")));
    pool.handle(NOW, Input::Learn(id("b"), Mark::Cool(Cause::Forbidden)));
    assert_eq!(ask(&mut pool, &need("2")), Ok(id("a")));
    // Into another pool it never goes.
    pool.handle(NOW, hand(Some("c")));
    assert_eq!(ask(&mut pool, &need("3")), Ok(id("a")));
    pool.handle(NOW, hand(None));
    assert_eq!(pool.affinity().pinned("thread"), None);
}
