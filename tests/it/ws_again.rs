//! Turns over WebSockets that don't end where they began: sent once more with everything, got around a
//! handshake, ended in upstream's own words, or left by their client.

use crate::ws_kit::{self, asked, world};
use cma_tests::{
    http::Door,
    sim::{Fault, Route},
    world::{World, eventually},
    ws::{End, Socket, said},
};
use serde_json::Value;
use std::time::{Duration, Instant};

const HOUR: Duration = Duration::from_secs(3600);

#[track_caller]
fn open(world: &World) -> Socket {
    ws_kit::open(world, "thread-1")
}

fn rows(world: &World) -> Vec<Value> {
    let words = "usage --by request --since 48h --most 5000 --json";
    world.ctl(words).ok().json()["requests"].as_array().cloned().unwrap()
}

#[test]
fn a_turn_that_is_asked_for_again_is_one_request() {
    let world = world(&["a", "b"]);
    let mut socket = open(&world);
    let first = socket.say("one").id();
    let limit = Fault::UsageLimitReached { resets_in: HOUR };
    world.sim().fault(Some("a"), Route::Frame, limit, Some(1));
    let told = socket.go_on(&first, "two");
    assert_eq!(told.last()["error"]["code"], "previous_response_not_found");
    let mut socket = open(&world);
    assert_eq!(socket.say("one two").text(), "served by b");
    eventually("both are written", || rows(&world).len() == 2);
    let rows = rows(&world);
    assert!(rows.iter().all(|row| row["outcome"] == "complete"), "{rows:?}");
    let attempts: u64 = rows.iter().filter_map(|row| row["attempts"].as_u64()).sum();
    assert_eq!(attempts, 3, "every attempt that upstream saw");
    let why = world.ctl("why --request last --json").ok().json();
    assert!(why.to_string().contains("usage_limit_reached"), "{why}");
    world.assert_clean();
}

#[test]
fn a_pool_that_runs_dry_within_a_thread_says_what_upstream_said() {
    let world = world(&["a"]);
    let mut socket = open(&world);
    let first = socket.say("one").id();
    let limit = Fault::UsageLimitReached { resets_in: HOUR };
    world.sim().fault(Some("a"), Route::Frame, limit, None);
    let told = socket.go_on(&first, "two");
    let last = told.last();
    assert_eq!(
        (&last["status"], &last["error"]["type"]),
        (&429.into(), &"usage_limit_reached".into())
    );
    let words = last["error"]["message"].as_str().unwrap();
    assert!(!words.contains("No account of the pool"), "{last}");
    assert_eq!(asked(&world, "WS").len(), 2, "nobody else could be asked");
    world.assert_clean();
}

#[test]
fn a_handshake_that_is_refused_for_an_account_is_got_around_with_it() {
    for fault in [Fault::forbidden(), Fault::rate_limited(None), Fault::token_invalidated()] {
        let world = world(&["a", "b"]);
        world.sim().fault(Some("a"), Route::Upgrade, fault.clone(), None);
        let mut socket = open(&world);
        for text in ["one", "two"] {
            assert_eq!(socket.say(text).text(), "served by a", "{fault:?}");
        }
        assert_eq!(asked(&world, "POST").len(), 2, "{fault:?}");
        let tries = asked(&world, "GET").len();
        assert!((1..=2).contains(&tries), "{fault:?}: {tries} handshakes");
        assert_eq!(world.account("a")["state"], "ready", "{fault:?}");
        world.assert_clean();
    }
}

#[test]
fn a_client_that_leaves_while_its_turn_waits_is_noticed() {
    let world = world(&["a"]);
    world.sim().fault(Some("a"), Route::Upgrade, Fault::HangHead, None);
    let mut socket = open(&world);
    socket.send(&socket.create(&[said("hello")]));
    eventually("its account is taken", || world.account("a")["in_flight"] == 1);
    let left = Instant::now();
    socket.hang_up();
    eventually("its account is free", || world.account("a")["in_flight"] == 0);
    // A handshake would be waited for ten seconds.
    assert!(left.elapsed() < Duration::from_secs(5), "{:?}", left.elapsed());
    eventually("it is written", || rows(&world).len() == 1);
    assert_eq!(rows(&world)[0]["outcome"], "abandoned");
    world.assert_clean();
}

#[test]
fn a_cli_that_does_not_know_the_error_is_sent_to_another_socket() {
    let world = world(&["a", "b"]);
    world.ctl("switch a").ok();
    let door = Door::of(&world);
    let mut sockets = ["0.128.0", "0.149.0"].map(|version| {
        let mut socket = door.socket_of("thread-1", version).unwrap();
        let first = socket.say("one").id();
        (socket, first)
    });
    world.ctl("switch b").ok();
    let [old, new] = &mut sockets;
    let mut frame = old.0.create(&[said("two")]);
    frame["previous_response_id"] = old.1.clone().into();
    old.0.send(&frame);
    assert_eq!(old.0.events(), Err(End::Closed(1013)));
    let told = new.0.go_on(&new.1, "two");
    assert_eq!(told.last()["error"]["code"], "previous_response_not_found");
    world.assert_clean();
}
