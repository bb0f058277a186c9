//! What can be typed. Help texts are the doc comments here, one per command.

mod books;

pub(crate) use books::{
    BooksCommand, BudgetCommand, BudgetLimit, MetricsCommand, NotifyCommand, TokenCommand,
    UsageArgs, UsageGroupBy,
};
pub(crate) mod choosing;

use clap::{Args, Parser, Subcommand, ValueEnum, error::ErrorKind};
use cma_proto::{
    codec::Codec,
    error::{ErrorCode, Refusal},
};
use std::{path::PathBuf, process::ExitCode};

/// Asks and commands `cmad`, which serves the Codex CLI from many accounts.
///
/// An account is named by its index, e-mail, label, id, or a unique prefix of one of these.
#[derive(Debug, Parser)]
#[command(name = "cmactl", version, propagate_version = false, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Fail instead of starting the daemon when it isn't running
    #[arg(long, global = true)]
    pub(crate) no_start: bool,
    /// Use the pool in this folder instead of the one the environment names
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// How messages are written on the socket
    #[arg(long, global = true, hide = true, value_enum, default_value_t = Wire::Bincode)]
    pub(crate) wire: Wire,
}

/// How messages are written on the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wire {
    /// Compact; the default.
    Bincode,
    /// Readable with `socat`.
    Json,
}

impl From<Wire> for Codec {
    fn from(wire: Wire) -> Self {
        match wire {
            Wire::Bincode => Self::Bincode,
            Wire::Json => Self::Json,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the daemon, the accounts, their windows and who serves next
    Status {
        /// The pool of this folder's project
        #[arg(long)]
        project: bool,
    },
    /// List the accounts
    List {
        /// Those of this folder's project
        #[arg(long)]
        project: bool,
    },
    /// Pin one account: it serves every new request while it can
    Switch {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
        /// Refuse unless the pool is still in this epoch (from `status --json`)
        #[arg(long, value_name = "EPOCH")]
        expected_epoch: Option<u64>,
        /// Keep it in the official `auth.json` too (see `mirror`)
        #[arg(long, conflicts_with = "project")]
        write_auth: bool,
        /// In the pool of this folder's project
        #[arg(long)]
        project: bool,
    },
    /// Let the pool choose again
    Unpin {
        /// The pool of this folder's project
        #[arg(long)]
        project: bool,
    },
    /// Read the login of an official `auth.json` into the pool, or take over other programs' logins
    Import {
        /// The file; `auth.json` in the Codex home folder when left out
        #[arg(value_name = "AUTH_JSON")]
        file: Option<PathBuf>,
        /// A name for the account
        #[arg(long)]
        label: Option<String>,
        #[command(flatten)]
        take: TakeArgs,
        /// Into the pool of this folder's project, which no other folder uses
        #[arg(long)]
        project: bool,
    },
    /// Sign in at ChatGPT: adds the account to the pool, or mends its login in place
    Login(LoginArgs),
    /// Print the pool without its logins, or write it with them to a file of your own
    Export(ExportArgs),
    /// Let an account serve again
    Enable {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
    },
    /// Keep an account from serving
    Disable {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
    },
    /// Name an account; an empty label takes the name away
    Label {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
        /// The new name
        label: String,
    },
    /// Take an account out of the pool; its login is kept in the root's `removed/` folder
    Remove {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
        /// Don't ask
        #[arg(long, short)]
        yes: bool,
        /// End its login at the issuer too
        #[arg(long)]
        revoke: bool,
    },
    /// Keep an account in the official `auth.json`, for plain `codex`
    #[command(subcommand)]
    Mirror(Mirror),
    /// Try the accounts that were set aside, and let those that work again serve
    VerifyFlagged {
        /// Only say what would be done; nothing is sent
        #[arg(long, short = 'n')]
        dry_run: bool,
        /// Leave them set aside even where they work
        #[arg(long)]
        no_restore: bool,
    },
    #[command(flatten)]
    Choosing(choosing::Choosing),
    /// Print what happens in the pool, as it happens
    Events,
    #[command(flatten)]
    Books(BooksCommand),
    /// Print the daemon's log; works while the daemon is down
    Logs {
        /// Go on with what is written from now on
        #[arg(short, long)]
        follow: bool,
        /// How many lines from the end
        #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
        lines: usize,
    },
    /// Run, start, stop or restart the daemon, or ask whether it runs
    #[command(subcommand)]
    Daemon(Daemon),
    /// Print the version of this program and of the running daemon
    Version,
    /// Print what starts a client against the daemon: variables, arguments, a key for 24 h
    Launch(LaunchArgs),
    /// Make, list, restore or prune backups of the pool
    #[command(subcommand)]
    Backup(Backup),
    /// Seal the root's files with a passphrase or the system's keyring, or take the seal off
    #[command(subcommand)]
    Seal(Seal),
    /// Open a sealed root; `CMA_PASSPHRASE` or a prompt gives the passphrase
    Unlock,
    /// List the accounts' reset credits, or use one to have an account's windows reset
    #[command(subcommand)]
    ResetCredits(ResetCredits),
    /// Show the whole thing with three simulated accounts: nothing installed, no network
    Demo(DemoArgs),
    /// Add tags to an account (`+work`) and take them away (`-work`)
    Tag {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
        /// `+TAG` adds it, `-TAG` takes it away
        #[arg(required = true, allow_hyphen_values = true, value_name = "+TAG|-TAG")]
        changes: Vec<String>,
    },
    /// Write a note on an account; an empty one takes it away
    Note {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
        /// The note
        #[arg(required = true, value_name = "TEXT")]
        words: Vec<String>,
    },
    /// Show which workspace is served by which account, or limit launches to some
    Workspace {
        #[command(subcommand)]
        command: Option<WorkspaceCommand>,
    },
    /// Repositories with accounts of their own
    #[command(subcommand)]
    Project(ProjectCommand),
    /// Let a folder's `.cma.toml` count, as it is now
    Allow {
        /// A folder of the repository; this one when left out
        dir: Option<PathBuf>,
    },
    /// Refuse a folder's `.cma.toml`, as it is now, and hear no more of it
    Deny {
        /// A folder of the repository; this one when left out
        dir: Option<PathBuf>,
    },
    /// Show the threads and where they run, or move one to another account
    #[command(visible_alias = "sessions")]
    Session {
        #[command(subcommand)]
        command: Option<SessionCommand>,
    },
}

/// `cmactl session …`
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum SessionCommand {
    /// List the threads, newest first
    List {
        /// Older ones too
        #[arg(long)]
        all: bool,
    },
    /// Show one thread: where it ran, its moves, what they left out
    Show {
        /// The thread's id or a unique prefix
        id: String,
    },
    /// Pin a thread to an account, from its next request on
    Move {
        /// The thread's id or a unique prefix
        id: String,
        /// Index, e-mail, label, id or a unique prefix
        account: String,
        /// Go on without what was compacted, where the account can't read it
        #[arg(long)]
        without_summary: bool,
    },
    /// Let the pool choose for a thread again
    Unpin {
        /// The thread's id or a unique prefix
        id: String,
    },
}

/// `cmactl project …`
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ProjectCommand {
    /// List the projects that cma knows
    List,
    /// Show a project's pool, policy and pin
    Show {
        /// A folder of it, or its key; this folder when left out
        project: Option<String>,
    },
    /// Let an account that is in another pool serve this folder's project too
    Add {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
        /// It leaves all other pools
        #[arg(long)]
        only: bool,
    },
    /// Take an account out of this folder's project; it stays in its other pools
    Drop {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
    },
    /// Let a folder's `.cma.toml` count, as it is now
    Allow {
        /// A folder of the repository; this one when left out
        dir: Option<PathBuf>,
    },
    /// Refuse a folder's `.cma.toml`, as it is now, and hear no more of it
    Deny {
        /// A folder of the repository; this one when left out
        dir: Option<PathBuf>,
    },
    /// Forget a project; accounts of its own leave the pool, their logins are kept in `removed/`
    Forget {
        /// A folder of it, or its key; this folder when left out
        project: Option<String>,
        /// Don't ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// `cmactl workspace …`
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum WorkspaceCommand {
    /// List the workspaces of everybody in the pools, and who serves them
    List {
        /// Ask upstream as well
        #[arg(long)]
        live: bool,
    },
    /// Show the limits that hold here
    Show,
    /// Limit new launches to some workspaces
    Use {
        /// Workspace ids, or accounts in them
        #[arg(required_unless_present = "any", conflicts_with = "any")]
        workspaces: Vec<String>,
        /// Lift the limit
        #[arg(long)]
        any: bool,
        /// Only for this folder's project
        #[arg(long)]
        project: bool,
    },
}

/// `cmactl login`
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// Sign in again as this account of the pool, and as no other
    pub(crate) account: Option<String>,
    #[command(flatten)]
    pub(crate) way: LoginWay,
    /// Print the link instead of opening a browser (also `CODEX_AUTH_NO_BROWSER=1`)
    #[arg(long, conflicts_with = "device")]
    pub(crate) no_browser: bool,
    /// Only this workspace will do
    #[arg(long, value_name = "ID")]
    pub(crate) org: Option<String>,
    /// A name for a new account
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// Sign in at another issuer (loopback, or the one in the root's `config.toml`)
    #[arg(long, value_name = "URL")]
    pub(crate) issuer: Option<String>,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=900))]
    pub(crate) timeout: Option<u64>,
    /// Sign in the accounts of a list, one after another, those that need it
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["account", "org", "label"])]
    pub(crate) batch: Option<PathBuf>,
    /// Only tell which accounts of the list need a sign-in: exit code 1 if any does
    #[arg(long, requires = "batch")]
    pub(crate) check: bool,
}

/// How to get to the issuer and back; chosen by itself when left out.
#[derive(Debug, Clone, Copy, Args)]
#[group(multiple = false)]
pub(crate) struct LoginWay {
    /// By a browser on this machine
    #[arg(long)]
    pub(crate) browser: bool,
    /// By a code that is typed on any device
    #[arg(long, alias = "device-auth")]
    pub(crate) device: bool,
    /// By pasting the address that the browser ends at
    #[arg(long)]
    pub(crate) manual: bool,
}

/// `cmactl mirror …`
#[derive(Debug, Subcommand)]
pub(crate) enum Mirror {
    /// Write the account there and keep it current; the file from before comes back with `off`
    On {
        /// Index, e-mail, label, id or a unique prefix; follows the active account when left out
        account: Option<String>,
        /// Write the refresh token too: a second owner of the login, which may end it
        #[arg(long)]
        with_refresh: bool,
        /// The file; `auth.json` in the Codex home folder when left out
        #[arg(long, value_name = "AUTH_JSON")]
        file: Option<PathBuf>,
    },
    /// Stop, and put the file from before back
    Off,
    /// Say how it stands
    Status,
}

/// `cmactl import` from any program
#[derive(Debug, Args)]
pub(crate) struct TakeArgs {
    /// Show what codex-multi-auth, the OpenCode plugin, OpenCode and codex have to take over
    #[arg(long, conflicts_with_all = ["file", "label"])]
    pub(crate) preview: bool,
    /// Take what is new and newer there
    #[arg(long, visible_alias = "yes", conflicts_with_all = ["file", "label", "preview"])]
    pub(crate) apply: bool,
    /// One file or folder instead of the usual places
    #[arg(long, value_name = "PATH", conflicts_with_all = ["file", "label"])]
    pub(crate) from: Option<PathBuf>,
}

/// `cmactl export`
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Write the logins too: whoever has that file is you
    #[arg(long, requires = "to")]
    pub(crate) secrets: bool,
    /// The new file they go to (mode 0600)
    #[arg(long, value_name = "FILE", requires = "secrets")]
    pub(crate) to: Option<PathBuf>,
}

/// `cmactl daemon …`
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum Daemon {
    /// Run the daemon in the foreground
    Run,
    /// Start the daemon in the background, unless it runs
    Start,
    /// Let running responses end, then stop the daemon
    Stop {
        /// Cut running responses
        #[arg(long)]
        now: bool,
    },
    /// Put the daemon beside this program in the place of the running one, with this shell's environment
    Restart {
        /// Cut running responses
        #[arg(long)]
        now: bool,
    },
    /// Say whether the daemon runs: exit code 0 if it does, 4 if not
    Status,
}

/// `cmactl backup …`
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Backup {
    /// Keep all accounts and choices as they are now
    Create {
        /// Letters, digits, `-` and `_`; made up when left out
        name: Option<String>,
    },
    /// List the backups, newest first
    List,
    /// Bring back what the pool no longer has; nothing is overwritten
    Restore {
        /// As `backup list` shows it
        name: String,
        /// Only say what would happen
        #[arg(long)]
        preview: bool,
    },
    /// Remove the oldest automatic backups; those made by name stay
    Prune {
        /// How many stay
        #[arg(long, value_name = "N", default_value_t = 10)]
        keep: u32,
    },
}

/// `cmactl reset-credits …`
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ResetCredits {
    /// Ask upstream for the credits of every account
    List,
    /// Use one credit of an account, for good
    Use {
        /// Index, e-mail, label, id or a unique prefix
        account: String,
        /// Which credit (from `list`); its first one when left out
        #[arg(long, value_name = "ID")]
        credit: Option<String>,
        /// Don't ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// `cmactl seal …`
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Seal {
    /// Seal every file with a credential, copies and backups included
    On(SealBy),
    /// Write the files in clear again
    Off,
    /// Say whether the root is sealed, and by what it opens
    Status,
    /// Seal everything under a new key
    Rekey(SealBy),
}

/// What opens a sealed root.
#[derive(Debug, Clone, Args)]
pub(crate) struct SealBy {
    /// A passphrase, by `CMA_PASSPHRASE` (for a rekey `CMA_NEW_PASSPHRASE`) or a prompt; the default
    #[arg(long)]
    pub(crate) passphrase: bool,
    /// A key in the system's keyring, and a recovery code that is shown once
    #[arg(long, conflicts_with = "passphrase")]
    pub(crate) keyring: bool,
}

/// `cmactl launch`
#[derive(Debug, Args)]
pub(crate) struct LaunchArgs {
    /// Print the plan (starting the CLI is the `codex` shim's work)
    #[arg(long, required = true)]
    pub(crate) print: bool,
    /// Let the CLI stay on its own `auth.json`
    #[arg(long)]
    pub(crate) own_auth: bool,
    /// The CLI's version; the newest one known when left out
    #[arg(long, value_name = "X.Y.Z", default_value = "")]
    pub(crate) codex_version: String,
    /// The CLI's profile
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
}

/// `cmactl demo`
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Who sends the requests
    #[arg(long, value_enum, default_value_t = DemoClient::Auto)]
    pub(crate) client: DemoClient,
    /// Print lines instead of a picture
    #[arg(long)]
    pub(crate) plain: bool,
}

/// Who sends the demo's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoClient {
    /// The real `codex` if a fitting one is on `PATH`, else the built-in client
    Auto,
    /// The built-in client
    Builtin,
    /// The real `codex`
    Codex,
}

/// Reads the command line; help, version and usage errors are dealt with here.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| {
        let json = std::env::args_os().any(|arg| arg == "--json");
        let talk = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        // A closed stdout or stderr is no reason to fail differently.
        if json && !talk {
            drop(crate::render::Screen::new(true).refusal(&usage(&error)));
        } else {
            drop(error.print());
        }
        ExitCode::from(if error.use_stderr() { ErrorCode::BadRequest.exit_code() } else { 0 })
    })
}

/// A usage error as a refusal: clap's first paragraph, without its `error: `.
fn usage(error: &clap::Error) -> Refusal {
    let text = error.render().to_string();
    let said = text.split("\n\n").next().unwrap_or_default();
    let said: Vec<&str> = said.split_whitespace().collect();
    let said = said.join(" ");
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    Refusal::new(ErrorCode::BadRequest, said, "run `cmactl --help`")
}

#[cfg(test)]
mod tests;
