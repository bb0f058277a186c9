//! What programs use: the control routes, the client, dates.

use super::*;

#[test]
fn control_routes_do_what_the_library_does() {
    let sim = start();
    let post = |path: &str, body: &str| {
        send(&sim, &format!("POST /__sim/{path}"), &[], body.as_bytes()).unwrap()
    };
    let login = post("auth/a", "").json();
    let access = token(&login, "access_token");
    let script = r#"{"account":"a","route":"responses","fault":"403","times":1}"#;
    assert_eq!(post("fault", script).status, 400);
    let script = r#"{"account":"a","route":"responses","fault":"cloudflare","times":1}"#;
    assert_eq!(post("fault", script).status, 200);
    assert_eq!(turn(&sim, access).unwrap().status, 403);
    let script = r#"{"fault":{"kind":"cut_mid_stream","with":{"after":1,"by":"close"}},"times":1}"#;
    assert_eq!(post("fault", script).status, 200);
    assert_eq!(turn(&sim, access).unwrap().body.matches("event: ").count(), 1);
    let script = r#"{"fault":{"kind":"slow_head","with":5},"times":1}"#;
    assert_eq!(post("fault", script).status, 200);
    assert_eq!(turn(&sim, access).unwrap().status, 200);
    assert_eq!(post("used/a", r#"{"primary":100,"secondary":1}"#).status, 200);
    assert_eq!(turn(&sim, access).unwrap().status, 429);
    assert_eq!(post("expire/a", "").status, 200);
    assert_eq!(turn(&sim, access).unwrap().status, 401);
    assert_eq!(post("expire/nobody", "").status, 404);
    let state = send(&sim, "GET /__sim/state", &[], b"").unwrap().json();
    assert_eq!(state["accounts"][0]["primary"]["used_percent"], 100.0);
    assert_eq!(state["stats"]["accounts"]["a"]["served"], 2);
    assert_eq!(state["violations"], json!([]));
    assert_eq!(post("pause", r#"{"ms":100}"#).status, 200);
    eventually(|| TcpStream::connect(sim.addr()).is_err());
    eventually(|| TcpStream::connect(sim.addr()).is_ok());
}

#[test]
fn the_client_drives_and_reports() {
    let sim = start();
    let login = login(&sim, "a");
    let config = DriveConfig {
        base_url: format!("{}/codex", sim.backend()),
        key: token(&login, "access_token").to_owned(),
        requests: 7,
        concurrency: 3,
        gap: Duration::ZERO,
        timeout: Duration::from_secs(10),
    };
    let mut out = Vec::new();
    let summary = drive(config.clone(), &mut out).unwrap();
    assert_eq!((summary.ok, summary.failed), (7, 0));
    let out = String::from_utf8(out).unwrap();
    assert_eq!(out.lines().count(), 8);
    assert!(out.lines().next().unwrap().contains("hello from the simulated upstream"));
    assert_clean(&sim);
    assert_eq!(sim.stats().connections, 3);
    sim.fault(None, Route::Responses, Fault::ResetBeforeHead, Some(1));
    sim.fault(None, Route::Responses, Fault::CutMidStream { after: 2, by: Cut::CleanEnd }, Some(1));
    let mut out = Vec::new();
    let summary = drive(DriveConfig { requests: 3, concurrency: 1, ..config }, &mut out).unwrap();
    assert_eq!((summary.ok, summary.failed), (1, 2));
}

#[test]
fn dates_are_right() {
    use crate::sim::clock::{UnixMs, rfc3339};
    assert_eq!(rfc3339(UnixMs(0)), "1970-01-01T00:00:00Z");
    assert_eq!(rfc3339(UnixMs(951_782_400_000)), "2000-02-29T00:00:00Z");
    assert_eq!(rfc3339(UnixMs(1_795_228_642_000)), "2026-11-21T02:37:22Z");
}
