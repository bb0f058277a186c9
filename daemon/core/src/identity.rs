//! Who an account is.
//!
//! An account is a user in a workspace. Both ids come from the claims of its own tokens
//! (`https://api.openai.com/auth`); the e-mail is a label, since one address can belong to several
//! workspaces and a workspace to several people. Signatures are not checked: the token is the
//! person's own, read from their own disk or straight from the issuer, and upstream checks it.

use serde_json::Value;
use std::{fmt, sync::Arc};

/// Stable short name of an account: 12 hex digits from its user and workspace ids.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(Arc<str>);

impl AccountId {
    /// The id of a user in a workspace.
    pub fn of(user: &str, workspace: &str) -> Self {
        // FNV-1a over both parts, with a separator that neither contains.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in user.bytes().chain([0]).chain(workspace.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        // Fold the high bits in, so that 48 of 64 keep their spread.
        Self(format!("{:012x}", (hash ^ (hash >> 48)) & 0xffff_ffff_ffff).into())
    }

    /// An id read back from where it was written.
    pub fn from_written(id: &str) -> Self {
        Self(id.into())
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the claims of one token say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claims {
    /// `chatgpt_user_id`, else `user_id`.
    pub user: Option<String>,
    /// `chatgpt_account_id`: the workspace.
    pub workspace: Option<String>,
    /// `email`, else the profile's.
    pub email: Option<String>,
    /// `chatgpt_plan_type`.
    pub plan: Option<String>,
    /// `chatgpt_account_is_fedramp`.
    pub fedramp: bool,
    /// `exp`, seconds since 1970.
    pub expires_at: Option<u64>,
}

impl Claims {
    /// Reads the decoded payload of a JWT.
    pub fn from_payload(payload: &Value) -> Self {
        let auth = payload.get("https://api.openai.com/auth");
        let profile = payload.get("https://api.openai.com/profile");
        let text = |part: Option<&Value>, name: &str| {
            part.and_then(|part| part.get(name))
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty() && text.len() <= 256)
                .map(str::to_owned)
        };
        Self {
            user: text(auth, "chatgpt_user_id").or_else(|| text(auth, "user_id")),
            workspace: text(auth, "chatgpt_account_id"),
            email: text(Some(payload), "email").or_else(|| text(profile, "email")),
            plan: text(auth, "chatgpt_plan_type"),
            fedramp: auth
                .and_then(|auth| auth.get("chatgpt_account_is_fedramp"))
                .and_then(Value::as_bool)
                .unwrap_or(false),
            expires_at: payload.get("exp").and_then(Value::as_u64),
        }
    }

    /// This claim set, with what it lacks taken from another token of the same login.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            user: self.user.or(other.user),
            workspace: self.workspace.or(other.workspace),
            email: self.email.or(other.email),
            plan: self.plan.or(other.plan),
            fedramp: self.fedramp || other.fedramp,
            expires_at: self.expires_at.or(other.expires_at),
        }
    }

    /// Whether a token with these claims belongs to the same user and workspace. A claim that is
    /// missing on either side decides nothing.
    pub fn same_identity(&self, other: &Self) -> bool {
        let agree = |a: &Option<String>, b: &Option<String>| match (a, b) {
            (Some(a), Some(b)) => a == b,
            (None, _) | (_, None) => true,
        };
        agree(&self.user, &other.user) && agree(&self.workspace, &other.workspace)
    }
}

/// The workspaces that the decoded payload of a JWT names, with what they are called.
///
/// `organizations` are not among them: those are of the API's platform, with ids of their own
/// (`org-…`), and no request of the CLI is made in one.
pub fn workspaces(payload: &Value) -> Vec<(String, Option<String>)> {
    let auth = payload.get("https://api.openai.com/auth");
    let text = |value: &Value, name: &str| {
        value
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty() && text.len() <= 256)
            .map(str::to_owned)
    };
    let own = auth.and_then(|auth| text(auth, "chatgpt_account_id")).map(|id| (id, None));
    let lists = ["accounts", "workspaces"].into_iter().flat_map(|name| {
        [auth, Some(payload)]
            .into_iter()
            .flatten()
            .filter_map(move |part| part.get(name)?.as_array())
    });
    let listed = lists.flatten().filter_map(|entry| {
        let id = text(entry, "id").or_else(|| text(entry, "account_id"))?;
        Some((id, text(entry, "name").or_else(|| text(entry, "title"))))
    });
    own.into_iter().chain(listed).take(MAX_WORKSPACES).collect()
}

/// A person is in a few; a token that claims more is not read further.
const MAX_WORKSPACES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_same_address_in_two_workspaces_is_two_accounts() {
        assert_ne!(AccountId::of("u", "w1"), AccountId::of("u", "w2"));
        assert_ne!(AccountId::of("a", "bc"), AccountId::of("ab", "c"));
        assert_eq!(AccountId::of("u", "w").as_str().len(), 12);
    }

    #[test]
    fn workspaces_are_read_from_the_claims_and_platform_organisations_are_not() {
        let payload = json!({
            "https://api.openai.com/auth": {
                "chatgpt_account_id": "w1",
                "organizations": [{"id": "org-1", "title": "Personal"}],
                "workspaces": [{"id": "w2", "name": "Team"}, {"id": ""}, 5],
            },
        });
        let team = ("w2".to_owned(), Some("Team".to_owned()));
        assert_eq!(workspaces(&payload), [("w1".to_owned(), None), team]);
        assert_eq!(workspaces(&json!(null)), []);
    }

    #[test]
    fn claims_are_read_where_the_issuer_puts_them() {
        let claims = Claims::from_payload(&json!({
            "exp": 5,
            "https://api.openai.com/profile": {"email": "a@example.test"},
            "https://api.openai.com/auth": {"user_id": "u", "chatgpt_account_id": "w", "chatgpt_plan_type": "pro"},
        }));
        assert_eq!(claims.user.as_deref(), Some("u"));
        assert_eq!(claims.email.as_deref(), Some("a@example.test"));
        assert_eq!((claims.plan.as_deref(), claims.expires_at), (Some("pro"), Some(5)));
        assert_eq!(Claims::from_payload(&json!([1])), Claims::default());
        let other = Claims { workspace: Some("x".to_owned()), ..claims.clone() };
        assert!(claims.same_identity(&claims) && !claims.same_identity(&other));
    }
}
