//! Every stream of the corpus, cut in two at every place: it is read, passed on and hidden alike.

#[path = "../../fixtures/streams.rs"]
mod fixtures;

use super::{config, world};
use cma_core::{
    stream::{Beginning, Found},
    time::Wall,
    verdict::Mark,
};
use cma_tests::{
    http::{Door, Line},
    sim::{Fault, Inside, Route, What},
    world::{World, eventually},
};
use std::{thread, time::Duration};

#[test]
fn every_split_of_every_stream_is_read_alike() {
    for (name, bytes) in fixtures::streams() {
        let whole = Beginning::default().feed(&bytes);
        match &whole {
            Some(Found::Fault(fault)) => {
                let code = name.trim_start_matches("failed_").trim_start_matches("own_");
                assert!(fault.code == code || name == "failed_error_event", "{name}: {fault:?}");
            },
            Some(Found::Answer) => assert!(!name.starts_with("failed_"), "{name}"),
            None => panic!("{name} says nothing"),
        }
        for first in 0..bytes.len() {
            for second in (first..bytes.len()).step_by(3) {
                let mut beginning = Beginning::default();
                let parts = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                let found = parts.into_iter().find_map(|part| beginning.feed(part));
                assert_eq!(found, whole, "{name} at {first} and {second}");
            }
        }
    }
}

/// A stream that comes in these pieces.
fn in_pieces(pieces: &[&[u8]]) -> Fault {
    let pieces = pieces.iter().filter(|piece| !piece.is_empty());
    let what = What::Pieces(pieces.map(|piece| piece.to_vec()).collect());
    Fault::Inside(Inside { after: 0, what })
}

/// Pieces come this far apart, so that each is read by itself.
const APART: Duration = Duration::from_millis(2);

/// How many requests ended so, as `status` counts them.
fn count(world: &World, how: &str) -> usize {
    usize::try_from(world.status()["proxy"][how].as_u64().unwrap()).unwrap()
}

#[test]
fn every_split_of_every_stream_reaches_the_client_alike() {
    // Clients beside each other, for they wait more than they compute: each has an account for itself,
    // and what is scripted for one reaches no other.
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let world = World::with_accounts(config(&names));
    let doors = names.map(|name| Door::of_account(&world, name));
    world.sim().set_event_gap(APART);
    let mut shown = fixtures::streams();
    shown.retain(|(name, _)| !name.starts_with("failed_"));
    let splits: Vec<_> = shown
        .iter()
        .flat_map(|(name, bytes)| fixtures::halves(bytes).map(move |halves| (name, bytes, halves)))
        .collect();
    thread::scope(|scope| {
        for (n, (account, door)) in names.into_iter().zip(&doors).enumerate() {
            let (sim, own) = (world.sim(), splits.iter().skip(n).step_by(names.len()));
            scope.spawn(move || {
                let mut line = Line::open(door.addr).unwrap();
                for (name, bytes, halves) in own {
                    sim.fault(Some(account), Route::Responses, in_pieces(halves), Some(1));
                    line.write(&door.turn_in(&format!("{account}-{name}")).bytes()).unwrap();
                    let (answer, at) = (line.answer().unwrap(), halves[0].len());
                    assert_eq!(&answer.body, *bytes, "{name} at {at}: {}", answer.text());
                }
            });
        }
    });
    eventually("all are accounted for", || {
        count(&world, "served") + count(&world, "failed") == splits.len()
    });
    assert_eq!(count(&world, "retried"), 0);
    world.assert_clean();
}

/// The failures of the corpus that rest the account they meet, or those that don't.
fn failures(rests: bool) -> Vec<(String, Vec<u8>)> {
    let mut failures = fixtures::streams();
    failures.retain(|(name, bytes)| {
        let found = Beginning::default().feed(bytes);
        let Some(Found::Fault(fault)) = found.filter(|_| name.starts_with("failed_")) else {
            return false;
        };
        rests != (fault.verdict(Wall::default()).mark == Mark::Shaky)
    });
    assert!(failures.len() >= 4, "{}", failures.len());
    failures
}

/// What is shown in a failure's place.
fn instead() -> Vec<u8> {
    let mut streams = fixtures::streams().into_iter();
    streams.find(|(name, _)| name == "minimal").unwrap().1
}

#[test]
fn every_split_of_every_failure_is_hidden_alike() {
    const AT_ONCE: usize = 8;
    let world = World::with_accounts(config(&["a", "b"]));
    // Every turn asks `a` first, however often that fails.
    world.ctl("switch a").ok();
    let door = Door::of(&world);
    world.sim().set_event_gap(APART);
    let (failures, instead) = (failures(false), instead());
    world.sim().fault(Some("b"), Route::Responses, in_pieces(&[&instead]), None);
    let splits: Vec<_> = failures
        .iter()
        .flat_map(|(name, bytes)| fixtures::halves(bytes).map(move |halves| (name, halves)))
        .collect();
    thread::scope(|scope| {
        for n in 0..AT_ONCE {
            let (sim, own) = (world.sim(), splits.iter().skip(n).step_by(AT_ONCE));
            let (door, instead) = (&door, &instead);
            scope.spawn(move || {
                let mut line = Line::open(door.addr).unwrap();
                for (name, halves) in own {
                    // Another client's turn may meet it: it ends as well.
                    sim.fault(Some("a"), Route::Responses, in_pieces(halves), Some(1));
                    line.write(&door.turn_in(&format!("{n}-{name}")).bytes()).unwrap();
                    let (answer, at) = (line.answer().unwrap(), halves[0].len());
                    assert_eq!(&answer.body, instead, "{name} at {at}: {}", answer.text());
                }
            });
        }
    });
    eventually("all are accounted for", || count(&world, "served") == splits.len());
    assert_eq!((count(&world, "retried"), count(&world, "failed")), (splits.len(), 0));
    for name in ["a", "b"] {
        assert_eq!(world.account(name)["state"], "ready", "{name}");
    }
    world.assert_clean();
}

#[test]
fn failures_that_rest_an_account_are_hidden_wherever_they_are_split() {
    // Each place costs an account, so that there are few: every one is tried beside the code
    // (`daemon/src/proxy/held/tests.rs`).
    const PLACES: usize = 6;
    let (failures, instead) = (failures(true), instead());
    let names: Vec<String> = (0..=failures.len() * PLACES).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (world, door) = world(&names, &[]);
    world.sim().set_event_gap(APART);
    let mut tried = 0;
    for (name, bytes) in &failures {
        for at in (1..bytes.len()).step_by(bytes.len() / PLACES + 1) {
            let (first, rest) = bytes.split_at(at);
            for fault in [in_pieces(&[first, rest]), in_pieces(&[&instead])] {
                world.sim().fault(None, Route::Responses, fault, Some(1));
            }
            let answer = door.send(&door.turn_in(&format!("{name}-{at}"))).unwrap();
            assert_eq!(answer.body, instead, "{name} at {at}: {}", answer.text());
            tried += 1;
        }
    }
    eventually("all are accounted for", || count(&world, "served") == tried);
    assert_eq!((count(&world, "retried"), count(&world, "failed")), (tried, 0));
    world.assert_clean();
}
