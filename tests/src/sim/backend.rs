//! The backend below `/backend-api`: authorization, quota, and turns.
//!
//! The order is that of a real edge: what a fault does to the connection comes
//! first, then the token, then the request itself, then the quota. Only a turn
//! that is begun with a 200 uses quota.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, UPGRADE};
use http_body_util::combinators::UnsyncBoxBody;
use serde_json::{Value, json};

use super::around;
use super::faults::{Fault, Route, unauthorized};
use super::quota::Quota;
use super::record::AccountStats;
use super::reply;
use super::sealed;
use super::side;
use super::sse::{Item, Stream, Turn};
use super::state::{AccountNo, Busy, Shared, Work};
use super::strict;
use super::tokens::AccessVerdict;
use super::wire::{Answer, Call, Early, Reply, respond, text};
use super::ws;

/// Serves a request; `path` is what follows `/backend-api`.
pub(super) async fn serve(mut call: Call, path: String) -> Answer {
    let route = route(&call, &path);
    if route == Route::Responses {
        strict::check_turn(&call);
    }
    if route == Route::Upgrade {
        strict::check_handshake(&call);
    }
    let verdict = call.authorize();
    let owner = verdict.and_then(AccessVerdict::account);
    call.owned_by(owner);
    let fault = call.shared.state.lock().take_fault(owner, route);
    let fault = match call.early(fault).await? {
        Early::Instead(reply) => return Ok(reply.send(&mut call.open)),
        Early::Pass(fault) => fault,
    };
    let offered = call.shared.state.lock().config.websocket;
    if route == Route::Upgrade && !offered {
        let body = "Upgrade Required".to_owned();
        let reply = Reply { code: 426, headers: Vec::new(), body };
        return Ok(reply.send(&mut call.open));
    }
    if route == Route::Aux && !side::is_known(call.head.method.as_str(), &path) {
        let reply = Reply::json(404, &json!({ "detail": "Not Found" }));
        return Ok(reply.send(&mut call.open));
    }
    let code = match verdict {
        Some(AccessVerdict::Good(no)) => {
            return match route {
                Route::Responses => turn(call, no, fault).await,
                Route::Upgrade => Ok(ws::accept(call, no)),
                _ => small(call, no, &path, fault).await,
            };
        },
        Some(AccessVerdict::Expired(_)) => "token_expired",
        Some(AccessVerdict::Revoked(_)) => "token_invalidated",
        Some(AccessVerdict::Unknown) | None => "invalid_token",
    };
    if verdict.is_none() {
        call.breach("no bearer");
    }
    call.count(owner, |stats| stats.unauthorized += 1);
    Ok(Reply::json(401, &unauthorized(code)).send(&mut call.open))
}

fn route(call: &Call, path: &str) -> Route {
    match (call.head.method.as_str(), path) {
        ("POST", "/codex/responses") => Route::Responses,
        ("GET", "/codex/responses") if call.head.headers.contains_key(UPGRADE) => Route::Upgrade,
        ("GET", "/codex/models") => Route::Models,
        ("GET", "/wham/usage") => Route::Usage,
        ("GET", "/wham/accounts/check") => Route::AccountsCheck,
        (method, path) if around::is_known(method, path) => Route::Errand,
        _ => Route::Aux,
    }
}

/// Every route but turns: a small JSON document.
async fn small(mut call: Call, no: AccountNo, path: &str, fault: Option<Fault>) -> Answer {
    let reply = if around::is_known(call.head.method.as_str(), path) {
        around::answer(&call, no, path)
    } else {
        side::answer(&call, no, path)
    };
    let fault = call.late(fault).await?;
    if !matches!(fault, Some(Fault::CutMidStream { .. } | Fault::HangMidStream { .. })) {
        return Ok(reply.send(&mut call.open));
    }
    let half = reply.body.len() / 2;
    let body = Bytes::from(reply.body);
    let pieces = vec![body.slice(..half), body.slice(half..)];
    let damage = match fault {
        Some(Fault::CutMidStream { by, .. }) => Fault::CutMidStream { after: 1, by },
        _ => Fault::HangMidStream { after: 1 },
    };
    call.open.head(reply.code);
    let stream = Stream::new(pieces, Duration::ZERO, Some(&damage), call.line, (call.open, None));
    Ok(respond(reply.code, reply.headers, UnsyncBoxBody::new(stream)))
}

/// A request that may not be served, in words and as an answer.
fn refusal(call: &Call) -> Option<Reply> {
    let why = match (&call.body.broken, &call.body.json) {
        (Some(why), _) => why.as_str(),
        (None, None) => "the body is not JSON",
        (None, Some(body)) => reply::fault_of(body)?,
    };
    call.breach(&format!("a turn with a bad body: {why}"));
    Some(Reply::json(400, &json!({ "detail": why })))
}

async fn turn(mut call: Call, no: AccountNo, fault: Option<Fault>) -> Answer {
    if let Some(reply) = refusal(&call) {
        return Ok(reply.send(&mut call.open));
    }
    sealed::check_turn_state(&call, no);
    let body = call.body.json.as_ref().unwrap_or(&Value::Null);
    if let Some(error) = sealed::refusal(&call.shared, no, body) {
        return Ok(Reply::json(400, &json!({ "error": error })).send(&mut call.open));
    }
    let busy = Busy::begin(&call.shared, no, Work::Responding);
    let session = text(&call.head.headers, "session-id");
    let body = call.body.json.as_ref().unwrap_or(&Value::Null);
    let admitted = admit(&call.shared, no, session, body, call.body.bytes.len());
    let (turn, mut headers, gap) = match admitted {
        Ok(admitted) => admitted,
        Err(reply) => return Ok(reply.send(&mut call.open)),
    };
    headers.push(("x-codex-turn-state".to_owned(), sealed::turn_state(&call, no)));
    let fault = call.late(fault).await?;
    let (events, fault) = match fault {
        Some(Fault::SseFailed { ref code, ref message }) => (turn.failed(code, message), fault),
        Some(Fault::Incomplete { ref reason }) => (turn.incomplete(reason), fault),
        Some(Fault::Inside(inside)) => inside.script(turn.events()),
        _ => (turn.events(), fault),
    };
    call.open.head(200);
    call.shared.state.lock().record.told(call.open.number, turn.tokens());
    let Call { line, open, .. } = call;
    let stream = Stream::new(events, gap, fault.as_ref(), line, (open, Some(busy)));
    Ok(respond(200, headers, UnsyncBoxBody::new(stream)))
}

pub(super) type Admitted = (Turn, Vec<(String, String)>, Duration);

/// Takes quota for a turn and says what it will be, or why it may not be.
pub(super) fn admit(
    shared: &Shared,
    no: AccountNo,
    session: Option<&str>,
    body: &Value,
    bytes: usize,
) -> Result<Admitted, Reply> {
    let state = &mut *shared.state.lock();
    let gone = || Reply::json(401, &unauthorized("token_invalidated"));
    let account = state.accounts.get_mut(no.0).ok_or_else(gone)?;
    account.quota.roll();
    let plan = account.spec.plan.clone();
    let workspace = account.spec.workspace_id.clone();
    let name = account.spec.name.clone();
    if let Some(until) = account.quota.full_until() {
        let headers = account.quota.headers(&plan);
        state.record.account(&name).limited += 1;
        return Err(Reply::json(429, &Quota::refusal(&plan, until)).with(headers));
    }
    let model = body.get("model").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut own = account.own.as_mut().filter(|own| own.counts(&model));
    if let Some(own) = &mut own
        && let Err(until) = own.charge()
    {
        let mut headers = account.quota.headers(&plan);
        own.headers(&mut headers);
        state.record.account(&name).limited += 1;
        return Err(Reply::json(429, &Quota::refusal(&plan, until)).with(headers));
    }
    account.quota.charge();
    let mut headers = account.quota.headers(&plan);
    if let Some(own) = own {
        own.headers(&mut headers);
    }
    let etag = side::models_etag(&account.spec);
    state.record.account(&name).served += 1;
    let id = state.serial();
    let item = reply::item(state, (&name, &workspace, id), session, body);
    let thinks = state.config.reasoning && !matches!(item, Item::Compaction(_));
    let reasoning = thinks.then(|| sealed::seal(&workspace, id));
    for (name, value) in [
        ("content-type", "text/event-stream".to_owned()),
        ("cache-control", "no-cache".to_owned()),
        ("x-models-etag", etag),
        ("x-reasoning-included", "true".to_owned()),
        ("openai-model", model.clone()),
        ("x-request-id", format!("req_sim_{id}")),
    ] {
        headers.push((name.to_owned(), value));
    }
    // A token is about four bytes of text.
    let input_tokens = state.config.input_tokens.unwrap_or(bytes / 4).max(1);
    let turn = Turn { id, model, reasoning, item, input_tokens, cached_tokens: input_tokens / 2 };
    Ok((turn, headers, state.config.event_gap))
}

impl Call {
    /// Judges the bearer, if there is one, and notes what is wrong with it.
    fn authorize(&self) -> Option<AccessVerdict> {
        let bearer = text(&self.head.headers, AUTHORIZATION.as_str())?;
        let (scheme, token) = bearer.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let verdict = self.shared.state.lock().tokens.judge(token.trim());
        let Some(no) = verdict.account() else {
            self.unknown_token();
            return Some(verdict);
        };
        let named = text(&self.head.headers, "chatgpt-account-id");
        let matches = {
            let state = self.shared.state.lock();
            let own = state.account(no).map(|account| account.spec.workspace_id.as_str());
            named.is_none() || named == own
        };
        if !matches {
            self.breach("header `chatgpt-account-id` names another account than the token");
        }
        Some(verdict)
    }

    pub(super) fn unknown_token(&self) {
        self.shared.state.lock().record.unknown_token();
        self.breach("unknown token");
    }

    /// Notes whose request it is.
    pub(super) fn owned_by(&self, owner: Option<AccountNo>) {
        let Some(no) = owner else { return };
        let state = &mut *self.shared.state.lock();
        let name = state.name(no).to_owned();
        state.record.owned_by(self.open.number, &name);
    }

    /// Counts something for an account.
    pub(super) fn count(&self, owner: Option<AccountNo>, add: impl FnOnce(&mut AccountStats)) {
        let Some(no) = owner else { return };
        let state = &mut *self.shared.state.lock();
        let name = state.name(no).to_owned();
        add(state.record.account(&name));
    }
}
