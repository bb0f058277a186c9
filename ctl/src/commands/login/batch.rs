//! `login --batch`: a list of accounts, signed in one after another by their person.
//!
//! What is left to do is read from the pool each time, so a run that was interrupted is resumed by
//! running it again: accounts that are healthy are skipped. Nothing but names stands in the list; a
//! person types passwords and codes themselves, and a key that smells of one is refused.

use super::{INTERRUPTED, Outcome, Person, desk::Way, interrupted, sign_in};
use crate::{
    cli::LoginArgs,
    commands::Context,
    error::{self, Failure, unexpected},
    render::{Column, Screen, Tone, clean, table},
};
use cma_proto::{
    error::{ErrorCode, Refusal},
    login::{LoginBegin, LoginMethod},
    message::{AccountInfo, Reply, Request},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, path::Path, process::ExitCode};

/// A list longer than this is no person's own.
const MAX_ENTRIES: usize = 500;
/// What nobody should ever write down here.
const SECRETS: [&str; 7] = ["password", "passwd", "secret", "token", "totp", "otp", "cookie"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    account: Vec<Entry>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Its label in the pool.
    alias: String,
    /// Who is to sign in.
    email: Option<String>,
    /// In which workspace.
    workspace: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default = "yes")]
    enabled: bool,
}

const fn yes() -> bool {
    true
}

/// How one entry stands, or how it went.
#[derive(Debug, Clone, Serialize)]
struct Line {
    alias: String,
    email: Option<String>,
    workspace: Option<String>,
    /// Account id, when the pool has it.
    account: Option<String>,
    /// `healthy`, `needs_login`, `signed_in`, `failed`, `not_reached`.
    outcome: &'static str,
    /// Which end of a sign-in, and why, when it failed.
    end: Option<&'static str>,
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
struct Table<'a> {
    accounts: &'a [Line],
}

pub(super) fn batch(
    context: &Context,
    file: &Path,
    args: &LoginArgs,
    ways: &[Way],
    person: &mut Person,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let entries = read(file)?;
    let known = pool(context)?;
    let mut lines: Vec<Line> = entries.iter().map(|entry| stands(entry, &known)).collect();
    let waiting: Vec<usize> = (0..lines.len()).filter(|at| needs(&lines, *at)).collect();
    if !args.check {
        for (done, &at) in waiting.iter().enumerate() {
            let Some(entry) = entries.get(at) else { continue };
            let next = waiting.get(done + 1).and_then(|next| entries.get(*next));
            let here = (done + 1, waiting.len());
            screen.talk(&headline(here, entry, next))?;
            let outcome = sign_in(context, begin(entry, args), ways, person, screen);
            if let Some(line) = lines.get_mut(at) {
                went(line, outcome)?;
                screen.talk(&format!("{}: {}\n\n", clean(&line.alias), told(line)))?;
            }
            if person.interrupts() {
                break;
            }
        }
        for line in lines.iter_mut().filter(|line| line.outcome == "needs_login") {
            line.outcome = "not_reached";
        }
    }
    screen.answer(&Table { accounts: &lines }, |_json| rows(&lines))?;
    if person.interrupts() {
        screen.refusal(&interrupted())?;
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let open = lines.iter().filter(|line| !matches!(line.outcome, "healthy" | "signed_in")).count();
    if open == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    // The table is the answer; the exit code says what a script asks.
    screen.talk(&format!(
        "{open} of {} need a sign-in: run `cmactl login --batch {}`.\n",
        lines.len(),
        file.display()
    ))?;
    Ok(ExitCode::from(ErrorCode::Negative.exit_code()))
}

fn needs(lines: &[Line], at: usize) -> bool {
    lines.get(at).is_some_and(|line| line.outcome == "needs_login")
}

/// Reads and checks the list.
fn read(file: &Path) -> Result<Vec<Entry>, Refusal> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| error::file(file, &error, "run `cmactl login --batch FILE.toml`"))?;
    parse(&text).map_err(|(why, hint)| {
        Refusal::new(ErrorCode::Config, format!("`{}`: {why}", file.display()), hint)
    })
}

fn parse(text: &str) -> Result<Vec<Entry>, (String, &'static str)> {
    let list: List = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        let said = error.message();
        // The message names the key; a value never stands in it.
        let lower = said.to_lowercase();
        if lower.contains("unknown field") && SECRETS.iter().any(|word| lower.contains(word)) {
            let why = format!("line {line}: passwords and codes are never read from a file");
            return (why, "take that line out: you type them yourself, at the issuer");
        }
        let what = lower.contains("unknown field").then(|| unknown_key(said)).flatten();
        let why = what.unwrap_or_else(|| said.lines().next().unwrap_or_default().to_owned());
        (
            format!("line {line}: {why}"),
            "mend that line; known keys: alias, email, workspace, tags, enabled",
        )
    })?;
    let hint = "give each `[[account]]` an `alias` of its own";
    if list.account.is_empty() || list.account.len() > MAX_ENTRIES {
        return Err((format!("it has {} accounts", list.account.len()), hint));
    }
    let mut seen = BTreeSet::new();
    for entry in &list.account {
        let alias = entry.alias.trim();
        if alias.is_empty() || alias.chars().count() > 64 || alias.chars().any(char::is_control) {
            return Err(("an `alias` has 1 to 64 printable characters".to_owned(), hint));
        }
        if !seen.insert(alias.to_lowercase()) {
            return Err((format!("`{alias}` stands there twice"), hint));
        }
    }
    Ok(list.account)
}

fn unknown_key(said: &str) -> Option<String> {
    Some(format!("unknown key `{}`", said.split('`').nth(1)?))
}

fn pool(context: &Context) -> Result<Vec<AccountInfo>, Failure> {
    match context.connect()?.call(&Request::Status)? {
        Reply::Status(status) => Ok(status.accounts),
        other => Err(unexpected(other).into()),
    }
}

/// The account of the pool that an entry means.
fn meant<'a>(entry: &Entry, pool: &'a [AccountInfo]) -> Option<&'a AccountInfo> {
    let same = |wanted: &Option<String>, found: Option<&str>| {
        wanted
            .as_deref()
            .is_none_or(|wanted| found.is_some_and(|it| it.eq_ignore_ascii_case(wanted)))
    };
    let called = |account: &&AccountInfo| {
        account.label.as_deref().is_some_and(|label| label.eq_ignore_ascii_case(&entry.alias))
    };
    let fits = |account: &&AccountInfo| {
        same(&entry.email, account.email.as_deref())
            && same(&entry.workspace, Some(&account.workspace))
    };
    let named = entry.email.is_some() || entry.workspace.is_some();
    let all: Vec<_> = pool.iter().filter(|it| if named { fits(it) } else { called(it) }).collect();
    match all.as_slice() {
        [one] => Some(*one),
        // One address in several workspaces: then the label tells.
        several => several.iter().copied().find(called),
    }
}

fn stands(entry: &Entry, pool: &[AccountInfo]) -> Line {
    let found = meant(entry, pool);
    let (outcome, reason) = match found {
        None => ("needs_login", Some("not in the pool".to_owned())),
        Some(account) if account.state == "needs_login" => ("needs_login", account.reason.clone()),
        Some(_) => ("healthy", None),
    };
    Line {
        alias: entry.alias.trim().to_owned(),
        email: entry.email.clone().or_else(|| found?.email.clone()),
        workspace: entry.workspace.clone().or_else(|| Some(found?.workspace.clone())),
        account: found.map(|account| account.id.clone()),
        outcome,
        end: None,
        reason,
    }
}

fn begin(entry: &Entry, args: &LoginArgs) -> LoginBegin {
    LoginBegin {
        method: LoginMethod::Device,
        org: entry.workspace.clone(),
        account: None,
        email: entry.email.clone(),
        issuer: args.issuer.clone(),
        timeout_secs: args.timeout,
        label: Some(entry.alias.trim().to_owned()),
        tags: entry.tags.clone(),
        enabled: entry.enabled,
    }
}

/// Who is next, and who comes after.
fn headline((at, of): (usize, usize), entry: &Entry, next: Option<&Entry>) -> String {
    let who = |entry: &Entry| match &entry.email {
        Some(email) => format!("{} ({})", clean(&entry.alias), clean(email)),
        None => clean(&entry.alias),
    };
    let then = next.map(|next| format!("; then {}", who(next))).unwrap_or_default();
    let workspace = entry.workspace.as_deref();
    let place = workspace.map(|it| format!(", workspace {}", clean(it))).unwrap_or_default();
    let line = format!("{at} of {of}: sign in as {}{place}", who(entry));
    format!("{}{then}\n\n", Tone::Strong.paint(line))
}

fn went(line: &mut Line, outcome: Result<Outcome, Failure>) -> Result<(), Failure> {
    match outcome {
        Ok(Outcome::Done(done)) => {
            line.outcome = "signed_in";
            line.email = done.email.or_else(|| line.email.take());
            line.workspace = Some(done.workspace);
            line.account = Some(done.account);
            line.reason = Some(done.notes.join("; ")).filter(|notes| !notes.is_empty());
        },
        Ok(Outcome::Ended(end, refusal)) => {
            line.outcome = "failed";
            line.end = Some(end.name());
            line.reason = Some(refusal.message);
        },
        Ok(Outcome::Interrupted) => {},
        Err(Failure::Refused(refusal)) => {
            line.outcome = "failed";
            line.reason = Some(refusal.message);
        },
        Err(output @ Failure::Output(_)) => return Err(output),
    }
    Ok(())
}

fn told(line: &Line) -> String {
    let tone = match line.outcome {
        "healthy" | "signed_in" => Tone::Good,
        "failed" => Tone::Bad,
        _ => Tone::Warn,
    };
    let outcome = tone.paint(line.outcome.replace('_', " "));
    match &line.reason {
        Some(reason) => format!("{outcome} ({})", clean(reason)),
        None => outcome,
    }
}

fn rows(lines: &[Line]) -> String {
    let columns = [
        Column::Left("alias"),
        Column::Left("e-mail"),
        Column::Left("id"),
        Column::Left("outcome"),
    ];
    let shown = |text: &Option<String>| clean(text.as_deref().unwrap_or("–"));
    let row = |line: &Line| {
        vec![clean(&line.alias), shown(&line.email), shown(&line.account), told(line)]
    };
    table(&columns, lines.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "[[account]]\nalias = 'work'\nemail = 'A@example.test'\n\n[[account]]\nalias = 'home'\ntags = ['x']\nenabled = false\n";

    fn account(id: &str, label: Option<&str>, email: &str, state: &str) -> AccountInfo {
        let json = serde_json::json!({
            "index": 1, "id": id, "label": label, "email": email, "plan": null,
            "workspace": format!("w-{id}"), "enabled": true, "state": state, "reason": null,
            "until": null, "generation": 1, "token_expires_at": null, "in_flight": 0,
            "served": 0, "windows": [], "tags": [],
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_list_is_names_only() {
        let entries = parse(TWO).unwrap();
        assert_eq!((entries.len(), entries[0].enabled, entries[1].enabled), (2, true, false));
        for (text, why) in [
            ("", "0 accounts"),
            ("[[account]]\nemail = 'x'\n", "alias"),
            ("[[account]]\nalias = 'a'\n[[account]]\nalias = 'A'\n", "twice"),
            ("[[account]]\nalias = 'a'\npassword = 'hunter2'\n", "never read"),
            ("[[account]]\nalias = 'a'\ntotp_seed = 'hunter2'\n", "never read"),
            ("[[account]]\nalias = 'a'\ncolour = 'hunter2'\n", "unknown key `colour`"),
            ("[[account]]\nalias = \n", "line 2"),
        ] {
            let (said, hint) = parse(text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
            assert!(!said.contains("hunter2") && !hint.is_empty(), "{said}");
        }
    }

    #[test]
    fn what_is_left_to_do_comes_from_the_pool() {
        let entries = parse(TWO).unwrap();
        let outcome = |pool: &[AccountInfo]| -> Vec<&str> {
            entries.iter().map(|entry| stands(entry, pool).outcome).collect()
        };
        assert_eq!(outcome(&[]), ["needs_login", "needs_login"]);
        let found = account("1", None, "a@example.test", "ready");
        assert_eq!(outcome(std::slice::from_ref(&found)), ["healthy", "needs_login"]);
        let home = account("2", Some("Home"), "b@example.test", "cooling");
        assert_eq!(outcome(&[found.clone(), home]), ["healthy", "healthy"]);
        let gone = account("1", None, "a@example.test", "needs_login");
        assert_eq!(outcome(&[gone]), ["needs_login", "needs_login"]);
        // One address in two workspaces: only its label tells which is meant.
        let twin = account("3", None, "a@example.test", "ready");
        assert_eq!(outcome(&[found.clone(), twin.clone()])[0], "needs_login");
        let work = AccountInfo { label: Some("work".to_owned()), ..twin };
        assert_eq!(outcome(&[found, work])[0], "healthy");
    }
}
