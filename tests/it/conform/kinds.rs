//! What a person or an IDE does with the CLI, over both transports, with nothing wrong and with a
//! limit on the account that serves first.

use super::case::{Case, Step, Wire, run, turn};
use cma_tests::sim::{Cut, Fault, Route};
use serde_json::{Value, json};
use std::time::Duration;

/// In a sandbox of the machine's making the tool's own words would differ from machine to machine.
const FREE: &str = "--dangerously-bypass-approvals-and-sandbox";
/// In front of the subcommand: behind it, 0.128.0 and 0.149.0 forget those in front, the addresses.
/// With 1,000 tokens a turn, the second one compacts first.
const COMPACTS: [&str; 2] = ["-c", "model_auto_compact_token_limit=900"];

/// Why the account's limits are told although upstream doesn't tell them.
const KNOWN: &str =
    "the pool answers from what it knows of its windows, so that no failure of this call is shown";

/// Limits that 0.128.0 meets otherwise.
const ALONE_IN_HIDDEN: [(&str, &str); 3] = [
    ("http/do_compaction/hidden", COMPACTED),
    ("ws/do_compaction/hidden", COMPACTED),
    ("ws/do_review/hidden", "its review is a session of its own, which any account may get"),
];
const COMPACTED: &str = "it compacts by a call of its own, before the limit; what that account made no other \
                         can read, and the person is told in one line";

/// All kinds.
pub(super) fn all() -> Vec<Case> {
    let mut all = Vec::new();
    for wire in [Wire::Http, Wire::Ws] {
        for kind in kinds(wire) {
            all.push(kind.clone().same());
            let limit = Fault::UsageLimitReached { resets_in: Duration::from_secs(3600) };
            let route = if wire == Wire::Ws { Route::Frame } else { Route::Responses };
            let last = kind.steps.len() - 1;
            let hidden = kind.fault(route, limit, None).before_step(last).hidden();
            let why = ALONE_IN_HIDDEN.iter().find(|(row, _)| hidden.name == *row);
            all.push(match why {
                Some((_, why)) => hidden.not_with("0.128.0", why),
                None => hidden,
            });
        }
        all.push(thread_with_a_cut(wire).same());
    }
    all.extend(documents());
    all
}

fn exec(words: &[&str]) -> Step {
    let all: Vec<_> = ["exec", "--skip-git-repo-check"].iter().chain(words).copied().collect();
    run(&all)
}

fn kinds(wire: Wire) -> Vec<Case> {
    let kind = |row: &str, steps: Vec<Step>| Case::new(wire, &format!("do_{row}")).steps(steps);
    let resume = |word: &str| exec(&["resume", "--last", word]);
    let compacts =
        |words: &[&str]| run(&[&COMPACTS, &["exec", "--skip-git-repo-check"], words].concat());
    let call = |id: u32, method: &str, params: Value| json!({ "id": id, "method": method, "params": params });
    let hello = call(0, "initialize", json!({ "clientInfo": { "name": "ide", "version": "1" } }));
    let begin = call(1, "thread/start", json!({}));
    let input = json!([{ "type": "text", "text": "say hi" }]);
    let ask = call(2, "turn/start", json!({ "threadId": "{thread}", "input": input }));
    let compact = call(3, "thread/compact/start", json!({ "threadId": "{thread}" }));
    let ended = json!({ "await": "turn/completed" });
    let served = |messages: Vec<Value>| Step::Serve(messages);
    vec![
        kind("turn", vec![turn(&[])]),
        kind("json", vec![turn(&["--json"])]),
        kind("last_message", vec![turn(&["-o", "{dir}/home/.codex/last.txt"])]),
        kind("schema", vec![turn(&["--json", "--output-schema", "{dir}/work/schema.json"])])
            .tune(|config| "{\"answer\":\"hi\"}".clone_into(&mut config.reply_text)),
        kind("image", vec![exec(&["say hi", "-i", "{dir}/work/picture.png"])]),
        kind("tool", vec![exec(&[FREE, "--json", "run it"])]).tool("echo heron; exit 3"),
        kind("resume", vec![turn(&[]), resume("again")]),
        kind("resume_twice", vec![turn(&[]), resume("again"), resume("and again")]),
        kind("resume_by_id", vec![turn(&[]), exec(&["resume", "{thread}", "again"])]),
        kind("fork", vec![turn(&[]), exec(&["fork", "{thread}", "again"])])
            .since("0.149.0", "it has no `exec fork`"),
        kind("ephemeral", vec![turn(&["--ephemeral"])]).since("0.128.0", "it has no `--ephemeral`"),
        kind("review", vec![exec(&["review", "--uncommitted"])]),
        kind("compaction", vec![turn(&[]), compacts(&["resume", "--last", "again"])]),
        kind(
            "app_server",
            vec![served(vec![hello.clone(), begin.clone(), ask.clone(), ended.clone()])],
        )
        .since("0.128.0", "its app-server has other methods"),
        kind(
            "app_server_compaction",
            vec![served(vec![hello, begin, ask, ended.clone(), compact, ended])],
        )
        .since("0.128.0", "its app-server has other methods"),
        kind("long_answer", vec![turn(&[])])
            .tune(|config| config.reply_text = "word ".repeat(5000))
            .not_with("0.128.0", "whether it shows a long answer twice is a race of its own"),
        kind("model", vec![turn(&["-m", "gpt-5.5"])]),
    ]
}

/// A thread whose second turn is cut in the middle of its answer, once.
fn thread_with_a_cut(wire: Wire) -> Case {
    let (route, after) = if wire == Wire::Ws { (Route::Frame, 7) } else { (Route::Responses, 4) };
    Case::new(wire, "do_resume_with_a_cut")
        .steps(vec![turn(&[]), exec(&["resume", "--last", "again"])])
        .fault(route, Fault::CutMidStream { after, by: Cut::Reset }, Some(1))
        .before_step(1)
}

/// Documents that an IDE asks for.
fn documents() -> Vec<Case> {
    let ask = |row: &str, method: &str, params: Value| {
        let hello = json!({ "id": 0, "method": "initialize", "params": { "clientInfo": { "name": "ide", "version": "1" } } });
        let asked = json!({ "id": 1, "method": method, "params": params });
        Case::new(Wire::Http, &format!("ask_{row}"))
            .steps(vec![Step::Serve(vec![hello, asked])])
            .since("0.128.0", "its app-server has other methods")
    };
    vec![
        ask("models", "model/list", json!({})).same(),
        ask("limits", "account/rateLimits/read", Value::Null).same(),
        // No fault of this call reaches the CLI: what the pool knows is answered.
        ask("usage_401", "account/rateLimits/read", Value::Null)
            .fault(Route::Usage, Fault::token_invalidated(), Some(1))
            .ours_for_one("rateLimits", KNOWN),
        ask("usage_404", "account/rateLimits/read", Value::Null)
            .fault(Route::Usage, Fault::not_found(), None)
            .ours_for_one("rateLimits", KNOWN),
        ask("usage_500", "account/rateLimits/read", Value::Null)
            .fault(Route::Usage, Fault::server_error(500, None), None)
            .ours_for_one("rateLimits", KNOWN),
        ask("usage_float", "account/rateLimits/read", Value::Null)
            .fault(Route::Usage, float_usage(), None)
            .ours_for_one("rateLimits", KNOWN),
        ask("models_500", "model/list", json!({}))
            .fault(Route::Models, Fault::server_error(500, None), None)
            .same(),
    ]
}

/// A fraction where the CLI wants whole percents.
fn float_usage() -> Fault {
    let window = json!({ "used_percent": 12.5, "limit_window_seconds": 18000, "reset_after_seconds": 9000, "reset_at": 1_995_200_000 });
    let limit = json!({ "allowed": true, "limit_reached": false, "primary_window": window });
    Fault::json(200, &json!({ "plan_type": "plus", "rate_limit": limit }))
}
