//! Limits of one model, and real requests that a person asks for to learn what is left.

use cma_tests::{
    http::{Answer, Door},
    sim::{AccountSpec, Fault, OwnLimit, Route, SimConfig, Window},
    world::{World, eventually},
};
use serde_json::{Value, json};
use std::time::Duration;

const SPARK: &str = "gpt-5.3-codex-spark";
const HOUR: Duration = Duration::from_secs(3600);

fn spec(name: &str) -> AccountSpec {
    AccountSpec::new(name).models(&["gpt-5.5", SPARK])
}

/// A model with a limit of its own that so many answers fill.
fn spark(name: &str, answers: u32, resets: Duration) -> AccountSpec {
    let window = Window::new(100.0 / f64::from(answers), 300, resets);
    let own_limit = OwnLimit {
        model: SPARK.to_owned(),
        id: "codex_bengalfox".to_owned(),
        title: "GPT-5.3-Codex-Spark".to_owned(),
        window,
    };
    AccountSpec { own_limit: Some(own_limit), ..spec(name) }
}

fn world(accounts: Vec<AccountSpec>) -> (World, Door) {
    let world = World::with_accounts(SimConfig { accounts, ..SimConfig::default() });
    let door = Door::of(&world);
    (world, door)
}

fn ask(door: &Door, model: &str, thread: &str) -> Answer {
    let body = json!({
        "model": model, "instructions": "", "tools": [], "store": false, "stream": true,
        "input": [{ "type": "message", "role": "user",
            "content": [{ "type": "input_text", "text": "hi" }] }],
    });
    let ask = door.turn_in(thread).with("x-codex-routing-hint", &format!("model={model}"));
    door.send(&ask.body(body.to_string().into_bytes())).unwrap()
}

/// Requests that reached upstream: the account, and the answer's status.
fn posts(world: &World) -> Vec<(String, u16)> {
    let seen = world.sim().seen().into_iter();
    seen.filter(|seen| seen.path.ends_with("/codex/responses"))
        .map(|seen| (seen.account.unwrap(), seen.status.unwrap()))
        .collect()
}

fn json(world: &World, words: &str) -> Value {
    world.ctl(&format!("{words} --json")).ok().json()
}

#[test]
fn a_models_own_limit_moves_its_requests_and_no_others() {
    let (world, door) = world(vec![spark("a", 2, HOUR), spec("b")]);
    world.ctl("switch a").ok();
    for thread in ["s1", "s2", "s3"] {
        assert_eq!(ask(&door, SPARK, thread).status, 200);
    }
    // The second answer said that the limit is full: nobody had to be refused to learn it.
    let served = |name: &str| (name.to_owned(), 200);
    assert_eq!(posts(&world), [served("a"), served("a"), served("b")]);
    // The pin holds for what the limit doesn't count.
    assert_eq!(ask(&door, "gpt-5.5", "t1").status, 200);
    assert_eq!(posts(&world).last(), Some(&served("a")));
    let named = |forecast: &Value, name: &str| {
        let all = forecast["accounts"].as_array().unwrap();
        all.iter().find(|one| one["name"] == name).unwrap().clone()
    };
    let forecast = json(&world, &format!("forecast --model {SPARK}"));
    let a = named(&forecast, "a");
    assert_eq!((a["readiness"].as_str(), a["risk"].as_str()), (Some("waiting"), Some("high")));
    assert!((3500..=3602).contains(&a["wait_secs"].as_u64().unwrap()), "{a}");
    assert_eq!(named(&forecast, "b")["readiness"], "ready");
    assert_eq!(named(&json(&world, "forecast"), "a")["readiness"], "ready");
    let why = world.ctl("why --last").ok().stdout;
    assert!(!why.contains("can't"), "{why}");
    world.assert_clean();
}

#[test]
fn a_refusal_for_one_model_rests_that_model_alone_until_its_reset() {
    // Full from before: only a refusal tells of it. Its window is over in some seconds, more than a
    // request would wait for anyhow.
    let mut full = spark("a", 2, Duration::from_secs(13));
    full.own_limit.as_mut().unwrap().window.used = 100.0;
    let (world, door) = world(vec![full]);
    let refused = ask(&door, SPARK, "s1");
    assert_eq!(
        (refused.status, refused.json()["error"]["type"].as_str()),
        (429, Some("usage_limit_reached"))
    );
    assert_eq!(ask(&door, "gpt-5.5", "t1").status, 200, "the account goes on");
    let rests = json(&world, "account policy list")["accounts"][0]["rests"].clone();
    let scopes: Vec<_> = rests.as_array().unwrap().iter().map(|rest| &rest["scope"]).collect();
    assert_eq!(scopes, [SPARK], "{rests}");
    let asked = posts(&world).len();
    assert_eq!(ask(&door, SPARK, "s2").status, 429);
    assert_eq!(posts(&world).len(), asked, "what is known isn't asked for again");
    eventually("its window began anew", || ask(&door, SPARK, "s3").status == 200);
    assert_eq!(json(&world, "account policy list")["accounts"][0]["rests"], json!([]));
    world.assert_clean();
}

#[test]
fn what_the_usage_endpoint_says_of_a_model_counts_for_it() {
    let mut full = spark("a", 2, HOUR);
    full.own_limit.as_mut().unwrap().window.used = 100.0;
    let (world, door) = world(vec![full, spec("b")]);
    world.ctl("probe a --force").ok();
    assert_eq!(ask(&door, SPARK, "s1").status, 200);
    assert_eq!(posts(&world), [("b".to_owned(), 200)]);
    // It outlives the daemon.
    world.ctl("daemon stop").ok();
    world.ctl("daemon start").ok();
    eventually("what was known is read", || {
        let forecast = json(&world, &format!("forecast --model {SPARK}"));
        forecast["accounts"][1]["readiness"] == "waiting"
    });
    world.assert_clean();
}

#[test]
fn a_real_request_is_made_only_where_a_model_is_named_and_is_written_down() {
    let (world, _door) = world(vec![spec("a"), spec("b")]);
    let posts = || posts(&world);
    json(&world, "probe --force");
    json(&world, "forecast --live");
    json(&world, "best --live");
    assert_eq!(posts(), [], "nothing is spent");
    world.sim().set_used("a", 41.0, 3.0);
    let probe = json(&world, "probe a --force --probe-model gpt-5.5");
    assert_eq!(probe["probes"][0]["state"], "done", "{probe}");
    let used = probe["probes"][0]["windows"][0]["used_percent"].as_f64().unwrap();
    assert!((41.0..41.1).contains(&used), "what it took counts: {used}");
    assert_eq!(posts(), [("a".to_owned(), 200)]);
    let rows = json(&world, "usage --by request")["requests"].clone();
    assert_eq!(
        (rows[0]["outcome"].as_str(), rows.as_array().unwrap().len()),
        (Some("complete"), 1)
    );
    let told = world.sim().seen().into_iter().find_map(|seen| seen.tokens).unwrap();
    assert_eq!(rows[0]["input_tokens"].as_u64(), Some(told.input));
    // A forecast asks those that could serve, each once, and nobody else.
    let forecast = json(&world, "forecast --probe-model gpt-5.5");
    assert_eq!(forecast["notes"], json!([]));
    assert_eq!(posts().len(), 3);
    // What fails says why and changes nothing; a model's name is a name.
    let no = Fault::Status {
        code: 400,
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        body: json!({ "detail": "The model is not supported" }).to_string(),
    };
    world.sim().fault(Some("b"), Route::Responses, no, Some(1));
    let failed = world.ctl("probe b --force --probe-model gpt-5.5 --json");
    assert_eq!(failed.code, 10, "{failed:?}");
    let error = failed.json()["probes"][0]["error"].as_str().unwrap().to_owned();
    assert_eq!(error, "The model is not supported");
    assert_eq!(world.ctl("probe --probe-model").code, 2);
    assert_eq!(world.ctl("probe --force --probe-model ../x?y").code, 2);
    // A budget keeps it out like any request.
    world.ctl("budget limit none --window day --requests 1").ok();
    let blocked = world.ctl("best --probe-model gpt-5.5").ok();
    assert!(blocked.stderr.contains("the budget `none`"), "{blocked:?}");
    world.assert_clean();
}
