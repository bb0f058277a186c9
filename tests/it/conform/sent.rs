//! What upstream got for the last turn of a run.
//!
//! Over HTTP that is the last request. Over a WebSocket a frame has only what is new, and what it builds on
//! depends on how often a connection had to be made anew: so the frames of a thread are put together
//! again, without what upstream itself said, which a whole input repeats and a part doesn't; and the
//! headers are those of the run's first handshake.

use super::{case::Wire, normal::Normal};
use cma_tests::sim::Seen;
use serde_json::Value;
use std::collections::HashMap;

/// Items of an input that came from upstream.
const ANSWERS: [&str; 4] = ["reasoning", "function_call", "custom_tool_call", "local_shell_call"];
/// What belongs to a connection, or to the way that the turn took.
const OF_THE_WAY: [&str; 5] =
    ["type", "previous_response_id", "client_metadata", "stream", "generate"];

/// Headers that are a connection's or an account's.
const OF_ONE: [&str; 6] = [
    "authorization",
    "chatgpt-account-id",
    "content-length",
    "host",
    "sec-websocket-extensions",
    "sec-websocket-key",
];

/// One whose value upstream made up for an account and its turn.
const MADE_UP: &str = "x-codex-turn-state";

/// The last turn's body with its headers, or those of the first handshake, line by line.
pub(super) fn last(wire: Wire, seen: &[Seen], normal: &Normal) -> Vec<String> {
    let (head, body) = match wire {
        Wire::Http => {
            let turn = seen.iter().rfind(|seen| seen.method == "POST");
            (turn, turn.map(|seen| seen.body.clone()))
        },
        Wire::Ws => (seen.iter().find(|seen| seen.method == "GET"), whole(seen)),
    };
    let Some((head, body)) = head.zip(body) else { return Vec::new() };
    let headers = head.headers.iter().filter(|(name, _)| !OF_ONE.contains(&name.as_str()));
    let mut lines: Vec<_> = headers
        .map(|(name, value)| match name.as_str() {
            MADE_UP => format!("{name}: <token>"),
            _ => format!("{name}: {}", normal.line(value)),
        })
        .collect();
    lines.sort_unstable();
    let body = serde_json::to_string_pretty(&normal.json(&body)).unwrap_or_default();
    lines.extend(body.lines().map(str::to_owned));
    lines
}

/// The last turn as if all of it had been sent at once.
fn whole(seen: &[Seen]) -> Option<Value> {
    let (mut last, mut threads) = (None, HashMap::<String, Thread>::new());
    for seen in seen.iter().filter(|seen| seen.body.is_object()) {
        let thread = threads.entry(seen.header("thread-id").unwrap_or_default().to_owned());
        let input = thread.or_default().with(&seen.body);
        let mut body = seen.body.clone();
        let fields = body.as_object_mut()?;
        fields.retain(|name, _| !OF_THE_WAY.contains(&name.as_str()));
        fields.insert("input".to_owned(), Value::Array(input));
        if seen.body["generate"] != false {
            last = Some(body);
        }
    }
    last
}

/// What a thread's client has said so far.
#[derive(Debug, Default)]
struct Thread {
    input: Vec<Value>,
    /// What there was when something first went on from that response.
    before: HashMap<String, Vec<Value>>,
}

impl Thread {
    fn with(&mut self, body: &Value) -> Vec<Value> {
        let items = body["input"].as_array().into_iter().flatten();
        let said = items.filter(|item| {
            let kind = item["type"].as_str().unwrap_or_default();
            item["role"] != "assistant" && !ANSWERS.contains(&kind)
        });
        let mut input = match body["previous_response_id"].as_str() {
            Some(from) => {
                self.before.entry(from.to_owned()).or_insert_with(|| self.input.clone()).clone()
            },
            None => Vec::new(),
        };
        input.extend(said.cloned());
        self.input.clone_from(&input);
        input
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_and_wholes_of_a_thread_come_to_the_same() {
        let says = |text: &str| json!({"type": "message", "role": "user", "content": text});
        let answer = json!({"type": "message", "role": "assistant", "content": "yes"});
        let mut parts = Thread::default();
        parts.with(&json!({"input": [says("one")]}));
        for _again in 0..2 {
            parts.with(&json!({"previous_response_id": "r1", "input": [says("two")]}));
        }
        let mut wholes = Thread::default();
        let whole = json!({"input": [says("one"), answer, says("two")]});
        assert_eq!(wholes.with(&whole), parts.input);
        assert_eq!(parts.input, [says("one"), says("two")]);
    }
}
