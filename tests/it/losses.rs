//! What users of other tools for many accounts lost, one test each: it isn't lost here.

use cma_tests::{
    http::Door,
    sim::{AccountSpec, Fault, Route, SimConfig},
    world::World,
};

fn world_with(names: &[&str]) -> World {
    let accounts = names.iter().map(|name| AccountSpec::new(name)).collect();
    World::with_accounts(SimConfig { accounts, ..SimConfig::default() })
}

/// A process that serves holds a pool in memory. Logins and settings that come from other processes
/// meanwhile are not undone by its next save.
#[test]
fn a_login_and_a_setting_made_while_the_pool_serves_stay() {
    let world = world_with(&["a", "b"]);
    let a = Door::of_account(&world, "a");
    assert!(a.send(&a.turn()).unwrap().is_complete());
    world.sim().add_account(AccountSpec::new("c"));
    world.import("c", &world.sim().auth_json("c")).ok();
    world.ctl("disable b").ok();
    world.ctl("label b other").ok();
    // The serving process saves: a renewal of another account.
    world.sim().expire_access("a");
    assert!(a.send(&a.turn()).unwrap().is_complete());
    for restarted in [false, true] {
        if restarted {
            world.kill_daemon();
        }
        assert_eq!(world.account("c")["state"], "ready");
        assert_eq!(world.account("other")["state"], "disabled");
        assert_eq!(world.account("a")["generation"], 2);
    }
    world.assert_clean();
}

/// Saving one account's new token never brings back an older one of another account.
#[test]
fn renewing_one_account_never_brings_back_the_spent_token_of_another() {
    let world = world_with(&["a", "b"]);
    let (a, b) = (Door::of_account(&world, "a"), Door::of_account(&world, "b"));
    for generation in 2..=4 {
        // Both at once, then one after the other, then a change by a person between them.
        for name in ["a", "b"] {
            world.sim().expire_access(name);
        }
        std::thread::scope(|scope| {
            let turns = [scope.spawn(|| a.send(&a.turn())), scope.spawn(|| b.send(&b.turn()))];
            world.ctl(&format!("label a a{generation}")).ok();
            for turn in turns {
                assert!(turn.join().unwrap().unwrap().is_complete());
            }
        });
        world.kill_daemon();
        world.ctl("daemon start").ok();
        world.ctl(&format!("label a{generation} a")).ok();
        for name in ["a", "b"] {
            assert_eq!(world.account(name)["generation"], generation, "{name}");
        }
    }
    for (name, stats) in world.sim().stats().accounts {
        assert_eq!((stats.refreshed, stats.reused, stats.replayed), (3, 0, 0), "{name}");
    }
    world.assert_clean();
}

/// A new login leaves the pin where it was, also after a restart.
#[test]
fn a_new_login_keeps_the_pin() {
    let world = world_with(&["a", "b"]);
    world.ctl("switch b").ok();
    let pinned = world.account("b")["id"].clone();
    world.sim().add_account(AccountSpec::new("c"));
    world.import("c", &world.sim().auth_json("c")).ok();
    world.import("b", &world.sim().auth_json("b")).ok();
    for restarted in [false, true] {
        if restarted {
            world.kill_daemon();
        }
        assert_eq!(world.status()["pin"]["account"], pinned);
        let door = Door::of(&world);
        assert!(door.send(&door.turn()).unwrap().is_complete());
    }
    assert_eq!(world.sim().stats().accounts["b"].served, 2);
    world.assert_clean();
}

/// A pin names an account, not a place in a list.
#[test]
fn removing_another_account_leaves_the_pin_on_its_own() {
    let world = world_with(&["a", "b", "c"]);
    world.ctl("switch c").ok();
    let pinned = world.account("c")["id"].clone();
    world.ctl("remove a --yes").ok();
    for restarted in [false, true] {
        if restarted {
            world.kill_daemon();
        }
        assert_eq!(world.status()["pin"]["account"], pinned);
        let door = Door::of(&world);
        assert!(door.send(&door.turn()).unwrap().is_complete());
    }
    assert_eq!(world.sim().stats().accounts["c"].served, 2);
    world.assert_clean();
}

/// Upstream says 401 to a token that by its own words is good for days: it is renewed once, and the
/// client sees nothing of it.
#[test]
fn a_token_that_only_upstream_calls_expired_is_renewed_once() {
    for invalidated in [false, true] {
        let world = world_with(&["a"]);
        let door = Door::of(&world);
        assert!(door.send(&door.turn()).unwrap().is_complete());
        if invalidated {
            world.sim().revoke_access("a");
        } else {
            world.sim().expire_access("a");
        }
        for _ in 0..3 {
            assert!(door.send(&door.turn()).unwrap().is_complete());
        }
        let stats = world.sim().stats().accounts["a"].clone();
        assert_eq!((stats.unauthorized, stats.refresh_requests, stats.reused), (1, 1, 0));
        assert_eq!(world.account("a")["state"], "ready");
        world.assert_clean();
    }
}

/// However often an account's login fails, it stays in the pool with its name and its settings.
#[test]
fn an_account_whose_login_is_gone_is_never_deleted() {
    let world = world_with(&["a", "b"]);
    world.ctl("switch a").ok();
    world.sim().revoke_family("a");
    let door = Door::of(&world);
    for _ in 0..6 {
        assert!(door.send(&door.turn()).unwrap().is_complete(), "the other account serves");
    }
    for restarted in [false, true] {
        if restarted {
            world.kill_daemon();
        }
        assert_eq!(world.account("a")["state"], "needs_login");
        assert!(door_serves(&world));
    }
    world.import("a", &world.sim().auth_json("a")).ok();
    assert_eq!(world.account("a")["state"], "ready");
    assert_eq!(world.sim().stats().accounts["a"].refresh_requests, 1);
    world.assert_clean();
}

fn door_serves(world: &World) -> bool {
    let door = Door::of(world);
    door.send(&door.turn()).unwrap().is_complete()
}

/// An issuer that says 500 or 429 for a while is asked later; what it says to one account is held
/// against none.
#[test]
fn an_issuer_in_trouble_is_nobodys_fault_and_status_says_so() {
    let world = world_with(&["a", "b"]);
    let door = Door::of_account(&world, "a");
    world.sim().expire_access("a");
    world.sim().fault(Some("a"), Route::Refresh, Fault::server_error(503, None), Some(1));
    let answer = std::thread::scope(|scope| {
        let turn = scope.spawn(|| door.send(&door.turn()).unwrap());
        cma_tests::world::eventually("status says it", || {
            let status = world.status();
            let account = world.account("a");
            assert!(
                account["state"] != "cooling" && account["state"] != "needs_login",
                "{account}"
            );
            status["notes"].to_string().contains("the issuer answered 503")
        });
        turn.join().unwrap()
    });
    assert!(answer.is_complete(), "{} {}", answer.status, answer.text());
    assert_eq!(world.status()["notes"], serde_json::json!([]));
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.reused, stats.replayed), (1, 0, 0));
    world.assert_clean();
}
