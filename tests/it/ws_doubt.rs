//! Upstream's WebSockets that come about and don't serve: what HTTP does instead, for how long, and what a
//! refusal costs.

use crate::{
    codex_kit::upstream,
    ws_kit::{asked, open, world},
};
use cma_tests::{
    http::Door,
    sim::{Cut, Fault, Route, Seen},
    world::{World, eventually},
};
use std::{thread, time::Duration};

/// Something on the way takes handshakes and lets no frame through, or answers none at all.
#[test]
fn what_swallows_frames_or_handshakes_is_got_around() {
    let silent = Fault::SlowHead(Duration::from_secs(60));
    for (route, frames) in [(Route::Frame, 2), (Route::Upgrade, 0)] {
        let world = World::new(upstream(&["a", "b"])).with_env("CMA_HEAD_TIMEOUT", "500ms");
        world.import_all();
        world.sim().fault(None, route, silent.clone(), None);
        assert!(open(&world, "thread-1").say("hello").is_complete(), "{route:?}");
        let ways = || (asked(&world, "WS").len(), asked(&world, "POST").len());
        assert_eq!(ways(), (frames, 1), "{route:?}");
        // A handshake without an answer is one of two; frames that HTTP served say it at once.
        assert!(open(&world, "thread-2").say("hello").is_complete(), "{route:?}");
        assert!(open(&world, "thread-3").say("hello").is_complete(), "{route:?}");
        assert_eq!(ways(), (frames, 3), "{route:?}");
        for name in ["a", "b"] {
            assert_eq!(world.account(name)["state"], "ready", "{route:?} {name}");
        }
        world.assert_clean();
    }
}

/// Once frames come through again, they are gone back to; while somebody else's do, nobody leaves them.
#[test]
fn frames_that_come_through_again_are_gone_back_to() {
    let world = world(&["a", "b"]);
    let cut = Fault::CutMidStream { after: 0, by: Cut::Reset };
    world.sim().fault(None, Route::Frame, cut.clone(), Some(3));
    assert!(open(&world, "thread-1").say("hello").is_complete());
    let ways = || (asked(&world, "WS").len(), asked(&world, "POST").len());
    assert_eq!(ways(), (3, 1));
    thread::sleep(Duration::from_secs(15));
    eventually("a frame is tried", || {
        assert!(open(&world, "thread-2").say("hello").is_complete());
        ways().0 > 3
    });
    let before = ways();
    // One that loses three while another one's came through leaves no trace.
    world.sim().fault(None, Route::Frame, cut, Some(2));
    assert!(open(&world, "thread-3").say("hello").is_complete());
    assert!(open(&world, "thread-4").say("hello").is_complete());
    assert_eq!(ways(), (before.0 + 2 + 1 + 1, before.1));
    world.assert_clean();
}

/// Where a workspace lives is only learned once a CLI is there: sockets that are open go there as well.
#[test]
fn a_socket_follows_its_accounts_workspace() {
    let world = world(&["a"]);
    let there = format!("localhost:{}", world.sim().addr().port());
    world.sim().set_workspace("a", Some(&format!("http://{there}")), Some("us_cr"));
    let mut socket = open(&world, "thread-1");
    let first = socket.say("one").id();
    // What a CLI asks at its start.
    Door::of(&world).get("/backend-api/wham/accounts/check").unwrap();
    let checks = || world.sim().seen().iter().filter(|it| it.path.ends_with("/check")).count();
    eventually("it is learned", || checks() == 1);
    let shakes = || {
        let way = |name: &'static str| move |seen: &Seen| seen.header(name).map(str::to_owned);
        let seen = asked(&world, "GET");
        let hosts: Vec<_> = seen.iter().filter_map(way("host")).collect();
        (hosts, seen.last().and_then(way("x-openai-account-routing-override")))
    };
    eventually("the connection is of before", || {
        let told = socket.go_on(&first, "two");
        told.last()["error"]["code"] == "previous_response_not_found"
    });
    let mut socket = open(&world, "thread-1");
    assert!(socket.say("one two").is_complete());
    let here = world.sim().addr().to_string();
    assert_eq!(shakes(), (vec![here, there], Some("us_cr".to_owned())));
    assert_eq!(asked(&world, "POST").len(), 0);
    world.assert_clean();
}

/// What was found out about a token goes on with a turn that is sent again.
#[test]
fn a_turn_that_is_asked_for_again_renews_once() {
    let world = world(&["a", "b"]);
    let mut socket = open(&world, "thread-1");
    let first = socket.say("one").id();
    let refused = Fault::token_invalidated();
    world.sim().fault(Some("a"), Route::Frame, refused.clone(), Some(1));
    for route in [Route::Upgrade, Route::Responses] {
        world.sim().fault(Some("a"), route, refused.clone(), None);
    }
    let told = socket.go_on(&first, "two");
    assert_eq!(told.last()["error"]["code"], "previous_response_not_found");
    assert_eq!(open(&world, "thread-1").say("one two").text(), "served by b");
    assert_eq!(world.sim().stats().accounts["a"].refresh_requests, 1);
    world.assert_clean();
}

/// Who leaves in the middle of an answer leaves what it said of limits behind.
#[test]
fn what_was_said_of_limits_counts_when_the_client_leaves() {
    let world = world(&["a"]);
    assert!(open(&world, "thread-1").say("hello").is_complete());
    world.sim().set_used("a", 83.0, 20.0);
    world.sim().fault(None, Route::Frame, Fault::HangMidStream { after: 6 }, Some(1));
    let mut socket = Door::of(&world).socket("thread-2").unwrap_or_else(|it| panic!("{it:?}"));
    socket.send(&socket.create(&[cma_tests::ws::said("hello")]));
    while socket.event().unwrap()["type"] != "response.output_text.delta" {}
    drop(socket);
    eventually("it is learned", || {
        let windows = world.account("a")["windows"].clone();
        windows[0]["used_percent"].as_f64().is_some_and(|used| used >= 83.0)
    });
    world.assert_clean();
}
