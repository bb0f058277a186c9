//! A list of accounts, signed in one after another: who is next, what is skipped, how it resumes.

use crate::login_kit::{self as kit, Login};
use cma_tests::{
    sim::{AccountSpec, Consent, SimConfig},
    world::World,
};
use rustix::process::Signal;
use serde_json::Value;

const LIST: &str = "\
[[account]]\nalias = 'first'\nemail = 'a@example.test'\n
[[account]]\nalias = 'second'\nemail = 'b@example.test'\nworkspace = 'acct-b'\ntags = ['team', 'eu']\n
[[account]]\nalias = 'third'\nemail = 'c@example.test'\nenabled = false\n";

fn world() -> (World, String) {
    let accounts = ["a", "b", "c"].map(AccountSpec::new).to_vec();
    let world = World::new(SimConfig { accounts, ..SimConfig::default() });
    let file = world.path("work/accounts.toml");
    std::fs::write(&file, LIST).unwrap();
    (world, file.display().to_string())
}

fn outcomes(table: &Value) -> Vec<(&str, &str)> {
    let lines = table["accounts"].as_array().unwrap();
    lines
        .iter()
        .map(|line| (line["alias"].as_str().unwrap(), line["outcome"].as_str().unwrap()))
        .collect()
}

#[test]
fn a_list_is_walked_interrupted_and_resumed() {
    let (world, file) = world();
    world.import("mine", &world.sim().auth_json("a")).ok();
    let ran = world.ctl(&format!("login --batch {file} --check --json"));
    assert_eq!(ran.code, 1);
    assert_eq!(
        outcomes(&ran.json()),
        [("first", "healthy"), ("second", "needs_login"), ("third", "needs_login")]
    );
    assert!(world.sim().seen().iter().all(|it| !it.path.contains("deviceauth")), "only a look");

    let mut login = Login::start(&world, &format!("login --batch {file} --device --json"));
    let started = login.started();
    world.sim().decide_device(started["user_code"].as_str().unwrap(), Consent::Agree("b".into()));
    login.started();
    login.signal(Signal::INT);
    let ran = login.end();
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    let table: Value = ran.stdout.lines().last().unwrap().parse().unwrap();
    assert_eq!(
        outcomes(&table),
        [("first", "healthy"), ("second", "signed_in"), ("third", "not_reached")]
    );

    let mut login = Login::start(&world, &format!("login --batch {file} --device --json"));
    let started = login.started();
    world.sim().decide_device(started["user_code"].as_str().unwrap(), Consent::Agree("c".into()));
    let ran = login.end().ok();
    let table: Value = ran.stdout.lines().last().unwrap().parse().unwrap();
    assert_eq!(
        outcomes(&table),
        [("first", "healthy"), ("second", "healthy"), ("third", "signed_in")]
    );
    let list = world.ctl("list --json").ok().json();
    let accounts = list["accounts"].as_array().unwrap();
    let fields: Vec<_> = accounts
        .iter()
        .map(|it| (it["label"].as_str().unwrap(), it["enabled"].as_bool().unwrap(), &it["tags"]))
        .collect();
    let (none, two) = (serde_json::json!([]), serde_json::json!(["team", "eu"]));
    assert_eq!(fields, [("mine", true, &none), ("second", true, &two), ("third", false, &none)]);
    world.ctl(&format!("login --batch {file} --check")).ok();
    assert_eq!(world.sim().codes_redeemed(), (2, 0));

    // A login that is gone is the only thing left to do, and mending it changes nothing else.
    world.sim().revoke_family("b");
    world.sim().expire_access("b");
    world.ctl("switch second").ok();
    let door = cma_tests::http::Door::of(&world);
    door.send(&door.turn()).unwrap();
    cma_tests::world::eventually("b needs a login", || {
        world.account("second")["state"] == "needs_login"
    });
    world.sim().consent(Consent::Agree("b".into()));
    let ran = world.ctl(&format!("login --batch {file} --device")).ok();
    for said in ["1 of 1: sign in as second (b@example.test), workspace acct-b", "signed in"] {
        assert!(format!("{}{}", ran.stdout, ran.stderr).contains(said), "{said}: {ran:?}");
    }
    assert_eq!(world.account("second")["tags"], two);
    world.assert_clean();
}

#[test]
fn a_list_goes_on_after_the_wrong_person_and_says_who_is_missing() {
    let (world, file) = world();
    world.sim().consent(Consent::Agree("c".to_owned()));
    let ran = world.ctl(&format!("login --batch {file} --device"));
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("1 of 3: sign in as first (a@example.test); then second"),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("2 of 3 need a sign-in"), "{}", ran.stderr);
    let accounts = world.status()["accounts"].as_array().unwrap().len();
    assert_eq!(accounts, 1, "a wrong account is not kept under a wrong name");
    assert_eq!(world.account("third")["enabled"], false);
    world.assert_clean();
}

#[test]
fn a_list_is_walked_by_pasting_too() {
    let (world, file) = world();
    let mut login = Login::start(&world, &format!("login --batch {file} --manual --json"));
    for name in ["a", "b", "c"] {
        world.sim().consent(Consent::Agree(name.to_owned()));
        let url = login.started()["url"].as_str().unwrap().to_owned();
        login.paste(&kit::callback(&url));
    }
    login.end().ok();
    assert_eq!(world.status()["accounts"].as_array().unwrap().len(), 3);
    world.assert_clean();
}

#[test]
fn a_list_holds_no_passwords() {
    let (world, file) = world();
    std::fs::write(&file, "[[account]]\nalias = 'x'\npassword = 'hunter2'\n").unwrap();
    let ran = world.ctl(&format!("login --batch {file}"));
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("never read") && !ran.stderr.contains("hunter2"), "{}", ran.stderr);
    let ran = world.ctl("login --batch missing.toml");
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    world.assert_clean();
}
