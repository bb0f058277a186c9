//! Failures inside streams, seen from the wire: hidden while nothing was shown, honest afterwards.

mod splits;

use cma_tests::{
    http::{Answer, Door, Line, turn_body},
    sim::{AccountSpec, Cut, Encrypted, Fault, Inside, Outcome, Route, Seen, SimConfig, What},
    world::{World, eventually},
};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

fn config(names: &[&str]) -> SimConfig {
    SimConfig {
        accounts: names.iter().map(|name| AccountSpec::new(name)).collect(),
        reply_text: "served by {account}".to_owned(),
        ..SimConfig::default()
    }
}

/// A world with these accounts, and settings of streams.
fn world(names: &[&str], settings: &[(&str, &str)]) -> (World, Door) {
    let world = World::new(config(names));
    let world = settings.iter().fold(world, |world, (name, value)| world.with_env(name, value));
    world.import_all();
    let door = Door::of(&world);
    (world, door)
}

fn on_a(world: &World, fault: Fault) {
    world.sim().fault(Some("a"), Route::Responses, fault, Some(1));
}

fn posts(world: &World) -> Vec<Seen> {
    let seen = world.sim().seen().into_iter();
    seen.filter(|seen| seen.method == "POST" && seen.path.ends_with("/codex/responses")).collect()
}

fn askers(world: &World) -> Vec<String> {
    posts(world).into_iter().filter_map(|seen| seen.account).collect()
}

#[track_caller]
fn served_by(answer: &Answer, account: &str) {
    assert!(answer.is_complete(), "{} {}", answer.status, answer.text());
    assert!(answer.text().contains(&format!("\"delta\":\"{account}\"")), "{}", answer.text());
}

fn last_attempts(world: &World) -> String {
    world.ctl("why --request last --json").ok().json()["attempts"].to_string()
}

/// What one failure of the first account does to it, and what the trace says of it.
struct Row {
    fault: Fault,
    reason: &'static str,
    rests: Option<&'static str>,
}

fn row(fault: Fault, reason: &'static str, rests: Option<&'static str>) -> Row {
    Row { fault, reason, rests }
}

/// All that can go wrong before the first event of the answer.
fn before_the_answer() -> Vec<Row> {
    let inside = Inside::before_the_answer;
    let failed = |code: &str| inside(Inside::failed(code, "scripted"));
    let cut = |after, by| Fault::CutMidStream { after, by };
    let was_cut = "the stream was cut before anything was shown";
    let ended = "the stream ended before anything was shown";
    vec![
        row(failed("server_is_overloaded"), "server_is_overloaded", None),
        row(failed("slow_down"), "slow_down", None),
        row(failed("server_error"), "server_error", None),
        row(failed("a_code_of_tomorrow"), "a_code_of_tomorrow", None),
        row(inside(What::Error("server_error".into())), "server_error", None),
        row(cut(1, Cut::Reset), was_cut, None),
        row(cut(1, Cut::Close), was_cut, None),
        row(cut(0, Cut::Close), was_cut, None),
        row(cut(1, Cut::CleanEnd), ended, None),
        row(cut(0, Cut::CleanEnd), ended, None),
        row(inside(What::HalfAnEvent(Cut::Reset)), was_cut, None),
        row(inside(What::HalfAnEvent(Cut::Close)), was_cut, None),
        row(inside(What::HalfAnEvent(Cut::CleanEnd)), ended, None),
        row(inside(What::GarbageAlone), ended, None),
        row(inside(What::Page), ended, None),
        row(inside(What::UsageLimit(3600)), "usage_limit_reached", Some("usage limit reached")),
        row(failed("insufficient_quota"), "insufficient_quota", Some("usage limit reached")),
        row(
            inside(Inside::failed("rate_limit_exceeded", "Please try again in 60s.")),
            "rate_limit_exceeded",
            Some("asked to slow down"),
        ),
        row(failed("usage_not_included"), "usage_not_included", None),
    ]
}

#[test]
fn what_fails_before_the_answer_is_served_by_another_account() {
    for Row { fault, reason, rests } in before_the_answer() {
        let (world, door) = world(&["a", "b"], &[]);
        on_a(&world, fault.clone());
        served_by(&door.send(&door.turn()).unwrap(), "b");
        assert_eq!(askers(&world), ["a", "b"], "{fault:?}");
        eventually("it is accounted for", || world.status()["proxy"]["served"] == 1);
        let proxy = &world.status()["proxy"];
        assert_eq!((&proxy["failed"], &proxy["retried"]), (&0.into(), &1.into()), "{fault:?}");
        assert!(last_attempts(&world).contains(reason), "{fault:?}: {}", last_attempts(&world));
        let account = world.account("a");
        let state = if rests.is_some() { "cooling" } else { "ready" };
        assert_eq!(account["state"], state, "{fault:?}: {account}");
        assert_eq!(account["reason"].as_str(), rests, "{fault:?}");
        assert_eq!(world.account("b")["state"], "ready", "{fault:?}");
        world.assert_clean();
    }
}

#[test]
fn a_limit_inside_a_stream_rests_the_account_until_its_reset() {
    let (world, door) = world(&["a", "b"], &[]);
    on_a(&world, Inside::before_the_answer(What::UsageLimit(3600)));
    served_by(&door.send(&door.turn()).unwrap(), "b");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let left = world.account("a")["until"].as_u64().unwrap() - now.as_secs();
    assert!((3590..=3601).contains(&left), "{left}");
    served_by(&door.send(&door.turn_in("another")).unwrap(), "b");
    assert_eq!(askers(&world), ["a", "b", "b"]);
    // Windows that come in the preamble are believed even when the attempt is not.
    let (world, door) = self::world(&["a", "b"], &[]);
    on_a(&world, Inside::before_the_answer(What::Limits(77)));
    served_by(&door.send(&door.turn()).unwrap(), "a");
    eventually("the window is known", || world.account("a").to_string().contains("77"));
    world.assert_clean();
}

#[test]
fn what_fails_within_the_answer_is_shown_as_it_is() {
    let inside = Inside::within_the_answer;
    for (fault, rests) in [
        (inside(Inside::failed("server_error", "boom")), None),
        (inside(Inside::failed("server_is_overloaded", "busy")), None),
        (inside(What::Error("server_error".into())), None),
        (inside(What::UsageLimit(3600)), Some("usage limit reached")),
    ] {
        let (world, door) = world(&["a", "b"], &[]);
        on_a(&world, fault.clone());
        let answer = door.send(&door.turn()).unwrap();
        let text = answer.text();
        assert!(answer.status == 200 && text.contains("\"delta\":\"served \""), "{text}");
        let last = text.trim_end().lines().last().unwrap_or_default();
        assert!(last.contains("failed\"") || last.contains("\"error\""), "{fault:?}: {text}");
        assert_eq!(askers(&world), ["a"], "{fault:?}");
        eventually("the account learned of it", || world.account("a")["reason"].as_str() == rests);
        eventually("it counts as failed", || world.status()["proxy"]["failed"] == 1);
        assert!(last_attempts(&world).contains("failed inside the stream"), "{fault:?}");
        world.assert_clean();
    }
}

#[test]
fn a_stream_that_is_cut_within_the_answer_never_ends_cleanly() {
    for fault in [
        Fault::CutMidStream { after: 3, by: Cut::Reset },
        Fault::CutMidStream { after: 3, by: Cut::Close },
        Inside::within_the_answer(What::HalfAnEvent(Cut::Close)),
    ] {
        let (world, door) = world(&["a", "b"], &[]);
        on_a(&world, fault.clone());
        assert!(door.send(&door.turn()).is_err(), "{fault:?}");
        assert_eq!(askers(&world), ["a"], "{fault:?}");
        let log = || fs::read_to_string(world.root().join("log/cmad.jsonl")).unwrap_or_default();
        eventually("it is told", || log().contains("\"outcome\":\"cut\""));
        world.assert_clean();
    }
}

#[test]
fn an_end_without_the_final_event_is_a_cut_and_told() {
    let (world, door) = world(&["a", "b"], &[]);
    on_a(&world, Fault::CutMidStream { after: 3, by: Cut::CleanEnd });
    let mut line = Line::open(door.addr).unwrap();
    line.write(&door.turn().bytes()).unwrap();
    assert_eq!(line.head().unwrap().status, 200);
    let mut shown = Vec::new();
    let end = loop {
        match line.piece() {
            Ok(Some(piece)) => shown.extend(piece),
            end => break end,
        }
    };
    // What came is shown, and that it isn't whole.
    let shown = String::from_utf8_lossy(&shown);
    assert!(shown.contains("\"delta\":\"served \"") && end.is_err(), "{end:?}: {shown}");
    assert_eq!(askers(&world), ["a"]);
    eventually("it counts as failed", || world.status()["proxy"]["failed"] == 1);
    let log = fs::read_to_string(world.root().join("log/cmad.jsonl")).unwrap();
    assert!(log.contains("\"outcome\":\"cut\""));
    assert_eq!(world.account("a")["state"], "ready");
    world.assert_clean();
}

#[test]
fn a_token_refused_inside_a_stream_is_renewed() {
    let (world, door) = world(&["a", "b"], &[]);
    on_a(&world, Inside::before_the_answer(Inside::failed("token_expired", "expired")));
    served_by(&door.send(&door.turn()).unwrap(), "a");
    assert_eq!(askers(&world), ["a", "a"]);
    assert_eq!(world.sim().stats().accounts["a"].refreshed, 1);
    world.assert_clean();
}

#[test]
fn a_first_event_longer_than_the_hold_is_shown() {
    let (world, door) = world(&["a", "b"], &[]);
    let text = "x".repeat(300_000);
    let done = format!(
        "data: {{\"item\":{{\"text\":\"{text}\"}},\"type\":\"response.output_item.done\"}}\n\n"
    );
    let end = "data: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\"}}\n\n";
    let bytes = format!("{done}{end}").into_bytes();
    let pieces = bytes.chunks(50_000).map(<[u8]>::to_vec).collect();
    world.sim().set_event_gap(Duration::from_millis(5));
    on_a(&world, Fault::Inside(Inside { after: 0, what: What::Pieces(pieces) }));
    assert!(door.send(&door.turn()).unwrap().body == bytes);
    assert_eq!(askers(&world), ["a"]);
    eventually("it counts as served", || world.status()["proxy"]["served"] == 1);
    world.assert_clean();
}

#[test]
fn the_requests_own_faults_are_delivered_at_once() {
    for code in ["context_length_exceeded", "invalid_prompt", "bio_policy", "cyber_policy"] {
        let (world, door) = world(&["a", "b"], &[]);
        on_a(&world, Inside::before_the_answer(Inside::failed(code, "of its own")));
        let answer = door.send(&door.turn()).unwrap();
        assert!(answer.status == 200 && answer.text().contains(code), "{}", answer.text());
        assert_eq!(askers(&world), ["a"], "{code}");
        assert_eq!(world.account("a")["state"], "ready");
        world.assert_clean();
    }
}

#[test]
fn a_code_on_which_the_cli_stops_is_the_final_word_when_nobody_can_serve() {
    let (world, door) = world(&["a", "b"], &[]);
    let fault = Inside::before_the_answer(Inside::failed("server_is_overloaded", "busy"));
    world.sim().fault(None, Route::Responses, fault, None);
    let answer = door.send(&door.turn()).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("server_is_overloaded"), "{}", answer.text());
    assert!((2..=8).contains(&posts(&world).len()), "{:?}", askers(&world));
    for name in ["a", "b"] {
        assert_eq!(world.account(name)["state"], "ready");
    }
    // A limit on all of them is a dry pool, in the shape that the CLI knows.
    let (world, door) = self::world(&["a", "b"], &[]);
    let fault = Inside::before_the_answer(What::UsageLimit(3600));
    world.sim().fault(None, Route::Responses, fault, None);
    let answer = door.send(&door.turn()).unwrap();
    assert_eq!((answer.status, posts(&world).len()), (429, 2), "{}", answer.text());
    assert_eq!(answer.json()["error"]["type"], "usage_limit_reached");
    world.assert_clean();
}

#[test]
fn a_silent_beginning_moves_twice_and_is_then_believed() {
    let settings = [("CMA_HOLD_SILENCE", "300ms"), ("CMA_HOLD", "10s")];
    let (world, door) = world(&["a", "b"], &settings);
    on_a(&world, Fault::HangMidStream { after: 1 });
    served_by(&door.send(&door.turn()).unwrap(), "b");
    assert!(last_attempts(&world).contains("fell silent before anything was shown"));
    assert_eq!(world.account("a")["state"], "ready");
    // A model that thinks for longer than that thinks elsewhere as well.
    let slow = Fault::StallMidStream { after: 1, pause: Duration::from_millis(600) };
    let (world, door) = self::world(&["a", "b", "c", "d"], &settings);
    world.sim().fault(None, Route::Responses, slow.clone(), None);
    served_by(&door.send(&door.turn()).unwrap(), "c");
    assert_eq!(askers(&world), ["a", "b", "c"]);
    // A compaction is one event at the end of its work: its silence says less.
    let (world, door) = self::world(&["a", "b"], &settings);
    on_a(&world, slow);
    let metadata = r#"{"turn_id":"t","request_kind":"compaction"}"#;
    let compaction = door.turn().header("x-codex-turn-metadata", metadata);
    served_by(&door.send(&compaction).unwrap(), "a");
    assert_eq!(askers(&world), ["a"]);
    world.assert_clean();
}

#[test]
fn a_stream_that_falls_silent_within_the_answer_is_broken_off() {
    let (world, door) = world(&["a", "b"], &[("CMA_STALL", "400ms")]);
    on_a(&world, Fault::HangMidStream { after: 3 });
    let begun = Instant::now();
    assert!(door.send(&door.turn()).is_err());
    let took = begun.elapsed();
    assert!((400..3_000).contains(&took.as_millis()), "{took:?}");
    assert_eq!(askers(&world), ["a"]);
    eventually("it is given back", || world.account("a")["in_flight"] == 0);
    // Slow is not silent.
    world.sim().set_event_gap(Duration::from_millis(150));
    served_by(&door.send(&door.turn_in("slow")).unwrap(), "b");
    world.assert_clean();
}

#[test]
fn the_hold_is_bounded_in_time() {
    let (world, door) = world(&["a", "b"], &[("CMA_HOLD", "400ms")]);
    on_a(&world, Fault::StallMidStream { after: 1, pause: Duration::from_secs(2) });
    let mut line = Line::open(door.addr).unwrap();
    let begun = Instant::now();
    line.write(&door.turn().bytes()).unwrap();
    assert_eq!(line.head().unwrap().status, 200);
    let head = begun.elapsed();
    assert!((400..1_500).contains(&head.as_millis()), "{head:?}");
    let first = line.piece().unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("response.created"));
    let rest = String::from_utf8(line.rest().unwrap()).unwrap();
    assert!(rest.contains("event: response.completed"), "{rest}");
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert_eq!(askers(&world), ["a"]);
    world.assert_clean();
}

#[test]
fn the_hold_is_bounded_in_bytes() {
    let (world, door) = {
        let world = World::new(SimConfig { event_gap: Duration::from_millis(2), ..config(&["a"]) });
        fs::create_dir_all(world.root()).unwrap();
        fs::write(world.root().join("config.toml"), "[streams]\nhold_bytes = 2048\n").unwrap();
        world.import_all();
        let door = Door::of(&world);
        (world, door)
    };
    // Fourteen bytes each: the bound is reached after a tenth of them.
    on_a(&world, Inside::before_the_answer(What::Comments(1_000)));
    let mut line = Line::open(door.addr).unwrap();
    let begun = Instant::now();
    line.write(&door.turn().bytes()).unwrap();
    line.head().unwrap();
    let head = begun.elapsed();
    let rest = String::from_utf8(line.rest().unwrap()).unwrap();
    let whole = begun.elapsed();
    assert!(head < whole / 2, "{head:?} of {whole:?}");
    assert_eq!(rest.matches(": keep-alive").count(), 1_000);
    assert!(rest.contains("event: response.completed"));
    world.assert_clean();
}

#[test]
fn what_is_held_leaves_in_one_write_with_the_first_event() {
    let (world, door) = world(&["a"], &[]);
    world.sim().set_event_gap(Duration::from_millis(300));
    let mut stream = TcpStream::connect(door.addr).unwrap();
    stream.write_all(&door.turn().bytes()).unwrap();
    let mut buffer = vec![0; 64 * 1024];
    let n = stream.read(&mut buffer).unwrap();
    let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(text.contains("event: response.created"), "{text}");
    assert!(text.contains("event: response.output_item.added"), "{text}");
    assert!(!text.contains("response.output_text.delta"), "{text}");
    world.assert_clean();
}

#[test]
fn a_client_that_leaves_during_the_hold_gives_the_account_back() {
    let (world, door) = world(&["a"], &[]);
    on_a(&world, Fault::HangMidStream { after: 1 });
    let mut line = Line::open(door.addr).unwrap();
    line.write(&door.turn().bytes()).unwrap();
    eventually("the turn is held", || world.account("a")["in_flight"] == 1);
    eventually("upstream answers", || !posts(&world).is_empty());
    drop(line);
    eventually("it is given back", || world.account("a")["in_flight"] == 0);
    eventually("upstream is told", || posts(&world)[0].outcome == Outcome::ClientGone);
    served_by(&door.send(&door.turn()).unwrap(), "a");
    world.assert_clean();
}

#[test]
fn an_answer_that_is_no_stream_is_passed_as_it_is() {
    let (world, door) = world(&["a", "b"], &[]);
    on_a(&world, Fault::json(200, &serde_json::json!({"id": "resp_1"})));
    let answer = door.send(&door.turn()).unwrap();
    assert_eq!((answer.status, answer.json()["id"].as_str()), (200, Some("resp_1")));
    assert_eq!(askers(&world), ["a"]);
    world.assert_clean();
}

#[test]
fn a_compaction_is_moved_like_a_turn() {
    let (world, door) = world(&["a", "b"], &[]);
    on_a(&world, Inside::before_the_answer(Inside::failed("server_error", "boom")));
    let body = serde_json::json!({
        "model": "gpt-5.5", "tools": [], "store": false, "stream": true,
        "input": [{"type": "message", "role": "user",
                   "content": [{"type": "input_text", "text": "hi"}]},
                  {"type": "compaction_trigger"}],
    });
    let answer = door.send(&door.turn().body(body.to_string().into_bytes())).unwrap();
    assert!(answer.is_complete() && answer.text().contains("\"compaction\""), "{}", answer.text());
    assert_eq!(askers(&world), ["a", "b"]);
    world.assert_clean();
}

#[test]
fn a_stated_wait_is_waited_when_nobody_else_can_serve() {
    let message = "Rate limit reached. Please try again in 1.5s.";
    for fault in [
        Inside::before_the_answer(Inside::failed("rate_limit_exceeded", message)),
        Fault::rate_limited(Some(2)),
    ] {
        let (world, door) = world(&["a"], &[]);
        on_a(&world, fault);
        let begun = Instant::now();
        served_by(&door.send(&door.turn()).unwrap(), "a");
        assert!(begun.elapsed() >= Duration::from_millis(1_400), "{:?}", begun.elapsed());
        assert_eq!(askers(&world), ["a", "a"]);
        world.assert_clean();
    }
    // Longer than any wait that nobody stated, and no longer than the CLI itself would wait.
    let (world, door) = world(&["a"], &[]);
    on_a(&world, Fault::rate_limited(Some(9)));
    served_by(&door.send(&door.turn()).unwrap(), "a");
    let (world, door) = self::world(&["a"], &[]);
    on_a(&world, Fault::rate_limited(Some(200)));
    let begun = Instant::now();
    assert_eq!(door.send(&door.turn()).unwrap().status, 429);
    assert!(begun.elapsed() < Duration::from_secs(5));
    world.assert_clean();
}

#[test]
fn a_host_that_fails_for_several_accounts_pauses_everybody_and_marks_nobody() {
    let overloaded = Inside::before_the_answer(Inside::failed("server_is_overloaded", "busy"));
    for fault in [Fault::server_error(503, None), overloaded] {
        let (world, door) = world(&["a", "b", "c", "d", "e", "f"], &[]);
        world.sim().fault(None, Route::Responses, fault, Some(4));
        let begun = Instant::now();
        let sender = {
            let door = door.clone();
            thread::spawn(move || door.send(&door.turn()).unwrap())
        };
        let told = || world.status()["notes"].to_string().contains("in a row");
        eventually("it is told", told);
        let answer = sender.join().unwrap();
        assert!(answer.is_complete(), "{}", answer.text());
        // Three in a row begin a pause, the next one a longer one.
        assert!(begun.elapsed() >= Duration::from_millis(1_400), "{:?}", begun.elapsed());
        assert_eq!(posts(&world).len(), 5);
        for name in ["a", "b", "c", "d", "e", "f"] {
            assert_eq!(world.account(name)["state"], "ready");
        }
        assert!(!told(), "forgotten at the first success");
        world.assert_clean();
    }
}

#[test]
fn a_401_for_everybody_does_not_walk_through_the_pool() {
    let (world, door) = world(&["a", "b", "c", "d"], &[]);
    world.sim().fault(None, Route::Responses, Fault::token_invalidated(), None);
    let answer = door.send(&door.turn()).unwrap();
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("refuses the tokens of several accounts"), "{}", answer.text());
    let mut asked = askers(&world);
    asked.sort();
    asked.dedup();
    assert_eq!(asked, ["a", "b"], "no third account is shown to such a host");
    let renewed = || -> u64 {
        world.sim().stats().accounts.values().map(|account| account.refresh_requests).sum()
    };
    assert_eq!(renewed(), 1, "one renewal tells that it isn't the token");
    for name in ["a", "b", "c", "d"] {
        assert_eq!(world.account(name)["state"], "ready", "nobody is marked");
    }
    let troubles = world.status()["notes"].to_string();
    assert!(troubles.contains("401"), "{troubles}");
    assert_eq!(renewed(), 1);
    world.sim().clear_faults();
    assert!(door.send(&door.turn()).unwrap().is_complete());
    world.assert_clean();
}

#[test]
fn one_account_whose_fresh_token_is_refused_rests_alone() {
    let (world, door) = world(&["a", "b"], &[]);
    world.sim().fault(Some("a"), Route::Responses, Fault::token_invalidated(), None);
    served_by(&door.send(&door.turn()).unwrap(), "b");
    assert_eq!(askers(&world), ["a", "a", "b"]);
    eventually("it is to blame", || world.account("a")["state"] == "cooling");
    assert_eq!(world.account("b")["state"], "ready");
    // Alone, there is nobody who could tell.
    let (world, door) = self::world(&["a"], &[]);
    world.sim().fault(Some("a"), Route::Responses, Fault::token_invalidated(), None);
    let answer = door.send(&door.turn()).unwrap();
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(askers(&world), ["a", "a"]);
    assert_eq!(world.account("a")["state"], "cooling");
    world.assert_clean();
}

#[test]
fn a_storm_of_failures_is_seen_by_nobody() {
    const THREADS: usize = 40;
    const TURNS: usize = 15;
    let (world, door) = world(&["a", "b", "c", "d", "e"], &[("CMA_HOLD_SILENCE", "300ms")]);
    world.sim().set_event_gap(Duration::from_millis(5));
    let done = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..THREADS)
        .map(|n| {
            let (door, done) = (door.clone(), Arc::clone(&done));
            thread::spawn(move || {
                let session = format!("session-{n}");
                (0..TURNS)
                    .map(|_turn| door.send(&door.turn_in(&session)).unwrap())
                    .inspect(|_answer| _ = done.fetch_add(1, Ordering::Relaxed))
                    .filter(Answer::is_complete)
                    .count()
            })
        })
        .collect();
    let hidden = |row: Row| row.rests.is_none().then_some(row.fault);
    let mut faults: Vec<_> = before_the_answer().into_iter().filter_map(hidden).collect();
    faults.retain(|fault| !format!("{fault:?}").contains("usage_not_included"));
    faults.extend([
        Fault::ResetBeforeHead,
        Fault::GarbageHead,
        Fault::server_error(503, None),
        Fault::HangMidStream { after: 1 },
    ]);
    // One request in five fails.
    let (mut next, mut sent) = (faults.iter().cycle(), 0);
    while !clients.iter().all(thread::JoinHandle::is_finished) {
        if sent <= done.load(Ordering::Relaxed) / 5 {
            let fault = next.next().unwrap().clone();
            world.sim().fault(None, Route::Responses, fault, Some(1));
            sent += 1;
        } else {
            thread::sleep(Duration::from_millis(1));
        }
    }
    let complete: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert_eq!(complete, THREADS * TURNS);
    eventually("all are accounted for", || world.status()["proxy"]["served"] == THREADS * TURNS);
    let status = world.status();
    assert_eq!((&status["proxy"]["failed"], &status["proxy"]["active"]), (&0.into(), &0.into()));
    assert!(status["proxy"]["retried"].as_u64() > Some(20), "{}", status["proxy"]);
    for account in status["accounts"].as_array().unwrap() {
        assert_eq!((&account["state"], &account["in_flight"]), (&"ready".into(), &0.into()));
    }
    world.assert_clean();
}

/// A tool's result may be sealed in part, which the thread can do without; a message between agents is a
/// task, which it can't: it goes where that can be read.
#[test]
fn what_was_sealed_in_part_is_left_out_or_taken_where_it_can_be_read() {
    let world = World::with_accounts(config(&["a", "b"]));
    let sealed = serde_json::json!({
        "type": "encrypted_content", "encrypted_content": world.sim().sealed_for("a"),
    });
    let with = |item: &serde_json::Value| {
        let mut body: serde_json::Value = serde_json::from_slice(&turn_body(100)).unwrap();
        body["input"].as_array_mut().unwrap().insert(0, item.clone());
        body.to_string().into_bytes()
    };
    let result = serde_json::json!({ "type": "function_call_output", "call_id": "c", "output": [sealed.clone()] });
    let door = Door::of_account(&world, "b");
    for refused in [1, 0] {
        let before = posts(&world).len();
        served_by(&door.send(&door.turn().body(with(&result))).unwrap(), "b");
        let sent: Vec<_> = posts(&world).split_off(before);
        // It is refused once, and known from then on.
        assert_eq!(sent.len(), 1 + refused);
        let item = &sent.last().unwrap().body["input"][0];
        assert!(item["output"].to_string().contains("left out"), "{item}");
    }
    let task = serde_json::json!({ "type": "agent_message", "author": "x", "content": [sealed] });
    let door = Door::of_account(&world, "b");
    let stuck = door.send(&door.turn().body(with(&task)).with("thread-id", "child")).unwrap();
    assert_eq!(stuck.status, 400, "{}", stuck.text());
    assert!(stuck.text().contains("cmactl session move child"), "{}", stuck.text());
    world.ctl("switch b").ok();
    let door = Door::of(&world);
    served_by(&door.send(&door.turn().body(with(&task)).with("thread-id", "other")).unwrap(), "a");
    assert_eq!(world.account("b")["state"], "ready");
    world.assert_clean();
}

/// Upstream may say inside the stream, too, that it can't read what another account sealed.
#[test]
fn what_another_account_sealed_is_left_out_when_the_stream_says_so() {
    let world =
        World::with_accounts(SimConfig { encrypted: Encrypted::Lenient, ..config(&["a", "b"]) });
    let door = Door::of_account(&world, "b");
    for what in [
        Inside::failed("invalid_encrypted_content", "scripted"),
        What::Error("invalid_encrypted_content".to_owned()),
    ] {
        let fault = Inside::before_the_answer(what);
        world.sim().fault(Some("b"), Route::Responses, fault, Some(1));
        let mut body: serde_json::Value = serde_json::from_slice(&turn_body(100)).unwrap();
        let thought = serde_json::json!({
            "type": "reasoning", "summary": [], "encrypted_content": world.sim().sealed_for("a"),
        });
        body["input"].as_array_mut().unwrap().insert(0, thought);
        let before = posts(&world).len();
        let answer = door.send(&door.turn().body(body.to_string().into_bytes())).unwrap();
        served_by(&answer, "b");
        let sent: Vec<_> = posts(&world).split_off(before);
        let thoughts = |seen: &Seen| seen.body.to_string().matches("encrypted_content").count();
        assert_eq!(sent.iter().map(thoughts).collect::<Vec<_>>(), [1, 0]);
    }
    assert_eq!(world.account("b")["state"], "ready");
    world.assert_clean();
}
