//! Who is told what: the monitor, `/metrics`, notices.

use cma_tests::{
    http::Door,
    sim::{AccountSpec, Fault, Route, SimConfig},
    world::{World, eventually, write_script},
};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

fn settings(world: &World, text: &str) {
    fs::create_dir_all(world.root()).unwrap();
    fs::set_permissions(world.root(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(world.root().join("config.toml"), text).unwrap();
}

fn config(names: &[&str]) -> SimConfig {
    let accounts = names.iter().map(|name| AccountSpec::new(name)).collect();
    SimConfig { accounts, ..SimConfig::default() }
}

/// A program that writes down what it is told, a line each time.
fn hook(world: &World) -> (PathBuf, PathBuf) {
    let (script, told) = (world.path("tmp/hook.sh"), world.path("tmp/told"));
    let text = format!(
        "#!/bin/sh\necho \"$CMA_NOTICE|$CMA_NOTICE_TITLE|$1|$CMA_PASSPHRASE\" >> '{}'\n",
        told.display()
    );
    write_script(&script, &text);
    (script, told)
}

fn lines(told: &Path) -> Vec<String> {
    let text = fs::read_to_string(told).unwrap_or_default();
    text.lines().map(ToOwned::to_owned).collect()
}

#[test]
fn metrics_open_to_their_token_alone_and_name_nobody() {
    let world = World::with_accounts(config(&["a", "b"]));
    let door = Door::of(&world);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    world.ctl("budget limit day --window day --requests 10").ok();
    let given = world.ctl("metrics token --json").ok().json();
    let (token, url) = (given["token"].as_str().unwrap(), given["url"].as_str().unwrap());
    assert_eq!(url, format!("http://{}/metrics", door.addr));
    let get = |key: &str, path: &str| {
        let ask = door.ask("GET", path).with("authorization", &format!("Bearer {key}"));
        door.send(&ask).unwrap()
    };
    for bad in ["", "x", &door.key, &format!("{token}x"), &token[..token.len() - 4]] {
        assert_eq!(get(bad, "/metrics").status, 401, "{bad}");
    }
    assert_eq!(
        door.send(&door.ask("GET", "/metrics").without("authorization")).unwrap().status,
        401
    );
    // The token opens nothing else, and a web page gets nowhere with it.
    for path in
        ["/codex/models", "/backend-api/wham/usage", "/api/accounts/v1/user-auth-credential/whoami"]
    {
        assert_eq!(get(token, path).status, 401, "{path}");
    }
    let page = door.ask("GET", "/metrics").with("authorization", &format!("Bearer {token}"));
    assert_eq!(door.send(&page.header("origin", "http://evil.test")).unwrap().status, 403);
    let answer = get(token, "/metrics");
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let text = answer.text();
    let value = |begins: &str| {
        let line = text.lines().find(|line| line.starts_with(begins));
        let line = line.unwrap_or_else(|| panic!("no {begins} in {text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(text.contains("outcome=\"complete\"} 1\n"), "{text}");
    assert!((value("cma_first_byte_seconds_count") - 1.0).abs() < 1e-9);
    assert!((value("cma_budget_spent{budget=\"day\"") - 1.0).abs() < 1e-9);
    let seen = world.sim().seen();
    let told = seen.iter().find_map(|seen| seen.tokens).unwrap();
    let input = text.lines().find(|line| line.contains("kind=\"input\"")).unwrap();
    assert!(input.ends_with(&format!(" {}", told.input)), "{input}");
    assert!(!text.contains('@') && !text.contains("name="), "{text}");
    // One family once, every series of a family after its type.
    let mut families: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let count = families.len();
    families.sort_unstable();
    families.dedup();
    assert_eq!(families.len(), count);
    assert!(get(token, "/metrics?names=1").text().contains("name=\"a\""));
    // A restart doesn't end it.
    world.kill_daemon();
    world.ctl("daemon start").ok();
    assert_eq!(get(token, "/metrics").status, 200);
    world.assert_clean();
}

#[test]
fn a_monitors_screen_has_all_of_it() {
    let world = World::with_accounts(config(&["a", "b"]));
    let door = Door::of(&world);
    for _ in 0..3 {
        assert!(door.send(&door.turn()).unwrap().is_complete());
    }
    world.ctl("budget limit day --window day --tokens 5M").ok();
    let shown = world.ctl("monitor --json").ok().json();
    assert_eq!(shown["monitor"]["five_minutes"]["requests"], 3);
    assert_eq!(shown["monitor"]["recent"].as_array().unwrap().len(), 3);
    assert_eq!(shown["monitor"]["ledger"]["dropped"], 0);
    assert_eq!(shown["status"]["accounts"].as_array().unwrap().len(), 2);
    let text = world.ctl("monitor").ok().stdout;
    for part in ["3 requests", "ready", "complete", "gpt-5.5", "5.0M tokens", "0 running"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    world.assert_clean();
}

#[test]
fn a_hook_hears_of_a_lost_login_once() {
    let world = World::new(config(&["a", "b"])).with_env("CMA_PASSPHRASE", "not for a hook");
    let (script, told) = hook(&world);
    settings(
        &world,
        &format!(
            "[notify]\ncommand = ['{}', 'first argument']\non = ['needs_login', 'all_dry']\n",
            script.display()
        ),
    );
    world.import_all();
    let tried = world.ctl("notify test --json").ok().json();
    assert_eq!(tried["notified"][0]["error"], serde_json::Value::Null);
    assert_eq!(lines(&told), ["test|cma|first argument|"]);
    world.sim().revoke_family("a");
    let door = Door::of(&world);
    for _ in 0..3 {
        assert!(door.send(&door.turn()).unwrap().is_complete());
    }
    eventually("it is told", || lines(&told).len() > 1);
    // One more look at the pool, and nothing new in it.
    world.ctl("label b c").ok();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(lines(&told)[1..], ["needs_login|a needs a login|first argument|"]);
    // Nobody is left.
    let limit = Fault::UsageLimitReached { resets_in: Duration::from_secs(7200) };
    world.sim().fault(None, Route::Responses, limit, None);
    assert_eq!(door.send(&door.turn()).unwrap().status, 429);
    eventually("it is told", || lines(&told).len() > 2);
    assert_eq!(lines(&told)[2..], ["all_dry|No account can serve|first argument|"]);
    world.assert_clean();
}

#[test]
fn quiet_hours_are_quiet_and_nothing_is_told_by_default() {
    for settings_text in ["quiet = '00:00-23:59'", "on = ['reset']"] {
        let world = World::new(config(&["a", "b"]));
        let (script, told) = hook(&world);
        let command = format!("[notify]\ncommand = ['{}', 'x']\n", script.display());
        settings(&world, &format!("{command}{settings_text}\n"));
        world.import_all();
        world.sim().revoke_family("a");
        let door = Door::of(&world);
        assert!(door.send(&door.turn()).unwrap().is_complete());
        eventually("it needs a login", || world.account("a")["state"] == "needs_login");
        std::thread::sleep(Duration::from_millis(900));
        assert_eq!(lines(&told), Vec::<String>::new(), "{settings_text}");
        // Somebody who tries it isn't put off.
        world.ctl("notify test").ok();
        assert_eq!(lines(&told).len(), 1);
        world.assert_clean();
    }
    let world = World::with_accounts(config(&["a"]));
    let ran = world.ctl("notify test");
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stderr.contains("config.toml"), "{}", ran.stderr);
}

#[test]
fn a_topic_is_told_with_its_token_which_shows_nowhere_else() {
    let topic = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = topic.local_addr().unwrap();
    let heard = std::thread::spawn(move || {
        let (mut stream, _peer) = topic.accept().unwrap();
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        while !String::from_utf8_lossy(&bytes).contains("This is how") {
            let n = stream.read(&mut chunk).unwrap();
            assert!(n > 0, "{}", String::from_utf8_lossy(&bytes));
            bytes.extend_from_slice(&chunk[..n]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let world = World::new(config(&["a"]));
    let token = world.path("tmp/token");
    fs::write(&token, format!("{}\n", world.sim().canary())).unwrap();
    settings(
        &world,
        &format!("[notify]\nntfy = 'http://{at}/topic'\nntfy_token_file = '{}'\n", token.display()),
    );
    // A token that others can read isn't sent.
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let ran = world.ctl("notify test");
    assert!(ran.code == 1 && ran.stdout.contains("chmod 600"), "{ran:?}");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    world.ctl("notify test").ok();
    let heard = heard.join().unwrap().to_lowercase();
    assert!(heard.starts_with("post /topic http/1.1\r\n"), "{heard}");
    let bearer = format!("authorization: bearer {}\r\n", world.sim().canary().to_lowercase());
    assert!(heard.contains(&bearer) && heard.contains("title: cma\r\n"), "{heard}");
    fs::remove_file(&token).unwrap();
    world.assert_clean();
}

#[test]
fn a_probe_asks_only_what_is_free_and_a_failed_one_changes_nothing() {
    let world = World::with_accounts(config(&["a", "b", "c"]));
    let asked =
        |path: &str| world.sim().seen().iter().filter(|seen| seen.path.ends_with(path)).count();
    world.sim().set_used("a", 37.0, 12.0);
    world.sim().set_used("b", 55.0, 20.0);
    let used = |probe: &serde_json::Value, name: &str| {
        let one = probe["probes"].as_array().unwrap().iter().find(|one| one["name"] == name);
        let one = one.unwrap_or_else(|| panic!("no {name}: {probe}")).clone();
        (one["state"].as_str().unwrap().to_owned(), one["windows"][0]["used_percent"].as_f64())
    };
    world.ctl("disable c").ok();
    let probe = world.ctl("probe --json").ok().json();
    assert_eq!(used(&probe, "a"), ("done".to_owned(), Some(37.0)));
    assert_eq!(used(&probe, "b"), ("done".to_owned(), Some(55.0)));
    assert_eq!(
        probe["probes"].as_array().unwrap().len(),
        2,
        "a disabled one isn't asked unless named"
    );
    assert_eq!(asked("/wham/usage"), 2);
    assert_eq!(asked("/codex/responses"), 0, "nothing is spent");
    assert_eq!(probe["probes"][0]["confidence"], "fresh");
    // What is new enough isn't asked again.
    let again = world.ctl("probe --json").ok().json();
    assert_eq!((used(&again, "a").0, asked("/wham/usage")), ("fresh".to_owned(), 2));
    // What fails says so; what was known stands, here and in `status`.
    world.sim().set_used("a", 99.0, 99.0);
    world.sim().fault(Some("a"), Route::Usage, Fault::server_error(500, None), None);
    let failed = world.ctl("probe a b --force --json");
    assert_eq!(failed.code, 10, "{failed:?}");
    let failed = failed.json();
    assert_eq!(used(&failed, "a"), ("failed".to_owned(), Some(37.0)));
    assert_eq!(used(&failed, "b"), ("done".to_owned(), Some(55.0)));
    assert_eq!(world.account("a")["windows"][0]["used_percent"], 37.0);
    let history = &failed["probes"][0]["history"];
    assert_eq!(history[0]["used_percent"], 37.0);
    assert!(history[1]["used_percent"].is_null() && history[1]["error"].is_string(), "{history}");
    world.sim().clear_faults();
    let mended = world.ctl("probe a --force --json").ok().json();
    assert_eq!(used(&mended, "a"), ("done".to_owned(), Some(99.0)));
    assert_eq!(asked("/codex/responses"), 0);
    world.assert_clean();
}

#[test]
fn a_probe_can_be_stopped_and_two_never_run_at_once() {
    let names: Vec<String> = (0..12).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let world = World::with_accounts(config(&names));
    let slow = Fault::SlowHead(Duration::from_millis(400));
    world.sim().fault(None, Route::Usage, slow, None);
    let mut probe = world.command("cmactl");
    probe.args(["probe", "--json"]).stdout(std::process::Stdio::piped());
    let running = std::thread::scope(|scope| {
        let running = scope.spawn(|| world.finish(probe));
        eventually("it runs", || world.ctl("probe --show --json").ok().json()["running"] == true);
        assert_eq!(world.ctl("probe").code, 1, "one at a time");
        eventually("the first is asked", || !world.sim().seen().is_empty());
        world.ctl("probe --stop").ok();
        running.join().unwrap()
    });
    let shown = running.ok().json();
    let count = |state: &str| {
        shown["probes"].as_array().unwrap().iter().filter(|one| one["state"] == state).count()
    };
    assert!(count("stopped") >= 8, "{shown}");
    assert_eq!(count("stopped") + count("done"), 12, "{shown}");
    let asked = world.sim().seen().len();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(world.sim().seen().len(), asked, "nobody is asked after the stop");
    world.assert_clean();
}
