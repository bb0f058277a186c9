//! Bad input: one clear line (what, why, next command), the named exit code, and nothing changed.

use cma_tests::{
    http::Door,
    sim::{AccountSpec, SimConfig},
    world::{Ran, World, files},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

fn world() -> World {
    let accounts = vec![AccountSpec::new("anna"), AccountSpec::new("anton")];
    World::with_accounts(SimConfig { accounts, ..SimConfig::default() })
}

/// A failure as people and as programs see it.
#[track_caller]
fn fails(ran: &Ran, code: i32, words: &[&str]) {
    assert_eq!(ran.code, code, "stdout: {}\nstderr: {}", ran.stdout, ran.stderr);
    for word in words {
        assert!(ran.stderr.contains(word), "`{word}` is not in: {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
}

/// The same command with and without `--json`: one line what and why, one line what to type.
#[track_caller]
fn refused(world: &World, words: &str, code: i32, name: &str, says: &[&str]) {
    let plain = world.ctl(words);
    fails(&plain, code, says);
    let lines: Vec<_> = plain.stderr.lines().collect();
    assert!(lines[0].starts_with("error: "), "{}", plain.stderr);
    assert!(lines.len() == 2 && lines[1].starts_with("hint: "), "{}", plain.stderr);
    let ran = world.ctl(&format!("{words} --json"));
    fails(&ran, code, &[]);
    let error: Value =
        serde_json::from_str(&ran.stderr).unwrap_or_else(|e| panic!("{e}: {}", ran.stderr));
    assert_eq!(error["schema"], 1);
    assert_eq!(error["error"]["code"], name, "{error}");
    let (message, hint) = (&error["error"]["message"], &error["error"]["hint"]);
    assert!(!message.as_str().unwrap().contains('\n'), "{error}");
    let typed =
        ["`cmactl ", "`mv ", "`rm ", "end ", "mend ", "set `", "choose ", "name ", "sign in"];
    let hint = hint.as_str().unwrap();
    assert!(typed.iter().any(|word| hint.contains(word)), "no next command: {error}");
}

/// Everything in the root but its logs and run folder.
fn contents(world: &World) -> BTreeMap<PathBuf, Vec<u8>> {
    let kept = |path: &PathBuf| {
        let path = path.strip_prefix(world.root()).unwrap();
        !path.starts_with("log") && !path.starts_with("run")
    };
    files(&world.root())
        .into_iter()
        .filter(kept)
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn files_that_are_no_login_are_refused() {
    let world = world();
    let before = contents(&world);
    let file = |name: &str, content: &[u8]| {
        let path = world.path("tmp").join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let login: Value = serde_json::from_str(&world.sim().auth_json("anna")).unwrap();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut login = login.clone();
        change(&mut login);
        login.to_string().into_bytes()
    };
    let text = login.to_string();
    let canary = world.sim().canary();
    for (name, content, says) in [
        ("cut.json", text.as_bytes()[..text.len() / 2].to_vec(), "not a login file"),
        ("empty.json", Vec::new(), "not a login file"),
        ("list.json", b"[]".to_vec(), "not a login file"),
        ("none.json", b"{}".to_vec(), "no login"),
        ("key.json", format!("{{\"OPENAI_API_KEY\":\"sk-{canary}\"}}").into_bytes(), "an API key"),
        ("noise.json", vec![0xff; 3000], "not a login file"),
        ("huge.json", vec![b' '; 3 << 20], "not a login file"),
        (
            "no-access.json",
            changed(&|login| login["tokens"]["access_token"] = json!("")),
            "no access token",
        ),
        ("no-id.json", changed(&|login| login["tokens"]["id_token"] = json!("x.y.z")), "id token"),
    ] {
        let path = file(name, &content);
        refused(&world, &format!("import {path}"), 2, "bad_request", &[name, says]);
    }
    let other: Value = serde_json::from_str(&world.sim().auth_json("anton")).unwrap();
    let mixed = changed(&|login| login["tokens"]["id_token"] = other["tokens"]["id_token"].clone());
    let mixed = file("mixed.json", &mixed);
    refused(&world, &format!("import {mixed}"), 2, "bad_request", &["different accounts"]);
    let missing = world.path("tmp/missing.json").display().to_string();
    refused(&world, &format!("import {missing}"), 7, "not_found", &["missing.json"]);
    let folder = world.path("tmp").display().to_string();
    let ran = world.ctl(&format!("import {folder}"));
    assert_ne!(ran.code, 0);
    fails(&ran, ran.code, &["not a file"]);
    assert_eq!(contents(&world), before);
    assert_eq!(world.status()["accounts"].as_array().unwrap().len(), 2);
    // They are logins, or parts of some.
    fs::remove_dir_all(world.path("tmp")).unwrap();
    world.assert_clean();
}

#[test]
fn unknown_and_ambiguous_names_change_nothing() {
    let world = world();
    let (before, epoch) = (contents(&world), world.status()["epoch"].clone());
    for command in ["switch", "enable", "disable"] {
        refused(&world, &format!("{command} nobody"), 7, "not_found", &["nobody", "cmactl list"]);
        refused(&world, &format!("{command} 3"), 7, "not_found", &["3"]);
        let both = ["an", "anna", "anton"];
        refused(&world, &format!("{command} an"), 7, "ambiguous", &both);
    }
    refused(&world, "label nobody x", 7, "not_found", &["nobody"]);
    refused(&world, "remove nobody --yes", 7, "not_found", &["nobody"]);
    refused(&world, "why --request nothing", 7, "not_found", &["nothing"]);
    refused(&world, "label anna anton", 2, "bad_request", &["already called"]);
    refused(&world, "remove anna", 2, "bad_request", &["--yes"]);
    refused(&world, "switch anna --expected-epoch 999999", 1, "negative", &["epoch"]);
    let usage = world.ctl("dance --json");
    fails(&usage, 2, &["\"bad_request\"", "\"schema\":1"]);
    assert_eq!((contents(&world), world.status()["epoch"].clone()), (before, epoch));
    world.assert_clean();
}

fn account_files(world: &World) -> Vec<PathBuf> {
    let whole =
        |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().split('.').count() == 2;
    files(&world.root().join("accounts")).into_iter().filter(whole).collect()
}

/// Where nothing whole is left of an account, the others serve and that one is named; a file of the
/// person's own copy brings it back. What can be mended is in `survive.rs`.
#[test]
fn a_damaged_truth_file_is_named_and_costs_nobody_else() {
    let world = world();
    world.ctl("daemon stop").ok();
    let path = account_files(&world).remove(0);
    let name = path.file_name().unwrap().to_str().unwrap();
    let whole = fs::read(&path).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    let generation = text.replace("\"generation\":1", "\"generation\":7");
    assert_ne!(generation, text);
    let count = |world: &World| world.status()["accounts"].as_array().unwrap().len();
    for (what, bytes) in [
        ("cut", whole[..whole.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("edited", generation.into_bytes()),
        ("zeros", vec![0; whole.len()]),
    ] {
        fs::write(&path, &bytes).unwrap();
        let said = world.ctl("status").ok().stdout;
        assert!(said.contains(name) && said.contains("damaged"), "{what}: {said}");
        assert_eq!(count(&world), 1, "{what}");
        let evidence = files(&world.root().join("damaged"));
        assert!(evidence.iter().any(|kept| fs::read(kept).unwrap() == bytes), "{what}");
        world.ctl("daemon stop").ok();
        fs::write(&path, &whole).unwrap();
        assert_eq!(count(&world), 2, "{what}");
        world.ctl("daemon stop").ok();
    }
    // A file from a future version is no damage: it stops the start.
    let future = text.replacen("\"schema\":2", "\"schema\":3", 1);
    fs::write(&path, future).unwrap();
    refused(&world, "status", 13, "store", &[name, "newer version"]);
    let ran = world.run("cmad", ["run"]);
    assert!(ran.stderr.lines().count() == 2 && ran.stderr.contains(name), "{}", ran.stderr);
    assert_eq!((ran.code, world.daemon_pid()), (13, None));
    fs::write(&path, &whole).unwrap();
    assert_eq!(count(&world), 2);
    for (file, bytes) in [("state.json", b"{".to_vec()), ("root.key", b"short".to_vec())] {
        world.ctl("daemon stop").ok();
        fs::write(world.root().join(file), bytes).unwrap();
        let said = world.ctl("status").ok().stdout;
        assert!(said.contains(file) && said.contains("damaged"), "{file}: {said}");
    }
    assert_eq!(count(&world), 2);
    world.assert_clean();
}

#[test]
fn a_root_that_is_no_private_folder_is_refused() {
    let world = world();
    world.ctl("daemon stop").ok();
    let at = |path: &Path| path.display().to_string();
    let file = world.path("file");
    fs::write(&file, "mine").unwrap();
    refused(&world, &format!("status --root {}", at(&file)), 13, "store", &["is not a folder"]);
    refused(&world, &format!("status --root {}/below", at(&file)), 13, "store", &["file"]);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    refused(&world, "status --root /proc/no-root-here", 13, "store", &["/proc/no-root-here"]);
    if rustix::process::geteuid().is_root() {
        let theirs = world.path("theirs");
        fs::create_dir(&theirs).unwrap();
        std::os::unix::fs::chown(&theirs, Some(65_534), None).unwrap();
        let says = ["belongs to user id 65534", "CODEX_MULTI_AUTH_DIR"];
        refused(&world, &format!("status --root {}", at(&theirs)), 13, "store", &says);
        assert_eq!(fs::read_dir(&theirs).unwrap().count(), 0);
    } else {
        eprintln!("skipped in part: only root can give a folder away");
    }
    // Ours, but open to others: closed, not refused.
    fs::set_permissions(world.root(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(world.ctl("status").code, 0);
    assert_eq!(fs::metadata(world.root()).unwrap().mode() & 0o777, 0o700);
    // The cache holds no secret, and its names are a library's.
    let precious = files(&world.root());
    for file in precious.iter().filter(|file| !file.starts_with(world.root().join("cache"))) {
        let mode = fs::metadata(file).unwrap().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", file.display());
    }
    // Below a link of the person's own it is the folder that counts.
    std::os::unix::fs::symlink(world.root(), world.path("link")).unwrap();
    let linked =
        world.ctl(&format!("status --json --root {}", at(&world.path("link")))).ok().json();
    assert_eq!(linked["daemon"]["pid"], world.status()["daemon"]["pid"]);
    world.assert_clean();
}

fn port(world: &World) -> u16 {
    let state = fs::read_to_string(world.root().join("state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    u16::try_from(state["content"]["port"].as_u64().unwrap()).unwrap()
}

#[test]
fn a_taken_port_is_an_error_that_names_its_holder() {
    let world = world();
    let stored = port(&world);
    world.ctl("daemon stop").ok();
    let before = contents(&world);
    let holder = TcpListener::bind(("127.0.0.1", stored)).unwrap();
    let own = format!("(pid {})", std::process::id());
    let says = [format!("port {stored}"), own];
    let says: Vec<_> = says.iter().map(String::as_str).collect();
    refused(&world, "status", 3, "config", &says);
    refused(&world, "daemon start", 3, "config", &says);
    assert_eq!(contents(&world), before);
    drop(holder);
    assert_eq!(world.status()["proxy"]["url"], format!("http://127.0.0.1:{stored}"));
    world.ctl("daemon stop").ok();
    let holder = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let taken = holder.local_addr().unwrap();
    let mut command = world.command("cmactl");
    command.arg("status").env("CMA_LISTEN", taken.to_string());
    fails(&world.finish(command), 3, &[&format!("port {}", taken.port())]);
    assert_eq!(port(&world), stored);
    world.assert_clean();
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let world = world();
    world.ctl("daemon stop").ok();
    let before = contents(&world);
    for (name, value, says) in [
        ("CMA_LISTEN", "0.0.0.0:0", "loopback"),
        ("CMA_LISTEN", "127.0.0.2:0", "127.0.0.1 or [::1] only"),
        ("CMA_LISTEN", "here", "not an address"),
        ("CMA_UPSTREAM_BACKEND", "https://evil.test", "not a loopback host"),
        ("CMA_UPSTREAM_BACKEND", "http://evil.test/backend-api", "plain http"),
        ("CMA_UPSTREAM_BACKEND", "http://127.0.0.1.evil.test/", "plain http"),
        ("CMA_UPSTREAM_BACKEND", "http://127.0.0.1@evil.test/", "user"),
        ("CMA_UPSTREAM_ISSUER", "https://evil.test", "not a loopback host"),
        ("CMA_UPSTREAM_ISSUER", "ftp://127.0.0.1", "not an http"),
        ("CMA_HEAD_TIMEOUT", "soon", "soon"),
        ("CMA_HEAD_TIMEOUT", "0", "0"),
        ("CMA_LOG", "loud", "loud"),
        ("CODEX_MULTI_AUTH_DIR", "relative/folder", "absolute"),
        ("CODEX_HOME", "relative", "absolute"),
    ] {
        let mut command = world.command("cmactl");
        command.args(["status", "--json"]).env(name, value);
        let ran = world.finish(command);
        fails(&ran, 3, &[says, name, "\"config\""]);
    }
    let config = world.root().join("config.toml");
    for (text, says) in [
        ("listen = '127.0.0.1:0'\nnonsense", "line 2"),
        ("\n\nlisten = 5\n", "line 3"),
        ("colour = 'red'\n", "colour"),
        ("[upstream]\nbackent = 'https://x.test'\n", "backent"),
        ("head_timeout = '2 fortnights'\n", "fortnights"),
    ] {
        fs::write(&config, text).unwrap();
        refused(&world, "status", 3, "config", &[says, "config.toml"]);
    }
    // Another host may stand in this file, but not without TLS.
    fs::write(&config, "[upstream]\nissuer = 'http://evil.test'\n").unwrap();
    let mut command = world.command("cmactl");
    command.arg("status").env_remove("CMA_UPSTREAM_ISSUER");
    fails(&world.finish(command), 3, &["evil.test", "plain http", "config.toml"]);
    fs::remove_file(&config).unwrap();
    assert_eq!(contents(&world), before);
    assert_eq!(world.daemon_pid(), None);
    assert_eq!(world.ctl("status").code, 0);
    world.assert_clean();
}

#[test]
fn a_second_daemon_leaves_the_first_alone() {
    let world = world();
    let door = Door::of(&world);
    let pid = world.daemon_pid().unwrap();
    let ran = world.ctl("daemon run");
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains(&format!("(pid {pid})")), "{}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 2, "{}", ran.stderr);
    assert!(ran.took < Duration::from_secs(2), "{:?}", ran.took);
    // Programs get what `cmactl` says anywhere else, also from the programs it becomes.
    for words in ["--json daemon run", "--json simulate --trace /nowhere"] {
        let ran = world.ctl(words);
        assert_ne!(ran.code, 0, "{words}");
        let said: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!((&said["schema"], &*ran.stdout), (&1.into(), ""), "{words}: {said}");
        assert!(said["error"]["code"].is_string() && said["error"]["hint"].is_string(), "{said}");
    }
    assert_eq!(world.daemon_pid(), Some(pid));
    // Not even its socket.
    assert_eq!(world.status()["daemon"]["pid"], pid);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    let again = world.ctl("daemon start --json").ok().json();
    assert_eq!((&again["pid"], &again["url"]), (&pid.into(), &world.status()["proxy"]["url"]));
    world.assert_clean();
}

/// Many starters, one daemon.
#[test]
fn starters_at_once_get_one_daemon() {
    let world = world();
    for _ in 0..3 {
        world.kill_daemon();
        std::thread::scope(|scope| {
            let asked: Vec<_> =
                (0..12).map(|_| scope.spawn(|| world.status()["daemon"]["pid"].clone())).collect();
            let pids: Vec<_> = asked.into_iter().map(|asked| asked.join().unwrap()).collect();
            assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
        });
    }
    world.assert_clean();
}
