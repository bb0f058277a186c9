//! The mirror of the official `auth.json`: what is written, what is taken in, what comes back.

use crate::codex_kit::{TURN, VERSION, bare, codex, finish, official, upstream};
use cma_tests::{
    http::Door,
    sim::SimConfig,
    world::{World, eventually},
};
use serde_json::Value;
use std::{fs, path::PathBuf, time::Duration};

const LIMIT: Duration = Duration::from_secs(60);

fn file(world: &World) -> PathBuf {
    world.codex_home().join("auth.json")
}

fn tokens(world: &World) -> Value {
    let bytes = fs::read(file(world)).unwrap_or_default();
    let auth: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    auth["tokens"].clone()
}

/// The refresh token of the only account, as the daemon keeps it.
fn pooled(world: &World) -> Value {
    let id = world.account("a")["id"].as_str().unwrap().to_owned();
    let file = world.root().join(format!("accounts/{id}.json"));
    let kept: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    kept["content"]["tokens"]["refresh_token"].clone()
}

fn pool() -> World {
    World::with_accounts(upstream(&["a", "b"]))
}

fn held(world: &World) -> Value {
    world.ctl("mirror status --json").ok().json()["held"].clone()
}

#[test]
fn what_stood_there_comes_back_byte_for_byte() {
    let world = pool();
    let own = b"{ \"OPENAI_API_KEY\" : \"sk-mine\",\r\n\t\"odd\": 1 }\n\n".to_vec();
    fs::write(file(&world), &own).unwrap();
    for words in ["mirror on a", "mirror on b", "mirror on b"] {
        world.ctl(words).ok();
        let tokens = tokens(&world);
        assert_eq!(tokens["account_id"], format!("acct-{}", words.split(' ').nth(2).unwrap()));
        assert_eq!(tokens["refresh_token"], "", "no second owner");
    }
    world.kill_daemon();
    world.ctl("mirror off").ok();
    assert_eq!(fs::read(file(&world)).unwrap(), own);
    assert_eq!(world.ctl("mirror status --json").ok().json()["on"], false);
    // Where nothing stood nothing stays, and the folder of the mirror holds no copy.
    fs::remove_file(file(&world)).unwrap();
    world.ctl("switch a --write-auth").ok();
    assert_eq!(tokens(&world)["account_id"], "acct-a");
    world.ctl("mirror off").ok();
    assert!(!file(&world).exists());
    assert_eq!(fs::read_dir(world.root().join("mirror")).unwrap().count(), 0);
    assert!(world.ctl("mirror off").ok().stderr.contains("was not on"));
    world.assert_clean();
}

#[test]
fn a_renewal_and_a_switch_reach_the_file() {
    let world = pool();
    let door = Door::of(&world);
    world.ctl("switch a").ok();
    world.ctl("mirror on").ok();
    let before = tokens(&world);
    world.sim().expire_access("a");
    assert!(door.send(&door.turn()).unwrap().is_complete());
    eventually("the new token is there", || {
        let now = tokens(&world);
        now["access_token"].is_string() && now["access_token"] != before["access_token"]
    });
    assert_eq!(tokens(&world)["refresh_token"], "");
    world.ctl("switch b").ok();
    eventually("it follows the pin", || tokens(&world)["account_id"] == "acct-b");
    world.ctl("mirror off").ok();
    assert!(!file(&world).exists());
    world.assert_clean();
}

#[test]
fn a_login_that_somebody_else_put_there_is_left_alone() {
    let world = pool();
    fs::write(file(&world), "{}").unwrap();
    world.ctl("mirror on a").ok();
    let theirs = world.sim().auth_json("b");
    fs::write(file(&world), &theirs).unwrap();
    eventually("it is seen", || {
        held(&world).as_str().is_some_and(|why| why.contains("another login"))
    });
    // A renewal of the mirrored account changes nothing there.
    let door = Door::of(&world);
    world.ctl("switch a").ok();
    world.sim().expire_access("a");
    assert!(door.send(&door.turn()).unwrap().is_complete());
    eventually("it was renewed", || world.account("a")["generation"] == 2);
    assert_eq!(fs::read_to_string(file(&world)).unwrap(), theirs);
    let off = world.ctl("mirror off").ok();
    assert!(
        off.stderr.contains("left as it is") && off.stderr.contains("kept in"),
        "{}",
        off.stderr
    );
    assert_eq!(fs::read_to_string(file(&world)).unwrap(), theirs);
    let kept: Vec<_> = fs::read_dir(world.codex_home())
        .unwrap()
        .flatten()
        .filter(|it| it.file_name().to_string_lossy().starts_with("auth.json.before-cma-"))
        .collect();
    assert_eq!((kept.len(), fs::read_to_string(kept[0].path()).unwrap()), (1, "{}".to_owned()));
    world.assert_clean();
}

#[test]
fn an_older_copy_is_not_believed() {
    let world = pool();
    let door = Door::of(&world);
    world.ctl("switch a").ok();
    world.ctl("mirror on a --with-refresh").ok();
    let old = fs::read(file(&world)).unwrap();
    world.sim().expire_access("a");
    assert!(door.send(&door.turn()).unwrap().is_complete());
    eventually("the new token is there", || fs::read(file(&world)).is_ok_and(|now| now != old));
    let newer = fs::read(file(&world)).unwrap();
    fs::write(file(&world), &old).unwrap();
    eventually("it is current again", || fs::read(file(&world)).is_ok_and(|now| now == newer));
    assert_eq!(world.account("a")["generation"], 2);
    world.sim().expire_access("a");
    assert!(door.send(&door.turn()).unwrap().is_complete());
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.reused), (2, 0));
    world.assert_clean();
}

/// Every version that is there accepts the file without a refresh token.
#[test]
fn the_official_cli_takes_the_mirrored_login() {
    for version in ["0.98.0", "0.128.0", "0.149.0", VERSION] {
        let Some(world) = bare(upstream(&["a"]), version) else { continue };
        world.import_all();
        world.ctl("mirror on a").ok();
        let before = fs::read(file(&world)).unwrap();
        let mut command = world.command(official(version));
        command.args(["login", "status"]);
        let status = finish(&world, command, LIMIT).ok();
        assert!(status.stderr.contains("Logged in using ChatGPT"), "{version}: {status:?}");
        assert_eq!(fs::read(file(&world)).unwrap(), before, "{version}");
        world.assert_clean();
    }
}

/// With the refresh token in the file, the official CLI renews by itself: what it leaves there is
/// the pool's from then on.
#[test]
fn a_credential_that_the_official_cli_rotated_is_taken_in() {
    // Under five minutes the CLI renews at its start; the pool waits for the last fifth.
    let config = SimConfig { tokens_ttl: Duration::from_secs(250), ..upstream(&["a"]) };
    let Some(world) = bare(config, VERSION) else { return };
    let refresh = format!("{}/oauth/token", world.sim().issuer());
    world.import_all();
    // Otherwise it would go on renewing, and its end would fall between a renewal and its writing.
    world.sim().set_tokens_ttl(SimConfig::default().tokens_ttl);
    let on = world.ctl("mirror on a --with-refresh").ok();
    assert!(on.stderr.contains("second") || on.stderr.contains("spends"), "{on:?}");
    let before = tokens(&world);
    let mut command = world.command(official(VERSION));
    command
        .args(["-c", &format!("openai_base_url=\"{}/codex\"", world.sim().backend())])
        .args(["-c", "model_provider=openai"])
        .args(TURN)
        .env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", &refresh)
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1");
    // It renews in its first second; where it can't reach chatgpt.com it would go on trying.
    let ran = finish(&world, command, Duration::from_secs(6));
    assert_ne!(tokens(&world)["refresh_token"], before["refresh_token"], "{ran:?}");
    let renewed = world.sim().stats().accounts["a"].refreshed;
    let log = || fs::read_to_string(world.root().join("log/cmad.jsonl")).unwrap();
    eventually("the pool has what the file has", || {
        pooled(&world) == tokens(&world)["refresh_token"]
    });
    assert_eq!(log().matches("auth.json written").count(), 1, "the CLI's own writing stands");
    let door = Door::of(&world);
    world.sim().expire_access("a");
    let answer = door.send(&door.turn()).unwrap();
    assert!(answer.is_complete(), "{answer:?}");
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.reused, stats.families_revoked), (renewed + 1, 0, 0));
    world.ctl("mirror off").ok();
    assert!(!file(&world).exists());
    // Through the shim nothing of this is needed.
    let turned = finish(&world, codex(&world, TURN), LIMIT).ok();
    assert!(turned.stdout.contains("served by a"), "{turned:?}");
    world.assert_no_secrets();
}
