//! Own-auth mode: the CLI on its own `auth.json`, through the proxy, without a chance to spend the
//! pool's login.

use crate::codex_kit::{TURN, VERSION, bare, codex, finish, logged, posts, upstream};
use cma_tests::{
    http::{Ask, Door, Line, turn_body},
    world::{Ran, World, eventually},
};
use serde_json::Value;
use std::{fs, time::Duration};

const LIMIT: Duration = Duration::from_secs(60);
/// What stands for a refresh token of the pool's in a CLI's file.
const OPAQUE: &str = "cma-the-pool-renews-this-login";

/// A pool of `a` and `b`, the CLI, and a person whose own login is `auth`.
fn person(auth: impl FnOnce(&World) -> String) -> Option<World> {
    let world = bare(upstream(&["a", "b"]), VERSION)?.with_env("CMA_AUTH_MODE", "own");
    let auth = auth(&world);
    world.import("a", &auth).ok();
    world.import("b", &world.sim().auth_json("b")).ok();
    fs::write(file(&world), auth).unwrap();
    Some(world)
}

fn file(world: &World) -> std::path::PathBuf {
    world.codex_home().join("auth.json")
}

fn tokens(world: &World) -> Value {
    let auth: Value = serde_json::from_slice(&fs::read(file(world)).unwrap()).unwrap();
    auth["tokens"].clone()
}

fn turn(world: &World) -> Ran {
    finish(world, codex(world, TURN), LIMIT)
}

/// Requests to the issuer, whoever made them.
fn at_issuer(world: &World, path: &str) -> usize {
    world.sim().seen().iter().filter(|seen| seen.path == path).count()
}

#[test]
fn an_expired_own_token_costs_one_renewal_by_the_daemon() {
    let Some(world) = person(|world| world.sim().auth_json_expired("a")) else { return };
    let before = tokens(&world);
    for _ in 0..2 {
        let ran = turn(&world).ok();
        assert!(ran.stdout.contains("served by a"), "{ran:?}");
    }
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refresh_requests, stats.refreshed, stats.reused), (1, 1, 0));
    assert_eq!((at_issuer(&world, "/oauth/token"), posts(&world).len()), (1, 2));
    let after = tokens(&world);
    assert_ne!(after["access_token"], before["access_token"]);
    // What the CLI keeps now is nobody's refresh token: plain `codex` can't spend the chain.
    assert_eq!(after["refresh_token"], OPAQUE);
    assert_eq!(world.status()["proxy"]["refused"], 0);
    eventually("the log has it", || logged(&world, "a CLI was given the current token") == 1);
    // Imported again, the file takes nothing away from the pool.
    world.ctl("import").ok();
    assert_eq!(world.account("a")["state"], "ready");
    world.sim().expire_access("a");
    world.ctl("switch a").ok();
    assert!(turn(&world).ok().stdout.contains("served by a"));
    assert_eq!(world.sim().stats().accounts["a"].reused, 0);
    world.assert_clean();
}

/// CLIs that take no login from the environment need none in this mode; the oldest is told its upstream by
/// the environment.
#[test]
fn older_clis_are_served_on_their_own_login() {
    for version in ["0.128.0", "0.98.0"] {
        let Some(world) = bare(upstream(&["a", "b"]), version) else { return };
        let world = world.with_env("CMA_AUTH_MODE", "own");
        let auth = world.sim().auth_json_expired("a");
        world.import("a", &auth).ok();
        world.import("b", &world.sim().auth_json("b")).ok();
        fs::write(file(&world), auth).unwrap();
        world.ctl("switch b").ok();
        let ran = turn(&world).ok();
        assert!(ran.stdout.contains("served by b"), "{version}: {ran:?}");
        assert!(!ran.stderr.contains("cma: "), "{version}: {}", ran.stderr);
        // Whoever renews, it is the daemon, once.
        let stats = world.sim().stats().accounts["a"].clone();
        assert!(stats.refresh_requests <= 1 && stats.reused == 0, "{version}: {stats:?}");
        assert_eq!(at_issuer(&world, "/oauth/token") as u64, stats.refresh_requests, "{version}");
        // An address of the person's own is theirs: where nobody listens, nobody is asked.
        let before = posts(&world).len();
        if version == "0.98.0" {
            let mut command = codex(&world, TURN);
            command.env("OPENAI_BASE_URL", "http://127.0.0.1:9/v1");
            assert_ne!(finish(&world, command, LIMIT).code, 0);
            assert_eq!(posts(&world).len(), before);
        }
        // They write their own login into a log of their own.
        for entry in fs::read_dir(world.codex_home()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("logs_") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        world.assert_no_secrets();
    }
}

#[test]
fn a_login_of_its_own_chain_keeps_its_refresh_token() {
    let Some(world) = person(|world| world.sim().auth_json("a")) else { return };
    // The person signed in once more, elsewhere: another chain, unspent, and nowhere else.
    fs::write(file(&world), world.sim().auth_json_expired("a")).unwrap();
    let before = tokens(&world);
    assert!(turn(&world).ok().stdout.contains("served by"));
    let after = tokens(&world);
    assert_eq!(after["refresh_token"], before["refresh_token"]);
    assert_ne!(after["access_token"], before["access_token"]);
    assert_eq!(at_issuer(&world, "/oauth/token"), 0);
    world.assert_clean();
}

/// A token that upstream refuses: the CLI sees nothing of it and renews nothing.
#[test]
fn a_refused_token_is_the_daemons_business() {
    let Some(world) = person(|world| world.sim().auth_json("a")) else { return };
    world.ctl("switch a").ok();
    world.sim().expire_access("a");
    let before = fs::read(file(&world)).unwrap();
    assert!(turn(&world).ok().stdout.contains("served by a"));
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.reused), (1, 0));
    assert_eq!(fs::read(file(&world)).unwrap(), before);
    assert_eq!(logged(&world, "a CLI was given the current token"), 0);
    world.assert_clean();
}

/// Its own account's login is gone: others of the pool serve this CLI.
#[test]
fn a_gone_login_does_not_stop_its_cli() {
    let Some(world) = person(|world| world.sim().auth_json_expired("a")) else { return };
    let gone = || world.account("a")["state"] == "needs_login";
    // Its renewal at the import may have been through already; the next one is refused.
    world.sim().revoke_family("a");
    world.ctl("switch a").ok();
    turn(&world).ok();
    assert!(gone());
    assert!(turn(&world).ok().stdout.contains("served by b"));
    assert_eq!(world.sim().stats().accounts["a"].reused, 0);
    world.assert_clean();
}

/// A printed own-auth plan: the path of its addresses and of its two endpoints.
struct Own {
    door: Door,
    ticket: String,
    secret: String,
    bearer: String,
}

impl Own {
    fn of(world: &World) -> Self {
        let plan = world.ctl("launch --print --own-auth --json").ok().json();
        let env = &plan["env"];
        assert!(env.get("CODEX_ACCESS_TOKEN").is_none(), "{plan}");
        let base = plan["base_url"].as_str().unwrap();
        let part =
            |url: &str| url.split("/own/").nth(1).unwrap().split('/').next().unwrap().to_owned();
        let refresh = env["CODEX_REFRESH_TOKEN_URL_OVERRIDE"].as_str().unwrap();
        let (ticket, secret) = (part(base), part(refresh));
        assert_ne!(ticket, secret);
        assert!(!plan["args"].to_string().contains(&secret), "arguments can be seen by others");
        let bearer = tokens(world)["access_token"].as_str().unwrap().to_owned();
        Self { door: Door::of(world), ticket, secret, bearer }
    }

    fn turn(&self, ticket: &str, bearer: Option<&str>) -> (u16, String) {
        let path = format!("/own/{ticket}/codex/responses");
        let mut ask = Ask::new("POST", &path)
            .header("host", &self.door.addr.to_string())
            .header("content-type", "application/json")
            .body(turn_body(64));
        if let Some(bearer) = bearer {
            ask = ask.header("authorization", &format!("Bearer {bearer}"));
        }
        let answer = self.door.send(&ask).unwrap();
        (answer.status, answer.text())
    }

    fn endpoint(&self, name: &str, secret: &str, token: &str) -> (u16, Value) {
        let body = serde_json::json!({"grant_type": "refresh_token", "refresh_token": token});
        let ask = Ask::new("POST", &format!("/own/{secret}/oauth/{name}"))
            .header("host", &self.door.addr.to_string())
            .header("content-type", "application/json")
            .body(body.to_string().into_bytes());
        let mut line = Line::open(self.door.addr).unwrap();
        line.write(&ask.bytes()).unwrap();
        let answer = line.answer_with_token().unwrap();
        (answer.status, serde_json::from_str(&answer.text()).unwrap_or_default())
    }
}

/// A world without the CLI: requests by hand.
fn by_hand() -> (World, Own) {
    let world = World::new(upstream(&["a", "b"]));
    let auth = world.sim().auth_json("a");
    world.import("a", &auth).ok();
    world.import("b", &world.sim().auth_json("b")).ok();
    fs::write(file(&world), auth).unwrap();
    let own = Own::of(&world);
    (world, own)
}

#[test]
fn a_bearer_opens_only_with_the_ticket_of_its_launch() {
    let (world, own) = by_hand();
    assert_eq!(own.turn(&own.ticket, Some(&own.bearer)).0, 200);
    let others: Value = serde_json::from_str(&world.sim().auth_json("b")).unwrap();
    let others = others["tokens"]["access_token"].as_str().unwrap();
    for (ticket, bearer) in [
        (own.ticket.as_str(), None),
        (&own.ticket, Some("at-guess")),
        (&own.ticket, Some(others)),
        (&own.ticket, Some(own.door.key.as_str())),
        (&own.secret, Some(&own.bearer)),
        ("none", Some(&own.bearer)),
    ] {
        let (status, text) = own.turn(ticket, bearer);
        // Never 401, at which the CLI would spend its refresh token; one line that it prints.
        assert_eq!(status, 400, "{text}");
        assert!(text.contains("cmactl import"), "{text}");
    }
    // Without a launch that chose this mode a bearer of the pool is nobody's key.
    let ask = own
        .door
        .turn()
        .without("authorization")
        .header("authorization", &format!("Bearer {}", own.bearer));
    assert_eq!(own.door.send(&ask).unwrap().status, 401);
    assert_eq!(posts(&world).len(), 1);
    world.assert_clean();
}

#[test]
fn the_endpoints_renew_nothing_that_is_good_and_revoke_nothing() {
    let (world, own) = by_hand();
    let refresh = tokens(&world)["refresh_token"].as_str().unwrap().to_owned();
    for stranger in ["none", own.ticket.as_str()] {
        assert_eq!(own.endpoint("token", stranger, &refresh).0, 404);
        assert_eq!(own.endpoint("revoke", stranger, &refresh).0, 404);
    }
    let (status, body) = own.endpoint("token", &own.secret, &refresh);
    assert_eq!((status, body["refresh_token"].as_str()), (200, Some(OPAQUE)));
    assert_eq!(body["access_token"], own.bearer);
    let (_, body) = own.endpoint("token", &own.secret, "somebody-else's");
    assert!(body["access_token"].is_string() && body.get("refresh_token").is_none());
    assert_eq!(own.endpoint("revoke", &own.secret, &refresh).0, 200);
    eventually("the log has it", || logged(&world, "a CLI logged out; its login is kept") == 1);
    assert_eq!((at_issuer(&world, "/oauth/token"), at_issuer(&world, "/oauth/revoke")), (0, 0));
    assert_eq!(own.turn(&own.ticket, Some(&own.bearer)).0, 200);
    // A token that was handed out is known after a renewal and a restart too.
    world.sim().expire_access("a");
    world.ctl("switch a").ok();
    assert_eq!(own.turn(&own.ticket, Some(&own.bearer)).0, 200);
    let (_, body) = own.endpoint("token", &own.secret, OPAQUE);
    let newer = body["access_token"].as_str().unwrap().to_owned();
    assert_ne!(newer, own.bearer);
    world.sim().expire_access("a");
    assert_eq!(own.turn(&own.ticket, Some(&newer)).0, 200);
    world.kill_daemon();
    world.status();
    for known in [&newer, &own.bearer] {
        assert_eq!(own.turn(&own.ticket, Some(known)).0, 200);
    }
    world.assert_clean();
}

#[test]
fn the_mode_is_a_setting_and_needs_a_login_of_the_pool() {
    let (world, _own) = by_hand();
    world.ctl("daemon stop").ok();
    fs::write(world.root().join("config.toml"), "auth_mode = \"own\"\n").unwrap();
    let plan = world.launch();
    assert!(plan["base_url"].as_str().unwrap().contains("/own/"), "{plan}");
    world.ctl("remove a --yes").ok();
    let refused = world.ctl("launch --print");
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("cmactl import"), "{}", refused.stderr);
    fs::remove_file(file(&world)).unwrap();
    assert!(world.ctl("launch --print").stderr.contains("codex login"));
    fs::write(world.root().join("config.toml"), "auth_mode = \"both\"\n").unwrap();
    let refused = world.ctl("daemon restart");
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("auth_mode"), "{}", refused.stderr);
    world.assert_clean();
}

#[test]
fn logout_says_what_it_does_to_the_pool_and_does_it() {
    let Some(world) = bare(upstream(&["a"]), VERSION) else { return };
    let revoke = format!("{}/oauth/revoke", world.sim().issuer());
    let world = world.with_env("CODEX_REVOKE_TOKEN_URL_OVERRIDE", &revoke);
    let auth = world.sim().auth_json("a");
    fs::write(file(&world), &auth).unwrap();
    let logout = || {
        let mut command = codex(&world, ["logout"]);
        command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
        finish(&world, command, LIMIT)
    };
    // With an empty pool there is nothing to say.
    let quiet = logout().ok();
    assert!(!quiet.stderr.contains("cma:"), "{quiet:?}");
    assert!(!file(&world).exists());
    let auth = world.sim().auth_json("a");
    fs::write(file(&world), &auth).unwrap();
    world.import("a", &auth).ok();
    let told = logout().ok();
    assert!(told.stderr.contains("cma: ") && told.stderr.contains("pool"), "{told:?}");
    assert!(!file(&world).exists(), "the CLI did its work");
    assert_eq!(at_issuer(&world, "/oauth/revoke"), 2);
    let status = finish(&world, codex(&world, ["login", "status"]), LIMIT);
    assert!(!status.stderr.contains("cma:"), "{status:?}");
    world.assert_clean();
}
