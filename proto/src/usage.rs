//! What was used, what may be, and who is told: the messages of
//! [`crate::message::Request::Usage`].
//!
//! Times in `_ms` are milliseconds since 1970. Costs are estimates in US dollars at the API's prices,
//! never a bill; where a model's price is unknown, the two bounds differ.

use crate::message::WindowInfo;
use crate::survive::Secret;
use serde::{Deserialize, Serialize};

/// What a client asks of this family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageRequest {
    /// Sums of the requests that began in a time. Answer: [`UsageReply::Table`].
    Table {
        /// At or after it.
        since_ms: u64,
        /// Before it.
        until_ms: u64,
        /// What they are grouped by.
        by: UsageBy,
        /// Where days begin, in order; for [`UsageBy::Day`].
        days: Vec<u64>,
    },
    /// The newest requests that began in a time. Answer: [`UsageReply::Rows`].
    Rows {
        /// At or after it.
        since_ms: u64,
        /// Before it.
        until_ms: u64,
        /// How many of them at most; there is a bound of the daemon's own.
        most: u32,
    },
    /// Set a budget. Answer: [`UsageReply::Budgets`] with it alone.
    BudgetSet(BudgetSpec),
    /// All budgets. Answer: [`UsageReply::Budgets`].
    Budgets,
    /// Take a budget away. Answer: [`UsageReply::Budgets`] with those that are left.
    BudgetDelete {
        /// Its name.
        name: String,
    },
    /// What goes on. Answer: [`UsageReply::Monitor`].
    Monitor,
    /// A token that opens `/metrics` and nothing else. Answer: [`UsageReply::Token`].
    MetricsToken {
        /// How long it opens it.
        days: u32,
    },
    /// Send a notice by every way that is set up. Answer: [`UsageReply::Notified`].
    NotifyTest,
    /// Ask upstream how far accounts are used; it goes on beside the answer, which is
    /// [`UsageReply::Probes`].
    ProbeStart {
        /// Which, as a person names them; empty for all that are enabled.
        accounts: Vec<String>,
        /// Those whose windows were seen within so many seconds are left out.
        stale_s: u64,
        /// Send each a real request to this model, which spends quota, instead.
        model: Option<String>,
    },
    /// How far that is. Answer: [`UsageReply::Probes`].
    ProbeShow,
    /// Ask no more accounts. Answer: [`UsageReply::Probes`].
    ProbeStop,
    /// Make a token for a program on this machine. Answer: [`UsageReply::Made`].
    TokenCreate {
        /// What its person calls it.
        name: String,
        /// For how long, in seconds.
        seconds: u64,
        /// For the project of this folder; for the global pool without one.
        dir: Option<String>,
    },
    /// All tokens. Answer: [`UsageReply::Tokens`].
    Tokens,
    /// Take a token away. Answer: [`UsageReply::Tokens`] with those that are left.
    TokenRevoke {
        /// Its name.
        name: String,
    },
}

/// What a client is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageReply {
    /// To [`UsageRequest::Table`].
    Table(UsageTable),
    /// To [`UsageRequest::Rows`], newest first.
    Rows(Vec<UsageRow>),
    /// To all about budgets, by name.
    Budgets(Vec<BudgetInfo>),
    /// To [`UsageRequest::Monitor`].
    Monitor(MonitorInfo),
    /// To [`UsageRequest::MetricsToken`].
    Token(MetricsToken),
    /// To [`UsageRequest::NotifyTest`].
    Notified(Vec<Notified>),
    /// To all about probes.
    Probes(ProbesInfo),
    /// To [`UsageRequest::TokenCreate`].
    Made(MadeToken),
    /// To all about tokens, by name.
    Tokens(Vec<TokenInfo>),
}

/// What sums are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageBy {
    /// The model asked for; where a request doesn't say it, the one that answered.
    Model,
    /// The account that served.
    Account,
    /// The project it was for.
    Project,
    /// How it ended.
    Outcome,
    /// The day it began on.
    Day,
    /// The thread it was part of.
    Thread,
    /// Who asked: `cli`, `own`, `custom`, or `token:` and a token's name.
    Client,
}

/// Sums of some requests.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct UsageSums {
    /// All of them.
    pub requests: u64,
    /// Answered whole.
    pub complete: u64,
    /// Ended by an error.
    pub failed: u64,
    /// Cut in the middle.
    pub cut: u64,
    /// Left by their client.
    pub abandoned: u64,
    /// Kept out by a budget.
    pub blocked: u64,
    /// Upstream attempts.
    pub attempts: u64,
    /// Tokens read.
    pub input_tokens: u64,
    /// Of these from upstream's cache.
    pub cached_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Of these for reasoning.
    pub reasoning_tokens: u64,
    /// Read and written.
    pub total_tokens: u64,
    /// Requests whose tokens are known.
    pub counted: u64,
    /// Of these, those of a model without a known price.
    pub unpriced: u64,
    /// Cached tokens as a part of those read, 0 to 1.
    pub cache_share: Option<f64>,
    /// What it would cost at the API, at least.
    pub cost_usd_low: f64,
    /// At most.
    pub cost_usd_high: f64,
    /// Mean time to the first byte.
    pub first_byte_ms: Option<u64>,
    /// Mean time in all.
    pub total_ms: Option<u64>,
}

/// Sums of one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageGroup {
    /// What its requests have in common; empty for none, a day's first millisecond for a day.
    pub key: String,
    /// What a person calls it, where that is something else.
    pub name: Option<String>,
    /// Its sums.
    pub sums: UsageSums,
}

/// Sums by group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageTable {
    /// What the groups are.
    pub by: UsageBy,
    /// Requests that began at or after it.
    pub since_ms: u64,
    /// And before it.
    pub until_ms: u64,
    /// All of them.
    pub total: UsageSums,
    /// The groups.
    pub groups: Vec<UsageGroup>,
    /// The day of the prices that estimates are made with.
    pub prices_dated: String,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageRow {
    /// Its id.
    pub request: String,
    /// When it began.
    pub at_ms: u64,
    /// How it ended: `complete`, `failed`, `cut`, `abandoned`, `blocked`.
    pub outcome: String,
    /// HTTP status given to the client; 0 for none.
    pub status: u16,
    /// Who asked: `cli`, `own`, `custom`.
    pub client: String,
    /// The name of the token it came with.
    pub token: Option<String>,
    /// The account that served.
    pub account: Option<String>,
    /// What its person calls it.
    pub account_name: Option<String>,
    /// The project it was for.
    pub project: Option<String>,
    /// The model.
    pub model: Option<String>,
    /// The thread.
    pub thread: Option<String>,
    /// Upstream attempts.
    pub attempts: u32,
    /// Milliseconds to the first byte.
    pub first_byte_ms: Option<u64>,
    /// Milliseconds in all.
    pub total_ms: u64,
    /// Tokens read, where the stream told.
    pub input_tokens: Option<u64>,
    /// Of these from upstream's cache.
    pub cached_tokens: Option<u64>,
    /// Tokens written.
    pub output_tokens: Option<u64>,
    /// Of these for reasoning.
    pub reasoning_tokens: Option<u64>,
    /// What it would cost at the API, at least.
    pub cost_usd_low: f64,
    /// At most.
    pub cost_usd_high: f64,
}

/// A budget as a person sets it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BudgetSpec {
    /// Its name.
    pub name: String,
    /// Whose requests count: `all`, `project`, `account`, `client`, `token`.
    pub whose: String,
    /// Which: a project's key or folder, an account's selector, a client's kind, a token's name; empty for all.
    pub of: String,
    /// `hour`, `day`, `week`, `month`, by the machine's calendar.
    pub window: String,
    /// What may be sent.
    pub requests: Option<u64>,
    /// Tokens that may be read and written.
    pub tokens: Option<u64>,
    /// What it may cost at the API by estimate, in US dollars.
    pub cost_usd: Option<f64>,
}

/// A budget and how it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BudgetInfo {
    /// As it was set, `of` as it is kept.
    pub budget: BudgetSpec,
    /// What a person calls `of`, where that is something else.
    pub of_name: Option<String>,
    /// When its window began.
    pub since_ms: u64,
    /// When the next one begins.
    pub until_ms: u64,
    /// Requests that ended in it.
    pub requests: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their estimated cost, by the upper bound.
    pub cost_usd: f64,
    /// Reserved by requests that run.
    pub running: u64,
    /// Whether it is used up.
    pub exceeded: bool,
}

/// What goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MonitorInfo {
    /// Requests that began in the last five minutes.
    pub five_minutes: UsageSums,
    /// In the last hour.
    pub hour: UsageSums,
    /// The newest requests, newest first.
    pub recent: Vec<UsageRow>,
    /// The budgets, by name.
    pub budgets: Vec<BudgetInfo>,
    /// The ledger's own state.
    pub ledger: LedgerInfo,
}

/// What the ledger did since the daemon started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerInfo {
    /// Rows written.
    pub written: u64,
    /// Rows that wait to be.
    pub queued: u64,
    /// Rows dropped because too many waited.
    pub dropped: u64,
    /// Rows that the disk refused.
    pub lost: u64,
}

/// What opens `/metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsToken {
    /// Where.
    pub url: String,
    /// Sent as the bearer.
    pub token: Secret,
    /// When it ends, in seconds since 1970.
    pub expires_at: u64,
}

/// A token that was just made; it is told once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeToken {
    /// Its name.
    pub name: String,
    /// What a Responses client takes for its base address.
    pub base_url: String,
    /// Sent as the bearer.
    pub token: Secret,
    /// When it ends, in seconds since 1970.
    pub expires_at: u64,
}

/// A token as it is known after it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Its name.
    pub name: String,
    /// Seconds since 1970.
    pub created_at: u64,
    /// The same.
    pub expires_at: u64,
    /// The project that it is for.
    pub project: Option<String>,
}

/// One way of telling, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notified {
    /// `desktop`, `ntfy`, `command`.
    pub way: String,
    /// What went wrong; none when it was told.
    pub error: Option<String>,
}

/// A run of probes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbesInfo {
    /// Whether it still runs.
    pub running: bool,
    /// Its accounts, in order.
    pub probes: Vec<ProbeInfo>,
}

/// One account of a run, and what is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeInfo {
    /// Account id.
    pub account: String,
    /// What its person calls it.
    pub name: Option<String>,
    /// `queued`, `running`, `done`, `failed`, `fresh` (known well enough, not asked), `stopped`.
    pub state: String,
    /// Why it failed.
    pub error: Option<String>,
    /// How long upstream took.
    pub took_ms: Option<u64>,
    /// How far its windows can be believed: `fresh`, `recent`, `old`, `unknown`.
    pub confidence: String,
    /// When the newest of them was seen.
    pub seen_at: Option<u64>,
    /// Its windows, whatever came of this probe.
    pub windows: Vec<WindowInfo>,
    /// Probes before, oldest first.
    pub history: Vec<ProbePast>,
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbePast {
    /// When.
    pub at: u64,
    /// Why it failed.
    pub error: Option<String>,
    /// Percent used of the fullest window.
    pub used_percent: Option<f64>,
}
