//! Requests, replies and events of protocol version 1.
//!
//! Plain data: no credential, no behaviour. Times are seconds since 1970 (`_at`), durations say
//! their unit. The same types are the `--json` output of `cmactl`, which adds a `schema` number.
//! Fields are positional under bincode: see the crate's promises before touching one.

use crate::choose::{ChooseReply, ChooseRequest};
use crate::credits::{CreditsReply, CreditsRequest};
use crate::handover::{HandoverReply, HandoverRequest};
use crate::login::{LoginReply, LoginRequest};
use crate::owner::{OwnerReply, OwnerRequest};
use crate::pools::{PoolsReply, PoolsRequest};
use crate::sessions::{SessionsReply, SessionsRequest};
use crate::survive::{Survive, Survived};
use crate::takeover::{TakeoverReply, TakeoverRequest};
use crate::usage::{UsageReply, UsageRequest};
use serde::{Deserialize, Serialize};

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Everything there is to see. Answer: [`Reply::Status`].
    Status,
    /// Read a login from a file in the official `auth.json` format. Answer: [`Reply::Imported`].
    Import {
        /// Absolute path; the daemon reads it, so no credential crosses the socket.
        path: String,
        /// A label for the account.
        label: Option<String>,
    },
    /// Pin the pool to one account until [`Request::Unpin`]. Answer: [`Reply::Switched`].
    Switch {
        /// Index, e-mail, label, id or a unique prefix of one.
        selector: String,
        /// Refuse unless the pool is still in this epoch.
        expected_epoch: Option<u64>,
    },
    /// Let the pool choose again. Answer: [`Reply::Switched`].
    Unpin,
    /// Let an account serve, or keep it from serving. Answer: [`Reply::Changed`].
    SetEnabled {
        /// Which account, as in [`Request::Switch`].
        selector: String,
        /// Whether it may serve.
        enabled: bool,
    },
    /// Name an account. Answer: [`Reply::Changed`].
    SetLabel {
        /// Which account, as in [`Request::Switch`].
        selector: String,
        /// The new label; empty takes it away.
        label: String,
    },
    /// Take an account out of the pool; its login is kept in the root's `removed/` folder and is
    /// not revoked. Answer: [`Reply::Changed`].
    Remove {
        /// Which account, as in [`Request::Switch`].
        selector: String,
    },
    /// How a choice was or would be made. Answer: [`Reply::Why`].
    Why {
        /// A request's id, or none for "if a request came now".
        request: Option<String>,
    },
    /// How to start a Codex CLI against the daemon. Answer: [`Reply::Launch`].
    Launch(LaunchRequest),
    /// A snapshot now and every change from then on. Answer: [`Reply::Status`], then events.
    Subscribe,
    /// Go down. Answer: [`Reply::ShuttingDown`].
    Shutdown {
        /// Cut running turns instead of letting them end.
        now: bool,
    },
    /// Sign in at the issuer, step by step. Answer: [`Reply::Login`].
    Login(LoginRequest),
    /// Backups and the seal. Answer: [`Reply::Survived`].
    Survive(Survive),
    /// Who owns a login: own-auth launches, the mirror, accounts set aside. Answer: see
    /// [`OwnerRequest`].
    Owner(OwnerRequest),
    /// Take over other programs' logins, or write the pool down. Answer: [`Reply::Takeover`].
    Takeover(TakeoverRequest),
    /// Projects' pools, policies, workspaces, tags. Answers: see [`PoolsRequest`].
    Pools(PoolsRequest),
    /// The threads: where they run, and moving them. Answers: see [`SessionsRequest`].
    Sessions(SessionsRequest),
    /// The ledger, budgets, metrics, notices. Answer: [`Reply::Usage`].
    Usage(UsageRequest),
    /// Reset credits. Answer: [`Reply::Credits`].
    Credits(CreditsRequest),
    /// Between two daemons of one root. Answers: see [`HandoverRequest`].
    Handover(HandoverRequest),
    /// How accounts are chosen. Answers: see [`ChooseRequest`].
    Choose(ChooseRequest),
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Status`] and [`Request::Subscribe`].
    Status(Box<Status>),
    /// To [`Request::Import`].
    Imported(Vec<Imported>),
    /// To [`Request::Switch`] and [`Request::Unpin`].
    Switched(Switched),
    /// To changes of one account.
    Changed(Changed),
    /// To [`Request::Why`].
    Why(Box<Why>),
    /// To [`Request::Launch`].
    Launch(Box<Launch>),
    /// To [`Request::Shutdown`].
    ShuttingDown {
        /// Responses still running.
        active: u32,
    },
    /// To [`Request::Login`].
    Login(Box<LoginReply>),
    /// To [`Request::Survive`].
    Survived(Survived),
    /// To [`Request::Owner`].
    Owner(OwnerReply),
    /// To [`Request::Takeover`].
    Takeover(Box<TakeoverReply>),
    /// To [`Request::Pools`].
    Pools(PoolsReply),
    /// To [`Request::Sessions`].
    Sessions(SessionsReply),
    /// To [`Request::Usage`].
    Usage(Box<UsageReply>),
    /// To [`Request::Credits`].
    Credits(CreditsReply),
    /// To [`Request::Handover`].
    Handover(HandoverReply),
    /// To [`Request::Choose`].
    Choose(ChooseReply),
}

/// The whole picture at one epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The n-th state of the pool since the daemon started.
    pub epoch: u64,
    /// The process.
    pub daemon: DaemonInfo,
    /// The loopback listener.
    pub proxy: ProxyInfo,
    /// Where requests and credentials go.
    pub upstream: UpstreamInfo,
    /// The person's choice, if any.
    pub pin: Option<PinInfo>,
    /// The account a new thread would get now.
    pub next: Option<String>,
    /// Things a person should know, one line each.
    pub notes: Vec<String>,
    /// The pool, in order of index.
    pub accounts: Vec<AccountInfo>,
}

/// The daemon's process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// Process id.
    pub pid: u32,
    /// Program version.
    pub version: String,
    /// Changes at every start.
    pub instance: String,
    /// When it started.
    pub started_at: u64,
    /// `starting`, `serving`, `draining`, `flushing`.
    pub phase: String,
    /// The folder it owns.
    pub root: String,
    /// Its structured log.
    pub log: String,
    /// The settings from the environment it was started with.
    pub environment: Vec<Setting>,
}

/// A name and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Variable name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// The loopback listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyInfo {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    /// Responses running now.
    pub active: u32,
    /// Open client connections.
    pub connections: u32,
    /// Responses delivered whole since the start.
    pub served: u64,
    /// Responses that ended with an error since the start.
    pub failed: u64,
    /// Upstream attempts that another attempt replaced, since the start.
    pub retried: u64,
    /// Requests refused at the gate since the start.
    pub refused: u64,
}

/// Where requests and credentials go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamInfo {
    /// Base of the backend; Responses live under `<backend>/codex`.
    pub backend: String,
    /// The token issuer.
    pub issuer: String,
}

/// A person's choice of account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinInfo {
    /// Account id.
    pub account: String,
    /// Since when.
    pub since: u64,
    /// Why the pin is not followed right now; none while it is.
    pub yielded: Option<String>,
}

/// One account as a person sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountInfo {
    /// Position in the list, from 1.
    pub index: u32,
    /// Stable short id.
    pub id: String,
    /// A label given by the person.
    pub label: Option<String>,
    /// E-mail from the login; a label too, never an identity.
    pub email: Option<String>,
    /// Plan from the login.
    pub plan: Option<String>,
    /// Workspace id from the login.
    pub workspace: String,
    /// Whether the person lets it serve.
    pub enabled: bool,
    /// `ready`, `cooling`, `refreshing`, `needs_login`, `disabled`, `elsewhere`.
    pub state: String,
    /// Why it is in that state, for a person.
    pub reason: Option<String>,
    /// When the state ends by itself.
    pub until: Option<u64>,
    /// n-th credential of this account.
    pub generation: u64,
    /// When the access token expires.
    pub token_expires_at: Option<u64>,
    /// Requests it is serving.
    pub in_flight: u32,
    /// Requests it served since the daemon started.
    pub served: u64,
    /// What is known of its quota.
    pub windows: Vec<WindowInfo>,
    /// Words its person put on it.
    pub tags: Vec<String>,
}

/// One quota window as upstream last reported it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowInfo {
    /// Limit id, e.g. `codex`.
    pub limit: String,
    /// `primary` or `secondary`.
    pub name: String,
    /// 0 to 100; over 100 is possible.
    pub used_percent: f64,
    /// Length in minutes.
    pub minutes: Option<u64>,
    /// When it empties.
    pub resets_at: Option<u64>,
    /// When this was learned.
    pub seen_at: u64,
}

/// One account that an import made or updated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Stable short id.
    pub id: String,
    /// E-mail from the login.
    pub email: Option<String>,
    /// Plan from the login.
    pub plan: Option<String>,
    /// Workspace id from the login.
    pub workspace: String,
    /// Whether it is new to the pool.
    pub created: bool,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

/// A pin's change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switched {
    /// Pinned before.
    pub from: Option<String>,
    /// Pinned now.
    pub to: Option<String>,
    /// How `to` is called by its person.
    pub name: Option<String>,
    /// The pool's epoch after it.
    pub epoch: u64,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

/// A change of one account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Account id.
    pub account: String,
    /// How it is called by its person.
    pub name: String,
    /// The pool's epoch after it.
    pub epoch: u64,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

/// How a choice is made, account by account, best first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// The request explained; none for "now".
    pub request: Option<String>,
    /// When the choice was made.
    pub at: u64,
    /// The account chosen.
    pub chosen: Option<String>,
    /// The deciding key, for a person.
    pub decided_by: String,
    /// When a refused request could be tried again.
    pub retry_at: Option<u64>,
    /// Every account of the pool.
    pub candidates: Vec<Candidate>,
    /// What happened on the way, one line an attempt.
    pub attempts: Vec<String>,
}

/// One account in a choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Account id.
    pub account: String,
    /// How it is called by its person.
    pub name: String,
    /// What kept it out; none when it could serve.
    pub excluded: Option<String>,
    /// The keys compared, in order: name and value.
    pub keys: Vec<(String, String)>,
}

/// Who is to be started, and what is already known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchRequest {
    /// A key for any client of this user, valid 24 h, instead of one for the asking process.
    pub printed: bool,
    /// The CLI's version, `MAJOR.MINOR.PATCH`; empty when unknown.
    pub codex_version: String,
    /// Absolute path of the Codex home folder.
    pub codex_home: String,
    /// Absolute working directory the CLI will have.
    pub cwd: String,
    /// Values of `-c`/`--config` flags, in order.
    pub overrides: Vec<String>,
    /// Value of `-p`/`--profile`.
    pub profile: Option<String>,
    /// The command draws a terminal interface (no subcommand, `resume`, `fork`).
    pub interactive: bool,
    /// `NO_PROXY` and `no_proxy` of the caller, joined by a comma.
    pub no_proxy: String,
    /// `--ignore-user-config`: what the Codex home says doesn't count.
    pub ignore_user_config: bool,
}

/// The answer to a launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Launch {
    /// Start the CLI with this.
    Through(LaunchPlan),
    /// Start it plain.
    Aside {
        /// Why, one line for a person.
        reason: String,
        /// The person should see the reason; otherwise it is their own wish and nothing is said.
        tell: bool,
    },
    /// As [`Launch::Through`], with something that the person should see first.
    Noted {
        /// The plan.
        plan: LaunchPlan,
        /// One line each.
        notes: Vec<String>,
    },
}

/// What makes a CLI talk to the daemon.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchPlan {
    /// Variables to set.
    pub env: Vec<(String, String)>,
    /// Arguments to put before the person's own.
    pub args: Vec<String>,
    /// Base of the Responses API.
    pub base_url: String,
    /// The key that opens the CLI's routes.
    pub client_key: String,
    /// When the key ends, at the latest.
    pub key_expires_at: u64,
    /// Launch id, as it stands in the log.
    pub session: String,
}

impl std::fmt::Debug for LaunchPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaunchPlan")
            .field("base_url", &self.base_url)
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// A change of the pool, in order of epochs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Epoch after the change.
    pub epoch: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    pub change: Change,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Deltas were lost because the subscriber was slow: here is the whole picture again.
    Snapshot {
        /// The picture.
        status: Box<Status>,
    },
    /// An account came, went, was enabled, disabled or renamed.
    Accounts {
        /// Which.
        account: String,
        /// `added`, `updated`, `removed`, `enabled`, `disabled`, `labelled`.
        what: String,
    },
    /// An account's state changed.
    State {
        /// Which.
        account: String,
        /// As [`AccountInfo::state`].
        state: String,
        /// Why.
        reason: Option<String>,
        /// When it ends by itself.
        until: Option<u64>,
    },
    /// The pin changed.
    Pin {
        /// Account id now pinned.
        account: Option<String>,
    },
    /// Quota became known.
    Quota {
        /// Which account.
        account: String,
        /// All its windows.
        windows: Vec<WindowInfo>,
    },
    /// An attempt failed and the request goes on.
    Retry {
        /// Request id.
        request: String,
        /// The account that failed.
        account: String,
        /// Why.
        reason: String,
    },
    /// A request ended.
    Served {
        /// Request id.
        request: String,
        /// The account that served it, if one did.
        account: Option<String>,
        /// Model asked for.
        model: Option<String>,
        /// HTTP status given to the client.
        status: u16,
        /// `complete`, `failed`, `cut`, `abandoned`.
        outcome: String,
        /// Upstream attempts made.
        attempts: u32,
        /// Milliseconds to the first byte.
        first_byte_ms: Option<u64>,
        /// Milliseconds in all.
        total_ms: u64,
        /// Input tokens, where the stream told.
        input_tokens: Option<u64>,
        /// Of these from the cache.
        cached_tokens: Option<u64>,
        /// Output tokens.
        output_tokens: Option<u64>,
    },
    /// The daemon entered a phase.
    Phase {
        /// As [`DaemonInfo::phase`].
        phase: String,
    },
}

#[cfg(test)]
mod tests;
