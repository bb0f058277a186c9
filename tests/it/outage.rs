//! A host that is out of reach, or slow to its first word, ends no turn; and who leaves meanwhile is
//! forgotten.

use crate::{
    codex_kit::upstream,
    ws_kit::{asked, open},
};
use cma_tests::{
    http::{Door, Line, turn_body},
    sim::{Fault, Route},
    world::{World, eventually},
    ws::said,
};
use std::{
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// Longer than eight attempts with their pauses took, and than a renewal is waited for otherwise.
const OUTAGE: Duration = Duration::from_secs(21);

#[test]
fn an_outage_that_outlasts_many_attempts_ends_no_turn() {
    let world = World::new(upstream(&["a", "b"]));
    world.import("a", &world.sim().auth_json("a")).ok();
    world.import("b", &world.sim().auth_json_expired("b")).ok();
    let (a, b) = (Door::of_account(&world, "a"), Door::of_account(&world, "b"));
    let mut socket = a.socket("thread-1").unwrap();
    world.sim().stop_listening().unwrap();
    thread::scope(|scope| {
        let turns = [&a, &b].map(|door| scope.spawn(|| door.send(&door.turn()).unwrap()));
        let frame = scope.spawn(|| socket.say("hello"));
        thread::sleep(OUTAGE);
        assert!(turns.iter().all(|turn| !turn.is_finished()) && !frame.is_finished());
        assert_eq!(world.status()["proxy"]["failed"], 0);
        world.sim().resume_listening().unwrap();
        for (turn, name) in turns.into_iter().zip(["a", "b"]) {
            let answer = turn.join().unwrap();
            let text = answer.text();
            assert!(answer.is_complete() && text.contains(&format!("served by {name}")), "{text}");
        }
        assert_eq!(frame.join().unwrap().text(), "served by a");
    });
    for name in ["a", "b"] {
        assert_eq!(world.account(name)["state"], "ready", "{name}");
    }
    let stats = world.sim().stats().accounts["b"].clone();
    assert_eq!((stats.refreshed, stats.reused), (1, 0));
    world.assert_clean();
}

#[test]
fn a_host_that_stays_out_of_reach_is_given_up_when_its_person_said() {
    let world = World::new(upstream(&["a"])).with_env("CMA_HOST_WAIT", "2s");
    world.import_all();
    let door = Door::of(&world);
    let mut socket = open(&world, "thread-1");
    world.sim().stop_listening().unwrap();
    let begun = Instant::now();
    let answer = door.send(&door.turn()).unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("could not connect"), "{}", answer.text());
    let told = socket.say("hello");
    assert!(told.last().to_string().contains("could not connect"), "{:?}", told.0);
    let took = begun.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(12)).contains(&took), "{took:?}");
    assert_eq!(world.account("a")["state"], "ready");
    world.assert_clean();
}

/// One that answers nothing at all, not even that it isn't there.
fn black_hole() -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let addr = listener.local_addr().unwrap();
    let connect = || TcpStream::connect_timeout(&addr, Duration::from_millis(300));
    let fill = std::iter::repeat_with(connect).map_while(Result::ok).take(64).collect();
    (listener, fill)
}

#[test]
fn an_issuer_that_swallows_connections_is_waited_for_like_one_that_refuses_them() {
    let (hole, _full) = black_hole();
    let issuer = format!("http://{}", hole.local_addr().unwrap());
    let world = World::new(upstream(&["a"]))
        .with_env("CMA_UPSTREAM_ISSUER", &issuer)
        .with_env("CMA_HOST_WAIT", "12s");
    world.import("a", &world.sim().auth_json_expired("a")).ok();
    let door = Door::of(&world);
    let begun = Instant::now();
    let answer = door.send(&door.turn()).unwrap();
    let took = begun.elapsed();
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("could not connect"), "{}", answer.text());
    assert!((Duration::from_secs(12)..Duration::from_secs(35)).contains(&took), "{took:?}");
    assert_eq!(world.account("a")["state"], "refreshing");
    world.assert_clean();
}

/// A model may take longer to its first word than an attempt is waited for: then no other attempt would
/// be faster.
#[test]
fn a_head_that_takes_longer_than_attempts_do_is_waited_for_in_the_end() {
    let world = World::new(upstream(&["a", "b"])).with_env("CMA_HEAD_TIMEOUT", "500ms");
    world.import_all();
    for route in [Route::Responses, Route::Frame] {
        world.sim().fault(None, route, Fault::SlowHead(Duration::from_millis(1500)), None);
    }
    let door = Door::of(&world);
    let answer = door.send(&door.turn()).unwrap();
    assert!(answer.is_complete(), "{}", answer.text());
    assert_eq!(asked(&world, "POST").len(), 3);
    let told = open(&world, "thread-1").say("hello");
    assert!(told.is_complete(), "{:?}", told.0);
    // Two connections that say nothing may carry nothing: HTTP tells.
    assert_eq!((asked(&world, "WS").len(), asked(&world, "POST").len()), (2, 3 + 1));
    for name in ["a", "b"] {
        assert_eq!(world.account(name)["state"], "ready", "{name}");
    }
    world.assert_clean();
}

/// What of its body wasn't read kept its end from being seen.
#[test]
fn who_leaves_while_its_request_waits_for_an_account_is_forgotten() {
    let world = World::with_accounts(upstream(&["a"]));
    world.ctl("account cap a 1").ok();
    let door = Door::of(&world);
    world.sim().fault(None, Route::Responses, Fault::HangMidStream { after: 3 }, Some(1));
    let mut first = Line::open(door.addr).unwrap();
    first.write(&door.turn().bytes()).unwrap();
    assert_eq!(first.head().unwrap().status, 200);
    let waiting = || world.ctl("strategy --json").ok().json()["waiting"].as_u64().unwrap();
    let mut second = Line::open(door.addr).unwrap();
    second.write(&door.turn().body(turn_body(1 << 20)).bytes()).unwrap();
    eventually("it waits", || waiting() == 1);
    drop(second);
    eventually("it is forgotten", || waiting() == 0);
    drop(first);
    eventually("the account is free", || world.account("a")["in_flight"] == 0);
    assert_eq!(asked(&world, "POST").len(), 1, "nothing was sent for nobody");
    world.assert_clean();
}

/// A client takes a silent socket for a broken one.
#[test]
fn who_waits_for_an_account_over_a_socket_hears_that_somebody_is_there() {
    let world = World::new(upstream(&["a"])).with_env("CMA_STALL", "1200ms");
    world.import_all();
    world.ctl("account cap a 1").ok();
    world.sim().fault(None, Route::Frame, Fault::HangMidStream { after: 7 }, Some(1));
    let mut first = open(&world, "thread-1");
    first.send(&first.create(&[said("hello")]));
    eventually("it runs", || world.account("a")["in_flight"] == 1);
    let told = open(&world, "thread-2").say("hello");
    assert_eq!(told.text(), "served by a", "{:?}", told.0);
    let kinds = told.kinds();
    assert_eq!(&kinds[..3], ["keepalive", "keepalive", "keepalive"], "{kinds:?}");
    world.assert_clean();
}

#[test]
fn a_request_too_large_to_be_kept_is_sent_again_by_its_client() {
    let world = World::with_accounts(upstream(&["a", "b"]));
    world.sim().set_used("a", 100.0, 10.0);
    let door = Door::of(&world);
    let turn = door.turn().body(turn_body(17 << 20));
    let first = door.send(&turn).unwrap();
    assert_eq!(first.status, 503, "{}", first.text());
    assert!(first.text().contains("too large to be sent again"), "{}", first.text());
    let second = door.send(&turn).unwrap();
    assert!(second.is_complete() && second.text().contains("served by b"), "{}", second.text());
    assert_eq!(world.account("a")["state"], "cooling");
    world.assert_clean();
}
