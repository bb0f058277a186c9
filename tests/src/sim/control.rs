//! The control routes below `/__sim/`, for tests in other processes.
//!
//! They offer what [`super::Sim`] offers, guarded by nothing: the listener is on
//! loopback and everything here is made up. They are neither recorded nor
//! subject to faults.
//!
//! `GET state`, `GET seen`; `POST fault`, `clear-faults`, `auth/NAME`,
//! `expire/NAME`, `revoke-access/NAME`, `revoke-family/NAME`,
//! `expire-refresh/NAME`, `used/NAME`, `tool-call`, `reply`, `pause`.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::faults::{Fault, Route};
use super::server::Command;
use super::state::{AccountNo, Shared, State};
use super::tokens::Freshness;
use super::wire::Reply;

/// A fault by name or in full.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum NamedFault {
    Name(String),
    Full(Fault),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultScript {
    account: Option<String>,
    route: Option<Route>,
    fault: NamedFault,
    times: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Used {
    primary: f64,
    secondary: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolCall {
    cmd: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplyScript {
    text: Option<String>,
    event_gap_ms: Option<u64>,
    grace_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pause {
    ms: u64,
}

/// Serves a request to `path?query` below `/__sim/`.
pub(super) fn serve(
    shared: &Arc<Shared>,
    method: &Method,
    (path, query): (&str, &str),
    body: &[u8],
) -> Reply {
    let result = match (method.as_str(), path) {
        ("GET", "state") => Ok(state(shared)),
        ("GET", "seen") => Ok(json!({ "seen": shared.state.lock().record.seen() })),
        ("POST", "fault") => parse(body).and_then(|script| fault(shared, script)),
        ("POST", "clear-faults") => {
            shared.state.lock().faults.clear();
            Ok(json!({}))
        },
        ("POST", "tool-call") => parse(body).map(|ToolCall { cmd }| {
            shared.state.lock().script_tool_call(&cmd);
            json!({})
        }),
        ("POST", "reply") => parse(body).map(|script| reply(shared, script)),
        ("POST", "pause") => parse(body).map(|Pause { ms }| {
            shared.commands.tell(Command::PauseFor(Duration::from_millis(ms)));
            json!({})
        }),
        ("POST", path) => match path.split_once('/') {
            Some((verb, name)) => on_account(shared, (verb, name), query, body),
            None => Err(unknown_path()),
        },
        _ => Err(unknown_path()),
    };
    match result {
        Ok(body) => Reply::json(200, &body),
        Err(refusal) => refusal,
    }
}

fn state(shared: &Shared) -> Value {
    let mut state = shared.state.lock();
    let accounts = state.windows();
    json!({
        "stats": state.record.stats(),
        "violations": state.record.violations(),
        "accounts": accounts,
        "faults": state.faults.len(),
    })
}

fn fault(shared: &Shared, script: FaultScript) -> Result<Value, Reply> {
    let fault = match script.fault {
        NamedFault::Full(fault) => fault,
        NamedFault::Name(name) => {
            Fault::named(&name).ok_or_else(|| refusal(&format!("no fault is called `{name}`")))?
        },
    };
    let route = script.route.unwrap_or(Route::Any);
    let mut state = shared.state.lock();
    if let Some(name) = &script.account {
        find(&state, name)?;
    }
    state.faults.script(script.account.as_deref(), route, fault, script.times);
    Ok(json!({}))
}

fn reply(shared: &Shared, script: ReplyScript) -> Value {
    let config = &mut shared.state.lock().config;
    if let Some(text) = script.text {
        config.reply_text = text;
    }
    if let Some(ms) = script.event_gap_ms {
        config.event_gap = Duration::from_millis(ms);
    }
    if let Some(ms) = script.grace_ms {
        config.grace = Duration::from_millis(ms);
    }
    json!({})
}

fn on_account(
    shared: &Shared,
    (verb, name): (&str, &str),
    query: &str,
    body: &[u8],
) -> Result<Value, Reply> {
    let mut state = shared.state.lock();
    let no = find(&state, name)?;
    match verb {
        "auth" => {
            let expired = query.split('&').any(|pair| pair == "expired=1");
            let freshness = if expired { Freshness::Expired } else { Freshness::Fresh };
            let file = state.login(no, freshness);
            return parse(file.as_bytes());
        },
        "expire" => state.tokens.expire_access(no),
        "revoke-access" => state.tokens.revoke_access(no),
        "revoke-family" => state.revoke_families(no),
        "expire-refresh" => state.tokens.expire_refresh(no),
        "used" => {
            let used: Used = parse(body)?;
            state.set_used(no, used.primary, used.secondary);
        },
        _ => return Err(unknown_path()),
    }
    Ok(json!({}))
}

fn find(state: &State, name: &str) -> Result<AccountNo, Reply> {
    state.find(name).ok_or_else(|| {
        Reply::json(404, &json!({ "error": format!("no account is called `{name}`") }))
    })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Reply> {
    serde_json::from_slice(body).map_err(|error| refusal(&error.to_string()))
}

fn refusal(why: &str) -> Reply {
    Reply::json(400, &json!({ "error": why }))
}

fn unknown_path() -> Reply {
    Reply::json(404, &json!({ "error": "no such control route" }))
}
