//! `import --preview`, `import --apply` and `export`: other programs' logins, and the pool's own.

use super::{Context, absolute};
use crate::{
    error::{self, Failure, unexpected},
    render::{Column, Screen, Tone, clean, put, table},
};
use cma_proto::{
    endpoint::codex_home,
    error::{ErrorCode, Refusal},
    message::{Reply, Request},
    takeover::{
        Exported, FoundInfo, Passphrase, Report, Scan, TakeoverReply, TakeoverRequest, VARIABLES,
        anything_there,
    },
};
use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Opens sealed stores where nobody can be asked.
const PASSPHRASE: &str = "CMA_IMPORT_PASSPHRASE";

/// Whether other programs' logins lie at the usual places.
pub(super) fn offers() -> bool {
    let Some(home) = env::home_dir() else { return false };
    codex_home().is_ok_and(|codex| anything_there(&home, &codex, |name| env::var(name).ok()))
}

/// `import --preview` and `import --apply`.
pub(super) fn import(
    context: &Context,
    from: Option<PathBuf>,
    apply: bool,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let mut scan = scan(from, apply)?;
    let mut client = context.connect()?;
    let mut ask = |scan: &Scan| -> Result<Report, Failure> {
        let request = Request::Takeover(TakeoverRequest::Scan(scan.clone()));
        match client.call(&request)? {
            Reply::Takeover(reply) => match *reply {
                TakeoverReply::Report(report) => Ok(report),
                TakeoverReply::Exported(_) => Err(unexpected("Exported").into()),
            },
            other => Err(unexpected(other).into()),
        }
    };
    // Looked at first, so that a passphrase is asked for before anything is taken.
    let sealed = |report: &Report| report.sources.iter().any(|source| source.state == "sealed");
    if scan.passphrase.is_none() && screen.can_ask() {
        let looked = ask(&Scan { apply: false, ..scan.clone() })?;
        if sealed(&looked) {
            scan.passphrase = typed(&looked)?;
        }
    }
    let report = ask(&scan)?;
    screen.answer(&report, said)?;
    let mut notes: Vec<String> = Vec::new();
    for source in &report.sources {
        notes.extend(source.notes.iter().map(|note| format!("`{}`: {note}", source.path)));
    }
    for account in &report.accounts {
        notes.extend(account.notes.iter().map(|note| format!("{}: {note}", account.name)));
    }
    notes.extend(report.notes.iter().cloned());
    screen.notes(&notes)?;
    if !screen.json() && !apply && report.accounts.iter().any(|account| account.taken) {
        screen.say(Tone::Strong, "hint", &next(scan.from.as_deref()))?;
    }
    let unfinished = apply && sealed(&report);
    Ok(ExitCode::from(if unfinished { ErrorCode::Negative.exit_code() } else { 0 }))
}

fn next(from: Option<&str>) -> String {
    let from = from.map(|from| format!(" --from {}", clean(from))).unwrap_or_default();
    format!("run `cmactl import --apply{from}` to take what is new and newer")
}

fn scan(from: Option<PathBuf>, apply: bool) -> Result<Scan, Refusal> {
    let known = |path: PathBuf| {
        let path = absolute(&path)?;
        path.to_str().map(str::to_owned).ok_or_else(|| {
            Refusal::new(
                ErrorCode::BadRequest,
                format!("`{}` is not UTF-8, which the daemon can't be told", path.display()),
                "copy it to a path in plain letters",
            )
        })
    };
    let from = from.map(known).transpose()?;
    if let Some(from) = &from {
        let hint = "name a file or a folder of another program";
        Path::new(from).symlink_metadata().map_err(|e| error::file(Path::new(from), &e, hint))?;
    }
    let codex = codex_home()?;
    let home = env::home_dir().or_else(|| Some(codex.parent()?.to_path_buf()));
    let environment = VARIABLES
        .iter()
        .filter_map(|&name| Some((name.to_owned(), env::var(name).ok()?)))
        .filter(|(_name, value)| !value.is_empty())
        .collect();
    Ok(Scan {
        apply,
        from,
        home: known(home.unwrap_or_else(|| codex.clone()))?,
        codex_home: known(codex)?,
        environment,
        // As it is: spaces belong to it.
        passphrase: env::var(PASSPHRASE)
            .ok()
            .filter(|typed| !typed.trim().is_empty())
            .map(Passphrase::new),
    })
}

/// Asks for the passphrase of the stores that are shut; none when the person gives none.
fn typed(report: &Report) -> Result<Option<Passphrase>, Failure> {
    let shut = report.sources.iter().find(|source| source.state == "sealed");
    let path = shut.map(|source| clean(&source.path)).unwrap_or_default();
    let question = format!("Passphrase of `{path}` (empty leaves it out): ");
    let typed = rpassword::prompt_password(question).map_err(Failure::Output)?;
    Ok((!typed.trim().is_empty()).then(|| Passphrase::new(typed)))
}

fn said(report: &Report) -> String {
    let mut text = String::new();
    if report.sources.is_empty() && report.kept.is_empty() {
        return "Nothing to take over was found. `cmactl import --from PATH --preview` looks \
                elsewhere.\n"
            .to_owned();
    }
    for source in &report.sources {
        let what = match &source.reason {
            Some(reason) => Tone::Warn.paint(format!("{}: {}", source.state, clean(reason))),
            None if source.accounts == 1 => "1 login".to_owned(),
            None => format!("{} logins", source.accounts),
        };
        put!(text, "{} `{}`: {what}\n", clean(&source.format), clean(&source.path));
    }
    if !report.accounts.is_empty() {
        text.push('\n');
        text += &rows(&report.accounts, report.applied);
    }
    if !report.kept.is_empty() {
        text.push('\n');
    }
    for kept in &report.kept {
        let fate = match (kept.fate.as_str(), report.applied) {
            ("kept", true) => "kept for later",
            ("kept", false) => "would be kept for later",
            _ => "has no equivalent here",
        };
        let (what, reason) = (clean(&kept.what), clean(&kept.reason));
        put!(text, "{what} ({}) of `{}`: {fate} ({reason})\n", kept.count, clean(&kept.path));
    }
    let taken: BTreeSet<_> = report
        .accounts
        .iter()
        .filter(|account| account.taken)
        .filter_map(|account| account.account.as_deref())
        .collect();
    let done = if report.applied { "Took" } else { "Would take" };
    put!(text, "\n{done} {} of {} logins.\n", taken.len(), report.accounts.len());
    text
}

fn rows(accounts: &[FoundInfo], applied: bool) -> String {
    let columns = [
        Column::Left(" "),
        Column::Left("account"),
        Column::Left("e-mail"),
        Column::Left("workspace"),
        Column::Left("state"),
        Column::Left("why"),
    ];
    let row = |account: &FoundInfo| {
        let text = |text: &Option<String>| clean(text.as_deref().unwrap_or("-"));
        let tone = match account.state.as_str() {
            "new" | "newer" => Tone::Good,
            "same" | "older" => Tone::Dim,
            "conflicting" => Tone::Warn,
            _ => Tone::Bad,
        };
        let mark = match (account.taken, applied) {
            (true, true) => "✓",
            (true, false) => "+",
            (false, _) => "",
        };
        let name = account.label.as_deref().unwrap_or(&account.name);
        let state = match (account.flagged, account.enabled || account.account.is_none()) {
            (true, _) => format!("{}, flagged", account.state),
            (false, false) => format!("{}, disabled", account.state),
            (false, true) => account.state.clone(),
        };
        vec![
            Tone::Good.paint(mark),
            clean(name),
            text(&account.email),
            text(&account.workspace),
            tone.paint(clean(&state)),
            clean(&account.reason),
        ]
    };
    table(&columns, accounts.iter().map(row).collect())
}

/// `export`.
pub(super) fn export(
    context: &Context,
    secrets_to: Option<PathBuf>,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let to = match secrets_to {
        None => None,
        Some(path) => {
            let path = absolute(&path)?;
            let text = path.to_str().map(str::to_owned).ok_or_else(|| {
                Refusal::new(
                    ErrorCode::BadRequest,
                    format!("`{}` is not UTF-8, which the daemon can't be told", path.display()),
                    "name a path in plain letters",
                )
            })?;
            Some(text)
        },
    };
    let request = Request::Takeover(TakeoverRequest::Export { secrets_to: to });
    let exported = match context.connect()?.call(&request)? {
        Reply::Takeover(reply) => match *reply {
            TakeoverReply::Exported(exported) => exported,
            TakeoverReply::Report(_) => return Err(unexpected("Report").into()),
        },
        other => return Err(unexpected(other).into()),
    };
    match &exported.secrets_in {
        None if screen.json() => screen.object(&exported)?,
        None => screen.raw(&pretty(&exported)?)?,
        Some(path) => {
            let path = clean(path);
            let logins = exported.accounts.len();
            screen.answer(&exported, |_| format!("Wrote {logins} logins to `{path}`.\n"))?;
            let warning = format!(
                "`{path}` holds working logins: whoever reads it is you, and two programs that use \
                 them sign each other out. Remove it once it is imported elsewhere"
            );
            screen.say(Tone::Warn, "warning", &warning)?;
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn pretty(exported: &Exported) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(exported).map_err(|error| {
        let said = format!("the export can't be written: {error}");
        Refusal::new(ErrorCode::Internal, said, "run `cmactl version` and report it")
    })?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests;
