//! `budget`: how much may be spent, and how it stands.

use super::{
    Context, pools,
    usage::{ask, short},
};
use crate::{
    cli::{BudgetCommand, BudgetLimit},
    error::{Failure, unexpected},
    render::{Column, Screen, Tone, bar, clean, pressure, table, time},
};
use cma_proto::{
    error::{ErrorCode, Refusal},
    usage::{BudgetInfo, BudgetSpec, UsageReply, UsageRequest},
};
use serde::Serialize;
use std::{path::Path, process::ExitCode};

#[derive(Debug, Serialize)]
struct Listed {
    budgets: Vec<BudgetInfo>,
}

/// `budget …`.
pub(super) fn budget(
    context: &Context,
    command: BudgetCommand,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let (request, wanted) = match command {
        BudgetCommand::Limit(limit) => (UsageRequest::BudgetSet(spec(limit)?), None),
        BudgetCommand::List => (UsageRequest::Budgets, None),
        BudgetCommand::Check { name } => (UsageRequest::Budgets, Some(name)),
        BudgetCommand::Delete { name } => (UsageRequest::BudgetDelete { name }, None),
    };
    let mut budgets = match ask(&mut context.connect()?, request)? {
        UsageReply::Budgets(budgets) => budgets,
        other => return Err(unexpected(other).into()),
    };
    let Some(name) = wanted else {
        screen.answer(&Listed { budgets }, |listed| rows(&listed.budgets, time::now()))?;
        return Ok(ExitCode::SUCCESS);
    };
    budgets.retain(|one| one.budget.name == name);
    let Some(one) = budgets.pop() else {
        return Err(Refusal::new(
            ErrorCode::NotFound,
            format!("there is no budget `{name}`"),
            "run `cmactl budget list` to see them",
        )
        .into());
    };
    let exceeded = one.exceeded;
    screen.answer(&one, |one| rows(std::slice::from_ref(one), time::now()))?;
    Ok(if exceeded { ErrorCode::Negative.exit_code().into() } else { ExitCode::SUCCESS })
}

fn spec(limit: BudgetLimit) -> Result<BudgetSpec, Failure> {
    let (whose, of) = match (limit.project, limit.account, limit.client, limit.token) {
        (Some(project), ..) => ("project", named(&project)?),
        (_, Some(account), ..) => ("account", account),
        (_, _, Some(client), _) => ("client", client),
        (.., Some(token)) => ("token", token),
        (None, None, None, None) => ("all", String::new()),
    };
    Ok(BudgetSpec {
        name: limit.name,
        whose: whose.to_owned(),
        of,
        window: limit.window.word().to_owned(),
        requests: limit.requests,
        tokens: limit.tokens,
        cost_usd: limit.cost,
    })
}

/// A project's key, or a folder as the daemon can be told it.
fn named(project: &str) -> Result<String, Refusal> {
    if Path::new(project).exists() {
        return pools::dir(Some(Path::new(project)));
    }
    Ok(project.to_owned())
}

/// A number with a unit of thousands: `500`, `20k`, `2M`, `1.5M`.
pub(crate) fn amount(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is no number like 500, 20k or 1.5M");
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (text.get(..text.len() - 1), 1_000_u64),
        Some(b'M' | b'm') => (text.get(..text.len() - 1), 1_000_000),
        Some(b'G' | b'g') => (text.get(..text.len() - 1), 1_000_000_000),
        _ => (Some(text), 1),
    };
    let digits = digits.ok_or_else(bad)?;
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    if digits.is_empty() || !(whole.to_owned() + part).bytes().all(|c| c.is_ascii_digit()) {
        return Err(bad());
    }
    let places = u32::try_from(part.len()).map_err(|_too_long| bad())?;
    let scale = 10_u64.checked_pow(places).filter(|scale| unit % scale == 0).ok_or_else(bad)?;
    let number: u64 = format!("{whole}{part}").parse().map_err(|_too_large| bad())?;
    number.checked_mul(unit / scale).ok_or_else(bad)
}

/// All budgets as a table.
pub(super) fn rows(budgets: &[BudgetInfo], now: u64) -> String {
    if budgets.is_empty() {
        return "There is no budget. `cmactl budget limit NAME --window day --tokens 2M` sets one.\n"
            .to_owned();
    }
    let columns = [
        Column::Left("budget"),
        Column::Left("for"),
        Column::Left("window"),
        Column::Left("used"),
        Column::Left(""),
        Column::Left("begins again"),
    ];
    let row = |one: &BudgetInfo| {
        let whose = match (one.budget.whose.as_str(), one.of_name.as_ref()) {
            ("all", _) => "all".to_owned(),
            (kind, Some(name)) => format!("{kind} {}", clean(name)),
            (kind, None) => format!("{} {}", clean(kind), clean(&one.budget.of)),
        };
        let parts = parts(one);
        let most = parts.iter().map(|(percent, _text)| *percent).fold(0.0, f64::max);
        let texts: Vec<_> = parts.into_iter().map(|(_percent, text)| text).collect();
        vec![
            clean(&one.budget.name),
            whose,
            clean(&one.budget.window),
            pressure(most).paint(bar(most, 10)),
            texts.join("\n"),
            time::relative(one.until_ms / 1000, now),
        ]
    };
    table(&columns, budgets.iter().map(row).collect())
}

/// How far each limit is used, in percent and words.
#[expect(clippy::cast_precision_loss, reason = "a bar for people")]
fn parts(one: &BudgetInfo) -> Vec<(f64, String)> {
    let used = |spent: f64, limit: f64| if limit > 0.0 { spent / limit * 100.0 } else { 100.0 };
    let count = |spent: u64, limit: Option<u64>, what: &str| {
        let limit = limit?;
        let text = format!("{} of {} {what}", short(spent), short(limit));
        Some((used(spent as f64, limit as f64), text))
    };
    let money = one
        .budget
        .cost_usd
        .map(|limit| (used(one.cost_usd, limit), format!("${:.2} of ${limit:.2}", one.cost_usd)));
    let paint = |(percent, text): (f64, String)| {
        (percent, if percent >= 100.0 { Tone::Bad.paint(text) } else { text })
    };
    [
        count(one.requests, one.budget.requests, "requests"),
        count(one.tokens, one.budget.tokens, "tokens"),
        money,
    ]
    .into_iter()
    .flatten()
    .map(paint)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::plain;

    #[test]
    fn amounts_have_units_of_thousands() {
        for (typed, wanted) in
            [("500", 500), ("20k", 20_000), ("2M", 2_000_000), ("1.5M", 1_500_000), ("0", 0)]
        {
            assert_eq!(amount(typed), Ok(wanted));
        }
        for bad in ["", "k", "1.2345k", "-5", "x", "1e3", "99999999999999999999", "1..5M", "5ö"] {
            assert!(amount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_budget_shows_what_is_used_of_what_and_for_whom() {
        let one = BudgetInfo {
            budget: BudgetSpec {
                name: "day".to_owned(),
                whose: "account".to_owned(),
                of: "ab12".to_owned(),
                window: "day".to_owned(),
                requests: Some(10),
                tokens: None,
                cost_usd: Some(2.5),
            },
            of_name: Some("work".to_owned()),
            since_ms: 0,
            until_ms: 7_200_000,
            requests: 10,
            tokens: 77,
            cost_usd: 0.5,
            running: 0,
            exceeded: true,
        };
        let text = plain(&rows(&[one], 0));
        for part in ["account work", "10 of 10 requests", "$0.50 of $2.50", "in 2 h"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("77"), "{text}");
        assert!(rows(&[], 0).contains("cmactl budget limit"));
    }
}
