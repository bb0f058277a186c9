//! Responses over WebSockets, by hand: what the daemon does with frames, accounts and connections.

use crate::ws_kit::{asked, open as open_in, world};
use cma_tests::{
    http::Door,
    sim::{Cut, Fault, Outcome, Route, Seen, SimConfig, Strange},
    world::{World, eventually},
    ws::{End, Socket, said},
};
use serde_json::json;
use std::{thread, time::Duration};
use tokio_tungstenite::tungstenite::Message;

fn open(world: &World) -> Socket {
    open_in(world, "thread-1")
}

/// The frames that reached the upstream, prewarms too.
fn frames(world: &World) -> Vec<Seen> {
    asked(world, "WS")
}

/// The POSTs of turns that reached the upstream.
fn posts(world: &World) -> Vec<Seen> {
    asked(world, "POST")
}

/// Who served what reached the upstream, in order.
fn accounts(seen: &[Seen]) -> Vec<&str> {
    seen.iter().filter_map(|seen| seen.account.as_deref()).collect()
}

#[test]
fn turns_go_on_from_each_other_on_one_connection() {
    let world = world(&["a", "b"]);
    let mut socket = open(&world);
    let mut prewarm = socket.create(&[said("the prompt")]);
    prewarm["generate"] = false.into();
    let warm = socket.ask(&prewarm);
    assert_eq!(warm.kinds(), ["response.created", "response.completed"]);
    let mut last = warm.id();
    for text in ["one", "two", "three"] {
        let told = socket.go_on(&last, text);
        assert_eq!(told.text(), "served by a");
        assert!(told.is_complete());
        last = told.id();
    }
    let all = frames(&world);
    assert_eq!(accounts(&all), ["a"; 4]);
    assert_eq!(all[3].body["input"], json!([said("three")]), "only what is new goes up");
    let stats = world.sim().stats();
    assert_eq!((stats.sockets, stats.sockets_open, stats.pongs), (1, 1, 1));
    let proxy = &world.status()["proxy"];
    assert_eq!((&proxy["served"], &proxy["active"]), (&3.into(), &0.into()));
    assert_eq!(world.account("a")["served"], 3);
    socket.hang_up();
    eventually("upstream's end is closed too", || world.sim().stats().sockets_open == 0);
    world.assert_clean();
}

/// A turn over a fresh socket in which `a` fails like this for ever. The socket and what it was told.
fn failing(world: &World, fault: Fault) -> (Socket, cma_tests::ws::Told) {
    world.sim().fault(Some("a"), Route::Frame, fault, None);
    let mut socket = open(world);
    let told = socket.say("hello");
    (socket, told)
}

/// Everything that may go wrong before the answer begins: the other account serves, on the same
/// socket, and the client sees an answer like any other.
#[test]
fn what_fails_before_the_answer_is_served_by_the_other_account() {
    let inside = |code: &str| Fault::SseFailed { code: code.to_owned(), message: "no".to_owned() };
    let cut = |by: Cut| Fault::CutMidStream { after: 2, by };
    let strange = |what: Strange| Fault::StrangeFrame { after: 2, what };
    let limit = json!({ "type": "usage_limit_reached", "resets_in_seconds": 600 });
    let faults = [
        (Fault::UsageLimitReached { resets_in: Duration::from_secs(600) }, "cooling"),
        (Fault::ErrorFrame { after: 3, code: 429, error: limit.to_string() }, "cooling"),
        (inside("usage_limit_reached"), "cooling"),
        (inside("rate_limit_exceeded"), "cooling"),
        (Fault::forbidden(), "cooling"),
        (Fault::usage_not_included(), "ready"),
        (inside("server_is_overloaded"), "ready"),
        (inside("slow_down"), "ready"),
        (inside("server_error"), "ready"),
        (inside("never_heard_of"), "ready"),
        (Fault::server_error(500, None), "ready"),
        (Fault::overloaded(), "ready"),
        (Fault::ResetBeforeHead, "ready"),
        (Fault::CloseBeforeHead, "ready"),
        (cut(Cut::Reset), "ready"),
        (cut(Cut::Close), "ready"),
        (cut(Cut::CleanEnd), "ready"),
        (Fault::CloseFrame { after: 0, code: 1011 }, "ready"),
        (strange(Strange::Binary), "ready"),
        (strange(Strange::Garbage), "ready"),
        (strange(Strange::Oversized), "ready"),
        (strange(Strange::Half), "ready"),
    ];
    for (fault, state) in faults {
        let words = format!("{fault:?}");
        let world = world(&["a", "b"]);
        if state == "cooling" {
            // What a frame says against an account alone, HTTP is asked about.
            world.sim().fault(Some("a"), Route::Responses, fault.clone(), Some(1));
        }
        let (mut socket, told) = failing(&world, fault);
        assert_eq!(told.text(), "served by b", "{words}: {:?}", told.0);
        assert!(told.is_complete(), "{words}");
        let begun = told.kinds().iter().filter(|kind| **kind == "response.created").count();
        assert_eq!(begun, 1, "{words}: the client saw one response");
        assert_eq!(accounts(&frames(&world)), ["a", "b"], "{words}");
        assert_eq!(world.account("a")["state"], state, "{words}");
        assert_eq!(world.account("b")["state"], "ready", "{words}");
        let proxy = &world.status()["proxy"];
        assert_eq!(
            (&proxy["served"], &proxy["failed"], &proxy["retried"]),
            (&1.into(), &0.into(), &(1 + posts(&world).len()).into()),
            "{words}"
        );
        // The thread stays where it was served.
        assert_eq!(socket.go_on(&told.id(), "more").text(), "served by b", "{words}");
        world.assert_clean();
    }
}

#[test]
fn what_no_account_would_answer_otherwise_goes_through_at_once() {
    for code in ["context_length_exceeded", "invalid_prompt", "cyber_policy"] {
        let world = world(&["a", "b"]);
        let fault = Fault::SseFailed { code: code.to_owned(), message: "too much".to_owned() };
        let (_socket, told) = failing(&world, fault);
        assert_eq!(told.last()["type"], "response.failed");
        assert_eq!(told.last()["response"]["error"]["code"], code);
        assert_eq!(accounts(&frames(&world)), ["a"]);
        assert_eq!(world.account("a")["state"], "ready");
        world.assert_clean();
    }
}

/// A frame that builds on an earlier response can't be sent elsewhere: the client is told what makes
/// it send everything, and gets its answer then.
#[test]
fn a_limit_below_a_turn_that_goes_on_asks_for_everything() {
    let world = world(&["a", "b"]);
    let mut socket = open(&world);
    let first = socket.say("one");
    assert_eq!(first.text(), "served by a");
    world.sim().set_used("a", 100.0, 10.0);
    let told = socket.go_on(&first.id(), "two");
    assert_eq!(told.last()["error"]["code"], "previous_response_not_found");
    assert_eq!((told.0.len(), &told.last()["status"]), (1, &400.into()));
    assert_eq!(world.account("a")["state"], "cooling");
    let mut socket = open(&world);
    let frame = socket.create(&[said("one"), said("two")]);
    assert_eq!(socket.ask(&frame).text(), "served by b");
    assert_eq!(accounts(&frames(&world)), ["a", "a", "b"]);
    world.assert_clean();
}

#[test]
fn what_fails_within_the_answer_is_told_as_it_is() {
    let limit = json!({ "type": "usage_limit_reached", "resets_in_seconds": 600 });
    let world = world(&["a", "b"]);
    let fault = Fault::ErrorFrame { after: 6, code: 429, error: limit.to_string() };
    let (socket, told) = failing(&world, fault);
    assert!(told.text().starts_with("served"), "{:?}", told.0);
    assert_eq!(told.last()["error"]["type"], "usage_limit_reached");
    assert_eq!(world.account("a")["state"], "cooling", "it is believed all the same");
    drop(socket);
    let mut socket = open(&world);
    assert_eq!(socket.say("again").text(), "served by b");
    let proxy = &world.status()["proxy"];
    assert_eq!((&proxy["served"], &proxy["failed"]), (&1.into(), &1.into()));
    world.assert_clean();
}

#[test]
fn an_answer_that_breaks_off_is_never_ended_cleanly() {
    let cut = |by: Cut| Fault::CutMidStream { after: 7, by };
    let strange = |what: Strange| Fault::StrangeFrame { after: 7, what };
    for fault in [
        cut(Cut::Reset),
        cut(Cut::Close),
        cut(Cut::CleanEnd),
        strange(Strange::Half),
        strange(Strange::Binary),
        strange(Strange::Oversized),
    ] {
        let words = format!("{fault:?}");
        let world = world(&["a", "b"]);
        world.sim().fault(Some("a"), Route::Frame, fault, Some(1));
        let mut socket = open(&world);
        socket.send(&socket.create(&[said("hello")]));
        assert_eq!(socket.events(), Err(End::Closed(1011)), "{words}");
        assert_eq!(world.account("a")["state"], "ready", "{words}");
        eventually("nothing is left open", || world.sim().stats().sockets_open == 0);
        let mut socket = open(&world);
        assert!(socket.say("hello").is_complete(), "{words}");
        assert_eq!(world.status()["proxy"]["failed"], 1, "{words}");
        world.assert_clean();
    }
}

#[test]
fn a_refused_token_is_renewed_once_and_the_same_account_serves() {
    let world = world(&["a", "b"]);
    let mut socket = open(&world);
    // Upstream's token check at the handshake, then at a frame of a connection that stands.
    for n in 1..=2 {
        world.sim().expire_access("a");
        assert_eq!(socket.say("hello").text(), "served by a");
        let stats = world.sim().stats().accounts["a"].clone();
        assert_eq!((stats.refresh_requests, stats.refreshed, stats.reused), (n, n, 0));
        assert_eq!(world.account("a")["generation"], n + 1);
        assert_eq!(world.account("a")["state"], "ready");
    }
    assert_eq!(accounts(&frames(&world)), ["a"; 3]);
    world.assert_clean();
}

#[test]
fn a_connection_that_has_lived_its_time_is_replaced() {
    let world = world(&["a", "b"]);
    let mut socket = open(&world);
    let first = socket.say("one");
    world.sim().set_socket_age(Duration::ZERO);
    // It can't go on without the connection: everything is asked for.
    let told = socket.go_on(&first.id(), "two");
    assert_eq!(told.last()["error"]["code"], "previous_response_not_found");
    world.sim().set_socket_age(Duration::from_millis(300));
    assert_eq!(socket.say("three").text(), "served by a");
    thread::sleep(Duration::from_millis(400));
    // A frame with everything goes on a new one, without a word.
    assert_eq!(socket.say("four").text(), "served by a");
    assert_eq!(world.sim().stats().sockets, 3);
    for name in ["a", "b"] {
        assert_eq!(world.account(name)["state"], "ready");
    }
    world.assert_clean();
}

#[test]
fn a_switch_moves_the_thread_at_its_next_turn() {
    let world = world(&["a", "b"]);
    let mut socket = open(&world);
    let first = socket.say("one");
    world.ctl("switch b").ok();
    let told = socket.go_on(&first.id(), "two");
    assert_eq!(told.last()["error"]["code"], "previous_response_not_found");
    // Everything, on the same socket.
    let second = socket.say("one two");
    assert_eq!(second.text(), "served by b");
    assert_eq!(socket.go_on(&second.id(), "three").text(), "served by b");
    assert_eq!(accounts(&frames(&world)), ["a", "b", "b"]);
    eventually("the old connection is closed", || world.sim().stats().sockets_open == 1);
    world.assert_clean();
}

/// The sticky token of a turn: shown to whom gave it, and to nobody else.
#[test]
fn a_turn_state_stays_with_its_account() {
    let world = world(&["a", "b"]);
    let mut socket = open(&world);
    let frame = |socket: &Socket, state: Option<&str>| {
        let mut frame = socket.create(&[said("one")]);
        frame["client_metadata"]["turn_id"] = "turn-1".into();
        if let Some(state) = state {
            frame["client_metadata"]["x-codex-turn-state"] = state.into();
        }
        frame
    };
    let first = socket.ask(&frame(&socket, None));
    let state = first.turn_state().expect("a turn state").to_owned();
    let mut more = frame(&socket, Some(&state));
    more["previous_response_id"] = first.id().into();
    assert_eq!(socket.ask(&more).text(), "served by a");
    // After a reconnect in the same turn too, by another socket of the client's.
    drop(socket);
    let mut socket = open(&world);
    assert_eq!(socket.ask(&frame(&socket, Some(&state))).text(), "served by a");
    world.ctl("switch b").ok();
    assert_eq!(socket.ask(&frame(&socket, Some(&state))).text(), "served by b");
    // A frame from which it can't be taken isn't sent.
    let odd = frame(&socket, Some(&state)).to_string().replace("\"tools\":[]", "\"tools\":[NaN]");
    socket.send_message(Message::text(odd)).unwrap();
    assert_eq!(socket.event().unwrap()["status"], 400);
    let states: Vec<_> = frames(&world)
        .iter()
        .map(|seen| seen.body["client_metadata"].get("x-codex-turn-state").is_some())
        .collect();
    assert_eq!(states, [false, true, true, false]);
    // Upstream checks whose it is.
    world.assert_clean();
}

#[test]
fn without_upstreams_websockets_turns_go_over_http() {
    for fault in [
        Fault::websocket_426(),
        Fault::not_found(),
        Fault::cloudflare(),
        Fault::server_error(500, None),
        Fault::server_error(503, Some(1)),
        Fault::ResetBeforeHead,
        Fault::CloseBeforeHead,
        Fault::GarbageHead,
    ] {
        let words = format!("{fault:?}");
        let world = world(&["a", "b"]);
        world.sim().fault(None, Route::Upgrade, fault.clone(), None);
        let mut socket = open(&world);
        let mut prewarm = socket.create(&[said("the prompt")]);
        prewarm["generate"] = false.into();
        let warm = socket.ask(&prewarm);
        assert_eq!(warm.kinds(), ["response.created", "response.completed"], "{words}");
        // Nobody saw the prewarm: its turn brings its input along.
        let told = socket.go_on(&warm.id(), "one");
        assert_eq!(told.text(), "served by a", "{words}: {:?}", told.0);
        assert!(told.is_complete() && told.turn_state().is_some(), "{words}");
        let all = posts(&world);
        assert_eq!(accounts(&all), ["a"], "{words}");
        assert_eq!(all[0].body["input"], json!([said("the prompt"), said("one")]), "{words}");
        // The next one has to come with everything, since HTTP remembers nothing.
        let again = socket.go_on(&told.id(), "two");
        assert_eq!(again.last()["error"]["code"], "previous_response_not_found", "{words}");
        assert!(socket.say("one two").is_complete(), "{words}");
        assert_eq!(posts(&world).len(), 2, "{words}");
        for name in ["a", "b"] {
            assert_eq!(world.account(name)["state"], "ready", "{words}");
        }
        let none = fault == Fault::websocket_426() || fault == Fault::not_found();
        let next = Door::of(&world).socket("thread-2");
        // Where the host has none at all, a client needn't begin one.
        assert_eq!(next.err().map(|answer| answer.status), none.then_some(426), "{words}");
        world.assert_clean();
    }
}

/// Over HTTP behind the socket, a failure before the answer is as hidden as over a WebSocket.
#[test]
fn faults_over_http_behind_a_socket_move_the_turn() {
    for fault in [
        Fault::UsageLimitReached { resets_in: Duration::from_secs(600) },
        Fault::server_error(502, None),
        Fault::ResetBeforeHead,
        Fault::SseFailed { code: "server_error".to_owned(), message: "no".to_owned() },
        Fault::CutMidStream { after: 1, by: Cut::Reset },
        Fault::CutMidStream { after: 1, by: Cut::CleanEnd },
    ] {
        let words = format!("{fault:?}");
        let world = world(&["a", "b"]);
        world.sim().fault(None, Route::Upgrade, Fault::websocket_426(), None);
        let mut socket = open(&world);
        world.sim().fault(Some("a"), Route::Responses, fault, None);
        let told = socket.say("hello");
        assert_eq!(told.text(), "served by b", "{words}: {:?}", told.0);
        assert!(told.is_complete(), "{words}");
        world.assert_clean();
    }
    let world = world(&["a", "b"]);
    world.sim().fault(None, Route::Upgrade, Fault::websocket_426(), None);
    world.sim().fault(
        None,
        Route::Responses,
        Fault::CutMidStream { after: 4, by: Cut::Reset },
        None,
    );
    let mut socket = open(&world);
    socket.send(&socket.create(&[said("hello")]));
    assert_eq!(socket.events(), Err(End::Closed(1011)), "what was shown is not begun again");
    world.assert_clean();
}

#[test]
fn a_dry_pool_says_when_it_is_back() {
    let world = world(&["a", "b"]);
    for name in ["a", "b"] {
        world.sim().set_used(name, 100.0, 10.0);
    }
    let mut socket = open(&world);
    for _known_before in [false, true] {
        let told = socket.say("hello");
        assert_eq!((told.0.len(), &told.last()["status"]), (1, &429.into()), "{:?}", told.0);
        let error = &told.last()["error"];
        assert_eq!(
            (&error["type"], &error["plan_type"]),
            (&"usage_limit_reached".into(), &"plus".into())
        );
        assert!(error["resets_at"].as_u64().is_some_and(|at| at > 0), "{error}");
    }
    assert_eq!(frames(&world).len(), 2, "each account is asked once");
    world.assert_clean();
}

#[test]
fn a_pool_without_an_account_says_what_to_type() {
    let world = World::new(SimConfig::default());
    world.import("a", &world.sim().auth_json("a")).ok();
    let mut socket = open(&world);
    world.ctl("remove a --yes").ok();
    let told = socket.say("hello");
    // Of this the CLI prints the message as it is.
    assert_eq!(told.last()["type"], "response.failed");
    let words = told.last()["response"]["error"]["message"].as_str().unwrap();
    assert!(words.starts_with("cma: ") && words.contains("`cmactl"), "{words}");
    world.assert_clean();
}

#[test]
fn who_may_not_come_in_gets_no_socket() {
    let world = world(&["a"]);
    let door = Door::of(&world);
    let good = door.handshake("thread-1");
    let cases = [
        (good.clone().with("authorization", "Bearer at-cma-nothing.good"), 401),
        (good.clone().without("authorization"), 401),
        (good.clone().with("host", "evil.test"), 403),
        (good.clone().header("origin", "http://evil.test"), 403),
        (good.clone().without("sec-websocket-key"), 400),
        (good.clone().with("sec-websocket-key", "short"), 400),
        (good.clone().with("sec-websocket-version", "8"), 400),
        (good.clone().with("connection", "keep-alive"), 400),
        (good.clone().with("upgrade", "h2c"), 400),
    ];
    for (ask, status) in cases {
        assert_eq!(door.send(&ask).unwrap().status, status, "{ask:?}");
    }
    let elsewhere = door.ask("GET", "/codex/models").header("upgrade", "websocket");
    assert_ne!(door.send(&elsewhere).unwrap().status, 101);
    assert_eq!(world.sim().stats().sockets, 0);
    assert!(door.socket("thread-1").is_ok());
    world.assert_clean();
}

#[test]
fn the_setting_off_sends_the_cli_to_http() {
    let world = World::new(SimConfig::default()).with_env("CMA_WEBSOCKET", "off");
    world.import_all();
    let answer = Door::of(&world).socket("thread-1").unwrap_err();
    assert_eq!((answer.status, answer.header("upgrade")), (426, Some("HTTP/1.1")));
    world.assert_clean();
}

#[test]
fn frames_that_are_none_end_the_socket_and_harm_nobody() {
    let world = world(&["a"]);
    let mut other = open_in(&world, "thread-2");
    // A masked text frame that says it has 128 MiB.
    let oversized = b"\x81\xff\x00\x00\x00\x00\x08\x00\x00\x00\x01\x02\x03\x04";
    let cases: [(&[u8], u16); 4] = [
        (oversized, 1009),
        (b"\xff\x80\x01\x02\x03\x04", 1002),
        // Unmasked, which a client's frame may not be.
        (b"\x81\x02hi", 1002),
        (b"\x81\x81\x00\x00\x00\x00\xff", 1007),
    ];
    for (bytes, code) in cases {
        let mut socket = open(&world);
        socket.send_raw(bytes).unwrap();
        assert_eq!(socket.message(), Err(End::Closed(code)), "{bytes:?}");
    }
    // Also when the client goes on sending what is too large.
    let mut socket = open(&world);
    socket.send_raw(oversized).unwrap();
    for _ in 0..200 {
        if socket.send_raw(&vec![0; 64 * 1024]).is_err() {
            break;
        }
    }
    assert_eq!(socket.message(), Err(End::Closed(1009)));
    let mut socket = open(&world);
    socket.send_message(Message::binary(vec![1, 2])).unwrap();
    assert_eq!(socket.message(), Err(End::Closed(1003)));
    let mut socket = open(&world);
    for text in ["", "no JSON", "[]", "{}", "{\"type\":7}"] {
        socket.send_message(Message::text(text)).unwrap();
        assert_eq!(socket.event().unwrap()["status"], 400, "{text}");
    }
    // An unknown type is none of our business, and a frame may come in pieces.
    socket.send(&json!({ "type": "response.whatever" }));
    socket.send_message(Message::Ping("are you there".into())).unwrap();
    assert_eq!(socket.message(), Ok(Message::Pong("are you there".into())));
    assert_eq!(socket.say("hello").text(), "served by a");
    assert_eq!(other.say("hello").text(), "served by a");
    world.assert_clean();
}

#[test]
fn a_client_that_hangs_up_ends_the_turn_above() {
    let world = world(&["a"]);
    world.sim().set_event_gap(Duration::from_millis(100));
    world.sim().set_reply_text(&"word ".repeat(1000));
    let mut socket = open(&world);
    socket.send(&socket.create(&[said("hello")]));
    while socket.event().unwrap()["type"] != "response.output_text.delta" {}
    assert_eq!(world.status()["proxy"]["active"], 1);
    socket.hang_up();
    eventually("upstream sees it", || frames(&world)[0].outcome == Outcome::ClientGone);
    eventually("the lease is back", || world.status()["proxy"]["active"] == 0);
    assert_eq!(world.account("a")["in_flight"], 0);
    eventually("no socket is left", || world.sim().stats().sockets_open == 0);
    world.assert_clean();
}

fn rss_kib(world: &World) -> u64 {
    let pid = world.daemon_pid().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_client_that_reads_slowly_makes_upstream_wait() {
    let world = world(&["a"]);
    let mut socket = open(&world);
    assert!(socket.say("hello").is_complete());
    let before = rss_kib(&world);
    // Thirty megabytes of events.
    let words = 200_000;
    world.sim().set_reply_text(&"word ".repeat(words));
    socket.send(&socket.create(&[said("a long one")]));
    eventually("it began", || frames(&world).last().unwrap().status == Some(200));
    thread::sleep(Duration::from_secs(2));
    let grown = rss_kib(&world).saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB are kept for a client that doesn't read");
    assert_eq!(frames(&world).last().unwrap().outcome, Outcome::Open, "upstream waits");
    let told = cma_tests::ws::Told(socket.events().unwrap());
    assert!(told.is_complete());
    assert_eq!(told.text().len(), 5 * words, "and nothing is lost");
    world.assert_clean();
}

#[test]
fn a_stop_lets_the_turn_end_and_moves_the_sockets() {
    let world = world(&["a"]);
    let mut idle = open_in(&world, "thread-2");
    assert!(idle.say("hello").is_complete());
    world.sim().set_event_gap(Duration::from_millis(250));
    let mut socket = open(&world);
    let door = Door::of(&world);
    socket.send(&socket.create(&[said("hello")]));
    while socket.event().unwrap()["type"] != "response.output_text.delta" {}
    thread::scope(|scope| {
        let stop = scope.spawn(|| world.ctl("daemon stop"));
        assert_eq!(idle.message(), Err(End::Closed(1012)));
        assert_eq!(door.socket("thread-3").unwrap_err().status, 503);
        let rest = socket.events().unwrap();
        assert_eq!(rest.last().unwrap()["type"], "response.completed");
        assert_eq!(socket.message(), Err(End::Closed(1012)));
        stop.join().unwrap().ok();
    });
    // The next daemon is found at the same place, by the same key.
    world.ctl("daemon start").ok();
    assert!(door.socket("thread-1").unwrap().say("hello").is_complete());
    world.assert_clean();
}

#[test]
fn what_a_turn_says_of_limits_and_tokens_is_learned() {
    let world = world(&["a"]);
    world.sim().set_used("a", 40.0, 20.0);
    let mut socket = open(&world);
    assert!(socket.say("hello").is_complete());
    let windows = world.account("a")["windows"].as_array().cloned().unwrap();
    let used: Vec<_> =
        windows.iter().filter_map(|window| window["used_percent"].as_f64()).collect();
    assert!(used.iter().any(|used| (40.0..41.0).contains(used)), "{windows:?}");
    let why = world.ctl("why --request last --json").ok().json();
    assert_eq!(why["chosen"], world.account("a")["id"], "{why}");
    world.assert_clean();
}

/// Reasoning is sealed for the workspace that it was made in. Another one refuses it: the turn goes to
/// the same account once more, without it.
#[test]
fn what_another_workspace_sealed_is_left_out() {
    let foreign = json!({ "type": "invalid_request_error", "code": "invalid_encrypted_content" });
    let thought = json!({ "type": "reasoning", "summary": [], "encrypted_content": "sealed" });
    for over_http in [false, true] {
        let world = world(&["a", "b"]);
        if over_http {
            world.sim().fault(None, Route::Upgrade, Fault::websocket_426(), None);
            let refusal = Fault::json(400, &json!({ "error": foreign }));
            world.sim().fault(None, Route::Responses, refusal, Some(1));
        } else {
            let refusal = Fault::ErrorFrame { after: 0, code: 400, error: foreign.to_string() };
            world.sim().fault(None, Route::Frame, refusal, Some(1));
        }
        let mut socket = open(&world);
        let mut frame = socket.create(&[said("one"), thought.clone(), said("two")]);
        let told = socket.ask(&frame);
        assert_eq!(told.text(), "served by a", "{:?}", told.0);
        let all = if over_http { posts(&world) } else { frames(&world) };
        assert_eq!(accounts(&all), ["a", "a"]);
        assert_eq!(all[0].body["input"], frame["input"]);
        assert_eq!(all[1].body["input"], json!([said("one"), said("two")]));
        // Nothing sealed is in it: then it is the client's to know.
        frame["input"] = json!([said("one")]);
        let refusal = if over_http {
            Fault::json(400, &json!({ "error": foreign }))
        } else {
            Fault::ErrorFrame { after: 0, code: 400, error: foreign.to_string() }
        };
        let route = if over_http { Route::Responses } else { Route::Frame };
        world.sim().fault(None, route, refusal, None);
        let told = socket.ask(&frame);
        assert!(told.last().to_string().contains("invalid_encrypted_content"), "{:?}", told.0);
        world.assert_clean();
    }
}

#[test]
fn a_hundred_open_sockets_cost_little() {
    let world = world(&["a"]);
    let door = Door::of(&world);
    let mut all: Vec<Socket> = Vec::new();
    let before = {
        // What the first ones cost is not theirs alone.
        for n in 0..20 {
            all.push(door.socket(&format!("warm-{n}")).unwrap());
        }
        all.iter_mut().for_each(|socket| assert!(socket.say("hello").is_complete()));
        rss_kib(&world)
    };
    for n in 0..100 {
        let mut socket = door.socket(&format!("thread-{n}")).unwrap();
        assert!(socket.say("hello").is_complete());
        all.push(socket);
    }
    let each = rss_kib(&world).saturating_sub(before) / 100;
    println!("{each} KiB for a socket and its own connection to upstream");
    assert!(each < 64, "{each} KiB");
    assert_eq!(world.sim().stats().sockets_open, 120);
    drop(all);
    eventually("none is left", || world.sim().stats().sockets_open == 0);
    eventually("none of ours either", || world.status()["proxy"]["connections"] == 0);
    world.assert_clean();
}

/// A response that begins and falls silent: another account is asked, once. What was held until then
/// is shown when it goes on after all.
#[test]
fn a_beginning_without_an_answer_is_not_waited_for() {
    let world = world(&["a", "b"]);
    let (_socket, told) = failing(&world, Fault::HangMidStream { after: 3 });
    assert_eq!(told.text(), "served by b", "{:?}", told.0);
    assert_eq!(accounts(&frames(&world)), ["a", "b"]);
    let proxy = &world.status()["proxy"];
    assert_eq!((&proxy["served"], &proxy["retried"]), (&1.into(), &1.into()));
    world.assert_clean();
}

#[test]
fn a_beginning_is_held_for_a_while_and_then_shown() {
    let world = world(&["a"]);
    // Never silent for long, and no answer for half a minute.
    world.sim().set_event_gap(Duration::from_secs(8));
    let mut socket = open(&world);
    socket.send(&socket.create(&[said("hello")]));
    let begun = std::time::Instant::now();
    let first = socket.event().unwrap();
    let held = begun.elapsed().as_secs();
    assert_eq!(first["type"], "codex.rate_limits");
    assert!((18..=24).contains(&held), "{held} s");
    world.assert_no_secrets();
}
