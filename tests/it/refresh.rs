//! Renewing credentials: once for many, durable, and honest when nobody can know.

use cma_tests::{
    http::Door,
    sim::{AccountSpec, Cut, Fault, Route, SimConfig},
    world::{World, eventually, within},
};
use std::time::{Duration, Instant};

fn world_with(names: &[&str], grace: u64) -> (World, Door) {
    let accounts = names.iter().map(|name| AccountSpec::new(name)).collect();
    let grace = Duration::from_secs(grace);
    let world = World::with_accounts(SimConfig { accounts, grace, ..SimConfig::default() });
    let door = Door::of(&world);
    (world, door)
}

#[test]
fn sixty_four_requests_with_one_expired_token_cause_one_renewal() {
    let (world, door) = world_with(&["a"], 0);
    for round in 1..=3 {
        world.sim().expire_access("a");
        let slow = Fault::DelayAnswer(Duration::from_millis(150));
        world.sim().fault(None, Route::Refresh, slow, Some(1));
        std::thread::scope(|scope| {
            let sent: Vec<_> =
                (0..64).map(|_| scope.spawn(|| door.send(&door.turn()).unwrap())).collect();
            for sent in sent {
                let answer = sent.join().unwrap();
                assert!(answer.is_complete(), "{} {}", answer.status, answer.text());
            }
        });
        let stats = world.sim().stats().accounts["a"].clone();
        assert_eq!((stats.refresh_requests, stats.refreshes_at_once, stats.reused), (round, 1, 0));
        assert_eq!(stats.completed, round * 64);
    }
    assert_eq!(world.account("a")["generation"], 4);
    world.assert_clean();
}

#[test]
fn a_login_imported_with_an_expired_token_is_renewed_before_use() {
    let world = World::new(SimConfig::default());
    world.import("a", &world.sim().auth_json_expired("a")).ok();
    let door = Door::of(&world);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.unauthorized), (1, 0));
    world.assert_clean();
}

#[test]
fn an_issuer_that_cannot_now_is_asked_again_and_nobody_is_lost() {
    for fault in [
        Fault::server_error(500, None),
        Fault::server_error(503, Some(1)),
        Fault::rate_limited(None),
        Fault::json(400, &serde_json::json!({ "error": "temporarily_unavailable" })),
    ] {
        let (world, door) = world_with(&["a"], 0);
        world.sim().expire_access("a");
        world.sim().fault(None, Route::Refresh, fault.clone(), Some(1));
        let begun = Instant::now();
        eventually("it serves again", || {
            let answer = door.send(&door.turn()).unwrap();
            assert!(
                answer.is_complete() || answer.status == 400,
                "{} {}",
                answer.status,
                answer.text()
            );
            answer.is_complete()
        });
        eprintln!("{fault:?}: served after {:?}", begun.elapsed());
        let stats = world.sim().stats().accounts["a"].clone();
        assert_eq!((stats.refreshed, stats.reused, stats.replayed), (1, 0, 0), "{fault:?}");
        assert_eq!(world.account("a")["state"], "ready");
        world.assert_clean();
    }
}

/// An issuer that is down for a while: nothing was sent, so nothing is unknown.
#[test]
fn a_refused_connection_to_the_issuer_costs_no_login() {
    let (world, door) = world_with(&["a"], 0);
    world.sim().expire_access("a");
    std::thread::scope(|scope| {
        let turn = scope.spawn(|| door.send(&door.turn()).unwrap());
        world.sim().stop_listening().unwrap();
        std::thread::sleep(Duration::from_millis(700));
        world.sim().resume_listening().unwrap();
        let answer = turn.join().unwrap();
        assert!(answer.is_complete(), "{} {}", answer.status, answer.text());
    });
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.reused, stats.replayed), (1, 0, 0));
    world.assert_clean();
}

#[test]
fn an_answer_that_was_lost_is_asked_for_once_more() {
    for (fault, committed) in [
        (Fault::CloseAfterCommit, true),
        (Fault::ResetAfterCommit, true),
        (Fault::CutMidStream { after: 0, by: Cut::Close }, true),
        (Fault::CloseBeforeHead, false),
        (Fault::GarbageHead, false),
    ] {
        let (world, door) = world_with(&["a"], 30);
        world.sim().expire_access("a");
        world.sim().fault(None, Route::Refresh, fault.clone(), Some(1));
        let answer = door.send(&door.turn()).unwrap();
        assert!(answer.is_complete(), "{fault:?}: {} {}", answer.status, answer.text());
        let stats = world.sim().stats().accounts["a"].clone();
        assert_eq!(stats.refresh_requests, 2, "{fault:?}");
        assert_eq!((stats.replayed, stats.reused), (u64::from(committed), 0), "{fault:?}");
        assert_eq!(world.account("a")["state"], "ready", "{fault:?}");
        world.assert_clean();
    }
}

/// Nobody refused anything: the login is asked for again, and the other account serves meanwhile.
#[test]
fn an_issuer_that_swallows_requests_ends_no_login() {
    let (world, door) = world_with(&["a", "b"], 0);
    world.ctl("switch a").ok();
    world.sim().expire_access("a");
    world.sim().fault(Some("a"), Route::Refresh, Fault::CloseBeforeHead, Some(4));
    assert!(door.send(&door.turn()).unwrap().is_complete());
    let asked = || world.sim().stats().accounts["a"].refresh_requests;
    eventually("it was asked twice", || asked() >= 2);
    assert_ne!(world.account("a")["state"], "needs_login");
    assert!(world.status()["notes"].to_string().contains("no answer to a renewal"));
    // The pauses grow; a restart in between changes nothing.
    world.ctl("daemon restart").ok();
    within(Duration::from_secs(30), "it is renewed", || {
        door.send(&door.turn()).unwrap();
        world.sim().stats().accounts["a"].refreshed == 1
    });
    eventually("it serves again", || world.account("a")["state"] == "ready");
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refresh_requests, stats.replayed, stats.reused), (5, 0, 0));
    world.assert_clean();
}

#[test]
fn without_a_grace_a_lost_answer_costs_that_login_only_and_says_so() {
    let (world, door) = world_with(&["a", "b"], 0);
    world.ctl("switch a").ok();
    world.sim().expire_access("a");
    world.sim().expire_access("b");
    world.sim().fault(Some("a"), Route::Refresh, Fault::CloseAfterCommit, Some(1));
    // The other account serves; the client sees nothing of it.
    assert!(door.send(&door.turn()).unwrap().is_complete());
    for restarted in [false, true] {
        if restarted {
            world.kill_daemon();
        }
        let account = world.account("a");
        assert_eq!(account["state"], "needs_login");
        assert!(
            account["reason"].as_str().unwrap().contains("refresh outcome unknown"),
            "{account}"
        );
        assert!(account["until"].as_u64().is_some(), "{account}");
        let shown = world.ctl("status").ok().stdout;
        assert!(
            shown.contains("refresh outcome unknown") && shown.contains("cmactl import"),
            "{shown}"
        );
        assert_eq!(world.account("b")["state"], "ready");
        assert!(door.send(&door.turn()).unwrap().is_complete());
    }
    let stats = world.sim().stats().accounts;
    assert_eq!((stats["a"].refresh_requests, stats["b"].refreshed, stats["b"].reused), (2, 1, 0));
    // A new login mends it; the old one, imported again, does not undo that.
    world.import("a", &world.sim().auth_json("a")).ok();
    assert_eq!(world.account("a")["state"], "ready");
    assert!(door.send(&door.turn()).unwrap().is_complete());
    assert_eq!(world.sim().stats().accounts["a"].served, 1);
    world.assert_clean();
}

#[test]
fn a_final_refusal_is_believed_once() {
    for (name, fault) in
        [("revoked", None), ("expired", None), ("grant", Some(Fault::invalid_grant()))]
    {
        let (world, door) = world_with(&["a", "b"], 0);
        world.ctl("switch a").ok();
        match name {
            "revoked" => world.sim().revoke_family("a"),
            "expired" => {
                world.sim().expire_refresh("a");
                world.sim().expire_access("a");
            },
            _ => world.sim().expire_access("a"),
        }
        if let Some(fault) = fault {
            world.sim().fault(Some("a"), Route::Refresh, fault, None);
        }
        for _ in 0..5 {
            assert!(door.send(&door.turn()).unwrap().is_complete(), "{name}");
        }
        let account = world.account("a");
        assert_eq!(account["state"], "needs_login", "{name}");
        assert!(!account["reason"].as_str().unwrap().contains("unknown"), "{name}: {account}");
        let stats = world.sim().stats().accounts["a"].clone();
        assert_eq!((stats.refresh_requests, stats.reused), (1, 0), "{name}");
        assert!(world.status()["pin"]["yielded"].as_str().is_some(), "{name}");
        world.assert_clean();
    }
}

/// The issuer answers with somebody else's tokens: they are not taken.
#[test]
fn tokens_of_another_account_are_not_taken() {
    let (world, door) = world_with(&["a", "b"], 0);
    let theirs: serde_json::Value = serde_json::from_str(&world.sim().auth_json("b")).unwrap();
    world.ctl("switch a").ok();
    world.sim().expire_access("a");
    let swapped = Fault::json(200, &theirs["tokens"]);
    world.sim().fault(Some("a"), Route::Refresh, swapped, Some(1));
    assert!(door.send(&door.turn()).unwrap().is_complete());
    let account = world.account("a");
    assert_eq!(account["state"], "needs_login", "{account}");
    assert!(account["reason"].as_str().unwrap().contains("another account"), "{account}");
    let stats = world.sim().stats().accounts;
    assert_eq!((stats["a"].served, stats["b"].served), (0, 1));
    world.assert_clean();
}

/// Tokens that seem to be over as soon as they are issued (a clock that is days ahead): the issuer
/// is not asked in a loop.
#[test]
fn tokens_that_never_seem_fresh_are_not_renewed_in_a_loop() {
    let tokens_ttl = Duration::from_secs(3);
    let world = World::with_accounts(SimConfig { tokens_ttl, ..SimConfig::default() });
    let door = Door::of(&world);
    let from = world.sim().stats().accounts.get("a").map_or(0, |stats| stats.refresh_requests);
    drop(door.send(&door.turn()));
    std::thread::sleep(Duration::from_secs(3));
    let asked = world.sim().stats().accounts["a"].refresh_requests - from;
    eprintln!("{asked} renewals in 3 s ({from} before)");
    assert!(asked <= 10, "{asked} renewals in 3 s");
    world.assert_clean();
}
