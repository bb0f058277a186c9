//! Failures inside streams below the official CLI, over HTTP: the same text and exit as without them
//! while nothing was shown; afterwards what the CLI does with them itself.

use crate::codex_kit::{TURN, VERSION, bare, codex, finish, posts};
use cma_tests::{
    sim::{AccountSpec, Cut, Fault, Inside, Outcome, Route, SimConfig, What},
    world::{Ran, World, eventually},
};
use std::time::Duration;

const REPLY: &str = "the answer in words";

/// A machine with enough accounts for a limit in each round.
fn machine() -> Option<World> {
    let names = ["a", "b", "c", "d", "e", "f"];
    let config = SimConfig {
        accounts: names.into_iter().map(AccountSpec::new).collect(),
        reply_text: REPLY.to_owned(),
        ..SimConfig::default()
    };
    let world =
        bare(config, VERSION)?.with_env("CMA_HOLD_SILENCE", "500ms").with_env("CMA_STALL", "2s");
    world.import_all();
    Some(world)
}

fn turn(world: &World, fault: Option<&Fault>) -> Ran {
    if let Some(fault) = fault {
        world.sim().fault(None, Route::Responses, fault.clone(), Some(1));
    }
    finish(world, codex(world, TURN), Duration::from_secs(60))
}

/// What the person sees, without what differs from run to run.
fn seen(ran: &Ran) -> (i32, String, Vec<String>) {
    let differs = |line: &str| {
        // Its log lines begin with the time; a session has an id of its own.
        line.contains("session id:") || line.starts_with(|c: char| c.is_ascii_digit())
    };
    // The number of tokens used stands in a line of its own.
    let lines = ran.stderr.lines().filter(|line| !differs(line)).map(str::to_owned).collect();
    (ran.code, ran.stdout.clone(), lines)
}

#[test]
fn what_fails_before_the_answer_is_not_seen() {
    let Some(world) = machine() else { return };
    let inside = Inside::before_the_answer;
    let failed = |code: &str| inside(Inside::failed(code, "scripted"));
    let cut = |by| Fault::CutMidStream { after: 1, by };
    let without = seen(&turn(&world, None).ok());
    assert_eq!(without.1.trim(), REPLY);
    let limit = inside(Inside::failed("rate_limit_exceeded", "Please try again in 90s."));
    let faults = [
        failed("server_is_overloaded"),
        failed("slow_down"),
        failed("server_error"),
        failed("a_code_of_tomorrow"),
        inside(What::Error("server_error".into())),
        cut(Cut::Reset),
        cut(Cut::Close),
        cut(Cut::CleanEnd),
        inside(What::HalfAnEvent(Cut::Reset)),
        inside(What::GarbageAlone),
        Fault::HangMidStream { after: 1 },
        inside(What::UsageLimit(3600)),
        failed("insufficient_quota"),
        failed("usage_not_included"),
        limit,
    ];
    for fault in faults {
        let before = posts(&world).len();
        let ran = turn(&world, Some(&fault));
        assert_eq!(seen(&ran), without, "{fault:?}: {}", ran.stderr);
        assert_eq!(posts(&world).len() - before, 2, "{fault:?}");
    }
    eventually("all are accounted for", || world.status()["proxy"]["served"] == 16);
    assert_eq!(world.status()["proxy"]["failed"], 0);
    world.assert_clean();
}

#[test]
fn what_fails_within_the_answer_is_the_clis_to_repeat() {
    let Some(world) = machine() else { return };
    let inside = Inside::within_the_answer;
    let faults = [
        inside(Inside::failed("server_error", "boom")),
        inside(Inside::failed("slow_down", "slow")),
        inside(What::Error("server_error".into())),
        Fault::CutMidStream { after: 3, by: Cut::Reset },
        Fault::CutMidStream { after: 3, by: Cut::Close },
        Fault::CutMidStream { after: 3, by: Cut::CleanEnd },
        inside(What::HalfAnEvent(Cut::Close)),
        Fault::HangMidStream { after: 3 },
        inside(What::UsageLimit(3600)),
    ];
    for fault in faults {
        let before = posts(&world).len();
        let ran = turn(&world, Some(&fault)).ok();
        assert_eq!(ran.stdout.trim(), REPLY, "{fault:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("Reconnecting... 1/5"), "{fault:?}: {}", ran.stderr);
        assert!(!ran.stderr.contains("Reconnecting... 2/5"), "{fault:?}: {}", ran.stderr);
        let posts = posts(&world).split_off(before);
        assert_eq!(posts.len(), 2, "{fault:?}");
        assert_eq!(posts[1].outcome, Outcome::Completed, "{fault:?}");
    }
    let cooling: Vec<_> = world.status()["accounts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|account| account["state"] == "cooling")
        .cloned()
        .collect();
    assert_eq!(cooling.len(), 1, "the limit alone rests an account: {cooling:?}");
    world.assert_clean();
}

#[test]
fn what_the_cli_says_itself_it_still_says() {
    let Some(world) = machine() else { return };
    for (code, says) in [
        ("context_length_exceeded", "ran out of room in the model's context window"),
        ("invalid_prompt", "bad prompt"),
        ("cyber_policy", "bad prompt"),
    ] {
        let fault = Inside::before_the_answer(Inside::failed(code, "bad prompt"));
        let ran = turn(&world, Some(&fault));
        assert_eq!(ran.code, 1, "{code}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{code}: {}", ran.stderr);
    }
    let incomplete = Fault::Incomplete { reason: "max_output_tokens".to_owned() };
    let ran = turn(&world, Some(&incomplete));
    assert!(ran.code == 1 && ran.stderr.contains("max_output_tokens"), "{}", ran.stderr);
    assert_eq!(posts(&world).len(), 4, "nobody repeats the request's own fault");
    // Within the answer these end the turn without cma, so they end it with cma.
    for (code, says) in [
        ("server_is_overloaded", "Selected model is at capacity"),
        ("insufficient_quota", "Quota exceeded"),
    ] {
        let fault = Inside::within_the_answer(Inside::failed(code, "scripted"));
        let ran = turn(&world, Some(&fault));
        assert_eq!(ran.code, 1, "{code}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{code}: {}", ran.stderr);
    }
    world.assert_clean();
}

#[test]
fn a_slow_preamble_is_only_slow() {
    let Some(world) = machine() else { return };
    let without = seen(&turn(&world, None).ok());
    for (after, millis) in [(0, 400), (1, 400), (2, 900)] {
        let pause = Duration::from_millis(millis);
        let ran = turn(&world, Some(&Fault::StallMidStream { after, pause })).ok();
        assert_eq!(seen(&ran), without, "{after}");
    }
    let ran = turn(&world, Some(&Inside::before_the_answer(What::Comments(50)))).ok();
    assert_eq!(seen(&ran), without);
    let ran = turn(&world, Some(&Inside::before_the_answer(What::Garbage))).ok();
    assert_eq!(seen(&ran), without, "an event that can't be read is skipped by the CLI as well");
    assert_eq!(posts(&world).len(), 6);
    world.assert_clean();
}
