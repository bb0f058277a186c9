//! Signing in: what a client asks step by step, and what it is told.
//!
//! The daemon owns a sign-in from its beginning to the stored account. A client begins one, shows
//! the person where to go, polls until it has ended, and may cancel it. Neither the tokens nor the
//! PKCE verifier ever cross; a pasted callback address carries a code that is worth nothing without
//! that verifier.

use crate::error::Refusal;
use serde::{Deserialize, Serialize};

/// A step of a sign-in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginRequest {
    /// Begin one. Answer: [`LoginReply::Started`], or [`LoginReply::Ended`] when this way is closed.
    Begin(LoginBegin),
    /// Ask how it stands; the daemon waits a moment for news. Answer: [`LoginReply::Waiting`],
    /// [`LoginReply::Done`] or [`LoginReply::Ended`].
    Poll {
        /// From [`LoginStarted::id`].
        id: String,
    },
    /// Hand in the address that the browser ended at. Answer as to a poll.
    Paste {
        /// From [`LoginStarted::id`].
        id: String,
        /// The whole address, its query, or `code#state`.
        url: String,
    },
    /// Give up. Answer: [`LoginReply::Ended`].
    Cancel {
        /// From [`LoginStarted::id`].
        id: String,
    },
}

impl std::fmt::Debug for LoginRequest {
    /// Without the pasted address: it carries a code.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Begin(begin) => f.debug_tuple("Begin").field(begin).finish(),
            Self::Poll { id } => f.debug_struct("Poll").field("id", id).finish(),
            Self::Paste { id, .. } => {
                f.debug_struct("Paste").field("id", id).finish_non_exhaustive()
            },
            Self::Cancel { id } => f.debug_struct("Cancel").field("id", id).finish(),
        }
    }
}

/// How the person gets to the issuer and the answer back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginMethod {
    /// A browser on this machine; the daemon listens for its way back.
    Browser,
    /// A short code that is typed on any device.
    Device,
    /// A browser anywhere; the address it ends at is pasted.
    Manual,
}

/// What is to be signed in, and as what it is to be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginBegin {
    /// How.
    pub method: LoginMethod,
    /// Only this workspace will do.
    pub org: Option<String>,
    /// Only this account of the pool will do: index, e-mail, label, id or a unique prefix.
    pub account: Option<String>,
    /// Only this e-mail will do.
    pub email: Option<String>,
    /// The issuer's base address; the daemon's own when left out.
    pub issuer: Option<String>,
    /// Give up after this many seconds; 15 minutes when left out, and at most.
    pub timeout_secs: Option<u64>,
    /// A new account's label.
    pub label: Option<String>,
    /// A new account's tags.
    pub tags: Vec<String>,
    /// Whether a new account may serve.
    pub enabled: bool,
}

/// How a sign-in stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginReply {
    /// It has begun.
    Started(LoginStarted),
    /// It goes on.
    Waiting(LoginWaiting),
    /// The account is in the pool.
    Done(LoginDone),
    /// It came to nothing.
    Ended {
        /// Which end.
        end: LoginEnd,
        /// The same for a person, with the exit code.
        refusal: Refusal,
    },
}

/// What the person needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginStarted {
    /// Names the sign-in from here on.
    pub id: String,
    /// How.
    pub method: LoginMethod,
    /// Where to go.
    pub url: String,
    /// What to type there.
    pub user_code: Option<String>,
    /// Seconds since 1970 at which it is given up.
    pub expires_at: u64,
    /// This is the root's first sign-in: the notice on terms has not been shown yet.
    pub first: bool,
}

/// Where a sign-in is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginWaiting {
    /// `person` (it is the person's turn) or `exchange` (the code is being redeemed).
    pub stage: String,
    /// Seconds until it is given up.
    pub seconds_left: u64,
    /// What happened on the way, one line each, all of them each time.
    pub notes: Vec<String>,
}

/// What came of a sign-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginDone {
    /// Account id.
    pub account: String,
    /// What it is called by its person.
    pub name: String,
    /// E-mail from the login.
    pub email: Option<String>,
    /// Plan from the login.
    pub plan: Option<String>,
    /// Workspace id from the login.
    pub workspace: String,
    /// Whether it is new to the pool.
    pub created: bool,
    /// How many accounts the pool has now.
    pub accounts: u32,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

/// The ways in which a sign-in comes to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginEnd {
    /// The person gave up, or another sign-in took its place.
    Cancelled,
    /// Nobody signed in in time.
    TimedOut,
    /// The issuer, or the person there, said no.
    Denied,
    /// Somebody else signed in than was asked for.
    WrongAccount,
    /// This machine's clock and the issuer's disagree.
    ClockOff,
    /// The code was redeemed before, or is too old.
    CodeSpent,
    /// The issuer could not be reached, or made no sense.
    IssuerFailed,
    /// This issuer has no sign-in by code.
    NoDeviceCodes,
    /// The ports that browsers are sent back to are taken.
    PortsTaken,
    /// The account could not be stored.
    NotStored,
}

impl LoginEnd {
    /// Its name on the wire and in `--json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Denied => "denied",
            Self::WrongAccount => "wrong_account",
            Self::ClockOff => "clock_off",
            Self::CodeSpent => "code_spent",
            Self::IssuerFailed => "issuer_failed",
            Self::NoDeviceCodes => "no_device_codes",
            Self::PortsTaken => "ports_taken",
            Self::NotStored => "not_stored",
        }
    }
}
