//! The Codex home folder stays the person's: what the CLI finds there, what it leaves there, and
//! what a login of the person's own goes through.

use crate::codex_kit::{
    TURN, VERSION, bare, codex, finish, machine, official, posts, turn, upstream,
};
use cma_tests::{
    sim::AccountSpec,
    world::{Ran, World, bin_dir, files},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// The account of the person's own login; not in the pool.
const OWN: &str = "mine";
/// A CLI that would try to reach the real upstream for ever is given this long.
const LONG_ENOUGH: Duration = Duration::from_secs(4);
const TURN_LIMIT: Duration = Duration::from_secs(60);

/// A pool of `a` and `b`, and a person who is logged in as somebody else.
fn person(version: &str) -> Option<World> {
    let world = bare(upstream(&["a", "b"]), version)?;
    let refresh = format!("{}/oauth/token", world.sim().issuer());
    let world = world.with_env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", &refresh);
    world.import_all();
    world.sim().add_account(AccountSpec::new(OWN));
    fs::write(world.codex_home().join("auth.json"), world.sim().auth_json(OWN)).unwrap();
    Some(world)
}

fn login(world: &World) -> Vec<u8> {
    fs::read(world.codex_home().join("auth.json")).unwrap()
}

fn configure(world: &World, text: &str) {
    fs::write(world.codex_home().join("config.toml"), text).unwrap();
}

/// `codex` with the loopback exceptions that only a plain run needs.
fn plain(world: &World, args: &[&str]) -> Command {
    let mut command = codex(world, args.iter().copied());
    command.env("NO_PROXY", "127.0.0.1,localhost");
    command
}

/// Nothing of the person's own login reached the upstream or our gate.
#[track_caller]
fn assert_untouched(world: &World, before: &[u8]) {
    assert!(login(world) == before, "auth.json has changed");
    let seen = world.sim().seen();
    assert!(!seen.iter().any(|seen| seen.account.as_deref() == Some(OWN)), "{seen:?}");
    assert!(!seen.iter().any(|seen| seen.path.starts_with("/oauth/")), "{seen:?}");
    assert_eq!(world.status()["proxy"]["refused"], 0);
    world.assert_clean();
}

/// Everything below a folder but for the pool, without the digits of ids and times, and without what a
/// database has only while it is open.
fn names(folder: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if name == "multi-auth" || name.ends_with("-wal") || name.ends_with("-shm") {
            continue;
        }
        let plain = name.replace(|c: char| c.is_ascii_hexdigit() || c == '-', "");
        if entry.file_type().unwrap().is_dir() {
            names.extend(self::names(&entry.path()).iter().map(|below| format!("{plain}/{below}")));
        }
        names.insert(plain);
    }
    names
}

#[test]
fn the_home_gets_the_clis_own_files_and_the_pool() {
    let Some(world) = machine(&["a"]) else { return };
    turn(&world).ok();
    let home = world.codex_home();
    assert!(!home.join("auth.json").exists() && !home.join("config.toml").exists());
    let ours = names(&home);
    assert!(ours.len() > 5, "{ours:?}");
    // The same plan by hand in a home of its own: what is there is the CLI's.
    let other = world.path("other");
    fs::create_dir(&other).unwrap();
    by_hand(&world, &TURN, &other).ok();
    assert_eq!(ours, names(&other));
    world.assert_clean();
}

/// Runs the official CLI itself by a printed plan.
fn by_hand(world: &World, args: &[&str], home: &Path) -> Ran {
    let plan = world.launch();
    let mut command = world.command(official(VERSION));
    for word in plan["args"].as_array().unwrap() {
        command.arg(word.as_str().unwrap());
    }
    for (name, value) in plan["env"].as_object().unwrap() {
        command.env(name, value.as_str().unwrap());
    }
    command.args(args).env("CODEX_HOME", home);
    finish(world, command, TURN_LIMIT)
}

/// One turn through the pool, with the person's configuration; the text of the answer.
fn through(config: &str, args: &[&str]) -> Option<String> {
    let world = person(VERSION)?;
    configure(&world, config);
    let before = login(&world);
    let ran = finish(&world, codex(&world, [&TURN[..2], args, &["hi"]].concat()), TURN_LIMIT).ok();
    assert!(!ran.stderr.contains("Logging out"), "{}", ran.stderr);
    assert_untouched(&world, &before);
    assert_eq!(fs::read_to_string(world.codex_home().join("config.toml")).unwrap(), config);
    Some(ran.stdout.trim().to_owned())
}

#[test]
fn a_login_of_the_persons_own_survives_a_launch() {
    let Some(answer) = through("", &[]) else { return };
    assert_eq!(answer, "served by a");
}

#[test]
fn a_login_survives_a_forced_chatgpt_login() {
    let Some(answer) = through("forced_login_method = 'chatgpt'\n", &[]) else { return };
    assert_eq!(answer, "served by a");
    let answer = through("", &["-c", "forced_login_method=\"chatgpt\""]).unwrap();
    assert_eq!(answer, "served by a");
}

#[test]
fn a_forced_workspace_of_the_pool_is_the_one_that_serves() {
    let Some(answer) = through("forced_chatgpt_workspace_id = 'acct-b'\n", &[]) else { return };
    assert_eq!(answer, "served by b");
    let answer = through("", &["-c", "forced_chatgpt_workspace_id=acct-b"]).unwrap();
    assert_eq!(answer, "served by b");
}

#[test]
fn of_a_list_of_workspaces_those_of_the_pool_serve() {
    let config = "forced_chatgpt_workspace_id = ['acct-elsewhere', 'acct-b']\n";
    let Some(answer) = through(config, &[]) else { return };
    assert_eq!(answer, "served by b");
}

/// One turn that has to run plain, cut short if need be: no account of the pool serves it.
#[track_caller]
fn stands_aside(world: &World, args: &[&str], env: &[(&str, &str)]) -> Ran {
    let before = login(world);
    let mut command = plain(world, args);
    command.envs(env.iter().copied());
    let ran = finish(world, command, LONG_ENOUGH);
    assert!(!ran.stdout.contains("served by"), "{ran:?}");
    assert_eq!(posts(world).len(), 0);
    assert_untouched(world, &before);
    ran
}

#[test]
fn a_workspace_outside_the_pool_runs_plain_with_a_line() {
    let Some(world) = person(VERSION) else { return };
    configure(&world, "forced_chatgpt_workspace_id = 'acct-mine'\n");
    let ran = stands_aside(&world, &TURN, &[]);
    assert_eq!(ran.stderr.matches("cma: ").count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("no account of the pool is in the workspace"), "{}", ran.stderr);
}

/// The login that goes with `forced_login_method = "api"`; another one the CLI itself removes.
fn api_login(world: &World) {
    let key = json!({ "auth_mode": "apikey", "OPENAI_API_KEY": "sk-own" });
    fs::write(world.codex_home().join("auth.json"), key.to_string()).unwrap();
}

#[test]
fn a_forced_api_login_runs_plain() {
    let Some(world) = person(VERSION) else { return };
    api_login(&world);
    configure(&world, "forced_login_method = 'api'\n");
    let ran = stands_aside(&world, &TURN, &[]);
    assert!(!ran.stderr.contains("cma: "), "{}", ran.stderr);
}

/// A ChatGPT login under a forced API login is removed by the CLI itself; we neither do that nor
/// stand in its way.
#[test]
fn a_login_that_the_cli_itself_refuses_fares_as_without_the_shim() {
    let Some(world) = person(VERSION) else { return };
    configure(&world, "forced_login_method = 'api'\n");
    let before = login(&world);
    let file = world.codex_home().join("auth.json");
    let mut ends = Vec::new();
    for program in [bin_dir().join("codex"), official(VERSION)] {
        fs::write(&file, &before).unwrap();
        let mut command = world.command(program);
        command.args(TURN).env("NO_PROXY", "127.0.0.1,localhost");
        let ran = finish(&world, command, LONG_ENOUGH);
        let own_words = ran.stderr.lines().filter(|line| line.contains("Logging out")).count();
        ends.push((ran.code, own_words, fs::read(&file).ok()));
    }
    assert_eq!(ends[0], ends[1]);
    assert_eq!(posts(&world).len(), 0);
    world.assert_clean();
}

#[test]
fn a_forced_api_login_by_flag_runs_plain() {
    let Some(world) = person(VERSION) else { return };
    api_login(&world);
    let flag = ["exec", "--skip-git-repo-check", "-c", "forced_login_method=api", "hi"];
    let ran = stands_aside(&world, &flag, &[]);
    assert!(!ran.stderr.contains("cma: "), "{}", ran.stderr);
}

#[test]
fn an_api_key_in_the_environment_runs_plain() {
    let Some(world) = person(VERSION) else { return };
    let ran = stands_aside(&world, &TURN, &[("CODEX_API_KEY", "sk-own")]);
    assert!(!ran.stderr.contains("cma: "), "{}", ran.stderr);
}

#[test]
fn an_access_token_of_the_persons_own_runs_plain() {
    let Some(world) = person(VERSION) else { return };
    let ran = stands_aside(&world, &TURN, &[("CODEX_ACCESS_TOKEN", "at-own")]);
    assert!(!ran.stderr.contains("cma: "), "{}", ran.stderr);
}

#[test]
fn a_local_model_runs_plain() {
    let Some(world) = person(VERSION) else { return };
    let ran = stands_aside(&world, &["exec", "--skip-git-repo-check", "--oss", "hi"], &[]);
    assert!(!ran.stderr.contains("cma: "), "{}", ran.stderr);
}

/// A CLI that ignores the environment token, and would spend the person's refresh token at a 401.
fn old_runs_plain(version: &str) {
    let Some(world) = person(version) else { return };
    let ran = stands_aside(&world, &TURN, &[]);
    let line = format!("cma: codex {version} can't take its login from the environment");
    assert_eq!(ran.stderr.matches("cma: ").count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains(&line), "{}", ran.stderr);
}

#[test]
fn an_old_cli_runs_plain_0_98() {
    old_runs_plain("0.98.0");
}

#[test]
fn an_old_cli_runs_plain_0_128() {
    old_runs_plain("0.128.0");
}

/// The person's own provider is served by the person's own login: our pool has no part in it.
fn serves_itself(config: impl Fn(&World) -> String, args: &[&str]) {
    let Some(world) = person(VERSION) else { return };
    configure(&world, &config(&world));
    let before = login(&world);
    let ran = finish(&world, plain(&world, &[&TURN[..2], args, &["hi"]].concat()), TURN_LIMIT).ok();
    assert_eq!(ran.stdout.trim(), "served by mine", "{}", ran.stderr);
    assert!(!ran.stderr.contains("cma: "), "{}", ran.stderr);
    assert!(login(&world) == before, "auth.json has changed");
    // Over a WebSocket, where the provider is the built-in one.
    let turns = world.sim().seen().into_iter().filter(|seen| seen.path.ends_with("/responses"));
    let served: BTreeSet<_> = turns.filter_map(|seen| seen.account).collect();
    assert_eq!(served, BTreeSet::from([OWN.to_owned()]));
    assert_eq!(world.status()["proxy"]["refused"], 0);
    world.assert_clean();
}

#[test]
fn a_custom_provider_runs_plain() {
    let provider = |world: &World| {
        format!(
            "model_provider = 'own'\n[model_providers.own]\nname = 'Own'\nbase_url = '{}/codex'\n\
             wire_api = 'responses'\nrequires_openai_auth = true\n",
            world.sim().backend()
        )
    };
    serves_itself(provider, &[]);
}

#[test]
fn a_base_address_of_the_persons_own_runs_plain() {
    let config = |world: &World| {
        let [responses, others] = addresses(world);
        format!("openai_base_url = '{responses}'\nchatgpt_base_url = '{others}'\n")
    };
    serves_itself(config, &[]);
}

/// Where the CLI finds the upstream without us. It would insist on https for an address that ends
/// as the real one does.
fn addresses(world: &World) -> [String; 2] {
    let backend = world.sim().backend();
    [format!("{backend}/./codex"), backend]
}

/// The official CLI itself, with the person's own login, straight at the upstream.
fn directly(world: &World, args: &[&str]) -> Ran {
    let [responses, others] = addresses(world);
    let mut command = world.command(official(VERSION));
    command
        .args(["-c", &format!("openai_base_url=\"{responses}\"")])
        .args(["-c", &format!("chatgpt_base_url=\"{others}\"")])
        .args(args)
        .env("NO_PROXY", "127.0.0.1,localhost");
    finish(world, command, TURN_LIMIT)
}

/// A pool of `a` and `b`, the person's own login, and a thread that it has made without the shim.
fn with_plain_thread(own: &str) -> Option<World> {
    let world = machine(&["a", "b"])?;
    fs::write(world.codex_home().join("auth.json"), world.sim().auth_json(own)).unwrap();
    let ran = directly(&world, &["exec", "--skip-git-repo-check", "the word is heron"]).ok();
    assert_eq!(ran.stdout.trim(), format!("served by {own}"));
    Some(world)
}

/// Goes on with a thread through the shim: what was said before goes up again.
#[track_caller]
fn resumes(world: &World, which: &str) {
    let resume = ["exec", "--skip-git-repo-check", "resume", which, "which word?"];
    finish(world, codex(world, resume), TURN_LIMIT).ok();
    let input = posts(world).pop().unwrap().body["input"].to_string();
    for text in ["the word is heron", "served by ", "which word?"] {
        assert!(input.contains(text), "{text} is not in {input}");
    }
    assert_eq!(sessions(world).len(), 1, "no other thread was made");
}

#[track_caller]
fn assert_one_history(world: &World) {
    let another = ["exec", "--skip-git-repo-check", "another thread"];
    finish(world, codex(world, another), TURN_LIMIT).ok();
    let providers: Vec<_> = sessions(world).iter().map(provider).collect();
    assert_eq!(providers, ["openai", "openai"]);
    let listed = thread_list(world).to_string();
    for text in ["the word is heron", "another thread"] {
        assert!(listed.contains(text), "{text} is not in {listed}");
    }
    world.assert_clean();
}

#[test]
fn threads_made_with_and_without_the_shim_are_one_history() {
    let Some(world) = with_plain_thread("a") else { return };
    resumes(&world, "--last");
    assert_one_history(&world);
}

#[test]
fn threads_of_a_login_that_is_not_the_first_of_the_pool_are_in_it_too() {
    let Some(world) = with_plain_thread("b") else { return };
    let id = sessions(&world)[0]["payload"]["id"].as_str().unwrap().to_owned();
    resumes(&world, &id);
    assert_one_history(&world);
}

/// The CLI takes as the last thread one that its own user has made in its own workspace: the
/// account that speaks for the pool has to be the one of the person's login.
#[test]
fn the_last_thread_of_a_login_that_is_not_the_first_of_the_pool_goes_on() {
    let Some(world) = with_plain_thread("b") else { return };
    resumes(&world, "--last");
    world.assert_clean();
}

/// The first line of each session file.
fn sessions(world: &World) -> Vec<Value> {
    files(&world.codex_home().join("sessions"))
        .iter()
        .map(|file| {
            let text = fs::read_to_string(file).unwrap();
            serde_json::from_str(text.lines().next().unwrap()).unwrap()
        })
        .collect()
}

fn provider(session: &Value) -> String {
    session["payload"]["model_provider"].as_str().unwrap_or_default().to_owned()
}

/// What `resume` lists, asked from the CLI's own server through the shim.
fn thread_list(world: &World) -> Value {
    let mut command = codex(world, ["app-server"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = command.spawn().unwrap();
    let mut input = server.stdin.take().unwrap();
    for message in [
        json!({"id": 1, "method": "initialize", "params": {"clientInfo": {"name": "test", "version": "1"}}}),
        json!({"method": "initialized"}),
        json!({"id": 2, "method": "thread/list", "params": {"sourceKinds": ["exec"]}}),
    ] {
        writeln!(input, "{message}").unwrap();
    }
    let lines = BufReader::new(server.stdout.take().unwrap()).lines().map_while(Result::ok);
    let answer = lines
        .filter_map(|line| serde_json::from_str::<Value>(&line).ok())
        .find(|message| message["id"] == 2)
        .unwrap();
    drop(input);
    server.wait().unwrap();
    answer["result"]["data"].clone()
}
