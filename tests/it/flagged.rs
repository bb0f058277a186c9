//! Accounts that failed for good: set aside with their evidence, tried again, revoked on purpose.

use crate::codex_kit::upstream;
use cma_tests::{
    http::Door,
    sim::{Fault, Route},
    world::{World, eventually},
};
use serde_json::{Value, json};

/// A pool whose account `a` was refused its renewal by that answer; `b` goes on.
fn refused(fault: Option<Fault>) -> (World, Door) {
    let world = World::with_accounts(upstream(&["a", "b"]));
    let door = Door::of(&world);
    world.ctl("switch a").ok();
    match fault {
        Some(fault) => {
            world.sim().expire_access("a");
            world.sim().fault(Some("a"), Route::Refresh, fault, Some(1));
        },
        None => world.sim().revoke_family("a"),
    }
    assert!(door.send(&door.turn()).unwrap().is_complete());
    eventually("it is set aside", || world.account("a")["state"] == "needs_login");
    (world, door)
}

fn flagged(world: &World) -> Value {
    let all = world.ctl("list --json").ok().json()["flagged"].clone();
    assert_eq!(all.as_array().unwrap().len(), 1, "{all}");
    all[0].clone()
}

fn asked(world: &World) -> u64 {
    world.sim().stats().accounts["a"].refresh_requests
}

fn verify(world: &World, flags: &str) -> Value {
    let all = world.ctl(&format!("verify-flagged --json {flags}")).ok().json();
    all["accounts"][0].clone()
}

#[test]
fn a_revoked_account_is_kept_with_its_evidence_and_its_token_is_not_sent_again() {
    let (world, _door) = refused(None);
    for restarted in [false, true] {
        if restarted {
            world.kill_daemon();
        }
        let one = flagged(&world);
        assert_eq!((one["status"].as_u64(), one["name"].as_str()), (Some(401), Some("a")));
        assert_eq!(one["code"], "refresh_token_invalidated");
        assert!(one["excerpt"].as_str().unwrap().contains("session has ended"), "{one}");
        assert!(
            one["since"].as_u64().unwrap() > 0
                && one["next"].as_str().unwrap().contains("cmactl login")
        );
        let text = world.ctl("status").ok().stdout;
        assert!(text.contains("set aside:") && text.contains("HTTP 401"), "{text}");
        let before = asked(&world);
        for flags in ["", "--dry-run", "--no-restore"] {
            assert_eq!(verify(&world, flags)["outcome"], "still_flagged", "{flags}");
        }
        assert_eq!(asked(&world), before, "a token refused for good is not sent again");
    }
    // A new login brings it back as it was.
    world.import("a", &world.sim().auth_json("a")).ok();
    assert_eq!(world.account("a")["state"], "ready");
    assert_eq!(world.ctl("list --json").ok().json()["flagged"], json!([]));
    world.assert_clean();
}

#[test]
fn an_account_that_works_again_is_restored_and_a_dry_run_spends_nothing() {
    // A bare 401, as something in between may answer: final by the CLI's own rules.
    let (world, door) = refused(Some(Fault::json(401, &json!({ "detail": "Unauthorized" }))));
    assert_eq!(flagged(&world)["code"], "401");
    let (seen, before) = (world.sim().seen().len(), asked(&world));
    let dry = verify(&world, "--dry-run");
    assert_eq!(dry["outcome"], "would_try");
    assert!(dry["message"].as_str().unwrap().contains("refresh token"), "{dry}");
    assert_eq!((world.sim().seen().len(), asked(&world)), (seen, before));
    assert_eq!(verify(&world, "--no-restore")["outcome"], "still_flagged");
    assert_eq!(asked(&world), before);
    assert_eq!(world.account("a")["state"], "needs_login");
    let tried = verify(&world, "");
    assert_eq!(tried["outcome"], "restored", "{tried}");
    assert_eq!((asked(&world), world.sim().stats().accounts["a"].reused), (before + 1, 0));
    assert_eq!(world.account("a")["state"], "ready");
    assert!(door.send(&door.turn()).unwrap().is_complete());
    assert_eq!(world.sim().stats().accounts["a"].served, 1, "the pin holds again");
    let none = world.ctl("verify-flagged").ok();
    assert!(none.stdout.contains("No account is set aside"), "{none:?}");
    world.assert_clean();
}

#[test]
fn one_that_is_refused_again_stays_aside() {
    let fault = Fault::json(401, &json!({ "detail": "Unauthorized" }));
    let (world, _door) = refused(Some(fault));
    world.sim().expire_refresh("a");
    let tried = verify(&world, "");
    assert_eq!(tried["outcome"], "still_flagged", "{tried}");
    assert_eq!(flagged(&world)["code"], "refresh_token_expired");
    let before = asked(&world);
    assert_eq!(verify(&world, "")["outcome"], "still_flagged");
    assert_eq!(asked(&world), before);
    world.assert_clean();
}

#[test]
fn an_account_whose_token_upstream_takes_again_is_restored_without_a_renewal() {
    let world = World::with_accounts(upstream(&["a", "b"]));
    let door = Door::of(&world);
    world.ctl("switch a").ok();
    // Both refusals come from something in between, and pass.
    let between = Fault::json(401, &json!({ "detail": "Unauthorized" }));
    world.sim().fault(Some("a"), Route::Responses, Fault::token_expired(), Some(1));
    world.sim().fault(Some("a"), Route::Refresh, between, Some(1));
    assert!(door.send(&door.turn()).unwrap().is_complete());
    eventually("it is set aside", || world.account("a")["state"] == "needs_login");
    let before = asked(&world);
    assert_eq!(verify(&world, "--no-restore")["outcome"], "healthy");
    assert_eq!(world.account("a")["state"], "needs_login");
    assert_eq!(verify(&world, "")["outcome"], "restored");
    assert_eq!((world.account("a")["state"].as_str(), asked(&world)), (Some("ready"), before));
    world.assert_clean();
}

#[test]
fn a_removal_revokes_only_when_told_to() {
    let world = World::with_accounts(upstream(&["a", "b", "c"]));
    let revoked = |name: &str| world.sim().stats().accounts[name].families_revoked;
    world.ctl("remove a --yes").ok();
    assert!(world.ctl("remove b --yes --revoke").ok().stderr.contains("revoked at the issuer"));
    let seen = world.sim().seen();
    let calls = seen.iter().filter(|seen| seen.path == "/oauth/revoke").count();
    assert_eq!((revoked("b"), calls), (1, 1));
    assert_eq!(world.sim().stats().accounts.get("a").map_or(0, |a| a.families_revoked), 0);
    // An issuer that can't: the account is out of the pool, and it is said that its login lives.
    world.sim().fault(None, Route::Revoke, Fault::server_error(500, None), None);
    let failed = world.ctl("remove c --yes --revoke").ok();
    assert!(failed.stderr.contains("could not be revoked"), "{failed:?}");
    assert_eq!(world.status()["accounts"], json!([]));
    world.assert_clean();
}
