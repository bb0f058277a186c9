//! Signing in, every way, against the simulated issuer: by browser, by code, by pasting; what goes
//! wrong on each, and what must never be lost by it.

use crate::login_kit::{self as kit, Login, visit, visit_all};
use cma_tests::{
    http::Door,
    sim::{AccountSpec, Consent, Sim, SimConfig},
    world::{World, eventually, within},
};
use rustix::process::Signal;
use std::{net::TcpListener, os::unix::fs::PermissionsExt as _};

const DAY: i64 = 86_400;

fn world(names: &[&str]) -> World {
    let accounts = names.iter().map(|name| AccountSpec::new(name)).collect();
    World::new(SimConfig { accounts, ..SimConfig::default() })
}

fn names(world: &World) -> Vec<String> {
    let status = world.status();
    let accounts = status["accounts"].as_array().cloned().unwrap_or_default();
    accounts.iter().map(|it| it["email"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_browser_signs_in_and_the_account_serves() {
    let _ports = kit::ports();
    let world = world(&["a"]);
    world.sim().consent(Consent::Agree("a".to_owned()));
    let mut login = Login::start(&world, "login --browser --no-browser --json");
    let started = login.started();
    assert_eq!((&started["method"], &started["first"]), (&"browser".into(), &true.into()));
    let pages = visit_all(started["url"].as_str().unwrap());
    let statuses: Vec<u16> = pages.iter().map(|(_, page)| page.status).collect();
    assert_eq!(statuses, [302, 302, 200], "issuer, callback, success");
    let (url, page) = pages.last().unwrap();
    assert!(url.ends_with(":1455/success"), "the code stays out of the address bar: {url}");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("script-src"), "{policy}");
    for said in ["a@example.test", "close this tab", "cmactl status"] {
        assert!(page.text().contains(said), "{said}: {}", page.text());
    }
    let ran = login.end().ok();
    let done = ran.stdout.lines().last().unwrap().parse::<serde_json::Value>().unwrap();
    assert_eq!(done["signed_in"]["email"], "a@example.test");
    assert_eq!((&done["signed_in"]["created"], &done["schema"]), (&true.into(), &1.into()));
    let door = Door::of(&world);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    for file in cma_tests::world::files(&world.root().join("accounts")) {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
    eventually("the port is given back", || TcpListener::bind("127.0.0.1:1455").is_ok());
    assert_eq!(world.sim().codes_redeemed(), (1, 0));
    world.assert_clean();
}

#[test]
fn at_a_desk_a_real_browser_signs_in_by_itself() {
    let Some(chromium) = kit::chromium() else { return };
    let _ports = kit::ports();
    let world = world(&["a", "b"]);
    world.sim().consent(Consent::Agree("b".to_owned()));
    let desk = kit::Desk::new(world, &chromium);
    let kit::Desk { world, dom, picture, .. } = &desk;
    let ran = world.ctl("login").ok();
    assert!(ran.stdout.starts_with("Added b@example.test"), "{}", ran.stdout);
    assert!(ran.stderr.contains("shown once") && ran.stderr.contains("OpenAI"), "{}", ran.stderr);
    assert_eq!(names(world), ["b@example.test"]);
    within(kit::BROWSER, "the browser has ended", || dom.exists());
    let page = std::fs::read_to_string(dom).unwrap();
    assert!(page.contains("</html>"), "{page}");
    assert!(page.contains("b@example.test") && page.contains("close this tab"), "{page}");
    eventually("the browser has taken its picture", || {
        std::fs::read(picture)
            .is_ok_and(|bytes| bytes.starts_with(b"\x89PNG") && bytes.len() > 4000)
    });
    if let Some(keep) = std::env::var_os("CMA_TEST_KEEP_PICTURE") {
        std::fs::copy(picture, keep).unwrap();
    }
    // The notice is for a root's first sign-in.
    world.sim().consent(Consent::Agree("a".to_owned()));
    std::fs::remove_file(dom).unwrap();
    let ran = world.ctl("login").ok();
    assert!(ran.stdout.contains("The pool has 2 accounts"), "{}", ran.stdout);
    assert!(!ran.stderr.contains("shown once"), "{}", ran.stderr);
    // It writes in its folder until it ends, and the folder goes with this test.
    within(kit::BROWSER, "the second browser has ended", || dom.exists());
    world.assert_clean();
}

#[test]
fn a_code_on_another_device_signs_in() {
    let world = world(&["a"]);
    let mut login = Login::start(&world, "login --device --json");
    let started = login.started();
    let code = started["user_code"].as_str().unwrap();
    let page = format!("{}/codex/device", world.sim().issuer());
    assert_eq!(started["url"], page.as_str());
    eventually("it asks and is told to wait", || {
        let seen = world.sim().seen();
        seen.iter().any(|it| it.path.ends_with("/deviceauth/token") && it.status == Some(403))
    });
    world.sim().decide_device(code, Consent::Agree("a".to_owned()));
    login.end().ok();
    assert_eq!(names(&world), ["a@example.test"]);
    world.assert_clean();
}

#[test]
fn the_issuers_own_pages_let_a_person_choose_who_they_are() {
    let world = world(&["a", "b"]);
    let mut login = Login::start(&world, "login --manual --json");
    let started = login.started();
    let url = started["url"].as_str().unwrap();
    let page = visit(url, None);
    let text = page.text();
    assert!(page.status == 200 && text.contains("<option>b</option>"), "{text}");
    let fields = url.split_once('?').unwrap().1;
    let answer = kit::post(url, &format!("{fields}&account=b&decision=allow"));
    login.paste(answer.header("location").unwrap());
    login.end().ok();
    let mut login = Login::start(&world, "login --device --json");
    let started = login.started();
    let code = started["user_code"].as_str().unwrap();
    let page = started["url"].as_str().unwrap();
    assert!(kit::post(page, "user_code=NONE-00000&account=a").text().contains("no such code"));
    assert_eq!(kit::post(page, &format!("user_code={code}&account=a")).status, 200);
    login.end().ok();
    assert_eq!(names(&world), ["b@example.test", "a@example.test"]);
    world.assert_clean();
}

#[test]
fn without_a_display_a_code_is_shown_large_with_its_link() {
    let world = world(&["a"]);
    world.sim().consent(Consent::Agree("a".to_owned()));
    let ran = world.ctl("login").ok();
    let link = format!("{}/codex/device", world.sim().issuer());
    assert!(ran.stderr.contains(&link) && ran.stderr.contains("code: "), "{}", ran.stderr);
    assert!(ran.stderr.lines().filter(|line| line.contains('█')).count() >= 5, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("Added a@example.test"), "{}", ran.stdout);
    world.assert_clean();
}

#[test]
fn an_issuer_without_codes_sends_to_the_browser_and_says_so() {
    let _ports = kit::ports();
    let world = world(&["a"]);
    world.sim().device_codes(false, 1);
    world.sim().consent(Consent::Agree("a".to_owned()));
    let mut login = Login::start(&world, "login --json");
    let started = login.started();
    assert_eq!(started["method"], "browser");
    visit_all(started["url"].as_str().unwrap());
    let ran = login.end().ok();
    assert!(ran.stderr.contains("no sign-in by code"), "{}", ran.stderr);
    let ran = world.ctl("login --device");
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    world.assert_clean();
}

#[test]
fn a_pasted_address_signs_in_and_the_variable_chooses_the_printed_link() {
    let _ports = kit::ports();
    let world = world(&["a", "b"]).with_env("CODEX_AUTH_NO_BROWSER", "1");
    world.sim().consent(Consent::Agree("a".to_owned()));
    let mut login = Login::start(&world, "login --manual --json");
    let started = login.started();
    assert_eq!(started["method"], "manual");
    login.paste("what is this");
    login.paste(&kit::callback(started["url"].as_str().unwrap()));
    login.end().ok();
    world.sim().consent(Consent::Agree("b".to_owned()));
    let mut login = Login::start(&world, "login --json");
    let started = login.started();
    assert_eq!(started["method"], "browser");
    // The browser is on another machine: what it ends at is pasted although we listen.
    login.paste(&kit::callback(started["url"].as_str().unwrap()));
    login.end().ok();
    assert_eq!(names(&world), ["a@example.test", "b@example.test"]);
    let mut command = world.command("cmactl");
    command.args(["login", "--manual"]);
    let ran = world.finish(command);
    assert_eq!(ran.code, 2, "stdin is at its end: {}", ran.stderr);
    world.assert_clean();
}

#[test]
fn the_second_port_is_used_and_the_holders_of_both_are_named() {
    let _ports = kit::ports();
    let world = world(&["a"]);
    world.sim().consent(Consent::Agree("a".to_owned()));
    let first = kit::hold(1455);
    let mut login = Login::start(&world, "login --browser --no-browser --json");
    let started = login.started();
    let pages = visit_all(started["url"].as_str().unwrap());
    assert!(pages.last().unwrap().0.ends_with(":1457/success"), "{pages:?}");
    login.end().ok();
    let second = kit::hold(1457);
    let ran = world.ctl("login --browser --no-browser");
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let own = format!("(pid {})", std::process::id());
    assert_eq!(ran.stderr.matches(&own).count(), 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("1455") && ran.stderr.contains("login --device"), "{}", ran.stderr);
    // Nobody asked for the browser: then a code does as well.
    let world = world.with_env("CODEX_AUTH_NO_BROWSER", "1");
    let mut login = Login::start(&world, "login --json");
    let started = login.started();
    assert_eq!(started["method"], "manual");
    login.paste(&kit::callback(started["url"].as_str().unwrap()));
    let ran = login.end().ok();
    assert!(ran.stderr.contains(&own), "{}", ran.stderr);
    drop((first, second));
    world.assert_clean();
}

#[test]
fn a_forged_state_is_refused_and_the_sign_in_goes_on() {
    let _ports = kit::ports();
    let world = world(&["a", "evil"]);
    world.sim().consent(Consent::Agree("a".to_owned()));
    let mut login = Login::start(&world, "login --browser --no-browser --json");
    let started = login.started();
    let redirect = "http://127.0.0.1:1455/auth/callback";
    let stray = world.sim().stray_code("evil", redirect);
    for query in [
        format!("code={stray}&state={}", "x".repeat(43)),
        format!("code={stray}"),
        format!("code={stray}&state="),
        "error=access_denied&state=y".to_owned(),
    ] {
        let page = visit(&format!("{redirect}?{query}"), None);
        assert_eq!(page.status, 400, "{query}: {}", page.text());
        assert!(page.text().contains("cmactl login"), "{}", page.text());
    }
    let rebound = visit("http://127.0.0.1:1455/success", Some("evil.test:1455"));
    assert_eq!(rebound.status, 403);
    assert_eq!(world.sim().codes_redeemed(), (0, 0));
    visit_all(started["url"].as_str().unwrap());
    let ran = login.end().ok();
    let told = format!("{}{}", ran.stdout, ran.stderr);
    assert!(told.contains("`state` is not ours"), "{told}");
    assert_eq!(names(&world), ["a@example.test"]);
    // Pasted into a sign-in it doesn't belong to, and nothing else comes: that is the end.
    let mut login = Login::start(&world, "login --manual --json");
    login.started();
    login.paste(&format!("{redirect}?code={stray}&state=forged"));
    let ran = login.close();
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    world.assert_clean();
}

#[test]
fn a_code_is_redeemed_once_and_a_replayed_one_is_told() {
    let _ports = kit::ports();
    let world = world(&["a"]);
    world.sim().consent(Consent::Agree("a".to_owned()));
    let mut login = Login::start(&world, "login --browser --no-browser --json");
    let started = login.started();
    let callback = kit::callback(started["url"].as_str().unwrap());
    let first = visit(&callback, None);
    assert_eq!(first.status, 302);
    let again = visit(&callback, None);
    assert_eq!(again.status, 400, "{}", again.text());
    assert!(again.text().contains("had its answer already"), "{}", again.text());
    login.end().ok();
    assert_eq!(world.sim().codes_redeemed(), (1, 0), "the second visit never reached the issuer");
    // The spent code with the state of another sign-in: the issuer sees through that.
    let mut login = Login::start(&world, "login --manual --json");
    let started = login.started();
    let fresh = kit::callback(started["url"].as_str().unwrap());
    let (code, state) = (kit::parameter(&callback, "code"), kit::parameter(&fresh, "state"));
    login.paste(&format!("{code}#{state}"));
    let ran = login.end();
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    assert!(ran.stderr.contains("redeemed before"), "{}", ran.stderr);
    assert_eq!(world.sim().codes_redeemed(), (1, 1));
    world.assert_clean();
}

#[test]
fn who_says_no_is_believed() {
    let _ports = kit::ports();
    let world = world(&["a"]);
    world.sim().consent(Consent::Refuse);
    let mut login = Login::start(&world, "login --browser --no-browser --json");
    let pages = visit_all(login.started()["url"].as_str().unwrap());
    let page = &pages.last().unwrap().1;
    assert!(page.status == 400 && page.text().contains("Not signed in"), "{}", page.text());
    let by_browser = login.end();
    let by_code = world.ctl("login --device");
    for ran in [by_browser, by_code] {
        assert_eq!(ran.code, 6, "{}", ran.stderr);
        assert!(ran.stderr.contains("refused at the issuer"), "{}", ran.stderr);
    }
    assert!(names(&world).is_empty());
    world.assert_clean();
}

#[test]
fn a_sign_in_that_nobody_finishes_ends_by_itself() {
    let _ports = kit::ports();
    let world = world(&["a"]);
    for words in ["login --device --timeout 1", "login --browser --no-browser --timeout 1"] {
        let ran = world.ctl(words);
        assert_eq!(ran.code, 1, "{words}: {}", ran.stderr);
        assert!(ran.stderr.contains("nobody signed in within 1 s"), "{words}: {}", ran.stderr);
    }
    eventually("the port is given back", || TcpListener::bind("127.0.0.1:1455").is_ok());
    world.assert_clean();
}

#[test]
fn a_clock_that_is_off_by_a_day_is_named_and_nothing_is_kept() {
    let _ports = kit::ports();
    let world = world(&["a"]);
    world.sim().consent(Consent::Agree("a".to_owned()));
    for (ahead, way) in [(DAY, "behind"), (-DAY, "ahead of")] {
        world.sim().set_login_clock(ahead);
        let mut login = Login::start(&world, "login --browser --no-browser --json");
        visit_all(login.started()["url"].as_str().unwrap());
        let by_browser = login.end();
        let by_code = world.ctl("login --device");
        for ran in [by_browser, by_code] {
            assert_eq!(ran.code, 3, "{}", ran.stderr);
            let said = format!("clock is 24 hours {way} the issuer's");
            assert!(ran.stderr.contains(&said), "{}", ran.stderr);
        }
        assert!(names(&world).is_empty());
    }
    world.sim().set_login_clock(0);
    world.ctl("login --device").ok();
    world.assert_clean();
}

#[test]
fn an_issuer_out_of_reach_is_told_before_and_after_the_code() {
    let _ports = kit::ports();
    let world = world(&["a"]);
    world.sim().consent(Consent::Agree("a".to_owned()));
    let mut login = Login::start(&world, "login --browser --no-browser --json");
    let callback = kit::callback(login.started()["url"].as_str().unwrap());
    world.sim().stop_listening().unwrap();
    let page = visit(&callback, None);
    assert_eq!(page.status, 400, "{}", page.text());
    let after = login.end();
    let before = world.ctl("login --device");
    for ran in [before, after] {
        assert_eq!(ran.code, 10, "{}", ran.stderr);
        assert!(ran.stderr.contains("out of reach"), "{}", ran.stderr);
    }
    world.sim().resume_listening().unwrap();
    world.ctl("login --device").ok();
    world.assert_clean();
}

#[test]
fn ctrl_c_ends_the_sign_in_here_and_at_the_daemon() {
    let _ports = kit::ports();
    let world = world(&["a"]);
    let mut login = Login::start(&world, "login --browser --no-browser --json");
    login.started();
    assert!(TcpListener::bind("127.0.0.1:1455").is_err());
    login.signal(Signal::INT);
    let ran = login.end();
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    assert!(ran.stderr.contains("cancelled"), "{}", ran.stderr);
    eventually("the port is given back", || TcpListener::bind("127.0.0.1:1455").is_ok());
    // As the official CLI does when it wants the port.
    let mut login = Login::start(&world, "login --browser --no-browser --json");
    login.started();
    let page = visit("http://127.0.0.1:1455/cancel", None);
    assert_eq!(page.status, 200);
    let ran = login.end();
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("another sign-in asked for its port"), "{}", ran.stderr);
    world.assert_clean();
}

#[test]
fn the_wrong_account_is_not_kept() {
    let world = world(&["a", "b"]);
    world.import("b", &world.sim().auth_json("b")).ok();
    world.sim().consent(Consent::Agree("a".to_owned()));
    for words in ["login --device --org acct-b", "login b --device"] {
        let ran = world.ctl(words);
        assert_eq!(ran.code, 1, "{words}: {}", ran.stderr);
        assert!(ran.stderr.contains("a@example.test in workspace `acct-a`"), "{}", ran.stderr);
        assert!(ran.stderr.contains("nothing was kept"), "{}", ran.stderr);
    }
    assert_eq!(names(&world), ["b@example.test"]);
    assert_eq!(world.account("b")["generation"], 1);
    let ran = world.ctl("login b --org acct-a");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    world.assert_clean();
}

#[test]
fn signing_in_again_mends_the_login_and_keeps_everything_else() {
    let world = world(&["a", "b"]);
    world.import_all();
    world.ctl("disable a").ok();
    let before = world.account("a");
    world.sim().revoke_family("b");
    let door = Door::of(&world);
    assert_ne!(door.send(&door.turn()).unwrap().status, 200);
    eventually("b needs a login", || world.account("b")["state"] == "needs_login");
    for name in ["a", "b"] {
        world.sim().consent(Consent::Agree(name.to_owned()));
        let ran = world.ctl(&format!("login {name} --device"));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.stdout.starts_with("Signed in again:"), "{}", ran.stdout);
    }
    let after = world.account("a");
    for field in ["id", "label", "email", "enabled", "index", "workspace", "plan", "tags"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert_eq!((&before["generation"], &after["generation"]), (&1.into(), &2.into()));
    assert_eq!(world.account("b")["state"], "ready");
    assert!(door.send(&door.turn()).unwrap().is_complete());
    world.kill_daemon();
    assert_eq!(world.account("b")["state"], "ready", "it is durable, the mark's end included");
    world.assert_clean();
}

#[test]
fn another_issuer_is_loopback_or_stands_in_the_configuration() {
    let world = world(&["a"]);
    let ran = world.ctl("login --device --issuer https://issuer.example.test");
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("config.toml"), "{}", ran.stderr);
    let other = Sim::start(SimConfig::default()).unwrap();
    other.consent(Consent::Agree("a".to_owned()));
    let ran = world.ctl(&format!("login --device --issuer {}", other.issuer())).ok();
    assert!(ran.stderr.contains("once the daemon runs with its issuer"), "{}", ran.stderr);
    assert_eq!(world.status()["accounts"][0]["state"], "elsewhere");
    // The same person from the pool's own issuer must not replace that login unseen.
    world.sim().consent(Consent::Agree("a".to_owned()));
    let ran = world.ctl("login --device");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("cmactl remove"), "{}", ran.stderr);
    world.assert_clean();
}

/// Another pair of addresses in the environment, as a repository's file may set it: no credential of
/// the pair before goes there, whatever is asked for.
#[test]
fn a_credential_goes_only_where_it_was_imported_for() {
    let world = world(&["a", "b"]);
    world.import_all();
    let door = Door::of(&world);
    world.ctl("account pause b").ok();
    world.kill_daemon();
    let other = Sim::start(SimConfig::default()).unwrap();
    let world = world
        .with_env("CMA_UPSTREAM_BACKEND", &other.backend())
        .with_env("CMA_UPSTREAM_ISSUER", &other.issuer());
    let states = world.status()["accounts"].as_array().unwrap().clone();
    assert!(states.iter().all(|account| account["enabled"] == true), "{states:?}");
    assert_eq!(world.account("a")["state"], "elsewhere");
    for path in [
        "/backend-api/ps/plugins/installed",
        "/backend-api/wham/usage",
        "/backend-api/wham/accounts/check",
        "/codex/models?client_version=0.169.0",
    ] {
        drop(door.get(path));
    }
    assert_ne!(door.send(&door.turn()).unwrap().status, 200);
    for words in ["probe", "workspace list --live", "forecast --live", "verify-flagged"] {
        let ran = world.ctl(words);
        assert_ne!(ran.code, 2, "{words}: {}", ran.stderr);
    }
    let removed = world.ctl("remove a --yes --revoke").ok();
    assert!(removed.stderr.contains("imported for another upstream"), "{removed:?}");
    assert_eq!(other.seen().iter().map(|seen| &*seen.path).collect::<Vec<_>>(), [""; 0]);
    assert!(world.sim().seen().iter().all(|seen| seen.path != "/oauth/revoke"));
    world.assert_clean();
}

/// That the simulated issuer is what the official CLI takes an issuer to be.
#[test]
fn the_official_cli_signs_in_by_code_at_the_simulated_issuer() {
    let Some(codex) = cma_tests::world::real_codex("0.169.0") else { return };
    let world = world(&["a"]);
    world.sim().consent(Consent::Agree("a".to_owned()));
    let issuer = world.sim().issuer();
    let ran = world.run(codex, ["login", "--device-auth", "--experimental_issuer", &issuer]).ok();
    assert!(world.codex_home().join("auth.json").is_file(), "{}{}", ran.stdout, ran.stderr);
    assert_eq!(world.sim().codes_redeemed(), (1, 0));
    assert_eq!(world.sim().violations(), Vec::<String>::new());
}
