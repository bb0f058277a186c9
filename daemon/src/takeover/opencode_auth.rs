//! OpenCode's own `auth.json`: providers and how each is signed in (1.18).
//!
//! An `openai` entry of type `oauth` is a ChatGPT login; everything else is another provider's or an
//! API key.

use super::{Draft, Harvest, Into, json, token::Raw};
use serde_json::Value;
use std::path::Path;

pub(super) const FORMAT: &str = "opencode auth.json";

/// Providers under which a ChatGPT login is kept.
const PROVIDERS: [&str; 3] = ["openai", "codex", "chatgpt"];

/// Whether a value looks like a map of providers.
pub(super) fn is_one(value: &Value) -> bool {
    let kinds = ["oauth", "api", "wellknown"];
    value.as_object().is_some_and(|map| {
        map.values().any(|entry| {
            entry.get("type").and_then(Value::as_str).is_some_and(|kind| kinds.contains(&kind))
        })
    })
}

pub(super) fn read(path: &Path, value: &Value, harvest: &mut Harvest) {
    let mut into = Into::new(harvest, FORMAT, path);
    let mut others = 0;
    for (provider, entry) in value.as_object().into_iter().flatten() {
        if !PROVIDERS.contains(&provider.as_str()) {
            others += 1;
            continue;
        }
        match entry.get("type").and_then(Value::as_str) {
            Some("oauth") => {
                let raw = Raw {
                    access: json::text(entry, "access"),
                    refresh: json::text(entry, "refresh"),
                    id_token: json::any(entry, &["idToken", "id_token"]),
                    workspace: json::any(entry, &["accountId", "account_id"]),
                    email: json::line(entry, "email"),
                };
                let note = format!(
                    "`{}` still holds the same login: sign OpenCode out of it, or one of the two \
                     will spend the other's refresh token; `cmactl login` signs in afresh",
                    path.display()
                );
                into.add(Draft { notes: vec![note], raw, ..Draft::default() });
            },
            Some("api") => into.refuse(
                "an API key".to_owned(),
                None,
                "it is an API key, not a ChatGPT login, which alone has a quota to pool",
            ),
            _ => into.refuse(
                provider.chars().take(64).collect(),
                None,
                "it is no login of a known kind",
            ),
        }
    }
    if others > 0 {
        into.notes.push(format!("{others} logins of other providers were left alone"));
    }
    into.read();
}
