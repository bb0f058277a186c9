//! What failed once is asked again while nobody else can serve: a limit, a spent budget or an ended
//! login of one account says nothing of another one that only met a fault.

use cma_tests::{
    http::Door,
    sim::{AccountSpec, Cut, Fault, Route, Seen, SimConfig},
    world::World,
};
use std::time::Duration;

const HOUR: Fault = Fault::UsageLimitReached { resets_in: Duration::from_secs(3600) };

/// Accounts that are chosen in this order.
fn world(names: &[&str]) -> World {
    let accounts = names.iter().map(|name| AccountSpec::new(name)).collect();
    let reply_text = "served by {account}".to_owned();
    World::with_accounts(SimConfig { accounts, reply_text, ..SimConfig::default() })
}

/// What an account fails with once, without being any the worse for it.
fn faults() -> [Fault; 4] {
    let cut = Fault::CutMidStream { after: 1, by: Cut::Reset };
    let inside = Fault::SseFailed { code: "server_error".to_owned(), message: "no".to_owned() };
    [Fault::ResetBeforeHead, Fault::server_error(500, None), cut, inside]
}

/// The accounts that were asked, in this order.
fn asked(world: &World) -> Vec<String> {
    let turns = world.sim().seen().into_iter().filter(|seen| {
        (seen.method == "WS" && seen.body["generate"] != false)
            || (seen.method == "POST" && seen.path.ends_with("/responses"))
    });
    turns.filter_map(|seen: Seen| seen.account).collect()
}

/// A turn over HTTP, or over a WebSocket.
#[track_caller]
fn turn(world: &World, websocket: bool) -> String {
    let door = Door::of(world);
    if websocket {
        let mut socket = door.socket("thread-1").unwrap_or_else(|answer| panic!("{answer:?}"));
        return socket.say("one").text();
    }
    let answer = door.send(&door.turn()).unwrap();
    answer.text()
}

#[test]
fn a_limit_of_one_account_is_no_word_about_one_that_failed_once() {
    let limits = [HOUR, Fault::usage_not_included()];
    for (websocket, limit) in
        [false, true].into_iter().flat_map(|way| limits.clone().map(|it| (way, it)))
    {
        for fault in faults() {
            for (limited, failing) in [("a", "b"), ("b", "a")] {
                let world = world(&["a", "b"]);
                let words =
                    format!("websocket {websocket}, {limited}: {limit:?}, {failing}: {fault:?}");
                let route = if websocket { Route::Frame } else { Route::Responses };
                world.sim().fault(Some(limited), route, limit.clone(), None);
                world.sim().fault(Some(failing), route, fault.clone(), Some(1));
                let text = turn(&world, websocket);
                assert!(text.contains(&format!("served by {failing}")), "{words}: {text}");
                let wanted = if limited == "a" { ["a", "b", "b"] } else { ["a", "b", "a"] };
                assert_eq!(asked(&world).join(" "), wanted.join(" "), "{words}");
                assert_eq!(world.status()["proxy"]["failed"], 0, "{words}");
                world.assert_clean();
            }
        }
    }
}

/// When it goes on failing, that is what the person is told, not the other one's limit.
#[test]
fn an_account_that_goes_on_failing_is_told_of() {
    for websocket in [false, true] {
        let world = world(&["a", "b"]);
        let route = if websocket { Route::Frame } else { Route::Responses };
        world.sim().fault(Some("a"), route, HOUR, None);
        for route in [route, Route::Responses] {
            world.sim().fault(Some("b"), route, Fault::ResetBeforeHead, None);
        }
        let door = Door::of(&world);
        let words = if websocket {
            let mut socket = door.socket("thread-1").unwrap_or_else(|answer| panic!("{answer:?}"));
            socket.say("one").last().to_string()
        } else {
            door.send(&door.turn()).unwrap().text()
        };
        assert!(words.contains("failed in 8 attempts") && words.contains("cmactl why"), "{words}");
        assert_eq!(asked(&world).iter().filter(|name| *name == "a").count(), 1, "{words}");
        world.assert_clean();
    }
}

#[test]
fn a_spent_budget_of_one_account_is_no_word_about_one_that_failed_once() {
    for websocket in [false, true] {
        for fault in faults() {
            let world = world(&["a", "b"]);
            world.ctl("switch b").ok();
            assert!(turn(&world, false).contains("served by b"));
            world.ctl("unpin").ok();
            world.ctl("switch a").ok();
            world.ctl("budget limit few --account b --window day --requests 1").ok();
            let route = if websocket { Route::Frame } else { Route::Responses };
            world.sim().fault(Some("a"), route, fault.clone(), Some(1));
            let text = turn(&world, websocket);
            assert!(text.contains("served by a"), "websocket {websocket}, {fault:?}: {text}");
            assert_eq!(asked(&world), ["b", "a", "a"], "{fault:?}");
            world.assert_clean();
        }
    }
}

#[test]
fn two_logins_that_the_issuer_ended_hide_nobody() {
    for websocket in [false, true] {
        let world = world(&["a", "b", "c"]);
        world.sim().revoke_family("a");
        world.sim().revoke_family("b");
        let text = turn(&world, websocket);
        assert!(text.contains("served by c"), "websocket {websocket}: {text}");
        for name in ["a", "b"] {
            assert_eq!(world.account(name)["state"], "needs_login", "{name}");
            assert_eq!(world.sim().stats().accounts[name].refresh_requests, 1, "{name}");
        }
        world.assert_clean();
    }
}

/// Walks through a pool have got whole pools revoked: one request shows upstream four such tokens at most.
#[test]
fn a_walk_over_ended_logins_is_bounded() {
    let names = ["a", "b", "c", "d", "e"];
    let world = world(&names);
    for name in &names[..4] {
        world.sim().revoke_family(name);
    }
    let door = Door::of(&world);
    let answer = door.send(&door.turn()).unwrap();
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(asked(&world), ["a", "b", "c", "d"]);
    assert!(turn(&world, false).contains("served by e"));
    world.assert_clean();
}
