//! A login out of the tokens that a file has: whose it is, and from when.
//!
//! Identity comes from the tokens' own claims. What the file says beside them (an account id, an
//! address) only fills what they leave open.

use crate::store::{import, record::Tokens};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use cma_core::identity::{AccountId, Claims};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

/// Longer than any token seen, by far.
const MAX_TOKEN: usize = 64 * 1024;

/// What a file says of one login. `Debug` shows no token.
#[derive(Default)]
pub(super) struct Raw {
    pub(super) access: Option<String>,
    pub(super) refresh: Option<String>,
    pub(super) id_token: Option<String>,
    pub(super) workspace: Option<String>,
    pub(super) email: Option<String>,
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raw").field("email", &self.email).finish_non_exhaustive()
    }
}

/// A login whose owner is known.
#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) workspace: String,
    pub(crate) claims: Claims,
    pub(crate) tokens: Tokens,
    /// When the access token was made, seconds since 1970.
    pub(crate) issued_at: Option<u64>,
}

impl Login {
    pub(crate) fn id(&self) -> AccountId {
        AccountId::of(&self.user, &self.workspace)
    }
}

/// When a token says it was made, seconds since 1970.
pub(crate) fn issued_at(token: &SecretString) -> Option<u64> {
    let payload = token.expose_secret().split('.').nth(1)?;
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice::<Value>(&bytes).ok()?.get("iat")?.as_u64()
}

/// The login, and what a person should know of it.
///
/// # Errors
/// Why it can't be used, for a person.
pub(super) fn login(raw: Raw) -> Result<(Login, Vec<String>), String> {
    let fit =
        |text: &String| text.len() <= MAX_TOKEN && text.bytes().all(|byte| byte.is_ascii_graphic());
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (access, refresh) = (given(raw.access), given(raw.refresh));
    let access = match (access, &refresh) {
        (Some(access), _) => access,
        (None, Some(_)) => {
            return Err(
                "it has no access token, so nobody can say whose it is without spending its \
                        refresh token: sign in with `cmactl login`"
                    .to_owned(),
            );
        },
        (None, None) => return Err("it has no token: sign in with `cmactl login`".to_owned()),
    };
    if !fit(&access) || refresh.as_ref().is_some_and(|refresh| !fit(refresh)) {
        return Err("its tokens have impossible characters".to_owned());
    }
    let of_access = import::claims(&access);
    let mut notes = Vec::new();
    let id_token = given(raw.id_token).filter(fit);
    let of_id = id_token.as_deref().and_then(import::claims);
    if id_token.is_some() && of_id.is_none() {
        notes.push("its id token is unreadable and was left out".to_owned());
    }
    let (claims, id_token) = match (of_id, &of_access) {
        (Some(of_id), of_access) => {
            let of_access = of_access.clone().unwrap_or_default();
            if !of_access.same_identity(&of_id) {
                return Err("its id token and access token belong to different accounts".to_owned());
            }
            let expires_at = of_access.expires_at;
            (Claims { expires_at, ..of_id.or(of_access) }, id_token.unwrap_or_default())
        },
        // The claims are the same; the next renewal brings a real one.
        (None, Some(of_access)) => (of_access.clone(), access.clone()),
        (None, None) => {
            return Err(
                "its access token doesn't say whose it is: sign in with `cmactl login`".to_owned()
            );
        },
    };
    let Some(user) = claims.user.clone() else {
        return Err("its tokens name no user: sign in with `cmactl login`".to_owned());
    };
    let Some(workspace) = claims.workspace.clone().or_else(|| raw.workspace.clone()) else {
        return Err("its tokens name no workspace: sign in with `cmactl login`".to_owned());
    };
    if let Some(other) = raw.workspace.filter(|other| *other != workspace) {
        notes.push(format!(
            "it was used for workspace `{other}`, its tokens are of `{workspace}`, and that counts: \
             `cmactl login --org {other}` signs in there"
        ));
    }
    if refresh.is_none() {
        notes.push("it has no refresh token: it serves until its access token expires".to_owned());
    }
    let email = claims.email.clone().or(raw.email);
    let tokens = Tokens {
        id_token: id_token.into(),
        access_token: access.into(),
        refresh_token: refresh.map(Into::into),
    };
    let issued_at = issued_at(&tokens.access_token);
    let claims = Claims { email, ..claims };
    Ok((Login { user, workspace, claims, tokens, issued_at }, notes))
}
