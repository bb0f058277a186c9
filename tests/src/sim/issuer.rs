//! The issuer: `/oauth/token` and `/oauth/revoke`.
//!
//! It decides what a token request is answered; whether a refresh token is good
//! is decided in `tokens`, whether a code is, in `login`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::config::CLIENT_ID;
use super::faults::{Fault, Route};
use super::jwt::Issued;
use super::login;
use super::state::{AccountNo, Busy, Work};
use super::tokens::RefreshVerdict;
use super::wire::{Answer, Call, Early, Gone, Reply, text};

/// The reasons the CLI gives for a refresh.
const REASONS: [&str; 4] = ["proactive_expiry", "scheduled", "unauthorized_recovery", "forced"];

/// Serves a request below `/oauth/`.
pub(super) async fn serve(mut call: Call) -> Answer {
    let reply = match (call.head.method.as_str(), call.head.uri.path()) {
        ("POST", "/oauth/token") => token(&mut call).await?,
        ("POST", "/oauth/revoke") => revoke(&mut call).await?,
        _ => Reply::json(404, &json!({ "detail": "Not Found" })),
    };
    Ok(reply.send(&mut call.open))
}

async fn token(call: &mut Call) -> Result<Reply, Gone> {
    let form = fields(call);
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    if field("grant_type") == "authorization_code" {
        return login::exchange(call, &form).await;
    }
    if field("grant_type") != "refresh_token" {
        let fault = call.shared.state.lock().take_fault(None, Route::Refresh);
        if let Early::Instead(reply) = call.early(fault).await? {
            return Ok(reply);
        }
        return Ok(Reply::json(400, &json!({ "error": "unsupported_grant_type" })));
    }
    if field("client_id") != CLIENT_ID {
        call.breach("a refresh with another client id");
        let body = json!({ "error": "invalid_client", "error_description": "Unknown client" });
        return Ok(Reply::json(401, &body));
    }
    if form.get("refresh_reason").is_some_and(|reason| !REASONS.contains(&reason.as_str())) {
        call.breach("a refresh with a reason the CLI does not give");
    }
    if !text(&call.head.headers, "content-type").is_some_and(|t| t.starts_with("application/json"))
    {
        call.breach("a refresh that is not JSON");
    }
    refresh(call, field("refresh_token")).await
}

async fn refresh(call: &mut Call, token: &str) -> Result<Reply, Gone> {
    let owner = call.shared.state.lock().tokens.refresh_owner(token);
    call.owned_by(owner);
    call.count(owner, |stats| stats.refresh_requests += 1);
    let _busy = owner.map(|no| Busy::begin(&call.shared, no, Work::Refreshing));
    let fault = call.shared.state.lock().take_fault(owner, Route::Refresh);
    let after = match call.early(fault).await? {
        Early::Instead(reply) => {
            call.count(owner, |stats| stats.refresh_refused += 1);
            return Ok(reply);
        },
        Early::Pass(after) => after,
    };
    let reply = commit(call, token);
    match call.late(after).await? {
        Some(Fault::CutMidStream { .. }) => Err(call.drop_unanswered()),
        _ => Ok(reply),
    }
}

fn commit(call: &Call, token: &str) -> Reply {
    let verdict = {
        let state = &mut *call.shared.state.lock();
        let accounts = &state.accounts;
        let spec = |no: AccountNo| accounts.get(no.0).map(|account| &account.spec);
        state.tokens.spend(&state.config, token, spec)
    };
    match verdict {
        RefreshVerdict::Rotated(no, issued) => {
            call.count(Some(no), |stats| stats.refreshed += 1);
            granted(&issued)
        },
        RefreshVerdict::Replayed(no, issued) => {
            call.count(Some(no), |stats| stats.replayed += 1);
            granted(&issued)
        },
        RefreshVerdict::Reused { owner, ended } => {
            call.count(Some(owner), |stats| {
                stats.reused += 1;
                stats.families_revoked += u64::from(ended);
            });
            refused("refresh_token_reused")
        },
        RefreshVerdict::Expired(no) => {
            call.count(Some(no), |stats| stats.refresh_refused += 1);
            refused("refresh_token_expired")
        },
        RefreshVerdict::Invalidated(owner) => {
            call.count(owner, |stats| stats.refresh_refused += 1);
            if owner.is_none() {
                call.unknown_token();
            }
            refused("refresh_token_invalidated")
        },
    }
}

async fn revoke(call: &mut Call) -> Result<Reply, Gone> {
    let form = fields(call);
    let token = form.get("token").map_or("", String::as_str);
    let owner = call.shared.state.lock().tokens.refresh_owner(token);
    call.owned_by(owner);
    let fault = call.shared.state.lock().take_fault(owner, Route::Revoke);
    let after = match call.early(fault).await? {
        Early::Instead(reply) => return Ok(reply),
        Early::Pass(after) => after,
    };
    let ended = call.shared.state.lock().tokens.revoke(token);
    call.count(ended, |stats| stats.families_revoked += 1);
    call.late(after).await?;
    Ok(Reply::json(200, &json!({})))
}

pub(super) fn granted(issued: &Issued) -> Reply {
    let body = json!({
        "id_token": issued.id_token,
        "access_token": issued.access_token,
        "refresh_token": issued.refresh_token,
    });
    Reply::json(200, &body)
}

fn refused(code: &str) -> Reply {
    let message = match code {
        "refresh_token_reused" => {
            "Your refresh token has already been used to generate a new access token. \
             Please try signing in again."
        },
        "refresh_token_expired" => "Your refresh token has expired. Please try signing in again.",
        _ => "Your session has ended. Please log in again.",
    };
    let body = json!({
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "param": null,
            "code": code,
        }
    });
    Reply::json(401, &body)
}

/// The fields of a body that is a flat JSON object or a form.
pub(super) fn fields(call: &Call) -> BTreeMap<String, String> {
    match &call.body.json {
        Some(Value::Object(object)) => object
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect(),
        Some(_) => BTreeMap::new(),
        None => String::from_utf8_lossy(&call.body.bytes)
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (unescape(name), unescape(value)))
            .collect(),
    }
}

pub(super) fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut ahead = rest.clone();
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        match (byte, digit(ahead.next()), digit(ahead.next())) {
            (b'+', ..) => out.push(b' '),
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                rest = ahead;
            },
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
