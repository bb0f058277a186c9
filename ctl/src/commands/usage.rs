//! `usage`: what was used, by whom and for what.

use super::Context;
use crate::{
    cli::{UsageArgs, UsageGroupBy},
    error::{Failure, file, unexpected},
    render::{
        Column, Screen, Tone, clean, json_line, plain, put, range, table,
        time::{self, Clock},
    },
};
use cma_proto::{
    client::Client,
    error::Refusal,
    message::{Reply, Request},
    usage::{UsageBy, UsageGroup, UsageReply, UsageRequest, UsageRow, UsageSums, UsageTable},
};
use jiff::tz::TimeZone;
use serde::Serialize;
use std::{io::Write as _, path::Path, process::ExitCode};

#[derive(Debug, Serialize)]
struct Listed {
    requests: Vec<UsageRow>,
}

/// Asks, and gives the answer of this family.
pub(super) fn ask(client: &mut Client, request: UsageRequest) -> Result<UsageReply, Failure> {
    match client.call(&Request::Usage(request))? {
        Reply::Usage(reply) => Ok(*reply),
        other => Err(unexpected(other).into()),
    }
}

/// `usage`.
pub(super) fn usage(
    context: &Context,
    args: &UsageArgs,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let (zone, now) = (TimeZone::system(), time::now_ms());
    let since_ms = range::moment(&args.since, now, &zone)?;
    // Without an end all counts, also what a clock that was set back has in the future.
    let until = args.until.as_deref().map(|until| range::moment(until, now, &zone)).transpose()?;
    let until_ms = until.unwrap_or(u64::MAX);
    let mut client = context.connect()?;
    let by = match args.by {
        UsageGroupBy::Request => {
            let most = args.most;
            match ask(&mut client, UsageRequest::Rows { since_ms, until_ms, most })? {
                UsageReply::Rows(requests) => return listed(&Listed { requests }, args, screen),
                other => return Err(unexpected(other).into()),
            }
        },
        UsageGroupBy::Model => UsageBy::Model,
        UsageGroupBy::Account => UsageBy::Account,
        UsageGroupBy::Project => UsageBy::Project,
        UsageGroupBy::Outcome => UsageBy::Outcome,
        UsageGroupBy::Day => UsageBy::Day,
        UsageGroupBy::Thread => UsageBy::Thread,
        UsageGroupBy::Client => UsageBy::Client,
    };
    let days = match by {
        UsageBy::Day => range::days(since_ms, until_ms.min(now + 86_400_000), &zone),
        _ => Vec::new(),
    };
    let answer = match ask(&mut client, UsageRequest::Table { since_ms, until_ms, by, days })? {
        UsageReply::Table(table) => table,
        other => return Err(unexpected(other).into()),
    };
    let clock = Clock::local();
    if args.csv {
        put_out(&csv(&answer, &clock), args.out.as_deref(), screen)?;
    } else if args.out.is_some() {
        let text =
            if screen.json() { json_line(&answer)? } else { plain(&picture(&answer, &clock)) };
        put_out(&text, args.out.as_deref(), screen)?;
    } else {
        screen.answer(&answer, |answer| picture(answer, &clock))?;
    }
    screen.notes(&answer.notes)?;
    Ok(ExitCode::SUCCESS)
}

fn listed(listed: &Listed, args: &UsageArgs, screen: &mut Screen) -> Result<ExitCode, Failure> {
    let clock = Clock::local();
    if args.csv {
        put_out(&csv_rows(&listed.requests), args.out.as_deref(), screen)?;
    } else if args.out.is_some() {
        let text =
            if screen.json() { json_line(listed)? } else { plain(&rows(&listed.requests, &clock)) };
        put_out(&text, args.out.as_deref(), screen)?;
    } else {
        screen.answer(listed, |listed| rows(&listed.requests, &clock))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// On stdout, or into a file that is its owner's alone.
fn put_out(text: &str, out: Option<&Path>, screen: &mut Screen) -> Result<(), Failure> {
    let Some(path) = out else { return screen.raw(text) };
    let mut options = std::fs::File::options();
    options.create(true).truncate(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| -> Refusal { file(path, &error, "name a file you may write") })?;
    screen.talk(&format!("Written to {}.\n", clean(&path.display().to_string())))
}

/// A number as people read it: `950`, `12.3k`, `4.1M`.
pub(super) fn short(number: u64) -> String {
    let scaled = |unit: u64, name: &str| {
        let tenths = (number / (unit / 10)) % 10;
        format!("{}.{tenths}{name}", number / unit)
    };
    match number {
        0..10_000 => number.to_string(),
        10_000..1_000_000 => scaled(1_000, "k"),
        1_000_000..1_000_000_000 => scaled(1_000_000, "M"),
        _ => scaled(1_000_000_000, "G"),
    }
}

/// An estimate: one amount, or two where a price is unknown.
pub(super) fn cost(low: f64, high: f64) -> String {
    let (least, most) = (format!("${low:.2}"), format!("${high:.2}"));
    if least == most { least } else { format!("{least}–{high:.2}") }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(String::new, |share| format!("{:.0} %", share * 100.0))
}

/// What a group is called.
fn called(group: &UsageGroup, by: UsageBy, clock: &Clock) -> String {
    match (&group.name, by) {
        (Some(name), _) => clean(name),
        (None, UsageBy::Day) => {
            let ms: u64 = group.key.parse().unwrap_or_default();
            clock.date(ms / 1000).chars().take(10).collect()
        },
        (None, _) if group.key.is_empty() => "(none)".to_owned(),
        (None, _) => clean(&group.key),
    }
}

fn cells(name: String, sums: &UsageSums) -> Vec<String> {
    let other = sums.requests - sums.complete.min(sums.requests);
    vec![
        name,
        sums.requests.to_string(),
        if other == 0 { String::new() } else { Tone::Warn.paint(other.to_string()) },
        short(sums.input_tokens),
        percent(sums.cache_share),
        short(sums.output_tokens),
        short(sums.reasoning_tokens),
        cost(sums.cost_usd_low, sums.cost_usd_high),
        sums.first_byte_ms.map_or_else(String::new, |ms| format!("{ms} ms")),
    ]
}

fn picture(answer: &UsageTable, clock: &Clock) -> String {
    if answer.total.requests == 0 {
        return "No request in that time.\n".to_owned();
    }
    let title = match answer.by {
        UsageBy::Model => "model",
        UsageBy::Account => "account",
        UsageBy::Project => "project",
        UsageBy::Outcome => "outcome",
        UsageBy::Day => "day",
        UsageBy::Thread => "thread",
        UsageBy::Client => "client",
    };
    let columns = [
        Column::Left(title),
        Column::Right("requests"),
        Column::Right("not whole"),
        Column::Right("tokens in"),
        Column::Right("cached"),
        Column::Right("out"),
        Column::Right("reasoning"),
        Column::Right("at API prices"),
        Column::Right("first byte"),
    ];
    let mut lines: Vec<_> = answer
        .groups
        .iter()
        .map(|group| cells(called(group, answer.by, clock), &group.sums))
        .collect();
    lines.push(cells(Tone::Dim.paint("in all"), &answer.total));
    let mut text = table(&columns, lines);
    put!(
        text,
        "{}\n",
        Tone::Dim.paint(format!(
            "Estimates at the API's prices of {}, not a bill.",
            clean(&answer.prices_dated)
        ))
    );
    text
}

/// One request a line.
pub(super) fn rows(requests: &[UsageRow], clock: &Clock) -> String {
    if requests.is_empty() {
        return "No request in that time.\n".to_owned();
    }
    let columns = [
        Column::Left("at"),
        Column::Left("request"),
        Column::Left("outcome"),
        Column::Left("account"),
        Column::Left("model"),
        Column::Right("in"),
        Column::Right("cached"),
        Column::Right("out"),
        Column::Right("at API prices"),
        Column::Right("first byte"),
        Column::Right("in all"),
    ];
    let tokens = |tokens: Option<u64>| tokens.map_or_else(String::new, short);
    let line = |row: &UsageRow| {
        let tone = if row.outcome == "complete" { Tone::Good } else { Tone::Warn };
        let account = row.account_name.as_ref().or(row.account.as_ref());
        vec![
            clock.date(row.at_ms / 1000),
            clean(&row.request),
            tone.paint(clean(&row.outcome)),
            account.map_or_else(String::new, |name| clean(name)),
            row.model.as_deref().map(clean).unwrap_or_default(),
            tokens(row.input_tokens),
            tokens(row.cached_tokens),
            tokens(row.output_tokens),
            cost(row.cost_usd_low, row.cost_usd_high),
            row.first_byte_ms.map_or_else(String::new, |ms| format!("{ms} ms")),
            format!("{} ms", row.total_ms),
        ]
    };
    table(&columns, requests.iter().map(line).collect())
}

/// A field of a line of CSV (RFC 4180). One that a spreadsheet would run is made a text.
fn field(text: &str) -> String {
    let runs = text.starts_with(['=', '+', '-', '@']);
    let text = if runs { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

fn csv(answer: &UsageTable, clock: &Clock) -> String {
    let mut text = "key,name,requests,complete,failed,cut,abandoned,blocked,attempts,input_tokens,\
                    cached_tokens,output_tokens,reasoning_tokens,total_tokens,cache_share,\
                    cost_usd_low,cost_usd_high,first_byte_ms,total_ms\n"
        .to_owned();
    for group in &answer.groups {
        let sums = &group.sums;
        let optional = |number: Option<u64>| number.map_or_else(String::new, |ms| ms.to_string());
        put!(
            text,
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}\n",
            field(&group.key),
            field(&called(group, answer.by, clock)),
            sums.requests,
            sums.complete,
            sums.failed,
            sums.cut,
            sums.abandoned,
            sums.blocked,
            sums.attempts,
            sums.input_tokens,
            sums.cached_tokens,
            sums.output_tokens,
            sums.reasoning_tokens,
            sums.total_tokens,
            sums.cache_share.map_or_else(String::new, |share| format!("{share:.4}")),
            sums.cost_usd_low,
            sums.cost_usd_high,
            optional(sums.first_byte_ms),
            optional(sums.total_ms)
        );
    }
    text
}

fn csv_rows(requests: &[UsageRow]) -> String {
    let mut text = "request,at_ms,outcome,status,client,account,project,model,thread,attempts,\
                    first_byte_ms,total_ms,input_tokens,cached_tokens,output_tokens,\
                    reasoning_tokens,cost_usd_low,cost_usd_high,token\n"
        .to_owned();
    for row in requests {
        let name = |name: &Option<String>| field(name.as_deref().unwrap_or_default());
        let optional = |number: Option<u64>| number.map_or_else(String::new, |n| n.to_string());
        put!(
            text,
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}\n",
            field(&row.request),
            row.at_ms,
            field(&row.outcome),
            row.status,
            field(&row.client),
            name(&row.account),
            name(&row.project),
            name(&row.model),
            name(&row.thread),
            row.attempts,
            optional(row.first_byte_ms),
            row.total_ms,
            optional(row.input_tokens),
            optional(row.cached_tokens),
            optional(row.output_tokens),
            optional(row.reasoning_tokens),
            row.cost_usd_low,
            row.cost_usd_high,
            name(&row.token)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table_of(groups: Vec<UsageGroup>) -> UsageTable {
        let total = groups.first().map(|group| group.sums).unwrap_or_default();
        UsageTable {
            by: UsageBy::Account,
            since_ms: 0,
            until_ms: 1,
            total,
            groups,
            prices_dated: "2026-08-21".to_owned(),
            notes: Vec::new(),
        }
    }

    fn group(key: &str, name: Option<&str>) -> UsageGroup {
        let sums = UsageSums {
            requests: 3,
            complete: 2,
            failed: 1,
            input_tokens: 12_345,
            cached_tokens: 6_172,
            cache_share: Some(0.5),
            cost_usd_low: 0.5,
            cost_usd_high: 1.25,
            ..UsageSums::default()
        };
        UsageGroup { key: key.to_owned(), name: name.map(ToOwned::to_owned), sums }
    }

    #[test]
    fn a_table_shows_names_ranges_and_that_it_is_no_bill() {
        let text = plain(&picture(&table_of(vec![group("ab12", Some("work"))]), &Clock::utc()));
        for part in ["work", "12.3k", "50 %", "$0.50–1.25", "not a bill", "2026-08-21"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(picture(&table_of(Vec::new()), &Clock::utc()).contains("No request"));
    }

    #[test]
    fn csv_has_one_header_and_no_field_runs_in_a_spreadsheet() {
        let text = csv(&table_of(vec![group("=1+1", Some("a,\"b\""))]), &Clock::utc());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].split(',').count(), 19);
        assert!(lines[1].starts_with("'=1+1,\"a,\"\"b\"\"\",3,2,1,"), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        for (number, wanted) in [
            (0, "0"),
            (9_999, "9999"),
            (12_345, "12.3k"),
            (4_100_000, "4.1M"),
            (2_000_000_000, "2.0G"),
        ] {
            assert_eq!(short(number), wanted);
        }
        assert_eq!(cost(1.0, 1.001), "$1.00");
    }
}
