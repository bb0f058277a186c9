//! Signing in by a code that is typed on any device: the issuer's own protocol, which is not the
//! standard's.
//!
//! Observed with the official CLI 0.169.0: `usercode` gives a code and an interval; `token` answers
//! 403 or 404 until the person has agreed, then an authorization code with the verifier that the
//! issuer itself made. Any other answer is final there; here those that mean "not now" are waited
//! out, since a person may be typing.

use super::{
    Logins, Session, Stage,
    exchange::{self, Answer, Ending, Issuer, Redeemer, Trouble},
};
use cma_proto::{error::ErrorCode, login::LoginEnd};
use http::StatusCode;
use oauth2::PkceCodeVerifier;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

const USER_CODE: &str = "/api/accounts/deviceauth/usercode";
const TOKEN: &str = "/api/accounts/deviceauth/token";
const PAGE: &str = "/codex/device";
const CALLBACK: &str = "/deviceauth/callback";
/// When the issuer names no interval.
const INTERVAL: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// A code in the person's hands.
#[derive(Debug)]
pub(super) struct Asked {
    device_auth_id: String,
    pub(super) user_code: String,
    interval: Duration,
}

#[derive(Deserialize)]
struct UserCode {
    device_auth_id: String,
    #[serde(alias = "usercode")]
    user_code: String,
    /// Seconds, as a number or a string.
    interval: Option<Value>,
}

#[derive(Deserialize)]
struct Agreed {
    authorization_code: String,
    code_verifier: String,
}

/// Gets a code, and the address to type it at.
pub(super) async fn ask(issuer: &Issuer) -> Result<(Asked, String), Box<Ending>> {
    let answer = issuer
        .post_json(USER_CODE, &json!({ "client_id": exchange::CLIENT_ID }))
        .await
        .map_err(|trouble| issuer.unreachable(&trouble))?;
    if answer.status == StatusCode::NOT_FOUND {
        let ending = Ending::new(
            LoginEnd::NoDeviceCodes,
            ErrorCode::NotFound,
            "this issuer, or the workspace, has no sign-in by code",
            "run `cmactl login --no-browser` and open the link anywhere",
        );
        return Err(ending.into());
    }
    if !answer.status.is_success() {
        return Err(failed(&answer).into());
    }
    // Before the person types anything.
    Issuer::check_date(&answer)?;
    let unreadable = || exchange::senseless("its code is unreadable");
    let code: UserCode = serde_json::from_slice(&answer.body).map_err(|_shape| unreadable())?;
    let sane =
        |text: &str| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if !sane(&code.user_code) || code.device_auth_id.is_empty() {
        return Err(unreadable().into());
    }
    let seconds = match code.interval {
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(Value::Number(number)) => number.as_u64(),
        _ => None,
    };
    let interval = seconds.map_or(INTERVAL, Duration::from_secs).clamp(SHORTEST, LONGEST);
    let asked = Asked { device_auth_id: code.device_auth_id, user_code: code.user_code, interval };
    Ok((asked, format!("{}{PAGE}", issuer.endpoint.base)))
}

/// Asks until the person has agreed or the sign-in has ended.
pub(super) async fn poll(asked: Asked, logins: Arc<Logins>, session: Arc<Session>) {
    let body = json!({ "device_auth_id": asked.device_auth_id, "user_code": asked.user_code });
    let mut pause = asked.interval;
    loop {
        tokio::select! {
            () = session.ended() => return,
            () = tokio::time::sleep(pause) => {},
        }
        if !matches!(*session.stage.borrow(), Stage::Person) {
            return;
        }
        match session.issuer.post_json(TOKEN, &body).await {
            Ok(answer) => match judge(&answer) {
                Next::Wait => pause = asked.interval,
                Next::Later => {
                    session.note("the issuer is busy; still asking");
                    let named = answer.retry_after.map_or(asked.interval, Duration::from_secs);
                    pause = named.clamp(asked.interval, LONGEST);
                },
                Next::Redeem(agreed) => {
                    let redeemer = Redeemer {
                        verifier: PkceCodeVerifier::new(agreed.code_verifier),
                        redirect: format!("{}{CALLBACK}", session.issuer.endpoint.base),
                    };
                    logins.redeem(&session, agreed.authorization_code, redeemer);
                    return;
                },
                Next::End(ending) => return session.end(*ending),
            },
            Err(trouble @ (Trouble::Unreached(_) | Trouble::Cut(_))) => {
                session.note(&format!("the issuer is out of reach ({trouble}); still asking"));
            },
        }
    }
}

enum Next {
    /// The person hasn't agreed yet.
    Wait,
    /// The issuer can't now.
    Later,
    Redeem(Agreed),
    End(Box<Ending>),
}

fn judge(answer: &Answer) -> Next {
    let word = exchange::error_word(&answer.body);
    match (answer.status.as_u16(), word.as_str()) {
        (200..300, _) => match serde_json::from_slice(&answer.body) {
            Ok(agreed) => Next::Redeem(agreed),
            Err(_shape) => Next::End(exchange::senseless("its agreement is unreadable").into()),
        },
        (_, "access_denied") => Next::End(exchange::denied(&word).into()),
        (403 | 404, _) => Next::Wait,
        (408 | 429 | 502..=504, _) => Next::Later,
        _ => Next::End(failed(answer).into()),
    }
}

fn failed(answer: &Answer) -> Ending {
    match exchange::error_word(&answer.body).as_str() {
        "access_denied" => exchange::denied("access_denied"),
        "" => exchange::senseless(&format!("it answered {}", answer.status.as_u16())),
        word => exchange::senseless(&format!("it answered `{word}`")),
    }
}
