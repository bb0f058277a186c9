//! How the CLI is started: which one, with which arguments and environment, and when not at all.
//!
//! Where only the start matters, a script stands for the CLI: it lies as npm would lay it and prints
//! what it was given.

use crate::codex_kit::{
    TURN, VERSION, bare, codex, finish, machine, official, posts, turn, upstream,
};
use cma_tests::world::{Ran, World, bin_dir, copy_program, write_script};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(60);

/// A stand-in for the CLI of that version; the folder to put on PATH.
fn stand_in(world: &World, version: &str) -> PathBuf {
    let package = world.path(&format!("npm-{version}/lib/node_modules/@openai/codex"));
    fs::create_dir_all(package.join("bin")).unwrap();
    let about = format!(r#"{{"name": "@openai/codex", "version": "{version}"}}"#);
    fs::write(package.join("package.json"), about).unwrap();
    let script = package.join("bin/codex.js");
    let text = format!(
        "#!/bin/sh\ncase \"$1\" in --version) echo codex-cli {version}; exit;; esac\n\
         for arg; do echo \"arg $arg\"; done\nenv | sed 's/^/env /'\nexit 7\n"
    );
    write_script(&script, &text);
    let bin = world.path(&format!("npm-{version}/bin"));
    fs::create_dir_all(&bin).unwrap();
    symlink(&script, bin.join("codex")).unwrap();
    bin
}

/// The printed command, as a person runs it whose PATH has the shim first.
#[test]
fn a_printed_command_runs_through_the_shim() {
    let Some(world) = machine(&["a"]) else { return };
    for plan in ["launch --print", "launch --print --own-auth"] {
        if plan.contains("own") {
            fs::write(world.codex_home().join("auth.json"), world.sim().auth_json("a")).unwrap();
            world.ctl("import").ok();
        }
        let mut command = world.command("sh");
        let path = command.get_envs().find(|(name, _)| *name == "PATH").unwrap().1.unwrap();
        let path = format!("{}:{}", bin_dir().display(), path.to_string_lossy());
        let line = format!("eval \"$(cmactl {plan}) exec --skip-git-repo-check hi\"");
        command.args(["-c", &line]).env("PATH", path);
        let ran = finish(&world, command, LIMIT).ok();
        assert!(ran.stdout.contains("served by a"), "{plan}: {ran:?}");
    }
    assert_eq!(world.status()["proxy"]["refused"], 0);
    world.assert_clean();
}

/// A pool with one account, and a stand-in for the CLI.
fn staged(version: &str) -> World {
    let world = World::new(upstream(&["a"]));
    let bin = stand_in(&world, version);
    let world = world.with_path(&[&bin]);
    world.import_all();
    world
}

/// What the stand-in was given; it must have been started.
struct Given {
    args: Vec<String>,
    env: Vec<String>,
    stderr: String,
}

impl Given {
    #[track_caller]
    fn of(ran: &Ran) -> Self {
        assert_eq!(ran.code, 7, "the stand-in's own exit status: {ran:?}");
        let lines = |kind: &str| {
            ran.stdout
                .lines()
                .filter_map(|line| line.strip_prefix(kind))
                .map(str::to_owned)
                .collect()
        };
        Self { args: lines("arg "), env: lines("env "), stderr: ran.stderr.clone() }
    }

    fn has(&self, name: &str) -> bool {
        self.env.iter().any(|line| line.starts_with(&format!("{name}=")))
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.env.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }

    fn is_through(&self) -> bool {
        self.value("CODEX_ACCESS_TOKEN").is_some_and(|key| key.starts_with("at-cma-"))
    }
}

fn given(world: &World, args: &[&str], env: &[(&str, &str)]) -> Given {
    let mut command = codex(world, args.iter().copied());
    command.envs(env.iter().copied());
    Given::of(&finish(world, command, LIMIT))
}

#[test]
fn the_plan_gives_two_addresses_and_keeps_the_key_out_of_the_arguments() {
    let world = staged(VERSION);
    let given = given(&world, &["exec", "hi"], &[("NO_PROXY", "x.test"), ("no_proxy", "y.test")]);
    assert!(given.is_through(), "{:?}", given.env);
    let url = world.status()["proxy"]["url"].as_str().unwrap().to_owned();
    let args = given.args.join(" ");
    assert!(args.contains(&format!("openai_base_url=\"{url}/codex\"")), "{args}");
    assert!(args.contains(&format!("chatgpt_base_url=\"{url}/backend-api\"")), "{args}");
    assert!(args.ends_with("exec hi"), "{args}");
    assert!(!args.contains("at-cma-") && !args.contains("--no-daemon"), "{args}");
    for name in ["NO_PROXY", "no_proxy"] {
        assert_eq!(given.value(name), Some("x.test,y.test,127.0.0.1,localhost,::1"));
    }
    assert_eq!(given.stderr, "");
    world.assert_clean();
}

#[test]
fn the_terminal_interface_gets_no_daemon_in_root_position_where_the_version_has_it() {
    let world = staged(VERSION);
    for args in [&[][..], &["a prompt"], &["resume", "--last"], &["fork"], &["-m", "x", "resume"]] {
        let given = given(&world, args, &[]);
        assert_eq!(given.args[0], "--no-daemon", "{args:?}: {:?}", given.args);
        assert_eq!(given.args.iter().filter(|arg| *arg == "--no-daemon").count(), 1);
    }
    let own = given(&world, &["--no-daemon"], &[]);
    assert_eq!(own.args.iter().filter(|arg| *arg == "--no-daemon").count(), 1, "{:?}", own.args);
    for args in [&["exec", "hi"][..], &["review"], &["app-server"]] {
        assert!(!given(&world, args, &[]).args.contains(&"--no-daemon".to_owned()), "{args:?}");
    }
    let world = staged("0.149.0");
    let given = given(&world, &[], &[]);
    assert!(
        given.is_through() && !given.args.contains(&"--no-daemon".to_owned()),
        "{:?}",
        given.args
    );
    world.assert_clean();
}

#[test]
fn a_launch_that_stands_aside_changes_nothing() {
    let world = staged(VERSION);
    for (args, env) in [
        (&["exec", "hi"][..], &[("CODEX_API_KEY", "sk-own")][..]),
        (
            &["exec", "hi"],
            &[("CODEX_ACCESS_TOKEN", "at-own"), ("CODEX_AUTHAPI_BASE_URL", "http://own")],
        ),
        (&["exec", "-c", "model_provider=own", "hi"], &[]),
        (&["-c", "openai_base_url=http://own", "exec", "hi"], &[]),
        (&["exec", "--oss", "hi"], &[]),
        (&["--remote", "ws://own"], &[]),
        (&["agents"], &[]),
        (&["queue"], &[]),
        (&["remote-control"], &[]),
        (&["app-server", "daemon"], &[]),
        (&["login"], &[]),
        (&["logout"], &[]),
        (&["exec", "-c", "forced_login_method=api", "hi"], &[]),
    ] {
        let given = given(&world, args, env);
        assert_eq!(given.args, args);
        // What these two do to the pool's logins is said before they run.
        if ["login", "logout"].contains(&args[0]) {
            assert!(given.stderr.lines().all(|line| line.starts_with("cma: ")), "{args:?}");
            assert!(given.stderr.contains("the pool"), "{args:?}: {}", given.stderr);
        } else {
            assert_eq!(given.stderr, "", "{args:?}");
        }
        for name in ["CODEX_ACCESS_TOKEN", "CODEX_AUTHAPI_BASE_URL", "NO_PROXY", "no_proxy"] {
            let own = env.iter().find(|(own, _)| *own == name).map(|(_, value)| *value);
            assert_eq!(given.value(name), own, "{name}, {args:?}");
        }
    }
    world.assert_clean();
}

/// The daemon would look at another path and miss what stands there, a forced login among it.
#[test]
fn a_home_that_the_daemon_cannot_be_told_of_means_plain() {
    let world = staged(VERSION);
    let home = world.path("home").join(OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("config.toml"), "forced_login_method = \"api\"\n").unwrap();
    let mut command = codex(&world, ["exec", "hi"]);
    command.env("CODEX_HOME", &home).env("CODEX_MULTI_AUTH_DIR", world.root());
    let given = Given::of(&finish(&world, command, LIMIT));
    assert!(!given.is_through() && given.args == ["exec", "hi"], "{:?}", given.args);
    assert_eq!(given.stderr.lines().count(), 1, "{}", given.stderr);
    assert!(given.stderr.contains("is not UTF-8"), "{}", given.stderr);
    world.assert_clean();
}

#[test]
fn what_an_outer_launch_left_is_replaced_or_removed() {
    let world = staged(VERSION);
    let outer = [
        ("CODEX_ACCESS_TOKEN", "at-cma-outer.key"),
        ("CODEX_AUTHAPI_BASE_URL", "http://127.0.0.1:1/api/accounts"),
        ("CMA_SHIM_PID", "1"),
    ];
    let inner = given(&world, &["exec", "hi"], &outer);
    assert!(inner.is_through());
    assert_ne!(inner.value("CODEX_ACCESS_TOKEN"), Some("at-cma-outer.key"));
    let plain = given(&world, &["login"], &outer);
    assert!(!plain.has("CODEX_ACCESS_TOKEN") && !plain.has("CODEX_AUTHAPI_BASE_URL"));
    world.assert_clean();
}

#[test]
fn commands_without_requests_start_no_daemon() {
    let Some(world) = bare(upstream(&["a"]), VERSION) else { return };
    let version = world.run("codex", ["--version"]).ok();
    assert_eq!(version.stdout.trim(), format!("codex-cli {VERSION}"));
    let help = world.run("codex", ["--help"]).ok();
    assert!(help.stdout.contains("Usage: codex"), "{}", help.stdout);
    world.run("codex", ["features", "list"]).ok();
    assert!(!world.root().exists(), "the root was made");
    assert_eq!(world.daemon_pid(), None);
    world.assert_clean();
}

#[test]
fn codex_auth_is_cmactl() {
    let world = staged(VERSION);
    let ours = world.run("codex", ["auth", "list", "--json"]).ok();
    assert_eq!(ours.json(), world.ctl("list --json").ok().json());
    let status = world.run("codex", ["auth", "status", "--json"]).ok().json();
    assert_eq!(status["daemon"]["pid"], world.status()["daemon"]["pid"]);
    let wrong = world.run("codex", ["auth", "switch", "nobody"]);
    assert_eq!(wrong.code, world.ctl("switch nobody").code);
    world.assert_clean();
}

/// A folder with this one file as `codex`.
fn folder(world: &World, name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let folder = world.path(name);
    fs::create_dir(&folder).unwrap();
    make(&folder.join("codex"));
    folder
}

fn copied(world: &World, name: &str) -> PathBuf {
    folder(world, name, |codex| {
        copy_program(&bin_dir().join("codex"), codex);
    })
}

fn linked(world: &World, name: &str) -> PathBuf {
    folder(world, name, |codex| symlink(bin_dir().join("codex"), codex).unwrap())
}

/// PATH with these folders in front of the system's own.
fn path(folders: &[&Path]) -> String {
    let system = ["/usr/local/bin", "/usr/bin", "/bin"].map(Path::new);
    let all = folders.iter().copied().chain(system);
    std::env::join_paths(all).unwrap().into_string().unwrap()
}

/// A `codex` by its path, with another PATH.
fn shim_with(world: &World, shim: &Path, path: &str, args: &[&str]) -> Command {
    let mut command = world.command(shim);
    command.args(args).env("PATH", path);
    command
}

#[test]
fn many_shims_on_the_path_lead_to_the_real_cli_once() {
    let Some(world) = machine(&["a"]) else { return };
    let (link, one, two) = (linked(&world, "link"), copied(&world, "one"), copied(&world, "two"));
    let real = official(VERSION);
    let real = real.parent().unwrap();
    for order in [[&link, &one, &two], [&one, &link, &two], [&two, &one, &link]] {
        let path = path(&[order[0], order[1], order[2], &bin_dir(), real]);
        let command = shim_with(&world, &order[0].join("codex"), &path, &TURN);
        let ran = finish(&world, command, LIMIT).ok();
        assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    }
    assert_eq!(posts(&world).len(), 3);
    world.assert_clean();
}

#[test]
fn a_launcher_that_calls_codex_by_name_leads_to_the_next_one() {
    let world = staged(VERSION);
    let real = world.path(&format!("npm-{VERSION}/bin"));
    for (name, call) in [("execs", "exec codex \"$@\""), ("spawns", "codex \"$@\"\nexit $?")] {
        let launcher = folder(&world, name, |codex| {
            write_script(codex, &format!("#!/bin/sh\n{call}\n"));
        });
        let path = path(&[&bin_dir(), &launcher, &real]);
        let command = shim_with(&world, &bin_dir().join("codex"), &path, &["exec", "hi"]);
        let given = Given::of(&finish(&world, command, LIMIT));
        assert!(given.is_through(), "{name}: {}", given.stderr);
        let count = given.args.iter().filter(|arg| arg.starts_with("openai_base_url")).count();
        assert_eq!(count, 1, "{name}: {:?}", given.args);
    }
    world.assert_clean();
}

#[test]
fn a_chosen_codex_that_is_ours_is_refused() {
    let world = staged(VERSION);
    let link = linked(&world, "link").join("codex");
    for own in [&bin_dir().join("codex"), &link] {
        let mut command = codex(&world, TURN);
        command.env("CMA_CODEX_BIN", own);
        let ran = finish(&world, command, LIMIT);
        assert_eq!((ran.code, ran.stdout.as_str()), (126, ""), "{ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(ran.stderr.contains("CMA_CODEX_BIN"), "{}", ran.stderr);
    }
    world.assert_clean();
}

#[test]
fn a_chosen_codex_that_leads_back_with_no_other_is_refused() {
    let world = staged(VERSION);
    let copy = copied(&world, "copy");
    let path = path(&[&bin_dir(), &copy]);
    let mut command = shim_with(&world, &bin_dir().join("codex"), &path, &TURN);
    command.env("CMA_CODEX_BIN", copy.join("codex"));
    let ran = finish(&world, command, LIMIT);
    assert_eq!(ran.code, 126, "{ran:?}");
    world.assert_clean();
}

#[test]
fn without_a_real_codex_a_hint_says_how_to_get_one() {
    let world = World::new(upstream(&["a"]));
    let command = shim_with(&world, &bin_dir().join("codex"), &path(&[&bin_dir()]), &TURN);
    let ran = finish(&world, command, LIMIT);
    assert_eq!((ran.code, ran.stdout.as_str()), (127, ""), "{ran:?}");
    assert!(ran.stderr.contains("npm install -g @openai/codex"), "{}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    world.assert_clean();
}

#[test]
fn without_a_daemon_plain_codex_runs_with_a_line() {
    let world = World::new(upstream(&["a"]));
    let real = stand_in(&world, VERSION);
    let alone = copied(&world, "alone");
    let start = |policy: &str| {
        let path = path(&[&alone, &real]);
        let mut command = shim_with(&world, &alone.join("codex"), &path, &["exec", "hi"]);
        command.env("CMA_ON_UNAVAILABLE", policy);
        finish(&world, command, LIMIT)
    };
    for policy in ["", "direct"] {
        let given = Given::of(&start(policy));
        assert_eq!(given.args, ["exec", "hi"]);
        assert!(!given.has("CODEX_ACCESS_TOKEN") && !given.has("NO_PROXY"));
        assert_eq!(given.stderr.lines().count(), 1, "{}", given.stderr);
        assert!(given.stderr.contains("running codex without cma"), "{}", given.stderr);
    }
    let refused = start("error");
    assert_eq!(refused.stdout, "", "codex was not started");
    assert!(refused.code != 0 && refused.code != 7, "{refused:?}");
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    world.assert_clean();
}

#[test]
fn an_earlier_version_works_too_with_overrides_of_the_persons_own() {
    let Some(world) = bare(upstream(&["a"]), "0.149.0") else { return };
    world.import_all();
    assert_eq!(turn(&world).ok().stdout.trim(), "served by a");
    let own = ["exec", "-c", "model_reasoning_effort=low", "--skip-git-repo-check", "hi"];
    let ran = finish(&world, codex(&world, own), LIMIT).ok();
    assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
    let seen = posts(&world);
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[1].body["reasoning"]["effort"], "low");
    world.assert_clean();
}

/// Runs a command as a tool of a turn; it writes files into the working folder.
fn as_tool(world: &World, command: &str, flags: &[&str]) {
    world.sim().script_tool_call(command);
    let args = ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"];
    let ran = finish(world, codex(world, [&args[..], flags, &["go"]].concat()), LIMIT).ok();
    assert_eq!(ran.stdout.trim(), "served by a", "{}", ran.stderr);
}

fn written(world: &World, name: &str) -> String {
    fs::read_to_string(world.path("work").join(name)).unwrap_or_default()
}

#[test]
fn a_codex_run_by_a_tool_of_a_codex_works() {
    let Some(world) = machine(&["a"]) else { return };
    let inner = "exec --skip-git-repo-check inner";
    let real = official(VERSION);
    // The tool's login shell has forgotten our PATH; a person's own profile sets theirs.
    let command = format!(
        "PATH={shim}:{}:$PATH; codex {inner} >by-name 2>by-name.err; echo $? >>by-name; \
         {shim}/codex {inner} >by-path 2>by-path.err; echo $? >>by-path",
        real.parent().unwrap().display(),
        shim = bin_dir().display(),
    );
    as_tool(&world, &command, &[]);
    for name in ["by-name", "by-path"] {
        let said = written(&world, &format!("{name}.err"));
        assert_eq!(written(&world, name), "served by a\n0\n", "{name}: {said}");
    }
    assert_eq!(posts(&world).len(), 4);
    assert_eq!(world.status()["proxy"]["refused"], 0);
    world.assert_clean();
}

#[test]
fn a_tool_has_no_key_and_keeps_what_its_person_set() {
    let Some(world) = machine(&["a"]) else { return };
    let config = "[shell_environment_policy]\nexclude = ['HIDDEN']\nset = { OWN = 'kept' }\n";
    fs::write(world.codex_home().join("config.toml"), config).unwrap();
    let world = world.with_env("HIDDEN", "hidden").with_env("SHOWN", "shown");
    as_tool(&world, "env >tool.env", &["-c", "shell_environment_policy.set.MORE=\"kept too\""]);
    let env = written(&world, "tool.env");
    let has = |line: &str| env.lines().any(|have| have == line);
    assert!(has("OWN=kept") && has("MORE=kept too") && has("SHOWN=shown"), "{env}");
    assert!(!env.contains("HIDDEN="), "{env}");
    for name in ["CODEX_ACCESS_TOKEN", "CODEX_AUTHAPI_BASE_URL"] {
        let value = env.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        assert_eq!(value.unwrap_or_default(), "", "{env}");
    }
    // A whole table after the command would undo what the plan sets within it, were it last.
    as_tool(&world, "env >tool.env", &["-c", "shell_environment_policy.set={TABLE=\"kept\"}"]);
    let env = written(&world, "tool.env");
    assert!(env.lines().any(|line| line == "TABLE=kept"), "{env}");
    assert!(!env.contains("at-cma-"), "{env}");
    world.assert_clean();
}

#[test]
fn a_launch_is_named_in_status_by_nothing_secret() {
    let world = staged(VERSION);
    let plan: Value = world.launch();
    let key = plan["client_key"].as_str().unwrap();
    for words in ["status --json", "logs --json", "why --json"] {
        assert!(!world.ctl(words).stdout.contains(key), "{words}");
    }
    world.assert_clean();
}
