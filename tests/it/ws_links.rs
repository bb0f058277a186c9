//! Connections to upstream that outlive a turn, and what is wrong with them alone: opened with a token
//! that was renewed since, dead without a word, slept over, refused. None of it is an account's fault,
//! moves a thread or costs a renewal more than once.

use crate::{
    codex_kit::upstream,
    ws_kit::{asked, open, world},
};
use cma_tests::{
    http::Door,
    sim::{Fault, Route},
    world::{World, eventually},
    ws::{End, Told, said},
};
use serde_json::json;
use std::{fs, time::Duration};

/// Who got the frames, in order.
fn got(world: &World) -> Vec<String> {
    asked(world, "WS").into_iter().filter_map(|seen| seen.account).collect()
}

#[track_caller]
fn unknown(told: &Told) {
    assert_eq!(told.last()["error"]["code"], "previous_response_not_found", "{:?}", told.0);
}

#[test]
fn a_refused_handshake_is_remembered_by_all_sockets_and_costs_one_renewal() {
    let world = world(&["a"]);
    world.sim().fault(Some("a"), Route::Upgrade, Fault::token_invalidated(), None);
    let mut last = String::new();
    for step in 0..4 {
        // Each step of a tool loop comes on a socket of its own, after it was asked for with everything.
        let mut socket = open(&world, "thread-1");
        if !last.is_empty() {
            unknown(&socket.go_on(&last, "more"));
            socket = open(&world, "thread-1");
        }
        let told = socket.say("all of it");
        assert_eq!(told.text(), "served by a", "step {step}: {:?}", told.0);
        last = told.id();
    }
    let mut others: Vec<_> = (0..3).map(|n| open(&world, &format!("other-{n}"))).collect();
    assert!(others.iter_mut().all(|socket| socket.say("hello").is_complete()));
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refresh_requests, stats.reused), (1, 0));
    assert_eq!(asked(&world, "GET").len(), 2, "a handshake with each token");
    assert_eq!(world.account("a")["state"], "ready");
    world.assert_clean();
}

#[test]
fn a_connection_of_a_token_that_was_renewed_costs_its_account_nothing() {
    let world = world(&["a"]);
    let mut sockets: Vec<_> = (0..4)
        .map(|n| open(&world, &format!("thread-{n}")))
        .map(|it| (it, String::new()))
        .collect();
    for (socket, last) in &mut sockets {
        *last = socket.say("one").id();
    }
    // The token is over for every connection that was opened with it; another request renews it.
    world.sim().expire_access("a");
    let door = Door::of(&world);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    for (n, (socket, last)) in sockets.iter_mut().enumerate() {
        if n % 2 == 0 {
            unknown(&socket.go_on(last, "two"));
        }
        assert_eq!(socket.say("one two").text(), "served by a", "{n}");
    }
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refresh_requests, stats.refreshed, stats.reused), (1, 1, 0));
    assert_eq!(world.account("a")["state"], "ready");
    assert_eq!(world.status()["notes"], json!([]));
    world.assert_clean();
}

#[test]
fn a_connection_that_died_is_replaced_with_the_same_account() {
    for fault in [Fault::ResetBeforeHead, Fault::CloseBeforeHead] {
        let world = world(&["a", "b"]);
        let mut socket = open(&world, "thread-1");
        let first = socket.say("one").id();
        world.sim().fault(Some("a"), Route::Frame, fault.clone(), Some(1));
        assert_eq!(socket.say("one two").text(), "served by a", "{fault:?}");
        assert_eq!(got(&world), ["a", "a", "a"], "{fault:?}");
        // One that goes on from there comes again with everything.
        world.sim().fault(Some("a"), Route::Frame, fault.clone(), Some(1));
        unknown(&socket.go_on(&first, "two"));
        assert_eq!(open(&world, "thread-1").say("one two").text(), "served by a", "{fault:?}");
        let proxy = &world.status()["proxy"];
        assert_eq!((&proxy["served"], &proxy["failed"]), (&3.into(), &0.into()), "{fault:?}");
        // A new connection that dies as well is not that connection's fault.
        world.sim().fault(Some("a"), Route::Frame, fault.clone(), None);
        let mut socket = open(&world, "thread-1");
        assert_eq!(socket.say("one two").text(), "served by b", "{fault:?}");
        world.assert_clean();
    }
}

#[test]
fn after_a_sleep_a_connection_is_made_anew() {
    let world = World::new(upstream(&["a", "b"]));
    let file = world.path("tmp/shift");
    fs::write(&file, "0").unwrap();
    let world = world.with_env("CMA_CLOCK_SHIFT", file.to_str().unwrap());
    world.import_all();
    let mut socket = open(&world, "thread-1");
    assert_eq!(socket.say("one").text(), "served by a");
    assert_eq!(socket.say("two").text(), "served by a");
    assert_eq!(world.sim().stats().sockets, 1);
    fs::write(&file, "60000").unwrap();
    // The daemon reads it every ten milliseconds.
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(socket.say("three").text(), "served by a");
    assert_eq!(world.sim().stats().sockets, 2, "what was between may be gone");
    eventually("the old one is closed", || world.sim().stats().sockets_open == 1);
    assert_eq!(world.account("a")["state"], "ready");
    world.assert_clean();
}

#[test]
fn an_answer_that_falls_silent_is_given_up_and_never_ended_cleanly() {
    let world = World::new(upstream(&["a"])).with_env("CMA_STALL", "400ms");
    world.import_all();
    world.sim().fault(Some("a"), Route::Frame, Fault::HangMidStream { after: 7 }, Some(1));
    let mut socket = open(&world, "thread-1");
    socket.send(&socket.create(&[said("hello")]));
    assert_eq!(socket.events(), Err(End::Closed(1011)));
    let proxy = &world.status()["proxy"];
    assert_eq!((&proxy["served"], &proxy["failed"]), (&0.into(), &1.into()));
    eventually("upstream's end is closed too", || world.sim().stats().sockets_open == 0);
    assert_eq!(open(&world, "thread-1").say("again").text(), "served by a");
    world.assert_clean();
}

/// A page at the handshake is a portal's, or all that something in front of a host without WebSockets
/// says: the request itself tells, and either way clients keep their sockets.
#[test]
fn a_page_at_the_handshake_costs_no_turn() {
    let world = world(&["a"]);
    let page = Fault::Status {
        code: 404,
        headers: vec![("content-type".to_owned(), "text/html".to_owned())],
        body: "<html>Sign in to this network</html>".to_owned(),
    };
    let redirect = Fault::Status {
        code: 302,
        headers: vec![("location".to_owned(), "http://portal.invalid/".to_owned())],
        body: String::new(),
    };
    world.sim().fault(None, Route::Upgrade, page.clone(), Some(1));
    let mut socket = open(&world, "thread-1");
    assert_eq!(socket.say("hello").text(), "served by a");
    assert_eq!(open(&world, "thread-2").say("hello").text(), "served by a");
    assert_eq!((asked(&world, "WS").len(), asked(&world, "POST").len()), (1, 1));
    // A portal says so to requests as well, for as long as its person takes.
    world.sim().fault(None, Route::Upgrade, redirect.clone(), Some(2));
    world.sim().fault(None, Route::Responses, page, Some(2));
    assert_eq!(open(&world, "thread-3").say("hello").text(), "served by a");
    // A gateway keeps to it, and a prewarm isn't sent by any other way.
    world.sim().fault(None, Route::Upgrade, redirect, None);
    let mut socket = open(&world, "thread-4");
    let mut prewarm = socket.create(&[said("hello")]);
    prewarm["generate"] = false.into();
    let posts = asked(&world, "POST").len();
    assert!(socket.ask(&prewarm).is_complete());
    assert_eq!(asked(&world, "POST").len(), posts);
    for n in 4..8 {
        assert_eq!(open(&world, &format!("thread-{n}")).say("hello").text(), "served by a", "{n}");
    }
    let proxy = &world.status()["proxy"];
    assert_eq!((&proxy["served"], &proxy["failed"]), (&7.into(), &0.into()));
    assert_eq!(world.account("a")["state"], "ready");
    world.assert_clean();
}

#[test]
fn an_error_in_json_behind_the_socket_is_believed() {
    let world = world(&["a", "b"]);
    world.sim().fault(None, Route::Upgrade, Fault::server_error(500, None), None);
    let limit = json!({ "error": {
        "type": "usage_limit_reached", "message": "The usage limit has been reached",
        "resets_in_seconds": 600,
    }});
    world.sim().fault(Some("a"), Route::Responses, Fault::json(200, &limit), Some(1));
    let mut socket = open(&world, "thread-1");
    assert_eq!(socket.say("hello").text(), "served by b");
    assert_eq!(world.account("a")["state"], "cooling");
    world.assert_clean();
}

/// The thread is known to be an account's while its first answer still runs: the next daemon doesn't
/// give the turn's state to another.
#[test]
fn a_turn_that_outlives_its_daemon_goes_on_where_its_state_is_from() {
    let world = world(&["b", "a"]);
    world.ctl("switch a").ok();
    world.sim().set_event_gap(Duration::from_millis(250));
    let mut socket = open(&world, "thread-1");
    let mut frame = socket.create(&[said("one")]);
    frame["client_metadata"]["turn_id"] = "turn-1".into();
    socket.send(&frame);
    let before = world.daemon_pid();
    eventually("it streams", || world.sim().stats().accounts["a"].served == 1);
    world.ctl("unpin").ok();
    std::thread::sleep(Duration::from_millis(1500));
    world.ctl("daemon restart").ok();
    let told = Told(socket.events().unwrap());
    assert!(told.is_complete(), "{:?}", told.0);
    assert_eq!(socket.event(), Err(End::Closed(1012)));
    assert_ne!(world.daemon_pid(), before);
    world.sim().set_event_gap(Duration::ZERO);
    let mut socket = open(&world, "thread-1");
    let mut frame = socket.create(&[said("one"), said("two")]);
    frame["client_metadata"]["turn_id"] = "turn-1".into();
    frame["client_metadata"]["x-codex-turn-state"] = told.turn_state().unwrap().into();
    assert_eq!(socket.ask(&frame).text(), "served by a");
    world.assert_clean();
}
