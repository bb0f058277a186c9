//! Requests and replies about who owns a login: own-auth launches, the mirror of the official
//! `auth.json`, accounts that were set aside, and revoking on purpose.
//!
//! Same promises as [`crate::message`]: plain data, positional, no credential.

use crate::message::LaunchRequest;
use serde::{Deserialize, Serialize};

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerRequest {
    /// As [`crate::message::Request::Launch`], but the CLI stays on its own `auth.json`. Answer:
    /// [`crate::message::Reply::Launch`].
    Launch(LaunchRequest),
    /// Keep an account in an official `auth.json`. Answer: [`OwnerReply::Mirror`].
    MirrorOn {
        /// Index, e-mail, label, id or a unique prefix of one; none follows the active account.
        selector: Option<String>,
        /// Absolute path of the `auth.json`.
        path: String,
        /// Write the refresh token too, which makes the file a second owner of the login.
        with_refresh: bool,
    },
    /// Stop that and put the person's file back. Answer: [`OwnerReply::Mirror`].
    MirrorOff,
    /// How it stands. Answer: [`OwnerReply::Mirror`].
    MirrorStatus,
    /// The accounts set aside, with their evidence. Answer: [`OwnerReply::Flagged`].
    Flagged,
    /// Try each of them. Answer: [`OwnerReply::Verified`].
    VerifyFlagged {
        /// Only say what would be done; nothing is sent.
        dry_run: bool,
        /// Let those that work again serve.
        restore: bool,
    },
    /// Take an account out of the pool and end its login at the issuer. Answer:
    /// [`crate::message::Reply::Changed`].
    Revoke {
        /// Which account, as in [`OwnerRequest::MirrorOn`].
        selector: String,
    },
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerReply {
    /// To the mirror requests.
    Mirror(MirrorInfo),
    /// To [`OwnerRequest::Flagged`].
    Flagged(Vec<FlaggedInfo>),
    /// To [`OwnerRequest::VerifyFlagged`].
    Verified(Vec<Verified>),
}

/// The mirror of the official `auth.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorInfo {
    /// Whether it is on.
    pub on: bool,
    /// The file.
    pub path: Option<String>,
    /// The account it holds.
    pub account: Option<String>,
    /// Whether it follows the active account.
    pub follows: bool,
    /// Whether the refresh token is written too.
    pub with_refresh: bool,
    /// Since when it is on.
    pub since: Option<u64>,
    /// Why the file is left alone for now.
    pub held: Option<String>,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

/// An account that failed for good and was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlaggedInfo {
    /// Account id.
    pub account: String,
    /// How it is called by its person.
    pub name: String,
    /// Why, for a person.
    pub cause: String,
    /// Since when.
    pub since: u64,
    /// HTTP status of the answer that decided it.
    pub status: Option<u16>,
    /// The issuer's error code.
    pub code: Option<String>,
    /// The beginning of that answer, without anything that looks like a credential.
    pub excerpt: Option<String>,
    /// What to type next.
    pub next: String,
}

/// How one account set aside did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Account id.
    pub account: String,
    /// How it is called by its person.
    pub name: String,
    /// `restored`, `healthy`, `still_flagged`, `would_try`.
    pub outcome: String,
    /// What was or would be done, for a person.
    pub message: String,
}
