//! Tokens: rotation, reuse, grace, and the ends of a login.

use super::*;

#[test]
fn tokens_are_readable_and_carry_the_canary() {
    let sim = start();
    let login = login(&sim, "a");
    for which in ["id_token", "access_token", "refresh_token"] {
        assert!(token(&login, which).contains(&sim.canary()), "{which}");
    }
    assert_eq!(login["tokens"]["account_id"], "acct-a");
    assert_eq!(login["tokens"]["oauth_provenance"]["client_id"], CLIENT_ID);
    let claims = claims(token(&login, "access_token"));
    let auth = &claims["https://api.openai.com/auth"];
    assert_eq!(auth["chatgpt_account_id"], "acct-a");
    assert_eq!(claims["https://api.openai.com/profile"]["email"], "a@example.test");
    let expired: Value = serde_json::from_str(&sim.auth_json_expired("a")).unwrap();
    let exp = |login: &Value| self::claims(token(login, "access_token"))["exp"].as_u64().unwrap();
    assert!(exp(&expired) + 3000 < exp(&login));
    assert_eq!(turn(&sim, token(&expired, "access_token")).unwrap().status, 401);
}

fn claims(jwt: &str) -> Value {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let parts: Vec<_> = jwt.split('.').collect();
    assert_eq!(parts.len(), 3);
    URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap()
}

#[test]
fn a_refresh_rotates_and_old_access_tokens_stay_good() {
    let sim = start();
    let login = login(&sim, "a");
    let renewed = refresh(&sim, token(&login, "refresh_token")).unwrap();
    assert_eq!(renewed.status, 200);
    let renewed = renewed.json();
    for which in ["id_token", "access_token", "refresh_token"] {
        assert_ne!(renewed[which], login["tokens"][which]);
    }
    assert_eq!(turn(&sim, token(&login, "access_token")).unwrap().status, 200);
    assert_eq!(turn(&sim, renewed["access_token"].as_str().unwrap()).unwrap().status, 200);
    let again = refresh(&sim, renewed["refresh_token"].as_str().unwrap()).unwrap();
    assert_eq!(again.status, 200);
    assert_eq!(sim.stats().accounts["a"].refreshed, 2);
    assert_clean(&sim);
}

#[test]
fn reuse_outside_the_grace_ends_the_family() {
    let sim = start();
    let first = login(&sim, "a");
    let other = login(&sim, "a");
    let renewed = refresh(&sim, token(&first, "refresh_token")).unwrap().json();
    let reused = refresh(&sim, token(&first, "refresh_token")).unwrap();
    assert_eq!(reused.status, 401);
    assert_eq!(reused.json()["error"]["code"], "refresh_token_reused");
    let successor = refresh(&sim, renewed["refresh_token"].as_str().unwrap()).unwrap();
    assert_eq!(successor.json()["error"]["code"], "refresh_token_invalidated");
    for access in [token(&first, "access_token"), renewed["access_token"].as_str().unwrap()] {
        let got = turn(&sim, access).unwrap();
        assert_eq!((got.status, &got.json()["error"]["code"]), (401, &json!("token_invalidated")));
    }
    assert_eq!(turn(&sim, token(&other, "access_token")).unwrap().status, 200);
    let stats = &sim.stats().accounts["a"];
    assert_eq!((stats.reused, stats.families_revoked, stats.unauthorized), (1, 1, 2));
}

#[test]
fn within_the_grace_the_same_successor_is_answered() {
    let sim = start();
    sim.set_grace(Duration::from_secs(30));
    let login = login(&sim, "a");
    let spent = token(&login, "refresh_token");
    let first = refresh(&sim, spent).unwrap().json();
    assert_eq!(refresh(&sim, spent).unwrap().json(), first);
    let stats = &sim.stats().accounts["a"];
    assert_eq!((stats.refreshed, stats.replayed, stats.reused), (1, 1, 0));
    // Once the successor is spent too, the first is no longer "just spent".
    assert_eq!(refresh(&sim, first["refresh_token"].as_str().unwrap()).unwrap().status, 200);
    assert_eq!(refresh(&sim, spent).unwrap().status, 401);
}

#[test]
fn what_ends_a_login_is_told_apart() {
    let sim = start();
    let code = |got: Option<Got>| got.unwrap().json()["error"]["code"].clone();
    let one = login(&sim, "a");
    sim.expire_access("a");
    assert_eq!(code(turn(&sim, token(&one, "access_token"))), "token_expired");
    let renewed = refresh(&sim, token(&one, "refresh_token")).unwrap().json();
    assert_eq!(turn(&sim, renewed["access_token"].as_str().unwrap()).unwrap().status, 200);
    sim.revoke_access("a");
    let renewed_access = renewed["access_token"].as_str().unwrap();
    assert_eq!(code(turn(&sim, renewed_access)), "token_invalidated");
    sim.expire_refresh("a");
    let renewed_refresh = renewed["refresh_token"].as_str().unwrap();
    assert_eq!(code(refresh(&sim, renewed_refresh)), "refresh_token_expired");
    let two = login(&sim, "a");
    sim.revoke_family("a");
    assert_eq!(code(turn(&sim, token(&two, "access_token"))), "token_invalidated");
    assert_eq!(code(refresh(&sim, token(&two, "refresh_token"))), "refresh_token_invalidated");
    let three = login(&sim, "a");
    let body = json!({ "token": token(&three, "refresh_token"), "client_id": CLIENT_ID });
    let revoked = send(&sim, "POST /oauth/revoke", &[], body.to_string().as_bytes()).unwrap();
    assert_eq!(revoked.status, 200);
    assert_eq!(code(refresh(&sim, token(&three, "refresh_token"))), "refresh_token_invalidated");
}

#[test]
fn other_grants_are_refused() {
    let sim = start();
    let form = b"grant_type=client_credentials&scope=a%2Bb";
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let got = send(&sim, "POST /oauth/token", &headers, form).unwrap();
    assert_eq!((got.status, got.json()), (400, json!({ "error": "unsupported_grant_type" })));
}

#[test]
fn a_refresh_can_fail_before_and_after_it_counts() {
    let sim = start();
    let check = |fault: Fault, commits: bool| {
        let login = login(&sim, "a");
        let spent = token(&login, "refresh_token");
        sim.fault(Some("a"), Route::Refresh, fault.clone(), Some(1));
        let before = sim.stats().accounts["a"].refreshed;
        let first = refresh(&sim, spent);
        assert!(first.is_none_or(|got| got.status != 200), "{fault:?}");
        let after = sim.stats().accounts["a"].refreshed;
        assert_eq!(after - before, u64::from(commits), "{fault:?}");
        let second = refresh(&sim, spent).unwrap();
        assert_eq!(second.status, if commits { 401 } else { 200 }, "{fault:?}");
    };
    check(Fault::CloseAfterCommit, true);
    check(Fault::ResetAfterCommit, true);
    check(Fault::CloseBeforeHead, false);
    check(Fault::server_error(500, None), false);
    check(Fault::invalid_grant(), false);
    let login = login(&sim, "a");
    let spent = token(&login, "refresh_token");
    sim.fault(None, Route::Refresh, Fault::DelayAnswer(Duration::from_millis(100)), Some(1));
    assert_eq!(refresh(&sim, spent).unwrap().status, 200);
}
