//! What the commands do, one file per family.
//!
//! A command asks, hands the answer to `render`, and ends. None knows another; what they share is
//! the way to the daemon, here.

mod accounts;
mod backup;
mod books;
mod budget;
mod choose;
mod credits;
mod daemon;
mod demo;
mod events;
mod launch;
mod login;
mod logs;
mod monitor;
mod owner;
mod pools;
mod probe;
mod seal;
mod sessions;
mod status;
mod takeover;
mod token;
mod usage;
mod version;
mod why;

pub(crate) use budget::amount;

use crate::{
    cli::{Cli, Command},
    error::Failure,
    render::Screen,
};
use cma_proto::{
    client::{Client, ConnectError},
    codec::Codec,
    endpoint::Root,
    error::{ErrorCode, Refusal},
    message::{AccountInfo, Request},
    pools::PoolsRequest,
};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

/// How this program calls itself in a hello.
const PROGRAM: &str = "cmactl";

/// Which daemon, and how to talk to it.
#[derive(Debug, Clone)]
struct Context {
    root: Root,
    codec: Codec,
    start: bool,
}

impl Context {
    /// The daemon, started if need be and allowed.
    fn connect(&self) -> Result<Client, Refusal> {
        if self.start {
            return Client::connect_or_start(&self.root, PROGRAM, self.codec);
        }
        self.connect_running()?.ok_or_else(|| self.not_running())
    }

    /// The daemon if it runs.
    fn connect_running(&self) -> Result<Option<Client>, Refusal> {
        match Client::connect(&self.root, PROGRAM, self.codec) {
            Ok(client) => Ok(Some(client)),
            Err(ConnectError::NobodyThere) => Ok(None),
            Err(ConnectError::Refused(refusal)) => Err(refusal),
        }
    }

    fn not_running(&self) -> Refusal {
        Refusal::new(
            ErrorCode::Unreachable,
            format!("no daemon is running for `{}`", self.root.path().display()),
            "run `cmactl daemon start`",
        )
    }
}

/// Does what was typed.
pub(crate) fn run(cli: Cli, screen: &mut Screen) -> Result<ExitCode, Failure> {
    let command = match cli.command {
        // The demo has a root of its own and must run where no home folder is known.
        Command::Demo(args) => return demo::demo(&args, cli.global.wire.into(), screen),
        command => command,
    };
    let context = Context {
        root: root(cli.global.root.as_deref())?,
        codec: cli.global.wire.into(),
        start: !cli.global.no_start,
    };
    match command {
        Command::Demo(_) => Ok(ExitCode::SUCCESS),
        Command::Status { project: true } | Command::List { project: true } => {
            pools::show(&context, None, screen)
        },
        Command::Status { project: false } => status::status(&context, screen),
        Command::List { project: false } => status::list(&context, screen),
        Command::Switch { account, expected_epoch, write_auth, project: false } => {
            let request = Request::Switch { selector: account.clone(), expected_epoch };
            let done = accounts::switch(&context, &request, screen)?;
            if write_auth {
                owner::write_auth(&context, account, screen)?;
            }
            Ok(done)
        },
        Command::Unpin { project: false } => accounts::switch(&context, &Request::Unpin, screen),
        Command::Switch { account, expected_epoch, write_auth: _, project: true } => {
            let (selector, dir) = (Some(account), pools::dir(None)?);
            let request = PoolsRequest::Switch { selector, expected_epoch, dir };
            accounts::switch(&context, &Request::Pools(request), screen)
        },
        Command::Unpin { project: true } => {
            let dir = pools::dir(None)?;
            let request = PoolsRequest::Switch { selector: None, expected_epoch: None, dir };
            accounts::switch(&context, &Request::Pools(request), screen)
        },
        Command::Login(args) => login::login(&context, args, screen),
        // A place without a verb is looked at: nothing is taken by accident.
        Command::Import { take, .. } if take.preview || take.apply || take.from.is_some() => {
            takeover::import(&context, take.from, take.apply, screen)
        },
        Command::Export(args) => takeover::export(&context, args.to, screen),
        Command::Import { file, label, take: _, project } => {
            let dir = project.then(|| pools::dir(None)).transpose()?;
            accounts::import(&context, file, label, dir, screen)
        },
        Command::Enable { account } => accounts::set_enabled(&context, account, true, screen),
        Command::Disable { account } => accounts::set_enabled(&context, account, false, screen),
        Command::Label { account, label } => accounts::label(&context, account, label, screen),
        Command::Remove { account, yes, revoke } => {
            accounts::remove(&context, account, (yes, revoke), screen)
        },
        Command::Mirror(command) => owner::mirror(&context, command, screen),
        Command::VerifyFlagged { dry_run, no_restore } => {
            owner::verify_flagged(&context, dry_run, no_restore, screen)
        },
        Command::Choosing(command) => choose::command(&context, command, screen),
        Command::Events => events::events(&context, screen),
        Command::Books(command) => books::books(&context, command, screen),
        Command::Logs { follow, lines } => logs::logs(&context, lines, follow, screen),
        Command::Daemon(command) => daemon::daemon(&context, command, screen),
        Command::Version => version::version(&context, screen),
        Command::Launch(args) => launch::launch(&context, &args, screen),
        Command::Backup(command) => backup::backup(&context, command, screen),
        Command::Seal(command) => seal::seal(&context, &command, screen),
        Command::Unlock => seal::unlock(&context, screen),
        Command::ResetCredits(command) => credits::credits(&context, command, screen),
        Command::Tag { account, changes } => pools::tag(&context, account, &changes, screen),
        Command::Note { account, words } => pools::note(&context, account, &words, screen),
        Command::Workspace { command } => pools::workspace(&context, command, screen),
        Command::Project(command) => pools::command(&context, command, screen),
        Command::Allow { dir } => pools::judge(&context, dir.as_deref(), true, screen),
        Command::Deny { dir } => pools::judge(&context, dir.as_deref(), false, screen),
        Command::Session { command } => sessions::session(&context, command, screen),
    }
}

fn root(given: Option<&Path>) -> Result<Root, Refusal> {
    given.map_or_else(Root::from_env, |path| absolute(path).map(|path| Root::at(&path)))
}

/// A path that means the same to the daemon, which stands in another folder.
fn absolute(path: &Path) -> Result<PathBuf, Refusal> {
    std::path::absolute(path).map_err(|error| {
        Refusal::new(
            ErrorCode::BadRequest,
            format!("`{}` can't be made an absolute path: {error}", path.display()),
            "name the whole path",
        )
    })
}

/// Ctrl-C ends a command that has no end of its own, and that is no failure.
fn end_on_interrupt() {
    // Where no handler can be installed, Ctrl-C still ends the program, only with another code.
    drop(signal_hook::flag::register_conditional_shutdown(
        signal_hook::consts::SIGINT,
        0,
        Arc::new(AtomicBool::new(true)),
    ));
}

/// What its person calls an account.
fn name_of(account: &AccountInfo) -> &str {
    [&account.label, &account.email]
        .into_iter()
        .flatten()
        .find(|name| !name.is_empty())
        .unwrap_or(&account.id)
}
