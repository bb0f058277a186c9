//! What can be typed about choosing.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Commands about who serves, and why.
#[derive(Debug, Subcommand)]
pub(crate) enum Choosing {
    /// Show or change how accounts are chosen
    Strategy(StrategyArgs),
    /// Let only one account serve, or those with one tag; nobody steps in for them
    Force {
        /// Index, e-mail, label, id or a unique prefix; or a tag
        account: String,
        /// For how long: `90m`, `24h`, `7d`
        #[arg(long = "for", value_name = "TIME", default_value = "24h", value_parser = seconds)]
        time: u64,
    },
    /// End a force: the pool chooses again
    Unforce,
    /// Say what an account may do: pause, drain, weight, cap, tags
    #[command(subcommand)]
    Account(AccountCommand),
    /// Show what each account can still take, and which one to use
    Forecast {
        #[command(flatten)]
        of: ForecastArgs,
        /// Show what was compared
        #[arg(long)]
        explain: bool,
    },
    /// Say which account to use now, and why
    Best(ForecastArgs),
    /// Explain which account would serve now, or served a request, and why
    #[command(visible_alias = "why-selected")]
    Why(WhyArgs),
    /// What this folder's project wants of the accounts that serve it
    Profile {
        #[command(subcommand)]
        command: Option<ProfileCommand>,
    },
    /// Replay a week of threads over simulated accounts, by several strategies
    Simulate(SimulateArgs),
}

/// `cmactl strategy`
#[derive(Debug, Args)]
pub(crate) struct StrategyArgs {
    /// `balanced`, `round-robin`, `least-used`, `random`, `weighted-round-robin`, `sequential` or
    /// `reset-soonest`
    pub(crate) name: Option<String>,
    /// How much is kept back: `balanced`, `conservative` or `aggressive`
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// Percent left below which an account gets no new thread while another has more
    #[arg(long, value_name = "PERCENT")]
    pub(crate) low: Option<f64>,
    /// Percent left below which threads with little cached leave as well
    #[arg(long, value_name = "PERCENT")]
    pub(crate) critical: Option<f64>,
    /// How long a request waits when every account is out: `off`, `30s`, `until-reset`
    #[arg(long, value_name = "TIME")]
    pub(crate) wait: Option<String>,
    /// Whether all answers to clients carry `x-cma-…` headers
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    pub(crate) headers: Option<bool>,
}

/// `cmactl account …`
#[derive(Debug, Subcommand)]
pub(crate) enum AccountCommand {
    /// Put tags on an account
    Tag {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
        /// Words
        #[arg(required = true)]
        tags: Vec<String>,
    },
    /// Take tags off an account
    Untag {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
        /// Words
        #[arg(required = true)]
        tags: Vec<String>,
    },
    /// Give an account a weight from 0 to 10, for `weighted-round-robin`
    Weight {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
        /// 1 is the usual one; 0 serves when no other can
        #[arg(value_parser = weight)]
        weight: u32,
    },
    /// Let an account serve nothing new; its login stays fresh
    Pause {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
    },
    /// Let a paused account serve again
    Unpause {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
    },
    /// Let an account finish its threads and take no new one
    Drain {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
    },
    /// Let a drained account take new threads again
    Undrain {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
    },
    /// Limit how many requests an account serves at once
    Cap {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
        /// A number, or `off`
        #[arg(value_parser = cap)]
        requests: Cap,
    },
    /// Write a note on an account; an empty one takes it away
    Note {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
        /// The note
        #[arg(required = true, value_name = "TEXT")]
        words: Vec<String>,
    },
    /// Name an account; an empty name takes it away
    Alias {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
        /// The new name
        name: String,
    },
    /// What the accounts may do
    #[command(subcommand)]
    Policy(PolicyCommand),
}

/// `cmactl account policy …`
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum PolicyCommand {
    /// List what every account may do, and what rests on which evidence
    List,
}

/// A limit, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cap(pub(crate) Option<u32>);

/// `cmactl forecast` and `cmactl best`
#[derive(Debug, Args)]
pub(crate) struct ForecastArgs {
    /// Ask upstream for every account's windows first; nothing is spent by that
    #[arg(long, short)]
    pub(crate) live: bool,
    /// Send every account a real request to this model first: it spends quota and begins windows
    #[arg(long, value_name = "MODEL", conflicts_with = "live")]
    pub(crate) probe_model: Option<String>,
    /// For requests to this model
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// For launches in this folder
    #[arg(long)]
    pub(crate) project: bool,
}

/// `cmactl why`
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// A request that came now; the default
    #[arg(long, short, conflicts_with_all = ["last", "request"])]
    pub(crate) now: bool,
    /// The last request that was served
    #[arg(long, short, conflicts_with = "request")]
    pub(crate) last: bool,
    /// A request's id, as `events` and `logs` show it
    #[arg(long, value_name = "ID")]
    pub(crate) request: Option<String>,
    /// A request of a launch in this folder
    #[arg(long, conflicts_with_all = ["last", "request"])]
    pub(crate) project: bool,
}

/// `cmactl profile …`
#[derive(Debug, Subcommand)]
pub(crate) enum ProfileCommand {
    /// Show it
    Show,
    /// Change it; what isn't named stays
    Set(ProfileArgs),
    /// Forget it
    Clear,
}

/// `cmactl profile set`
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct ProfileArgs {
    /// A strategy of its own; empty for the pool's
    #[arg(long, value_name = "NAME")]
    pub(crate) strategy: Option<String>,
    /// Tags to prefer, with commas; empty for none
    #[arg(long, value_name = "TAGS")]
    pub(crate) prefer: Option<String>,
    /// Tags to avoid
    #[arg(long, value_name = "TAGS")]
    pub(crate) avoid: Option<String>,
    /// Models that may be asked for (`gpt-5*`); empty for all
    #[arg(long, value_name = "MODELS")]
    pub(crate) allow: Option<String>,
    /// Models that may not
    #[arg(long, value_name = "MODELS")]
    pub(crate) deny: Option<String>,
    /// An account's weight here, or `ACCOUNT=` for its own again
    #[arg(long, value_name = "ACCOUNT=WEIGHT", value_parser = account_weight)]
    pub(crate) weight: Vec<(String, Option<u32>)>,
}

/// `cmactl simulate`
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// A strategy, or a rule of another program (`peer:round-robin`, `peer:least-used`,
    /// `peer:hybrid`, `peer:capacity-weighted`); all when left out
    #[arg(long, value_name = "NAME")]
    pub(crate) strategy: Vec<String>,
    /// How many accounts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=500))]
    pub(crate) accounts: u16,
    /// `steady`, `bursty` or `two-timezone`
    #[arg(long, value_name = "NAME", default_value = "steady", conflicts_with_all = ["trace", "from_ledger"])]
    pub(crate) workload: String,
    /// Replay recorded requests, a JSON object a line: `at` (seconds), `thread`, `input`, `output`
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Replay your own last seven days, as the ledger has them
    #[arg(long, conflicts_with = "trace")]
    pub(crate) from_ledger: bool,
    /// Everything random follows from it
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
}

/// A time like `90m`, in seconds.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let bad = || format!("`{text}` is no time; say for example `90m`, `24h` or `7d`");
    let number: u64 = digits.parse().map_err(|_no_number| bad())?;
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(bad()),
    };
    number.checked_mul(unit).ok_or_else(bad)
}

fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("`{text}` is neither `on` nor `off`")),
    }
}

/// A weight, in thousandths.
fn weight(text: &str) -> Result<u32, String> {
    let bad = || format!("`{text}` is no weight from 0 to 10");
    let number: f64 = text.parse().map_err(|_no_number| bad())?;
    if !(0.0..=10.0).contains(&number) {
        return Err(bad());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 10000")]
    Ok((number * 1000.0).round() as u32)
}

fn cap(text: &str) -> Result<Cap, String> {
    match text {
        "off" => Ok(Cap(None)),
        text => match text.parse() {
            Ok(number) if number > 0 => Ok(Cap(Some(number))),
            _ => Err(format!("`{text}` is neither `off` nor a number from 1 on")),
        },
    }
}

fn account_weight(text: &str) -> Result<(String, Option<u32>), String> {
    match text.rsplit_once('=') {
        Some((account, "")) => Ok((account.to_owned(), None)),
        Some((account, number)) => Ok((account.to_owned(), Some(weight(number)?))),
        None => Err(format!("`{text}` has no `=WEIGHT`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        assert_eq!(seconds("90m"), Ok(5400));
        assert_eq!(seconds("7d"), Ok(604_800));
        assert_eq!(weight("2.5"), Ok(2500));
        assert_eq!(cap("off"), Ok(Cap(None)));
        assert_eq!(account_weight("a@b.c=0.5"), Ok(("a@b.c".to_owned(), Some(500))));
        assert_eq!(account_weight("work="), Ok(("work".to_owned(), None)));
        assert!(seconds("90").is_err() && seconds("99999999999999999d").is_err());
        assert!(weight("11").is_err() && weight("NaN").is_err() && weight("-1").is_err());
        assert!(cap("0").is_err() && account_weight("work").is_err());
    }
}
