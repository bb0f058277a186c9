//! Repositories with accounts of their own: which pool a folder means, and that none mixes.

use crate::codex_kit::{TURN, VERSION, bare, codex, finish, posts, upstream};
use cma_tests::{
    http::Door,
    sim::{AccountSpec, Fault, Route, SimConfig},
    world::{Ran, World},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(60);
const OTHER: &str = "01900000-0000-7000-8000-00000000000b";

fn world(names: &[&str]) -> World {
    let accounts = names.iter().map(|name| AccountSpec::new(name)).collect();
    World::new(SimConfig { accounts, ..SimConfig::default() })
}

fn git(dir: &Path, words: &[&str]) {
    let output = Command::new("git")
        .args([
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.test",
            "-c",
            "init.defaultBranch=main",
        ])
        .args(words)
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A repository with a commit.
fn repository(world: &World, name: &str) -> PathBuf {
    let dir = world.path(name);
    fs::create_dir_all(dir.join("src")).unwrap();
    git(&dir, &["init", "-q"]);
    git(&dir, &["commit", "-q", "--allow-empty", "-m", "one"]);
    dir
}

/// `cmactl` in a folder.
fn ctl_in(world: &World, dir: &Path, words: &str) -> Ran {
    let mut command = world.command("cmactl");
    command.args(words.split_whitespace()).current_dir(dir);
    world.finish(command)
}

fn import_in(world: &World, dir: &Path, name: &str) -> Value {
    import_file_in(world, dir, name, &world.sim().auth_json(name))
}

fn import_file_in(world: &World, dir: &Path, label: &str, auth_json: &str) -> Value {
    let file = world.path(&format!("tmp/{label}.auth.json"));
    fs::write(&file, auth_json).unwrap();
    let words = format!("import {} --label {label} --project --json", file.display());
    let ran = ctl_in(world, dir, &words).ok();
    fs::remove_file(&file).unwrap();
    ran.json()["accounts"][0].clone()
}

/// A client with a key of a launch in a folder.
fn door_in(world: &World, dir: &Path) -> Door {
    let plan = ctl_in(world, dir, "launch --print --json").ok().json();
    let text = |name: &str| plan[name].as_str().unwrap().to_owned();
    let base = text("base_url");
    let authority = base.trim_start_matches("http://").split('/').next().unwrap();
    Door { addr: authority.parse().unwrap(), key: text("client_key") }
}

#[track_caller]
fn turn(door: &Door) {
    let answer = door.send(&door.turn()).unwrap();
    assert!(answer.is_complete(), "{} {}", answer.status, answer.text());
}

/// Turns completed by each account since the last time.
fn served(world: &World, names: &[&str]) -> Vec<u64> {
    let stats = world.sim().stats();
    names.iter().map(|name| stats.accounts.get(*name).map_or(0, |one| one.completed)).collect()
}

fn shown(world: &World, dir: &Path) -> Value {
    ctl_in(world, dir, "status --project --json").ok().json()
}

fn names(accounts: &Value) -> Vec<String> {
    let all = accounts.as_array().unwrap().iter();
    all.map(|one| one["label"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_project_is_served_by_its_own_accounts_and_by_no_other() {
    let world = world(&["g", "p", "q"]);
    let (one, two) = (repository(&world, "one"), repository(&world, "two"));
    world.import("g", &world.sim().auth_json("g")).ok();
    assert_eq!(import_in(&world, &one, "p")["created"], true);
    assert_eq!(import_in(&world, &two, "q")["created"], true);
    let all = ["g", "p", "q"];
    let (global, of_one, of_two) =
        (Door::of(&world), door_in(&world, &one.join("src")), door_in(&world, &two));
    for door in [&global, &of_one, &of_two] {
        turn(door);
        turn(door);
    }
    assert_eq!(served(&world, &all), [2, 2, 2]);
    // The same thread in another folder is another pool's.
    for door in [&of_one, &global, &of_two] {
        assert!(door.send(&door.turn_in(OTHER)).unwrap().is_complete());
    }
    assert_eq!(served(&world, &all), [3, 3, 3]);
    // Who speaks for the pool is in it too.
    let whoami = "/api/accounts/v1/user-auth-credential/whoami";
    assert_eq!(of_one.get(whoami).unwrap().json()["email"], "p@example.test");
    assert_eq!(of_two.get(whoami).unwrap().json()["email"], "q@example.test");
    assert_eq!(global.get(whoami).unwrap().json()["email"], "g@example.test");
    // What people see is per pool.
    assert_eq!(names(&world.status()["accounts"]), ["g"]);
    assert_eq!(names(&shown(&world, &one)["accounts"]), ["p"]);
    assert_eq!(shown(&world, &two)["serves"], "project");
    let listed = world.ctl("project list --json").ok().json();
    assert_eq!(listed["projects"].as_array().unwrap().len(), 2);
    // When its own can't serve, nobody does: not even for the models.
    let before = served(&world, &all);
    world.ctl("disable p").ok();
    let refused = of_one.send(&of_one.turn()).unwrap();
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains("p: disabled by you") && !refused.text().contains("g:"));
    assert_ne!(of_one.get("/codex/models").unwrap().status, 200);
    assert_eq!(served(&world, &all), before);
    // A key survives a restart of the daemon, with its pool.
    world.ctl("enable p").ok();
    world.kill_daemon();
    world.status();
    turn(&of_one);
    assert_eq!(served(&world, &all)[1], before[1] + 1);
    world.assert_clean();
}

#[test]
fn pins_are_per_pool_and_outlive_the_daemon() {
    let world = world(&["g", "h", "p", "q"]);
    let repo = repository(&world, "repo");
    for name in ["g", "h"] {
        world.import(name, &world.sim().auth_json(name)).ok();
    }
    for name in ["p", "q"] {
        import_in(&world, &repo, name);
    }
    ctl_in(&world, &repo, "switch q --project").ok();
    world.ctl("switch h").ok();
    let wrong = ctl_in(&world, &repo, "switch g --project");
    assert!(wrong.code == 7 && wrong.stderr.contains("project add"), "{}", wrong.stderr);
    for restart in [false, true] {
        if restart {
            world.kill_daemon();
        }
        let pool = shown(&world, &repo);
        assert_eq!(
            (&pool["pin"]["account"], &pool["next"]),
            (&world_id(&pool, "q"), &world_id(&pool, "q"))
        );
        let status = world.status();
        assert_eq!(status["pin"]["account"], world_id(&status, "h"));
        turn(&door_in(&world, &repo));
        turn(&Door::of(&world));
    }
    assert_eq!(served(&world, &["g", "h", "p", "q"]), [0, 2, 0, 2]);
    ctl_in(&world, &repo, "unpin --project").ok();
    assert_eq!(shown(&world, &repo)["pin"], Value::Null);
    assert_ne!(world.status()["pin"], Value::Null, "the global pin is another");
    // A pinned account that goes takes its pin with it, on the disk as well.
    ctl_in(&world, &repo, "switch q --project").ok();
    world.ctl("remove q --yes").ok();
    world.kill_daemon();
    assert_eq!(shown(&world, &repo)["pin"], Value::Null);
    world.assert_clean();
}

fn world_id(pool: &Value, label: &str) -> Value {
    let all = pool["accounts"].as_array().unwrap();
    all.iter().find(|one| one["label"] == label).unwrap_or_else(|| panic!("{pool}"))["id"].clone()
}

#[test]
fn an_account_of_two_pools_has_one_login_that_is_renewed_once() {
    let world = world(&["a"]);
    let (one, two) = (repository(&world, "one"), repository(&world, "two"));
    let login = world.sim().auth_json("a");
    world.import("a", &login).ok();
    // The very same file, and then a login of its own, in two projects.
    let joined = import_file_in(&world, &one, "a", &login);
    assert_eq!(joined["created"], false);
    let fresh = import_in(&world, &two, "a");
    assert_eq!((&fresh["created"], &fresh["id"]), (&json!(false), &joined["id"]));
    let account = world.account("a");
    assert_eq!(account["pools"].as_array().unwrap().len(), 3, "{account}");
    let files = cma_tests::world::files(&world.root().join("accounts"));
    let logins = files.iter().filter(|file| !file.to_string_lossy().contains(".previous."));
    assert_eq!(logins.count(), 1, "one record for all pools: {files:?}");
    let doors = [Door::of(&world), door_in(&world, &one), door_in(&world, &two)];
    for round in 1..=3 {
        world.sim().expire_access("a");
        let slow = Fault::DelayAnswer(Duration::from_millis(100));
        world.sim().fault(None, Route::Refresh, slow, Some(1));
        std::thread::scope(|scope| {
            let sent: Vec<_> = (0..24)
                .map(|n| &doors[n % 3])
                .map(|door| scope.spawn(move || door.send(&door.turn()).unwrap()))
                .collect();
            for sent in sent {
                assert!(sent.join().unwrap().is_complete());
            }
        });
        let stats = world.sim().stats().accounts["a"].clone();
        assert_eq!((stats.refresh_requests, stats.refreshes_at_once, stats.reused), (round, 1, 0));
    }
    world.assert_clean();
}

#[test]
fn accounts_join_and_leave_projects_and_a_forgotten_one_takes_its_own_with_it() {
    let world = world(&["g", "p"]);
    let repo = repository(&world, "repo");
    world.import("g", &world.sim().auth_json("g")).ok();
    import_in(&world, &repo, "p");
    ctl_in(&world, &repo, "project add g").ok();
    assert_eq!(names(&shown(&world, &repo)["accounts"]), ["g", "p"]);
    assert_eq!(names(&world.status()["accounts"]), ["g"]);
    ctl_in(&world, &repo, "project drop g").ok();
    assert_eq!(names(&shown(&world, &repo)["accounts"]), ["p"]);
    let last = ctl_in(&world, &repo, "project drop p");
    assert!(last.code == 2 && last.stderr.contains("cmactl remove"), "{}", last.stderr);
    assert_eq!(ctl_in(&world, &repo, "project drop g").code, 7);
    // It can also leave the global pool for the project.
    ctl_in(&world, &repo, "project add g --only").ok();
    let status = world.status();
    assert_eq!(names(&status["accounts"]), Vec::<String>::new());
    assert!(status["notes"][0].as_str().unwrap().contains("project list"), "{status}");
    let aside = world.ctl("launch --print");
    assert!(aside.code == 1 && aside.stderr.contains("global pool is empty"), "{}", aside.stderr);
    world.import("g", &world.sim().auth_json("g")).ok();
    assert_eq!(names(&world.status()["accounts"]), ["g"]);

    assert_eq!(ctl_in(&world, &repo, "project forget").code, 2, "nobody to ask");
    let forgotten = ctl_in(&world, &repo, "project forget --yes --json").ok().json();
    assert_eq!((&forgotten["removed"], &forgotten["stayed"]), (&json!(["p"]), &json!(["g"])));
    assert_eq!(world.ctl("project list --json").ok().json()["projects"], json!([]));
    assert_eq!(ctl_in(&world, &repo, "project forget --yes").code, 7);
    turn(&door_in(&world, &repo));
    assert_eq!(served(&world, &["g", "p"]), [1, 0], "the folder is like any other again");
    assert_eq!(ctl_in(&world, &world.path("work"), "import --project").code, 7);
    world.assert_clean();
}

#[test]
fn a_policy_counts_only_as_it_was_allowed() {
    let world = world(&["g", "h", "p"]);
    let repo = repository(&world, "repo");
    for name in ["g", "h"] {
        world.import(name, &world.sim().auth_json(name)).ok();
    }
    import_in(&world, &repo, "p");
    // So that it is known which one of the global pool serves.
    world.ctl("switch g").ok();
    let policy = repo.join(".cma.toml");
    let notes = || ctl_in(&world, &repo, "launch --print").ok().stderr;
    assert_eq!(ctl_in(&world, &repo, "allow").code, 7, "there is none yet");
    assert_eq!(notes(), "");

    fs::write(&policy, "pool = 'global'\naccounts = ['h']\n").unwrap();
    turn(&door_in(&world, &repo));
    assert_eq!(served(&world, &["g", "h", "p"]), [0, 0, 1], "not allowed yet: it says nothing");
    assert!(notes().contains("cmactl allow") && notes().contains("is new"), "{}", notes());
    assert_eq!(shown(&world, &repo)["policy"]["state"], "new");

    ctl_in(&world, &repo.join("src"), "allow").ok();
    assert_eq!(notes(), "");
    let of_h = door_in(&world, &repo);
    turn(&of_h);
    turn(&of_h);
    assert_eq!(served(&world, &["g", "h", "p"]), [0, 2, 1]);

    // Any change, and it counts no longer; a running launch keeps what it was started with.
    fs::write(&policy, "pool = 'project'\nfallback = true\n").unwrap();
    assert!(notes().contains("has changed"), "{}", notes());
    turn(&door_in(&world, &repo));
    turn(&of_h);
    assert_eq!(served(&world, &["g", "h", "p"]), [0, 3, 2]);
    ctl_in(&world, &repo, "project allow").ok();
    assert_eq!(shown(&world, &repo)["serves"], "project_then_global");
    let falls = door_in(&world, &repo);
    turn(&falls);
    world.ctl("disable p").ok();
    turn(&falls);
    assert_eq!(served(&world, &["g", "h", "p"]), [1, 3, 3]);
    world.ctl("enable p").ok();

    // Refused: it doesn't count and nothing is said of it, until it changes.
    fs::write(&policy, "accounts = ['nobody']\n").unwrap();
    ctl_in(&world, &repo, "deny").ok();
    assert_eq!(notes(), "");
    turn(&door_in(&world, &repo));
    ctl_in(&world, &repo, "allow").ok();
    let none = ctl_in(&world, &repo, "launch --print");
    assert!(none.code == 8 && none.stderr.contains("names is in its pool"), "{}", none.stderr);

    // It names nothing but what a person has: an address, a token or a command make it void.
    for evil in ["upstream = 'http://127.0.0.1:1'", "access_token = 'x'", "[hooks]\nrun = 'x'"] {
        fs::write(&policy, evil).unwrap();
        let refused = ctl_in(&world, &repo, "allow");
        assert!(refused.code == 3 && refused.stderr.contains("line 1"), "{}", refused.stderr);
    }
    world.assert_clean();
}

#[test]
fn a_policy_that_wants_a_pool_without_accounts_stops_the_launch() {
    let world = world(&["g", "h"]);
    let repo = repository(&world, "repo");
    world.import("g", &world.sim().auth_json("g")).ok();
    world.import("h", &world.sim().auth_json("h")).ok();
    world.ctl("switch g").ok();
    fs::write(repo.join(".cma.toml"), "pool = 'project'\n").unwrap();
    ctl_in(&world, &repo, "allow").ok();
    let none = ctl_in(&world, &repo, "launch --print");
    assert_eq!(none.code, 8, "{}", none.stderr);
    assert!(none.stderr.contains("cmactl import --project"), "{}", none.stderr);
    // With the fallback the global pool serves; with a limit of the folder only part of it.
    fs::write(repo.join(".cma.toml"), "pool = 'project'\nfallback = true\n").unwrap();
    ctl_in(&world, &repo, "allow").ok();
    ctl_in(&world, &repo, "workspace use h --project").ok();
    let door = door_in(&world, &repo);
    turn(&door);
    turn(&Door::of(&world));
    assert_eq!(served(&world, &["g", "h"]), [1, 1]);
    assert_eq!(
        ctl_in(&world, &repo, "workspace show --json").ok().json()["here"],
        json!(["acct-h"])
    );
    world.assert_clean();
}

#[test]
fn a_forged_git_file_opens_nobody_elses_pool() {
    let world = world(&["g", "p"]);
    let repo = repository(&world, "repo");
    let linked = world.path("linked");
    git(&repo, &["worktree", "add", "-q", &linked.display().to_string()]);
    world.import("g", &world.sim().auth_json("g")).ok();
    import_in(&world, &repo, "p");
    turn(&door_in(&world, &linked));
    assert_eq!(served(&world, &["g", "p"]), [0, 1], "a linked worktree shares the pool");
    let real = repo.join(".git/worktrees/linked");
    let evil = world.path("evil");
    let fake = evil.join("fake/worktrees/linked");
    fs::create_dir_all(&fake).unwrap();
    fs::write(fake.join("commondir"), format!("{}\n", repo.join(".git").display())).unwrap();
    fs::write(fake.join("gitdir"), format!("{}\n", evil.join(".git").display())).unwrap();
    for named in [real.clone(), repo.join(".git"), fake, repo.clone()] {
        fs::write(evil.join(".git"), format!("gitdir: {}\n", named.display())).unwrap();
        turn(&door_in(&world, &evil));
        let pool = shown(&world, &evil);
        assert_eq!(names(&pool["accounts"]), Vec::<String>::new(), "{}", named.display());
    }
    assert_eq!(served(&world, &["g", "p"]), [4, 1]);
    // The person is told why, where a claim was not believed.
    fs::write(evil.join(".git"), format!("gitdir: {}\n", real.display())).unwrap();
    let notes = shown(&world, &evil)["notes"].to_string();
    assert!(notes.contains("claims another repository"), "{notes}");
    // A copy of the worktree elsewhere is not the worktree.
    let copy = world.path("copy");
    fs::create_dir(&copy).unwrap();
    fs::copy(linked.join(".git"), copy.join(".git")).unwrap();
    assert_eq!(names(&shown(&world, &copy)["accounts"]), Vec::<String>::new());
    world.assert_clean();
}

#[test]
fn the_real_cli_in_a_repository_and_its_worktree_uses_the_projects_account() {
    let Some(world) = bare(upstream(&["g", "p"]), VERSION) else { return };
    let repo = repository(&world, "repo");
    let linked = world.path("linked");
    git(&repo, &["worktree", "add", "-q", &linked.display().to_string()]);
    world.import("g", &world.sim().auth_json("g")).ok();
    import_in(&world, &repo, "p");
    let run = |dir: &Path| {
        let mut command = codex(&world, TURN);
        command.current_dir(dir);
        finish(&world, command, LIMIT)
    };
    for (dir, account) in [(repo.clone(), "p"), (linked.clone(), "p"), (world.path("work"), "g")] {
        let ran = run(&dir).ok();
        assert!(ran.stdout.contains(&format!("served by {account}")), "{}: {ran:?}", dir.display());
    }
    // By `-C` it is the folder that counts, not where the person stands.
    let mut command = codex(&world, ["-C", &linked.display().to_string()].into_iter().chain(TURN));
    command.current_dir(world.path("work"));
    let ran = finish(&world, command, LIMIT).ok();
    assert!(ran.stdout.contains("served by p"), "{ran:?}");
    // A policy that changed: one line with the command, and the CLI runs all the same.
    fs::write(linked.join(".cma.toml"), "pool = 'global'\n").unwrap();
    ctl_in(&world, &linked, "allow").ok();
    assert!(run(&linked).ok().stdout.contains("served by g"));
    fs::write(linked.join(".cma.toml"), "pool = 'global' \n").unwrap();
    let ran = run(&linked).ok();
    assert!(ran.stdout.contains("served by p"), "{ran:?}");
    let said: Vec<_> = ran.stderr.lines().filter(|line| line.starts_with("cma: ")).collect();
    assert!(said.len() == 1 && said[0].contains("cmactl allow"), "{said:?}");
    let by = |account: &str| {
        posts(&world).iter().filter(|seen| seen.account.as_deref() == Some(account)).count()
    };
    assert_eq!((by("g"), by("p")), (2, 4));
    world.assert_clean();
}
