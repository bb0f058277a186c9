//! One account on disk: its format, its checksum, and nothing of its meaning.
//!
//! `accounts/<id>.json` holds an envelope `{schema, sha256, content}`. The checksum is over the
//! exact text of `content`, so a torn or edited file is noticed and never half believed.
//! `accounts/<id>.previous.json` is the generation before. `accounts/<id>.renewal.json` is the note
//! "renewal of generation g sent at t", durable before the request leaves. What of it lies on disk
//! in clear and what sealed is `disk`'s business, not this module's.

use crate::fault::Fault;
use cma_proto::error::ErrorCode;
use ring::digest;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::path::Path;
use zeroize::Zeroizing;

/// Since 2 a previous generation never holds a refresh token that may have been sent (`repair`).
const SCHEMA: u32 = 2;

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
    /// What its person lets it do.
    #[serde(default)]
    pub(crate) terms: Terms,
}

/// What an account may do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Terms {
    /// It serves nothing new.
    pub(crate) paused: bool,
    /// It takes no new thread.
    pub(crate) drained: bool,
    /// Its weight in thousandths; one when none is given.
    pub(crate) weight: Option<u32>,
    /// Requests at once.
    pub(crate) cap: Option<u32>,
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

    /// The same without a refresh token, whose fingerprint is remembered: nobody can send it again.
    pub(crate) fn without_refresh_token(&self) -> Self {
        let mut record = self.clone();
        record.spent = self.spent_with_current();
        record.tokens.refresh_token = None;
        record
    }

    /// Whether both hold the very same refresh token.
    pub(crate) fn same_refresh_token(&self, other: &Self) -> bool {
        let print = |record: &Self| record.tokens.refresh_token.as_ref().map(fingerprint);
        print(self).is_some() && print(self) == print(other)
    }

    /// Whether a login's refresh token is this record's own or one it has spent.
    pub(crate) fn knows(&self, refresh_token: Option<&SecretString>) -> bool {
        refresh_token
            .map(fingerprint)
            .is_some_and(|print| self.spent_with_current().contains(&print))
    }
}

impl Record {
    /// Whether a login brings nothing that this record lacks: its refresh token is known, or it has
    /// none (a copy that was written without) while this one can renew itself.
    pub(crate) fn covers(&self, refresh_token: Option<&SecretString>) -> bool {
        let renews = self.tokens.refresh_token.is_some() && self.gone.is_none();
        self.knows(refresh_token) || (refresh_token.is_none() && renews)
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

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// Torn, edited, or something else altogether.
    Damaged(&'static str),
    /// Written by a newer version: nothing is wrong with it.
    Newer(u32),
}

impl Unfit {
    /// The fault of a file; its message never shows the content.
    pub(crate) fn fault(self, path: &Path) -> Fault {
        match self {
            Self::Damaged(what) => Fault::new(
                ErrorCode::Store,
                format!("`{}` is damaged: {what}", path.display()),
                format!(
                    "restore it from a backup, or move it away: `mv {0} {0}.damaged`",
                    path.display()
                ),
            ),
            Self::Newer(schema) => Fault::new(
                ErrorCode::Store,
                format!("`{}` was written by a newer version (schema {schema})", path.display()),
                "upgrade cma, or choose another root with `CODEX_MULTI_AUTH_DIR`",
            ),
        }
    }
}

/// The bytes of a record.
///
/// # Errors
/// [`ErrorCode::Internal`]: the value can't be written as JSON.
pub(crate) fn encode<T: Serialize>(content: &T) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let broken =
        |error: serde_json::Error| Fault::internal(format!("can't write a record: {error}"));
    let text = Zeroizing::new(serde_json::to_string(content).map_err(broken)?);
    let sha256 = sum(&text);
    let content: &RawValue = serde_json::from_str(&text).map_err(broken)?;
    let bytes = serde_json::to_vec(&Envelope { schema: SCHEMA, sha256, content });
    bytes.map(Zeroizing::new).map_err(broken)
}

/// What such bytes hold, and the schema they were written by.
///
/// # Errors
/// [`Unfit`], which says nothing of the content.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, u32), Unfit> {
    let envelope: Envelope<'_> =
        serde_json::from_slice(bytes).map_err(|_torn| Unfit::Damaged("it is not whole"))?;
    if envelope.schema > SCHEMA {
        return Err(Unfit::Newer(envelope.schema));
    }
    if sum(envelope.content.get()) != envelope.sha256 {
        return Err(Unfit::Damaged("its checksum does not match"));
    }
    serde_json::from_str(envelope.content.get())
        .map(|content| (content, envelope.schema))
        .map_err(|_shape| Unfit::Damaged("its content has another shape"))
}

/// SHA-256 in hex.
pub(crate) fn sum(text: &str) -> String {
    use std::fmt::Write as _;
    let mut hex = String::with_capacity(64);
    for byte in digest::digest(&digest::SHA256, text.as_bytes()).as_ref() {
        // Writing to a String can't fail.
        let _infallible = write!(hex, "{byte:02x}");
    }
    hex
}
