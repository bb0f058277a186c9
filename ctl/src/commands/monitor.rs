//! `monitor`, `metrics`, `notify`: what goes on, for a person, a scraper, and a person elsewhere.

use super::{
    Context, budget, end_on_interrupt, name_of,
    usage::{self, ask, cost, short},
};
use crate::{
    cli::{MetricsCommand, NotifyCommand},
    error::{Failure, unexpected},
    render::{
        Column, Picture, Screen, Tone, bar, clean, pressure, put, table,
        time::{self, Clock},
    },
};
use cma_proto::{
    client::Client,
    error::{ErrorCode, Refusal},
    message::{AccountInfo, Reply, Request, Status},
    usage::{MonitorInfo, Notified, UsageReply, UsageRequest, UsageSums},
};
use serde::Serialize;
use std::{process::ExitCode, time::Duration};

/// What a screen shows.
#[derive(Debug, Serialize)]
struct Shown {
    status: Status,
    monitor: MonitorInfo,
}

#[derive(Debug, Serialize)]
struct Told {
    notified: Vec<Notified>,
}

/// `monitor`.
pub(super) fn monitor(
    context: &Context,
    watch: bool,
    every: u64,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let mut client = context.connect()?;
    let clock = Clock::local();
    if !watch {
        let shown = look(&mut client)?;
        screen.answer(&shown, |shown| picture(shown, &clock, time::now()))?;
        return Ok(ExitCode::SUCCESS);
    }
    end_on_interrupt();
    let mut drawn = screen.can_redraw().then(Picture::new);
    loop {
        let shown = look(&mut client)?;
        match &mut drawn {
            Some(drawn) => drawn.draw("", &picture(&shown, &clock, time::now()))?,
            None => screen.answer(&shown, |shown| picture(shown, &clock, time::now()))?,
        }
        std::thread::sleep(Duration::from_secs(every));
    }
}

fn look(client: &mut Client) -> Result<Shown, Failure> {
    let status = match client.call(&Request::Status)? {
        Reply::Status(status) => *status,
        other => return Err(unexpected(other).into()),
    };
    match ask(client, UsageRequest::Monitor)? {
        UsageReply::Monitor(monitor) => Ok(Shown { status, monitor }),
        other => Err(unexpected(other).into()),
    }
}

fn picture(shown: &Shown, clock: &Clock, now: u64) -> String {
    let Shown { status, monitor } = shown;
    let mut text = String::new();
    put!(
        text,
        "{} {} · {} running · {} connections\n",
        Tone::Dim.paint("daemon"),
        clean(&status.daemon.phase),
        status.proxy.active,
        status.proxy.connections
    );
    put!(text, "{} {}\n", Tone::Dim.paint("5 min "), rate(&monitor.five_minutes, 5));
    put!(text, "{} {}\n\n", Tone::Dim.paint("1 hour"), rate(&monitor.hour, 60));
    text += &accounts(&status.accounts, now);
    if !monitor.budgets.is_empty() {
        text += "\n";
        text += &budget::rows(&monitor.budgets, now);
    }
    text += "\n";
    text += &usage::rows(&monitor.recent, clock);
    for note in &status.notes {
        put!(text, "{} {}\n", Tone::Warn.paint("note:"), clean(note));
    }
    let ledger = &monitor.ledger;
    if ledger.dropped + ledger.lost > 0 {
        let missing = ledger.dropped + ledger.lost;
        put!(text, "{} {missing} requests are not in the ledger\n", Tone::Warn.paint("note:"));
    }
    text
}

/// Requests and tokens a minute, over some minutes.
fn rate(sums: &UsageSums, minutes: u64) -> String {
    let other = sums.requests - sums.complete.min(sums.requests);
    let mut text = format!(
        "{} requests · {} tokens a minute · {}",
        sums.requests,
        short(sums.total_tokens / minutes),
        cost(sums.cost_usd_low, sums.cost_usd_high)
    );
    if let Some(share) = sums.cache_share {
        put!(text, " · {:.0} % cached", share * 100.0);
    }
    if let Some(first) = sums.first_byte_ms {
        put!(text, " · first byte {first} ms");
    }
    if other > 0 {
        put!(text, " · {}", Tone::Warn.paint(format!("{other} not whole")));
    }
    text
}

fn accounts(accounts: &[AccountInfo], now: u64) -> String {
    let columns = [
        Column::Left("account"),
        Column::Left("state"),
        Column::Right("running"),
        Column::Right("served"),
        Column::Left("windows"),
    ];
    let row = |account: &AccountInfo| {
        let tone = if account.state == "ready" { Tone::Good } else { Tone::Warn };
        let windows = account.windows.iter().map(|window| {
            let used = window.used_percent;
            let mut text = format!(
                "{} {} {used:.0} %",
                clean(&window.name),
                pressure(used).paint(bar(used, 10))
            );
            if let Some(resets) = window.resets_at.filter(|resets| *resets > now) {
                put!(text, " {}", time::span(resets - now));
            }
            text
        });
        vec![
            clean(name_of(account)),
            tone.paint(clean(&account.state)),
            account.in_flight.to_string(),
            account.served.to_string(),
            windows.collect::<Vec<_>>().join("  "),
        ]
    };
    table(&columns, accounts.iter().map(row).collect())
}

/// `metrics token`.
pub(super) fn metrics(
    context: &Context,
    command: &MetricsCommand,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let MetricsCommand::Token { days } = *command;
    match ask(&mut context.connect()?, UsageRequest::MetricsToken { days })? {
        UsageReply::Token(token) => {
            screen.answer(&token, |token| format!("{}\n", token.token.0))?;
            screen.talk(&format!(
                "It opens {} {}, and nothing else.\n",
                clean(&token.url),
                time::relative(token.expires_at, time::now()).replace("in ", "for ")
            ))?;
            Ok(ExitCode::SUCCESS)
        },
        other => Err(unexpected(other).into()),
    }
}

/// `notify test`.
pub(super) fn notify(
    context: &Context,
    command: &NotifyCommand,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let NotifyCommand::Test = command;
    let notified = match ask(&mut context.connect()?, UsageRequest::NotifyTest)? {
        UsageReply::Notified(notified) => notified,
        other => return Err(unexpected(other).into()),
    };
    let told = Told { notified };
    screen.answer(&told, |told| {
        told.notified.iter().fold(String::new(), |mut text, one| {
            match &one.error {
                None => put!(text, "{} {}\n", clean(&one.way), Tone::Good.paint("told")),
                Some(why) => put!(text, "{} {}\n", clean(&one.way), Tone::Bad.paint(clean(why))),
            }
            text
        })
    })?;
    if told.notified.iter().all(|one| one.error.is_none()) {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Refusal::new(
        ErrorCode::Negative,
        "not every way of telling works",
        "mend `[notify]` in the root's `config.toml`, then `cmactl daemon restart`",
    )
    .into())
}
