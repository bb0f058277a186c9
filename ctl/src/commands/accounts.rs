//! Commands that change the pool: the pin, logins in and out, names, on and off.

use super::{Context, absolute};
use crate::{
    error::{self, Failure, unexpected},
    render::{Screen, clean},
};
use cma_proto::{
    endpoint::codex_home,
    error::{ErrorCode, Refusal},
    message::{Changed, Imported, Reply, Request, Switched},
    pools::PoolsRequest,
};
use serde::Serialize;
use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Debug, Serialize)]
struct Made {
    accounts: Vec<Imported>,
}

/// `switch` and `unpin`.
pub(super) fn switch(
    context: &Context,
    request: &Request,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let switched = match context.connect()?.call(request)? {
        Reply::Switched(switched) => switched,
        other => return Err(unexpected(other).into()),
    };
    // A pin is for one pool: which one is always said.
    let pool = if matches!(request, Request::Pools(_)) {
        "this project's pool"
    } else {
        "the global pool"
    };
    screen.answer(&switched, |switched| said(switched, pool))?;
    screen.notes(&switched.notes)?;
    Ok(ExitCode::SUCCESS)
}

fn said(switched: &Switched, pool: &str) -> String {
    let name = switched.name.as_ref().or(switched.to.as_ref()).map(|name| clean(name));
    match (name, &switched.from) {
        (Some(name), from) if from == &switched.to => {
            format!("Already pinned to {name} for {pool}.\n")
        },
        (Some(name), _) => {
            format!("Pinned to {name}: it serves every new request of {pool} while it can.\n")
        },
        (None, Some(_)) => format!("Unpinned: {pool} chooses again.\n"),
        (None, None) => format!("Nothing was pinned: {pool} chooses.\n"),
    }
}

pub(super) fn import(
    context: &Context,
    file: Option<PathBuf>,
    label: Option<String>,
    project: Option<String>,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let path = auth_file(file)?;
    let Some(path) = path.to_str().map(ToOwned::to_owned) else {
        return Err(Refusal::new(
            ErrorCode::BadRequest,
            format!("`{}` is not UTF-8, which the daemon can't be told", path.display()),
            "copy the file to a path in plain letters",
        )
        .into());
    };
    let request = match project {
        Some(dir) => Request::Pools(PoolsRequest::Import { path, label, dir }),
        None => Request::Import { path, label },
    };
    let accounts = match context.connect()?.call(&request)? {
        Reply::Imported(accounts) => accounts,
        other => return Err(unexpected(other).into()),
    };
    let made = Made { accounts };
    screen.answer(&made, |made| made.accounts.iter().map(imported).collect())?;
    for account in &made.accounts {
        screen.notes(&account.notes)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The file meant. A missing one is found out here: no daemon is started for it.
fn auth_file(given: Option<PathBuf>) -> Result<PathBuf, Refusal> {
    let path = match given {
        Some(path) if path == Path::new("-") => {
            return Err(Refusal::new(
                ErrorCode::BadRequest,
                "a login can't be read from stdin: the daemon reads the file itself, so that no \
                 credential crosses a socket",
                "save it to a file only you can read, then run `cmactl import FILE`",
            ));
        },
        Some(path) => path,
        None => codex_home()?.join("auth.json"),
    };
    let path = absolute(&path)?;
    match path.metadata() {
        Ok(found) if found.is_file() => Ok(path),
        Ok(_other) => {
            let error = io::Error::other("it is not a file");
            Err(error::file(&path, &error, "run `cmactl import FILE` with an `auth.json`"))
        },
        Err(error) => {
            let hint = "log in with `codex login`, then run `cmactl import`";
            Err(error::file(&path, &error, hint))
        },
    }
}

fn imported(account: &Imported) -> String {
    let name = clean(account.email.as_deref().unwrap_or(&account.id));
    let plan = account.plan.as_deref().map(|plan| format!(", plan {}", clean(plan)));
    let done = if account.created { "Added" } else { "Updated" };
    format!("{done} {name} (id {}{}).\n", clean(&account.id), plan.unwrap_or_default())
}

pub(super) fn set_enabled(
    context: &Context,
    selector: String,
    enabled: bool,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let done = if enabled { "may serve again" } else { "serves no new request" };
    let said = |_changed: &Changed| done.to_owned();
    change(context, &Request::SetEnabled { selector, enabled }, said, screen)
}

pub(super) fn label(
    context: &Context,
    selector: String,
    label: String,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    // Its name in the answer is the new one already: the id says which account that is.
    let said =
        |changed: &Changed| format!("is the name of account {} now", clean(&changed.account));
    change(context, &Request::SetLabel { selector, label }, said, screen)
}

pub(super) fn remove(
    context: &Context,
    selector: String,
    (yes, revoke): (bool, bool),
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    if !yes {
        if !screen.can_ask() {
            return Err(Refusal::new(
                ErrorCode::BadRequest,
                "nobody can be asked here whether the account is really meant to go",
                format!(
                    "run `cmactl remove {selector} --yes{}`",
                    if revoke { " --revoke" } else { "" }
                ),
            )
            .into());
        }
        let login = if revoke {
            "is ended at the issuer, for every program that has it".to_owned()
        } else {
            format!("is kept in `{}`", context.root.path().join("removed").display())
        };
        let question = format!("Take `{}` out of the pool? Its login {login}.", clean(&selector));
        if !screen.ask(&question)? {
            let said = "nothing was removed: the answer was no";
            return Err(Refusal::new(ErrorCode::Negative, said, "").into());
        }
    }
    let said = |_changed: &Changed| "is out of the pool".to_owned();
    change(context, &super::owner::removal(selector, revoke), said, screen)
}

pub(super) fn change(
    context: &Context,
    request: &Request,
    said: impl FnOnce(&Changed) -> String,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let changed = match context.connect()?.call(request)? {
        Reply::Changed(changed) => changed,
        other => return Err(unexpected(other).into()),
    };
    screen.answer(&changed, |changed| {
        let name = clean(&changed.name);
        format!("{name} {}.\n", said(changed))
    })?;
    screen.notes(&changed.notes)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
