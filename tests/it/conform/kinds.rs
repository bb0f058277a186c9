//! What a person or an IDE does with the CLI, over both transports, with nothing wrong and with a
//! limit on the account that serves first.

use super::case::{Case, Step, Wire, run, turn};
use cma_tests::sim::{Cut, Fault, Inside, Route, What};
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

/// Why what it says of plugins isn't compared.
const TWO_CALLS: &str =
    "the simulated upstream has none, and which of its two calls says so first is a race";
/// What `doctor` finds, and why the rest of it isn't compared.
const REACHED: &str = "active provider endpoints are reachable over HTTP";
const WEBSOCKET: &str = "✓ websocket";
const SHOWS_LOGIN: &str = "it shows how the CLI is signed in, and how long it took";

/// Why there is nothing to hold an account's own document against.
const SECURE: &str = "the CLI alone shows it for an upstream with a certificate only";

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
        all.push(lite(wire).same());
        all.extend(compactions(wire));
    }
    all.extend(documents());
    all.extend(commands());
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

/// A model whose tools travel as an item of the input: the CLI's own list has some, and counts where
/// upstream's can't be had.
fn lite(wire: Wire) -> Case {
    Case::new(wire, "do_lite").steps(vec![turn(&["-m", "gpt-6.1-sol"])]).fault(
        Route::Models,
        Fault::not_found(),
        None,
    )
}

/// Compactions that come to another number of items than one, which ends the turn.
fn compactions(wire: Wire) -> Vec<Case> {
    let item = json!({ "type": "compaction", "encrypted_content": "sealed" });
    let message = json!({ "type": "message", "role": "assistant", "id": "msg_sim_0", "content": [{ "type": "output_text", "text": "a summary" }] });
    let rows = [
        ("do_compaction_none", vec![]),
        ("do_compaction_two", vec![item.clone(), item]),
        ("do_compaction_text", vec![message]),
    ];
    let compacts =
        run(&[&COMPACTS, &["exec", "--skip-git-repo-check", "resume", "--last", "again"][..]]
            .concat());
    let route = if wire == Wire::Ws { Route::Frame } else { Route::Responses };
    let case = |(row, items): (&str, Vec<Value>)| {
        Case::new(wire, row)
            .steps(vec![turn(&[]), compacts.clone()])
            .fault(route, answered_with(&items), Some(1))
            .before_step(1)
            .since("0.149.0", "it compacts by another call")
            .same_for_two()
    };
    rows.into_iter().map(case).collect()
}

/// A whole answer of these items.
fn answered_with(items: &[Value]) -> Fault {
    let usage = json!({ "input_tokens": 10, "output_tokens": 5, "total_tokens": 15 });
    let done = |(at, item): (usize, &Value)| json!({ "type": "response.output_item.done", "output_index": at, "item": item });
    let mut events =
        vec![json!({ "type": "response.created", "response": { "id": "resp_sim_0" } })];
    events.extend(items.iter().enumerate().map(done));
    events.push(
        json!({ "type": "response.completed", "response": { "id": "resp_sim_0", "usage": usage } }),
    );
    let pieces = events.iter().map(|event| format!("data: {event}\n\n").into_bytes()).collect();
    Inside::before_the_answer(What::Pieces(pieces))
}

/// Commands that ask for something beside turns.
fn commands() -> Vec<Case> {
    let command = |wire: Wire, row: &str, words: &[&str]| {
        Case::new(wire, &format!("run_{row}")).steps(vec![run(words)])
    };
    let alike = [
        ("mcp", &["mcp", "list"][..]),
        ("features", &["features", "list"]),
        ("apply", &["apply", "task_1"]),
        ("login_status", &["login", "status"]),
    ];
    let mut all: Vec<_> =
        alike.iter().map(|(row, words)| command(Wire::Http, row, words).same()).collect();
    let models = command(Wire::Http, "models", &["debug", "models"]);
    all.push(models.since("0.128.0", "it has no `debug models`").same());
    let plugins = command(Wire::Http, "plugins", &["plugin", "list"]);
    let plugins = plugins.since("0.149.0", "it has no `plugin list`");
    all.push(plugins.ours_for_one("No marketplace plugins found", TWO_CALLS));
    for wire in [Wire::Http, Wire::Ws] {
        let doctor = command(wire, "doctor", &["doctor"]).since("0.149.0", "it has no `doctor`");
        let says = if wire == Wire::Ws { WEBSOCKET } else { REACHED };
        // Of WebSockets it tries a handshake only.
        all.push(doctor.may_bridge().ours_for_one(says, SHOWS_LOGIN));
    }
    all.push(command(Wire::Http, "prompt", &["debug", "prompt-input", "say hi"]).same());
    all
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
        ask("account", "account/read", json!({})).ours_for_one("\"planType\":\"plus\"", SECURE),
        ask("usage", "account/usage/read", Value::Null).same(),
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
