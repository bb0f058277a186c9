//! Who owns a login: the mirror of the official `auth.json`, accounts set aside, revoking on purpose.

use super::{Context, absolute};
use crate::{
    cli::Mirror,
    error::{Failure, unexpected},
    render::{Screen, Tone, clean, put, time},
};
use cma_proto::{
    endpoint::codex_home,
    error::{ErrorCode, Refusal},
    message::{Reply, Request, Status},
    owner::{FlaggedInfo, MirrorInfo, OwnerReply, OwnerRequest, Verified},
};
use serde::Serialize;
use std::{path::PathBuf, process::ExitCode};

#[derive(Debug, Serialize)]
struct Tried {
    dry_run: bool,
    restored: usize,
    still_flagged: usize,
    accounts: Vec<Verified>,
}

pub(super) fn mirror(
    context: &Context,
    command: Mirror,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let request = match command {
        Mirror::On { account, with_refresh, file } => on(account, with_refresh, file)?,
        Mirror::Off => OwnerRequest::MirrorOff,
        Mirror::Status => OwnerRequest::MirrorStatus,
    };
    let info = ask_mirror(context, request)?;
    screen.answer(&info, told)?;
    screen.notes(&info.notes)?;
    Ok(ExitCode::SUCCESS)
}

/// What `switch --write-auth` does after the switch.
pub(super) fn write_auth(
    context: &Context,
    account: String,
    screen: &mut Screen,
) -> Result<(), Failure> {
    let info = ask_mirror(context, on(Some(account), false, None)?)?;
    // `switch` has said its answer on stdout: this is talk.
    screen.notes(&[told(&info).trim_end().to_owned()])?;
    screen.notes(&info.notes)?;
    Ok(())
}

fn on(
    selector: Option<String>,
    with_refresh: bool,
    file: Option<PathBuf>,
) -> Result<OwnerRequest, Refusal> {
    let path =
        absolute(&file.map_or_else(|| codex_home().map(|home| home.join("auth.json")), Ok)?)?;
    let Some(path) = path.to_str().map(ToOwned::to_owned) else {
        return Err(Refusal::new(
            ErrorCode::BadRequest,
            format!("`{}` is not UTF-8, which the daemon can't be told", path.display()),
            "choose a Codex home folder with a plain name",
        ));
    };
    Ok(OwnerRequest::MirrorOn { selector, path, with_refresh })
}

fn ask_mirror(context: &Context, request: OwnerRequest) -> Result<MirrorInfo, Failure> {
    match context.connect()?.call(&Request::Owner(request))? {
        Reply::Owner(OwnerReply::Mirror(info)) => Ok(info),
        other => Err(unexpected(other).into()),
    }
}

fn told(info: &MirrorInfo) -> String {
    let path = clean(info.path.as_deref().unwrap_or("auth.json"));
    if !info.on {
        return "The mirror is off.\n".to_owned();
    }
    let account = clean(info.account.as_deref().unwrap_or("no account"));
    let refresh = if info.with_refresh { "with" } else { "without" };
    let follows = if info.follows { "the active account" } else { "this account" };
    let mut text = format!(
        "`{path}` holds account {account}, {refresh} its refresh token; it follows {follows}.\n"
    );
    if let Some(held) = &info.held {
        put!(text, "It is left alone for now: {}.\n", clean(held));
    }
    text
}

pub(super) fn verify_flagged(
    context: &Context,
    dry_run: bool,
    no_restore: bool,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let request = OwnerRequest::VerifyFlagged { dry_run, restore: !no_restore };
    let accounts = match context.connect()?.call(&Request::Owner(request))? {
        Reply::Owner(OwnerReply::Verified(accounts)) => accounts,
        other => return Err(unexpected(other).into()),
    };
    let count = |outcome: &str| accounts.iter().filter(|one| one.outcome == outcome).count();
    let tried = Tried {
        dry_run,
        restored: count("restored"),
        still_flagged: count("still_flagged"),
        accounts,
    };
    screen.answer(&tried, |tried| {
        if tried.accounts.is_empty() {
            return "No account is set aside.\n".to_owned();
        }
        let mut text = String::new();
        for one in &tried.accounts {
            let outcome = one.outcome.replace('_', " ");
            put!(text, "{}: {outcome}: {}\n", clean(&one.name), clean(&one.message));
        }
        text
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The request of a removal.
pub(super) fn removal(selector: String, revoke: bool) -> Request {
    if revoke {
        Request::Owner(OwnerRequest::Revoke { selector })
    } else {
        Request::Remove { selector }
    }
}

/// The accounts set aside; asked for only where the picture has one.
pub(super) fn flagged(context: &Context, status: &Status) -> Result<Vec<FlaggedInfo>, Failure> {
    if !status.accounts.iter().any(|account| account.state == "needs_login") {
        return Ok(Vec::new());
    }
    match context.connect()?.call(&Request::Owner(OwnerRequest::Flagged))? {
        Reply::Owner(OwnerReply::Flagged(flagged)) => Ok(flagged),
        other => Err(unexpected(other).into()),
    }
}

/// The part of `status` and `list` that shows them.
pub(super) fn set_aside(flagged: &[FlaggedInfo], now: u64) -> String {
    let mut text = String::new();
    for one in flagged {
        let evidence: Vec<String> = one
            .status
            .map(|status| format!("HTTP {status}"))
            .into_iter()
            .chain(one.code.as_deref().map(clean))
            .chain([time::relative(one.since, now)])
            .collect();
        put!(
            text,
            "{} {}: {} ({})\n",
            Tone::Bad.paint("set aside:"),
            clean(&one.name),
            clean(&one.cause),
            evidence.join(", "),
        );
        if let Some(excerpt) = one.excerpt.as_deref().filter(|text| !text.is_empty()) {
            put!(text, "  {}\n", Tone::Dim.paint(clean(excerpt)));
        }
        put!(text, "  next: {}\n", clean(&one.next));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_set_aside_is_shown_with_its_evidence_and_the_next_command() {
        let one = FlaggedInfo {
            account: "aa".to_owned(),
            name: "work".to_owned(),
            cause: "the issuer refused its refresh token".to_owned(),
            since: 100,
            status: Some(401),
            code: Some("refresh_token_reused".to_owned()),
            excerpt: Some("{\"error\":\u{1b}[31m}".to_owned()),
            next: "sign in".to_owned(),
        };
        let text = set_aside(&[one], 160);
        for part in ["set aside:", "work", "HTTP 401", "refresh_token_reused", "next: sign in"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("\u{1b}[31m}"), "{text}");
        assert_eq!(set_aside(&[], 0), "");
    }
}
