//! What the backend does around turns besides small documents: pictures, searches, notes, files,
//! voice calls, stored responses, reset credits.
//!
//! Everything that is made belongs to the account that made it and is 404 for any other; the answers
//! are the least a client can go on with. The paths are those that the CLI 0.169.0 holds.

use serde_json::{Value, json};

use super::state::{AccountNo, State};
use super::wire::{Call, Reply};

/// Whether a method and a path are one of these.
pub(super) fn is_known(method: &str, path: &str) -> bool {
    let below = |base: &str| path.strip_prefix(base).is_some_and(|rest| !rest.is_empty());
    match method {
        "HEAD" => path == "/codex/responses",
        "POST" => {
            matches!(
                path,
                "/codex/responses/compact"
                    | "/codex/images/generations"
                    | "/codex/images/edits"
                    | "/codex/alpha/search"
                    | "/codex/memories/trace_summarize"
                    | "/codex/realtime/calls"
                    | "/files"
                    | "/wham/rate-limit-reset-credits/consume"
                    | "/wham/accounts/send_add_credits_nudge_email"
                    | "/wham/usage/thread_usage/query"
                    | "/ps/apps/batch"
            ) || below("/files/")
                || below("/codex/responses/")
                || below("/codex/alpha/notes/")
        },
        "GET" => {
            matches!(path, "/wham/environments" | "/wham/tasks" | "/connectors/directory/list")
                || below("/wham/tasks/")
                || below("/files/")
                || below("/codex/responses/")
                || below("/codex/alpha/notes/")
                || below("/codex/alpha/history/")
        },
        "DELETE" => below("/codex/responses/"),
        _ => false,
    }
}

/// Answers an authorized call to one of these.
pub(super) fn answer(call: &Call, no: AccountNo, path: &str) -> Reply {
    if path == "/codex/responses/compact"
        && let Some(body) = &call.body.json
        && let Some(error) = super::sealed::refusal(&call.shared, no, body)
    {
        return Reply::json(400, &json!({ "error": error }));
    }
    let state = &mut *call.shared.state.lock();
    let name = state.name(no).to_owned();
    state.record.account(&name).errands += 1;
    let serial = state.serial();
    let made = |kind: &str| format!("{kind}-{name}-{serial}");
    let body = match path {
        "/codex/responses" => return plain(405, "Method Not Allowed"),
        "/codex/responses/compact" => return compact(call, state, no),
        "/codex/images/generations" | "/codex/images/edits" => {
            json!({ "created": serial, "data": [{ "b64_json": "aGk=", "made_by": name }] })
        },
        "/codex/alpha/search" => json!({ "output": format!("found by {name}") }),
        "/codex/memories/trace_summarize" => json!({ "output": [], "made_by": name }),
        "/codex/realtime/calls" => {
            return Reply {
                code: 201,
                headers: vec![
                    ("content-type".to_owned(), "application/sdp".to_owned()),
                    ("location".to_owned(), format!("/v1/realtime/calls/{}", made("rtc"))),
                ],
                body: format!("v=0\r\no={name}\r\n"),
            };
        },
        "/files" => json!({ "file_id": made("file"), "status": "created" }),
        "/wham/rate-limit-reset-credits/consume" => return consume(call, state, no),
        path if path.starts_with("/codex/alpha/") => json!({ "kept_by": name }),
        path if path.starts_with("/files/") || path.starts_with("/codex/responses/") => {
            return if path.contains(&format!("-{name}-")) {
                Reply::json(200, &json!({ "owner": name }))
            } else {
                Reply::json(404, &json!({ "detail": "Not Found" }))
            };
        },
        "/connectors/directory/list" => json!({ "connectors": [] }),
        path if path.starts_with("/wham/tasks/") => json!({ "task": {}, "owner": name }),
        _ => json!({}),
    };
    Reply::json(200, &body)
}

fn plain(code: u16, text: &str) -> Reply {
    Reply { code, headers: Vec::new(), body: text.to_owned() }
}

/// The unary compaction of older clients; it uses quota like a turn.
fn compact(call: &Call, state: &mut State, no: AccountNo) -> Reply {
    let name = state.name(no).to_owned();
    let serial = state.serial();
    let Some(account) = state.accounts.get_mut(no.0) else { return plain(404, "gone") };
    if call.body.json.as_ref().and_then(|body| body.get("model")).is_none() {
        return Reply::json(400, &json!({ "detail": "Missing required parameter: 'model'." }));
    }
    account.quota.roll();
    if let Some(until) = account.quota.full_until() {
        let refusal = super::quota::Quota::refusal(&account.spec.plan, until);
        return Reply::json(429, &refusal).with(account.quota.headers(&account.spec.plan));
    }
    account.quota.charge();
    let headers = account.quota.headers(&account.spec.plan);
    let sealed = super::sealed::seal(&account.spec.workspace_id, serial);
    let item = json!({ "type": "compaction", "encrypted_content": sealed, "by": name });
    Reply::json(200, &json!({ "output": [item] })).with(headers)
}

/// Uses a reset credit: once, whatever number of times the same request comes.
fn consume(call: &Call, state: &mut State, no: AccountNo) -> Reply {
    let text = |name: &str| {
        let value = call.body.json.as_ref()?.get(name)?.as_str()?;
        Some(value.to_owned())
    };
    let (Some(request), Some(credit)) = (text("redeem_request_id"), text("credit_id")) else {
        return Reply::json(
            400,
            &json!({ "detail": "redeem_request_id and credit_id are required" }),
        );
    };
    let key = (no, request);
    if state.redeemed.contains(&key) {
        return Reply::json(200, &json!({ "status": "redeemed" }));
    }
    let name = state.name(no).to_owned();
    let Some(account) = state.accounts.get_mut(no.0) else { return plain(404, "gone") };
    let Some(at) = account.spec.reset_credits.iter().position(|known| *known == credit) else {
        return Reply::json(404, &json!({ "detail": "Credit not found" }));
    };
    account.spec.reset_credits.remove(at);
    account.quota.primary.set_used(0.0);
    account.quota.secondary.set_used(0.0);
    state.redeemed.insert(key);
    state.record.account(&name).credits_used += 1;
    Reply::json(200, &json!({ "status": "redeemed" }))
}

/// The reset credits of an account.
pub(super) fn credits(credits: &[String]) -> Value {
    let list: Vec<_> =
        credits.iter().map(|id| json!({ "id": id, "status": "available" })).collect();
    json!({ "available_count": list.len(), "credits": list })
}
