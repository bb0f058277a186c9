//! `status` and `list`: the picture at one epoch.

use super::{
    Context, name_of, owner,
    pools::{self, Detailed},
};
use crate::{
    error::{Failure, unexpected},
    render::{Column, Screen, Tone, bar, clean, pressure, put, table, time},
};
use cma_proto::{
    VERSION,
    client::Client,
    error::{ErrorCode, Refusal},
    message::{AccountInfo, Reply, Request, Setting, Status, WindowInfo},
    owner::FlaggedInfo,
};
use serde::Serialize;
use std::process::ExitCode;

/// Variables that decide how a daemon is started and that a client can compare.
const COMPARED: [&str; 4] =
    ["CMA_LISTEN", "CMA_UPSTREAM_BACKEND", "CMA_UPSTREAM_ISSUER", "CMA_HEAD_TIMEOUT"];

/// What `status` leaves unsaid because nobody changed it.
const DEFAULT_BACKEND: &str = "https://chatgpt.com/backend-api";
const DEFAULT_ISSUER: &str = "https://auth.openai.com";

/// A variable that this shell and the daemon see differently.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Difference {
    name: String,
    daemon: Option<String>,
    client: Option<String>,
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    status: Status,
    environment_differences: Vec<Difference>,
    flagged: Vec<FlaggedInfo>,
}

#[derive(Debug, Serialize)]
struct Listed {
    epoch: u64,
    accounts: Vec<Detailed>,
    flagged: Vec<FlaggedInfo>,
}

pub(super) fn status(context: &Context, screen: &mut Screen) -> Result<ExitCode, Failure> {
    let mut client = context.connect()?;
    let status = ask(&mut client)?;
    let environment_differences =
        differences(&status.daemon.environment, |name| std::env::var(name).ok());
    let flagged = owner::flagged(context, &status)?;
    let shown = Shown { status, environment_differences, flagged };
    if screen.json() {
        let accounts = pools::detailed(&mut client, shown.status.accounts.clone())?;
        screen.object(&whole(&shown, &accounts)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    screen.answer(&shown, |shown| {
        let now = time::now();
        picture(&shown.status, now) + &owner::set_aside(&shown.flagged, now)
    })?;
    if shown.status.accounts.is_empty() && super::takeover::offers() {
        screen.say(Tone::Strong, "hint", FOUND)?;
    }
    for difference in &shown.environment_differences {
        screen.say(Tone::Warn, "warning", &clean(&difference.to_string()))?;
    }
    let running = &shown.status.daemon.version;
    if running != VERSION {
        let text = format!(
            "the daemon is version {}, this program {VERSION}; run `cmactl daemon restart`",
            clean(running)
        );
        screen.say(Tone::Warn, "warning", &text)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn list(context: &Context, screen: &mut Screen) -> Result<ExitCode, Failure> {
    let mut client = context.connect()?;
    let status = ask(&mut client)?;
    let none = nobody(&status);
    let flagged = owner::flagged(context, &status)?;
    let accounts = pools::detailed(&mut client, status.accounts.clone())?;
    screen.answer(&Listed { epoch: status.epoch, accounts, flagged }, |listed| {
        if listed.accounts.is_empty() {
            return none.to_owned();
        }
        rows(&status.accounts)
            + &pools::written(&listed.accounts)
            + &owner::set_aside(&listed.flagged, time::now())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `status --json`: the picture, its accounts with what a person wrote on them.
fn whole(shown: &Shown, accounts: &[Detailed]) -> Result<serde_json::Value, Failure> {
    let broken = |error: serde_json::Error| {
        Refusal::new(
            ErrorCode::Internal,
            format!("the status can't be written as JSON: {error}"),
            "run `cmactl version` and report it",
        )
    };
    let mut value = serde_json::to_value(shown).map_err(broken)?;
    if let Some(known) = value.get_mut("accounts") {
        *known = serde_json::to_value(accounts).map_err(broken)?;
    }
    Ok(value)
}

const NO_ACCOUNT: &str =
    "The pool has no account. Run `cmactl login`, or `cmactl import` for a login you have.\n";

/// Why the list is empty.
fn nobody(status: &Status) -> &'static str {
    if status.daemon.phase == "locked" {
        "The root is sealed and locked. Run `cmactl unlock`.\n"
    } else {
        NO_ACCOUNT
    }
}

/// Said when the pool is empty and other programs have logins.
const FOUND: &str =
    "logins of other programs are on this machine: `cmactl import --preview` shows them";

fn ask(client: &mut Client) -> Result<Status, Failure> {
    match client.call(&Request::Status)? {
        Reply::Status(status) => Ok(*status),
        other => Err(unexpected(other).into()),
    }
}

/// Compares the daemon's settings with this shell's.
fn differences(
    daemon: &[Setting],
    client: impl Fn(&'static str) -> Option<String>,
) -> Vec<Difference> {
    let compare = |name: &'static str| {
        let theirs = daemon.iter().find(|setting| setting.name == name);
        let theirs = theirs.map(|setting| setting.value.clone()).filter(|value| !value.is_empty());
        let ours = client(name).filter(|value| !value.is_empty());
        (theirs != ours).then(|| Difference { name: name.to_owned(), daemon: theirs, client: ours })
    };
    COMPARED.into_iter().filter_map(compare).collect()
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, daemon, client } = self;
        match daemon {
            Some(value) => write!(f, "the daemon was started with `{name}={value}`, ")?,
            None => write!(f, "the daemon was started without `{name}`, ")?,
        }
        match client {
            Some(value) => write!(f, "this shell has `{name}={value}`")?,
            None => write!(f, "this shell has none")?,
        }
        f.write_str("; `cmactl daemon restart` takes this shell's")
    }
}

/// Windows that were seen longer ago say so, in seconds: an hour's work may have gone since.
const OLD: u64 = 10 * 60;

/// The whole of `status` as text.
fn picture(status: &Status, now: u64) -> String {
    let mut text = String::new();
    for (word, line) in header(status, now) {
        put!(text, "{} {line}\n", Tone::Dim.paint(format!("{word:<9}")));
    }
    text.push('\n');
    if status.accounts.is_empty() {
        text += nobody(status);
    } else {
        text += &accounts(&status.accounts, status.next.as_deref(), now);
    }
    for note in &status.notes {
        put!(text, "{} {}\n", Tone::Warn.paint("note:"), clean(note));
    }
    text
}

fn header(status: &Status, now: u64) -> Vec<(&'static str, String)> {
    let (daemon, proxy) = (&status.daemon, &status.proxy);
    let name = |id: &str| {
        let account = status.accounts.iter().find(|account| account.id == id);
        clean(account.map_or(id, name_of))
    };
    let phase = match daemon.phase.as_str() {
        "serving" => Tone::Good,
        _ => Tone::Warn,
    };
    let mut lines = vec![(
        "daemon",
        format!(
            "{} · version {} · pid {} · up {}",
            phase.paint(clean(&daemon.phase)),
            clean(&daemon.version),
            daemon.pid,
            time::span(now.saturating_sub(daemon.started_at)),
        ),
    )];
    let mut counts = format!("{} · {} running · {} served", proxy.url, proxy.active, proxy.served);
    for (count, word) in
        [(proxy.failed, "failed"), (proxy.retried, "retried"), (proxy.refused, "refused")]
    {
        if count > 0 {
            put!(counts, " · {count} {word}");
        }
    }
    lines.push(("proxy", counts));
    let upstream = &status.upstream;
    if upstream.backend != DEFAULT_BACKEND || upstream.issuer != DEFAULT_ISSUER {
        let text = format!("{} · issuer {}", clean(&upstream.backend), clean(&upstream.issuer));
        lines.push(("upstream", text));
    }
    if let Some(pin) = &status.pin {
        let since = time::relative(pin.since, now);
        let held = format!("{} (since {since}, for the global pool)", name(&pin.account));
        lines.push((
            "pinned",
            match &pin.yielded {
                Some(why) => {
                    format!("{held} · {}", Tone::Warn.paint(format!("yields: {}", clean(why))))
                },
                None => held,
            },
        ));
    }
    match (&status.next, status.accounts.is_empty()) {
        (Some(next), _) => lines.push(("next", Tone::Strong.paint(name(next)))),
        (None, false) => lines.push(("next", Tone::Bad.paint("no account can serve now"))),
        (None, true) => {},
    }
    lines
}

/// The table of `status`.
fn accounts(accounts: &[AccountInfo], next: Option<&str>, now: u64) -> String {
    let columns = [
        Column::Left(" "),
        Column::Right("#"),
        Column::Left("account"),
        Column::Left("state"),
        Column::Left("windows: used, resets in"),
        Column::Right("now"),
        Column::Right("served"),
    ];
    let row = |account: &AccountInfo| {
        let marked = next == Some(account.id.as_str());
        vec![
            if marked { Tone::Strong.paint("→") } else { String::new() },
            account.index.to_string(),
            naming(account),
            state(account, now),
            windows(&account.windows, now),
            account.in_flight.to_string(),
            account.served.to_string(),
        ]
    };
    table(&columns, accounts.iter().map(row).collect())
}

/// The table of `list`.
pub(super) fn rows(accounts: &[AccountInfo]) -> String {
    let columns = [
        Column::Right("#"),
        Column::Left("id"),
        Column::Left("label"),
        Column::Left("e-mail"),
        Column::Left("plan"),
        Column::Left("state"),
        Column::Left("workspace"),
    ];
    let text = |text: &Option<String>| clean(text.as_deref().unwrap_or("-"));
    let row = |account: &AccountInfo| {
        vec![
            account.index.to_string(),
            clean(&account.id),
            text(&account.label),
            text(&account.email),
            text(&account.plan),
            tone_of(account).paint(clean(&account.state)),
            clean(&account.workspace),
        ]
    };
    table(&columns, accounts.iter().map(row).collect())
}

/// Its name, and under it what else is known of it.
fn naming(account: &AccountInfo) -> String {
    let name = clean(name_of(account));
    let email = account.email.as_deref().map(clean).filter(|email| *email != name);
    let plan = account.plan.as_deref().map(clean);
    let more: Vec<String> = email.into_iter().chain(plan).collect();
    match more.as_slice() {
        [] => name,
        more => format!("{name}\n{}", Tone::Dim.paint(more.join(" · "))),
    }
}

fn tone_of(account: &AccountInfo) -> Tone {
    match account.state.as_str() {
        "ready" | "refreshing" => Tone::Good,
        "cooling" => Tone::Warn,
        "disabled" | "elsewhere" => Tone::Dim,
        _ => Tone::Bad,
    }
}

/// Its state, when that ends, and why it is in it.
fn state(account: &AccountInfo, now: u64) -> String {
    let mut text = tone_of(account).paint(clean(&account.state));
    if let Some(until) = account.until.filter(|until| *until > now) {
        put!(text, " ({})", time::span(until - now));
    }
    if let Some(reason) = &account.reason {
        text += "\n";
        text += &Tone::Dim.paint(wrap(&clean(reason), 22));
    }
    text
}

/// Breaks a sentence so that the table stays narrow.
fn wrap(text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width {
            out.push('\n');
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out += word;
        column += length;
    }
    out
}

fn windows(windows: &[WindowInfo], now: u64) -> String {
    if windows.is_empty() {
        return Tone::Dim.paint("not known yet");
    }
    let lines: Vec<String> = windows.iter().map(|known| window(known, now)).collect();
    lines.join("\n")
}

/// `5 h   ██████░░  80 %  1 h 5 min`
fn window(window: &WindowInfo, now: u64) -> String {
    let length = window.minutes.map_or_else(|| clean(&window.name), |it| time::span(it * 60));
    let called = match window.limit.as_str() {
        "codex" | "" => format!("{length:<5}"),
        limit => format!("{length:<5} {}", clean(limit)),
    };
    let (percent, resets) = match window.resets_at {
        Some(at) if at <= now => (0.0, format!("reset {}", time::relative(at, now))),
        Some(at) => (window.used_percent, time::span(at - now)),
        None => (window.used_percent, String::new()),
    };
    // What is new needs no word; what is old is a guess.
    let age = now.saturating_sub(window.seen_at);
    let seen = if age < OLD { String::new() } else { format!("  seen {} ago", time::span(age)) };
    let resets = resets + &seen;
    let bar = pressure(percent).paint(bar(percent, 8));
    format!("{called} {bar} {percent:>3.0} %  {}", Tone::Dim.paint(resets))
}

#[cfg(test)]
mod tests;
