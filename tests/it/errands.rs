//! Errands from the wire: pictures, searches and what else upstream does beside turns.

use crate::surface_kit::{accounts, post, posting, seen, served, specs, turn, world, world_with};
use cma_tests::{
    http::Answer,
    sim::{Fault, Route},
};
use serde_json::json;
use std::{collections::BTreeSet, time::Duration};

#[test]
fn an_errand_fails_over_as_far_as_it_is_safe() {
    let (world, door) = world(specs(&["a", "b"]));
    let body = json!({ "prompt": "a cat", "model": "gpt-image-2" });
    let images = "/codex/images/generations";
    let made = |answer: &Answer| answer.json()["data"][0]["made_by"].as_str().map(str::to_owned);
    assert_eq!(made(&post(&door, images, &body)).as_deref(), Some("a"));
    // A refusal comes before anything is made: renewed, or another account.
    world.sim().revoke_access("a");
    assert_eq!(made(&post(&door, images, &body)).as_deref(), Some("a"));
    world.sim().fault(Some("a"), Route::Errand, Fault::rate_limited(None), Some(1));
    assert_eq!(made(&post(&door, images, &body)).as_deref(), Some("b"));
    // What may have been made is not made a second time.
    for fault in [Fault::server_error(500, None), Fault::ResetAfterCommit, Fault::CloseBeforeHead] {
        let before = seen(&world, images).len();
        world.sim().fault(None, Route::Errand, fault.clone(), Some(1));
        let answer = post(&door, images, &body);
        assert!(answer.status >= 400 && answer.status != 401, "{fault:?}: {}", answer.status);
        assert_eq!(seen(&world, images).len(), before + 1, "{fault:?}");
    }
    // A search only reads: another account is asked.
    for fault in [Fault::server_error(502, None), Fault::ResetBeforeHead, Fault::GarbageHead] {
        world.sim().fault(Some("a"), Route::Errand, fault.clone(), Some(1));
        let answer = post(&door, "/codex/alpha/search", &json!({ "q": "x" }));
        assert_eq!(answer.status, 200, "{fault:?}: {}", answer.text());
    }
    assert!(turn(&door, "gpt-5.5").is_complete());
    assert_eq!(world.account("a")["state"], "ready");
    world.assert_clean();
}

#[test]
fn a_plan_without_pictures_still_has_turns() {
    let (world, door) = world(specs(&["a", "b"]));
    world.sim().fault(Some("a"), Route::Errand, Fault::forbidden(), Some(1));
    for _ in 0..2 {
        let answer = post(&door, "/codex/images/edits", &json!({}));
        assert_eq!(answer.json()["data"][0]["made_by"], "b");
    }
    assert_eq!(accounts(&seen(&world, "/images/edits")), ["a", "b", "b"], "believed for a while");
    assert_eq!(world.account("a")["state"], "ready");
    turn(&door, "gpt-5.5");
    assert_eq!(served(&world, "a"), 1);
    // Its other errands are its own.
    assert_eq!(post(&door, "/codex/alpha/search", &json!({})).json()["output"], "found by a");
    world.assert_clean();
}

#[test]
fn an_errand_shows_a_host_that_refuses_tokens_two_accounts_at_most() {
    let (world, door) = world(specs(&["a", "b", "c", "d"]));
    world.sim().fault(None, Route::Errand, Fault::token_invalidated(), None);
    let answer = post(&door, "/codex/alpha/search", &json!({ "q": "x" }));
    assert!(answer.status >= 400 && answer.status != 401, "{}: {}", answer.status, answer.text());
    let shown: BTreeSet<_> =
        seen(&world, "/codex/alpha/search").into_iter().filter_map(|seen| seen.account).collect();
    assert!((1..=2).contains(&shown.len()), "{shown:?}");
    let renewed =
        || world.sim().stats().accounts.values().map(|one| one.refresh_requests).sum::<u64>();
    assert!(renewed() <= 2, "{} renewals", renewed());
    // What this kind is refused says nothing of turns, and isn't tried at once again.
    let (begun, before) = (std::time::Instant::now(), renewed());
    assert!(turn(&door, "gpt-5.5").is_complete());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    post(&door, "/codex/alpha/search", &json!({ "q": "x" }));
    assert!(renewed() <= before + 2, "{} renewals", renewed());
    for name in ["a", "b", "c", "d"] {
        assert_eq!(world.account(name)["state"], "ready", "{name}");
    }
    world.assert_clean();
}

/// With one account there is nobody who could tell whether its login is to blame: turns are.
#[test]
fn an_errand_that_is_refused_keeps_nobody_from_turns() {
    let (world, door) = world(specs(&["a"]));
    world.sim().fault(None, Route::Errand, Fault::token_invalidated(), None);
    for path in ["/codex/alpha/search", "/codex/images/generations", "/codex/alpha/search"] {
        let answer = post(&door, path, &json!({ "q": "x" }));
        assert!(answer.status >= 400 && answer.status != 401, "{path}: {}", answer.status);
        assert_eq!(world.account("a")["state"], "ready", "{path}");
    }
    assert!(turn(&door, "gpt-5.5").is_complete());
    assert_eq!(world.sim().stats().accounts["a"].refresh_requests, 1);
    world.assert_clean();
}

/// A 401 comes before anything is made: another account makes it when that login turns out to be over.
#[test]
fn a_picture_is_made_by_another_account_when_a_login_is_over() {
    let (world, door) = world(specs(&["a", "b"]));
    world.sim().revoke_access("a");
    world.sim().revoke_family("a");
    let answer = post(&door, "/codex/images/generations", &json!({ "prompt": "a cat" }));
    assert_eq!(answer.json()["data"][0]["made_by"], "b", "{}", answer.text());
    assert_eq!(world.account("a")["state"], "needs_login");
    world.assert_clean();
}

/// Who makes a session's pictures says nothing of who serves its turns.
#[test]
fn an_errand_moves_no_thread() {
    let (world, door) = world(specs(&["a", "b"]));
    let ask = || door.turn().with("session-id", "s-1").with("thread-id", "s-1");
    assert!(door.send(&ask()).unwrap().is_complete());
    world.sim().fault(Some("a"), Route::Errand, Fault::forbidden(), Some(1));
    for _ in 0..2 {
        let picture = posting(&door, "/codex/images/edits", &json!({}));
        let made = door.send(&picture.with("session-id", "s-1").with("thread-id", "s-1")).unwrap();
        assert_eq!(made.json()["data"][0]["made_by"], "b");
    }
    assert!(door.send(&ask()).unwrap().is_complete());
    assert_eq!((served(&world, "a"), world.account("a")["state"].as_str()), (2, Some("ready")));
    world.assert_clean();
}

#[test]
fn what_a_model_works_for_is_within_the_budgets() {
    let (world, door) = world(specs(&["a"]));
    world.ctl("budget limit two --window month --requests 2").ok();
    assert_eq!(post(&door, "/codex/alpha/search", &json!({ "q": "x" })).status, 200);
    assert!(turn(&door, "gpt-5.5").is_complete());
    let before = world.sim().stats().requests;
    let answer = post(&door, "/codex/images/generations", &json!({ "prompt": "a cat" }));
    assert_eq!((answer.status, answer.header("x-cma-error")), (400, Some("exhausted")));
    assert!(answer.text().contains("`two` (2 requests a month) is used up"), "{}", answer.text());
    assert_eq!(world.sim().stats().requests, before, "nothing was sent");
    // What only reads what is kept costs no model anything.
    assert_eq!(door.get("/codex/alpha/notes/v2/list").unwrap().status, 200);
    world.assert_clean();
}

#[test]
fn what_upstream_keeps_stays_with_one_account() {
    let (world, door) = world(specs(&["a", "b"]));
    let file = post(&door, "/backend-api/files", &json!({ "file_name": "x" }));
    let id = file.json()["file_id"].as_str().unwrap().to_owned();
    // The load is elsewhere now; what belongs together is not torn apart.
    world.sim().set_used("a", 97.0, 10.0);
    turn(&door, "gpt-5.5");
    let done = post(&door, &format!("/backend-api/files/{id}/uploaded"), &json!({}));
    assert_eq!((done.status, &done.json()["owner"]), (200, &json!("a")));
    let call = door
        .ask("POST", "/codex/realtime/calls")
        .header("content-type", "application/sdp")
        .body(b"v=0\r\n".to_vec());
    let answer = door.send(&call).unwrap();
    assert_eq!((answer.status, answer.header("content-type")), (201, Some("application/sdp")));
    assert!(answer.header("location").unwrap().starts_with("/v1/realtime/calls/rtc-"));
    assert!(answer.text().starts_with("v=0"));
    world.assert_clean();
}

#[test]
fn stored_responses_are_there_only_when_asked_for() {
    let (world, door) = world_with("background_responses = true\n", &["a", "b", "c"]);
    for (path, method) in [
        ("resp-b-1", "GET"),
        ("resp-c-2", "GET"),
        ("resp-b-1/cancel", "POST"),
        ("resp-c-2", "DELETE"),
    ] {
        let ask =
            door.ask(method, &format!("/codex/responses/{path}")).header("content-length", "0");
        let answer = door.send(&ask).unwrap();
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text());
        assert!(path.contains(answer.json()["owner"].as_str().unwrap()), "{path}");
    }
    let nobodys = door.get("/codex/responses/resp-d-1").unwrap();
    assert_eq!((nobodys.status, &nobodys.json()["detail"]), (404, &json!("Not Found")));
    assert_eq!(world.account("a")["state"], "ready");
    world.assert_clean();
}
