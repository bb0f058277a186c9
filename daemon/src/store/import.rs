//! Other programs' login files, read in and never written.
//!
//! Today the official CLI's `auth.json`. A file is either understood wholly or refused with the
//! reason; its content never stands in a message.

use crate::{config::Config, fault::Fault};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use cma_core::identity::{self, AccountId, Claims};
use cma_proto::error::ErrorCode;
use secrecy::SecretString;
use serde::Deserialize;
use std::path::Path;

use super::record::Tokens;

/// An `auth.json` is a few kilobytes; anything much larger isn't one.
const MAX_FILE: u64 = 1024 * 1024;

/// A login as a file gives it.
#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) claims: Claims,
    pub(crate) user: String,
    pub(crate) workspace: String,
    pub(crate) tokens: Tokens,
    pub(crate) notes: Vec<String>,
}

#[derive(Deserialize)]
struct AuthFile {
    #[serde(rename = "OPENAI_API_KEY")]
    api_key: Option<SecretString>,
    tokens: Option<AuthTokens>,
    personal_access_token: Option<SecretString>,
}

#[derive(Deserialize)]
struct AuthTokens {
    id_token: Option<String>,
    access_token: Option<String>,
    refresh_token: Option<String>,
    account_id: Option<String>,
    oauth_provenance: Option<Provenance>,
}

#[derive(Deserialize)]
struct Provenance {
    issuer: Option<String>,
}

/// Reads a file in the official CLI's `auth.json` format.
///
/// # Errors
/// [`ErrorCode::NotFound`] for a missing file, [`ErrorCode::BadRequest`] for one that holds no
/// ChatGPT login.
pub(crate) fn auth_json(path: &Path, config: &Config) -> Result<Login, Fault> {
    let shown = path.display();
    let bad = |what: String, hint: &str| Fault::new(ErrorCode::BadRequest, what, hint);
    let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Fault::new(
            ErrorCode::NotFound,
            format!("there is no file `{shown}`"),
            "sign in with `codex login`, then run `cmactl import`",
        ),
        _ => Fault::file(path, "read", &error),
    })?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(bad(format!("`{shown}` is not a login file"), "name an `auth.json`"));
    }
    let bytes = std::fs::read(path).map_err(|error| Fault::file(path, "read", &error))?;
    // serde's message would quote the content: only the place is told.
    let file: AuthFile = serde_json::from_slice(&bytes).map_err(|error| {
        bad(
            format!("`{shown}` is not a login file: invalid at line {}", error.line()),
            "name a file written by `codex login`",
        )
    })?;
    let Some(tokens) = file.tokens else {
        let kind = match (file.api_key, file.personal_access_token) {
            (Some(_), _) => "an API key",
            (None, Some(_)) => "a personal access token",
            (None, None) => "no login",
        };
        return Err(bad(
            format!("`{shown}` holds {kind}, not a ChatGPT login"),
            "sign in with `codex login` and choose ChatGPT, then run `cmactl import`",
        ));
    };
    login(&tokens, config).map_err(|what| {
        bad(
            format!("`{shown}`: {what}"),
            "sign in again with `codex login`, then run `cmactl import`",
        )
    })
}

/// What stands for a refresh token in an `auth.json` whose login the pool renews. The CLI keeps any
/// text (0.169.0); the issuer knows none like it, so sending it costs no chain.
pub(crate) const OPAQUE: &str = "cma-the-pool-renews-this-login";

/// Whose login an `auth.json` holds, and its access token: what a CLI on that file shows at our gate.
/// `None` when there is no such login.
pub(crate) fn bearer(path: &Path) -> Option<(AccountId, SecretString)> {
    let tokens = auth_tokens(path)?;
    let claims = claims(tokens.id_token.as_deref()?)?;
    let id = AccountId::of(&claims.user?, &claims.workspace.or(tokens.account_id)?);
    Some((id, tokens.access_token.filter(|token| !token.is_empty())?.into()))
}

fn auth_tokens(path: &Path) -> Option<AuthTokens> {
    let small = std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_FILE);
    let bytes = small.then(|| std::fs::read(path).ok()).flatten()?;
    serde_json::from_slice::<AuthFile>(&bytes).ok()?.tokens
}

/// Whose login an `auth.json` holds; read from its claims alone, no credential leaves here. `None`
/// when there is no such login.
pub(crate) fn identity(path: &Path) -> Option<AccountId> {
    let tokens = auth_tokens(path)?;
    let claims = claims(tokens.id_token.as_deref()?)?;
    Some(AccountId::of(&claims.user?, &claims.workspace.or(tokens.account_id)?))
}

fn login(tokens: &AuthTokens, config: &Config) -> Result<Login, String> {
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let access = filled(&tokens.access_token).ok_or("it has no access token")?;
    let id_token = filled(&tokens.id_token).ok_or("it has no id token")?;
    if !access.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("its access token has impossible characters".to_owned());
    }
    let of_id = claims(&id_token).ok_or("its id token is unreadable")?;
    let of_access = claims(&access).unwrap_or_default();
    let expires_at = of_access.expires_at;
    if !of_access.same_identity(&of_id) {
        return Err("its id token and access token belong to different accounts".to_owned());
    }
    let claims = Claims { expires_at, ..of_id.or(of_access) };
    let workspace = claims
        .workspace
        .clone()
        .or_else(|| filled(&tokens.account_id))
        .ok_or("it names no workspace")?;
    let user = claims.user.clone().ok_or("it names no user")?;
    let refresh_token = filled(&tokens.refresh_token).filter(|token| token != OPAQUE);
    let mut notes = Vec::new();
    // Said, not refused: the pair it is imported for is the person's choice, and it binds.
    if let Some(issuer) = tokens.oauth_provenance.as_ref().and_then(|made| made.issuer.as_deref())
        && issuer.trim_end_matches('/') != config.issuer.base
    {
        notes.push(format!(
            "it was issued by `{issuer}`; this pool renews at `{}`",
            config.issuer.base
        ));
    }
    if refresh_token.is_none() {
        notes.push("it has no refresh token: it serves until its access token expires".to_owned());
    }
    let tokens = Tokens {
        id_token: id_token.into(),
        access_token: access.into(),
        refresh_token: refresh_token.map(Into::into),
    };
    Ok(Login { claims, user, workspace, tokens, notes })
}

/// The workspaces that a JWT's claims name, with what they are called.
pub(crate) fn workspaces(token: &str) -> Vec<(String, Option<String>)> {
    payload(token).map(|payload| identity::workspaces(&payload)).unwrap_or_default()
}

/// The claims of a JWT; `None` when it isn't one.
pub(crate) fn claims(token: &str) -> Option<Claims> {
    payload(token).map(|payload| Claims::from_payload(&payload))
}

fn payload(token: &str) -> Option<serde_json::Value> {
    let mut parts = token.split('.');
    let (_head, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&bytes).ok()
}
