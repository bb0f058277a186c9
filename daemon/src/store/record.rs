//! One account on disk: its format, its checksum, and nothing of its meaning.
//!
//! `accounts/<id>.json` holds an envelope `{schema, sha256, account}`. The checksum is over the
//! exact text of `account`, so a torn or edited file is noticed and never half believed.
//! `accounts/<id>.previous.json` is the generation before. `accounts/<id>.renewal.json` is the note
//! "renewal of generation g sent at t", durable before the request leaves.

use crate::fault::Fault;
use cma_proto::error::ErrorCode;
use ring::digest;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::path::Path;

const SCHEMA: u32 = 1;

/// An account as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) user: String,
    pub(crate) workspace: String,
    pub(crate) email: Option<String>,
    pub(crate) plan: Option<String>,
    #[serde(default)]
    pub(crate) fedramp: bool,
    pub(crate) label: Option<String>,
    pub(crate) enabled: bool,
    pub(crate) order: u32,
    /// The issuer and backend its credential was made for; it goes nowhere else.
    pub(crate) issuer: String,
    pub(crate) backend: String,
    /// Seconds since 1970.
    pub(crate) imported_at: u64,
    pub(crate) generation: u64,
    /// Seconds since 1970, of the access token.
    pub(crate) expires_at: Option<u64>,
    /// Seconds since 1970.
    pub(crate) renewed_at: Option<u64>,
    pub(crate) tokens: Tokens,
    /// Set when only the person can mend the login.
    pub(crate) gone: Option<Gone>,
    /// Fingerprints of refresh tokens already sent, newest last: an old copy of the login that is
    /// imported again must not replace the credential that came of it.
    #[serde(default)]
    pub(crate) spent: Vec<String>,
    /// A person's words to find it by.
    #[serde(default)]
    pub(crate) tags: Vec<String>,
    /// A person's remark.
    #[serde(default)]
    pub(crate) notes: Option<String>,
    /// The pools it is in: `global` and project keys; none written is the global one. The truth of
    /// that is here and nowhere else, so that a login and its pools are one write.
    #[serde(default)]
    pub(crate) pools: Vec<String>,
}

/// How many spent refresh tokens are remembered.
const SPENT: usize = 32;

impl Record {
    /// The fingerprints after the current refresh token was sent.
    pub(crate) fn spent_with_current(&self) -> Vec<String> {
        let mut spent = self.spent.clone();
        spent.extend(self.tokens.refresh_token.as_ref().map(fingerprint));
        let drop = spent.len().saturating_sub(SPENT);
        spent.drain(..drop);
        spent
    }

    /// Whether a login's refresh token is this record's own or one it has spent.
    pub(crate) fn knows(&self, refresh_token: Option<&SecretString>) -> bool {
        refresh_token
            .map(fingerprint)
            .is_some_and(|print| self.spent_with_current().contains(&print))
    }
}

/// 16 hex digits of a secret's SHA-256: enough to recognise it, useless to guess it.
fn fingerprint(secret: &SecretString) -> String {
    sum(secret.expose_secret()).get(..16).unwrap_or_default().to_owned()
}

/// The secrets. `Debug` shows none of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tokens {
    #[serde(serialize_with = "expose")]
    pub(crate) id_token: SecretString,
    #[serde(serialize_with = "expose")]
    pub(crate) access_token: SecretString,
    #[serde(serialize_with = "expose_some")]
    pub(crate) refresh_token: Option<SecretString>,
}

/// Why a login is gone, and since when (seconds since 1970).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gone {
    pub(crate) cause: String,
    pub(crate) since: u64,
}

/// The note that precedes every renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RenewalNote {
    /// The generation whose refresh token was sent.
    pub(crate) generation: u64,
    /// When it was first sent, seconds since 1970.
    pub(crate) sent_at: u64,
    /// How often it was sent without an answer having been stored.
    pub(crate) attempts: u32,
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    schema: u32,
    sha256: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

fn expose<S: serde::Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret.expose_secret())
}

#[expect(clippy::ref_option, reason = "the signature is serde's")]
fn expose_some<S: serde::Serializer>(
    secret: &Option<SecretString>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => to.serialize_some(secret.expose_secret()),
        None => to.serialize_none(),
    }
}

/// The bytes of a file that holds `content`.
///
/// # Errors
/// [`ErrorCode::Internal`]: the value can't be written as JSON.
pub(crate) fn seal<T: Serialize>(content: &T) -> Result<Vec<u8>, Fault> {
    let broken =
        |error: serde_json::Error| Fault::internal(format!("can't write a record: {error}"));
    let text = serde_json::to_string(content).map_err(broken)?;
    let sha256 = sum(&text);
    let content: &RawValue = serde_json::from_str(&text).map_err(broken)?;
    serde_json::to_vec(&Envelope { schema: SCHEMA, sha256, content }).map_err(broken)
}

/// What a sealed file holds; `None` when there is no such file.
///
/// # Errors
/// [`ErrorCode::Store`] when the file is damaged, from a newer version, or can't be read. The
/// message names the file, never its content.
pub(crate) fn open<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Fault> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Fault::file(path, "read", &error)),
    };
    let damaged = |what: &str| {
        Fault::new(
            ErrorCode::Store,
            format!("`{}` is damaged: {what}", path.display()),
            format!(
                "restore it from a backup, or move it away: `mv {0} {0}.damaged`",
                path.display()
            ),
        )
    };
    let envelope: Envelope<'_> =
        serde_json::from_slice(&bytes).map_err(|_torn| damaged("it is not whole"))?;
    if envelope.schema > SCHEMA {
        return Err(Fault::new(
            ErrorCode::Store,
            format!(
                "`{}` was written by a newer version (schema {})",
                path.display(),
                envelope.schema
            ),
            "upgrade cma, or choose another root with `CODEX_MULTI_AUTH_DIR`",
        ));
    }
    if sum(envelope.content.get()) != envelope.sha256 {
        return Err(damaged("its checksum does not match"));
    }
    serde_json::from_str(envelope.content.get())
        .map(Some)
        .map_err(|_shape| damaged("its content has another shape"))
}

fn sum(text: &str) -> String {
    use std::fmt::Write as _;
    let mut hex = String::with_capacity(64);
    for byte in digest::digest(&digest::SHA256, text.as_bytes()).as_ref() {
        // Writing to a String can't fail.
        let _infallible = write!(hex, "{byte:02x}");
    }
    hex
}
