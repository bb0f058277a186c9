//! The official CLI's `auth.json`, in every variant.
//!
//! Only a ChatGPT login is an account: API keys, personal access tokens, agent identities and
//! Bedrock keys are told by name and left alone.

use super::{Draft, Harvest, Into, json, token::Raw};
use serde_json::Value;
use std::path::Path;

pub(super) const FORMAT: &str = "codex auth.json";

/// Other credentials that such a file can hold (Codex CLI 0.169), and what they are called.
const OTHERS: [(&str, &str); 5] = [
    ("OPENAI_API_KEY", "an API key"),
    ("personal_access_token", "a personal access token"),
    ("agent_identity", "an agent identity"),
    ("bedrock_api_key", "a Bedrock key"),
    ("headers", "fixed headers"),
];

/// Whether a value looks like an `auth.json`.
pub(super) fn is_one(value: &Value) -> bool {
    value.is_object()
        && (["auth_mode", "tokens", "last_refresh", "access_token", "accessToken"]
            .iter()
            .chain(OTHERS.iter().map(|(name, _)| name))
            .any(|name| value.get(name).is_some()))
}

pub(super) fn read(path: &Path, value: &Value, harvest: &mut Harvest) {
    let mut into = Into::new(harvest, FORMAT, path);
    // Tokens stand under `tokens`; tools that write the file by hand put them on top, or spell them
    // their own way.
    let tokens = value.get("tokens").filter(|tokens| tokens.is_object()).unwrap_or(value);
    let raw = Raw {
        access: json::any(tokens, &["access_token", "accessToken", "access"]),
        refresh: json::any(tokens, &["refresh_token", "refreshToken", "refresh"]),
        id_token: json::any(tokens, &["id_token", "idToken", "id"]),
        workspace: json::any(tokens, &["account_id", "accountId"]),
        email: json::line(value, "email"),
    };
    if raw.access.is_none() && raw.refresh.is_none() {
        let other = OTHERS.iter().find(|(name, _what)| {
            value.get(name).is_some_and(|held| !held.is_null() && held.as_str() != Some(""))
        });
        match other {
            Some((_name, what)) => into.refuse(
                (*what).to_owned(),
                None,
                format!("it is {what}, not a ChatGPT login, which alone has a quota to pool"),
            ),
            None => into.notes.push("nobody is signed in there".to_owned()),
        }
        return into.read();
    }
    let mut notes = vec![format!(
        "`{}` still holds the same login: sign in with plain `codex` no more, or one of the two will \
         spend the other's refresh token; `cmactl login` signs in afresh",
        path.display()
    )];
    let issuer = tokens.get("oauth_provenance").and_then(|made| json::line(made, "issuer"));
    notes.extend(issuer.map(|issuer| format!("it was issued by `{issuer}`")));
    into.add(Draft { notes, raw, ..Draft::default() });
    into.read();
}
