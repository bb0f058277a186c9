//! What can be typed about usage, budgets and who is told what.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// The commands of this family.
#[derive(Debug, Subcommand)]
pub(crate) enum BooksCommand {
    /// Show what was used: requests, tokens, an estimate of their cost at the API
    Usage(UsageArgs),
    /// Limit what may be spent in an hour, a day, a week, a month
    #[command(subcommand)]
    Budget(BudgetCommand),
    /// Show what goes on, on one screen
    Monitor {
        /// Draw it again and again
        #[arg(long, short)]
        watch: bool,
        /// Seconds between two looks
        #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
        every: u64,
    },
    /// Ask upstream how far accounts are used; its usage endpoint, which spends nothing
    Probe {
        /// Index, e-mail, label, id or a unique prefix; all that are enabled when left out
        accounts: Vec<String>,
        /// Leave out those whose windows were seen within so many minutes
        #[arg(long, value_name = "MINUTES", default_value_t = 5)]
        stale: u64,
        /// Ask for all, however new what is known
        #[arg(long, conflicts_with = "stale")]
        force: bool,
        /// Send each a real request to this model instead: it spends quota and begins windows
        #[arg(long, value_name = "MODEL")]
        probe_model: Option<String>,
        /// Only show the last probes, and those before
        #[arg(long, conflicts_with_all = ["accounts", "force", "probe_model"])]
        show: bool,
        /// Ask no more accounts
        #[arg(long, conflicts_with_all = ["accounts", "force", "probe_model", "show"])]
        stop: bool,
    },
    /// Keys with a name for programs on this machine: make one, list them, take one away
    #[command(subcommand)]
    Token(TokenCommand),
    /// Let a scraper read `/metrics` of the proxy
    #[command(subcommand)]
    Metrics(MetricsCommand),
    /// Notices on your desktop, your phone, or to a program (`[notify]` in `config.toml`)
    #[command(subcommand)]
    Notify(NotifyCommand),
}

/// `cmactl usage`
#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    /// From when: `90m`, `24h`, `7d`, `today`, a date, a time
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub(crate) since: String,
    /// Until when; now when left out
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// What a line stands for
    #[arg(long, value_enum, default_value_t = UsageGroupBy::Model)]
    pub(crate) by: UsageGroupBy,
    /// How many requests `--by request` lists, the newest ones
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) most: u32,
    /// Print CSV
    #[arg(long, conflicts_with = "json")]
    pub(crate) csv: bool,
    /// Write it to a file (mode 0600) instead
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// What a line of `usage` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum UsageGroupBy {
    /// The model
    Model,
    /// The account that served
    Account,
    /// The repository it was for
    Project,
    /// How it ended
    Outcome,
    /// The day it began on
    Day,
    /// The conversation it was part of
    Thread,
    /// Who asked: a CLI, one on its own login, another program, a token
    Client,
    /// One request
    Request,
}

/// `cmactl budget …`
#[derive(Debug, Subcommand)]
pub(crate) enum BudgetCommand {
    /// Set a budget; one of the same name is replaced, what was spent counts
    Limit(BudgetLimit),
    /// Show one budget: exit code 1 when it is used up
    Check {
        /// Its name
        name: String,
    },
    /// Show all budgets
    List,
    /// Take a budget away
    Delete {
        /// Its name
        name: String,
    },
}

/// `cmactl budget limit`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("limits").args(["requests", "tokens", "cost"]).multiple(true).required(true))]
#[command(group = clap::ArgGroup::new("whose").args(["project", "account", "client", "token"]))]
pub(crate) struct BudgetLimit {
    /// What you call it
    pub(crate) name: String,
    /// For how long, by this machine's calendar; a week begins on Monday
    #[arg(long, value_enum)]
    pub(crate) window: BudgetWindow,
    /// Requests: 500, 20k
    #[arg(long, value_name = "N", value_parser = crate::commands::amount)]
    pub(crate) requests: Option<u64>,
    /// Tokens, read and written: 500k, 2M
    #[arg(long, value_name = "N", value_parser = crate::commands::amount)]
    pub(crate) tokens: Option<u64>,
    /// US dollars, as they would cost at the API by estimate
    #[arg(long, value_name = "USD")]
    pub(crate) cost: Option<f64>,
    /// Of one project: a folder of it, or its key
    #[arg(long, value_name = "DIR|KEY")]
    pub(crate) project: Option<String>,
    /// Of one account: index, e-mail, label, id or a unique prefix
    #[arg(long)]
    pub(crate) account: Option<String>,
    /// Of one kind of client: `cli`, `own` (on its own login), `custom` (a printed key)
    #[arg(long)]
    pub(crate) client: Option<String>,
    /// Of what comes with one token of `cmactl token`
    #[arg(long, value_name = "NAME")]
    pub(crate) token: Option<String>,
}

/// How long a budget is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BudgetWindow {
    /// From hour to hour
    Hour,
    /// From midnight to midnight
    Day,
    /// From Monday to Monday
    Week,
    /// From the first to the first
    Month,
}

impl BudgetWindow {
    /// As the daemon is told it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }
}

/// `cmactl token …`
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and show it, once; requests that come with it are told apart by its name
    Create {
        /// What you call it
        name: String,
        /// For how long: `90m`, `24h`, `30d`
        #[arg(long = "for", value_name = "TIME", default_value = "90d", value_parser = super::choosing::seconds)]
        time: u64,
        /// For this folder's project, as it is now
        #[arg(long)]
        project: bool,
    },
    /// Show all tokens, not what opens
    List,
    /// Take a token away: from now on it opens nothing
    Revoke {
        /// Its name
        name: String,
    },
}

/// `cmactl metrics …`
#[derive(Debug, Subcommand)]
pub(crate) enum MetricsCommand {
    /// Print a token that opens `/metrics`, and nothing else
    Token {
        /// For how long
        #[arg(long, value_name = "DAYS", default_value_t = 90)]
        days: u32,
    },
}

/// `cmactl notify …`
#[derive(Debug, Subcommand)]
pub(crate) enum NotifyCommand {
    /// Send a notice by every way that is set up
    Test,
}
