//! Decides what a turn answers: the configured text, one scripted tool call, or
//! a compaction.
//!
//! It reads the request's body and never its headers, except the session a
//! scripted tool call is bound to.

use serde_json::{Value, json};

use super::sealed;
use super::sse::Item;
use super::state::State;

/// What the upstream has to say about a body before it serves it.
pub(super) fn fault_of(body: &Value) -> Option<&'static str> {
    if body.get("model").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Some("Missing required parameter: 'model'.");
    }
    if body.get("input").and_then(Value::as_array).is_none() {
        return Some("Missing required parameter: 'input'.");
    }
    if body.get("stream").and_then(Value::as_bool) != Some(true) {
        return Some("Stream must be set to true");
    }
    if body.get("store").and_then(Value::as_bool) == Some(true) {
        return Some("Store must be set to false");
    }
    None
}

/// The item that answers `body`: of an account by name, in its workspace, with that number.
pub(super) fn item(
    state: &mut State,
    (account, workspace, id): (&str, &str, u64),
    session: Option<&str>,
    body: &Value,
) -> Item {
    let input = body.get("input").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if input.last().is_some_and(|last| kind(last) == "compaction_trigger") {
        return Item::Compaction(sealed::seal(workspace, id));
    }
    let is_output = |item: &&Value| kind(item).ends_with("_call_output");
    let answered = if state.tool.as_ref().is_some_and(|script| script.in_any_turn) {
        let turn = input.iter().rev().take_while(|item| item["role"] != "user");
        turn.into_iter().any(|item| is_output(&item))
    } else {
        input.iter().any(|item| is_output(&item))
    };
    if !answered
        && let Some(tool) = tool(body, input)
        && let Some(command) = claim(state, session)
    {
        let arguments = match tool {
            "exec_command" => json!({ "cmd": command }),
            "shell_command" => json!({ "command": command }),
            _ => json!({ "command": ["sh", "-c", command] }),
        };
        return Item::Call { name: tool.to_owned(), arguments: arguments.to_string() };
    }
    Item::Text(state.config.reply_text.replace("{account}", account))
}

fn kind(item: &Value) -> &str {
    item.get("type").and_then(Value::as_str).unwrap_or("")
}

/// The command tool the request offers, in the body or (lite models) as an item.
fn tool(body: &Value, input: &[Value]) -> Option<&'static str> {
    let offers = |name: &str| {
        let in_item = input.iter().filter(|item| kind(item) == "additional_tools");
        in_item
            .chain([body])
            .filter_map(|holder| holder.get("tools")?.as_array())
            .flatten()
            .any(|tool| tool.get("name").and_then(Value::as_str) == Some(name))
    };
    ["exec_command", "shell_command", "shell"].into_iter().find(|name| offers(name))
}

/// The scripted command, if it is this session's. Without a session it is
/// given once; with one, also when the same request is sent again.
fn claim(state: &mut State, session: Option<&str>) -> Option<String> {
    let script = state.tool.as_mut()?;
    let theirs = script.session.is_none() || script.session.as_deref() == session;
    if !theirs {
        return None;
    }
    let command = script.command.clone();
    match session {
        Some(session) => script.session = Some(session.to_owned()),
        None => state.tool = None,
    }
    Some(command)
}
