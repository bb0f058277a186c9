//! Makes the tokens the simulated issuer hands out.
//!
//! They have the claims the CLI and a proxy read, and a signature that nothing
//! could verify: it is the canary in clear, so that a leaked token is found by
//! a plain search although its payload is base64.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::clock::UnixMs;
use super::config::{AccountSpec, CLIENT_ID, SimConfig};

/// One set of tokens as the token endpoint answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Issued {
    pub(super) id_token: String,
    pub(super) access_token: String,
    pub(super) refresh_token: String,
    pub(super) exp: UnixMs,
}

/// When a set of tokens says it was made and ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validity {
    pub(super) from: UnixMs,
    pub(super) ttl: Duration,
}

/// Makes set number `serial` for `account`.
pub(super) fn mint(
    config: &SimConfig,
    account: &AccountSpec,
    serial: u64,
    valid: Validity,
) -> Issued {
    let exp = valid.from.after(valid.ttl);
    let nonce = fastrand::u64(..);
    let id = format!("{}-{serial}-{nonce:016x}", config.canary);
    let common = |kind: &str, aud: Value| {
        json!({
            "iss": config.issuer_claim,
            "aud": aud,
            "iat": valid.from.secs(),
            "exp": exp.secs(),
            "jti": format!("{kind}-{id}"),
            "sub": format!("auth0|{}", account.user_id),
        })
    };
    let mut access = common("at", json!(["https://api.openai.com/v1"]));
    access["nbf"] = json!(valid.from.secs());
    access["client_id"] = json!(CLIENT_ID);
    access["scp"] = json!(["openid", "profile", "email", "offline_access"]);
    access["https://api.openai.com/auth"] = membership(account);
    access["https://api.openai.com/profile"] =
        json!({ "email": account.email, "email_verified": true });
    let mut identity = common("id", json!([CLIENT_ID]));
    identity["email"] = json!(account.email);
    identity["email_verified"] = json!(true);
    identity["name"] = json!(account.name);
    identity["https://api.openai.com/auth"] = membership(account);
    Issued {
        id_token: seal(&identity, &id),
        access_token: seal(&access, &id),
        refresh_token: format!("rt-{id}"),
        exp,
    }
}

fn membership(account: &AccountSpec) -> Value {
    json!({
        "chatgpt_account_id": account.workspace_id,
        "chatgpt_user_id": account.user_id,
        "user_id": account.user_id,
        "chatgpt_plan_type": account.plan,
        "chatgpt_account_is_fedramp": false,
        "organizations": [{
            "id": format!("org-{}", account.name),
            "is_default": true,
            "role": "owner",
            "title": "Personal",
        }],
    })
}

fn seal(claims: &Value, signature: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"none","typ":"JWT"}"#);
    let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
    // The length of base64 is never 1 modulo 4; filled up it always decodes.
    let fill = "0".repeat((4 - signature.len() % 4) % 4);
    format!("{header}.{payload}.{signature}{fill}")
}
