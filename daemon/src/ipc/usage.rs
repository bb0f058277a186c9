//! The ledger's sums, budgets, metrics tokens and notices, as people and scripts ask for them.

use crate::{
    app::App,
    blocking,
    budgets::{self, Budgets},
    fault::Fault,
    ledger::{
        self, Ledger, prices,
        row::{Client, Ended, Row},
        table::{Asked, By, Sums},
    },
    notices,
    proxy::trace::RequestId,
    roster::{self, Roster},
    tokens,
};
use cma_core::{
    budget::{Budget, Standing, Whose},
    identity::AccountId,
};
use cma_proto::{
    error::ErrorCode,
    message::Reply,
    survive::Secret,
    usage::{
        BudgetInfo, BudgetSpec, LedgerInfo, MetricsToken, MonitorInfo, UsageBy, UsageGroup,
        UsageReply, UsageRequest, UsageRow, UsageSums, UsageTable,
    },
};
use std::sync::Arc;

/// Rows of one answer: four megabytes is what a frame holds, a row has a few hundred bytes.
const MAX_ROWS: u32 = 5_000;
/// Rows of the monitor's screen.
const RECENT: usize = 10;
/// Groups of one answer, the largest first.
const MAX_GROUPS: usize = 5_000;
/// Nanodollars.
const NANO: f64 = 1e9;
const MINUTE: u64 = 60_000;
/// Days in a question.
const MAX_DAYS: usize = 4_000;

/// Whether a request only looks.
pub(super) const fn looks(request: &UsageRequest) -> bool {
    matches!(
        request,
        UsageRequest::Table { .. }
            | UsageRequest::Rows { .. }
            | UsageRequest::Budgets
            | UsageRequest::Monitor
            | UsageRequest::ProbeShow
            | UsageRequest::Tokens
    )
}

/// Answers one request of the family.
pub(super) async fn handle(app: &Arc<App>, request: UsageRequest) -> Result<Reply, Fault> {
    let books = app.proxy.traces.books.clone();
    let (ledger, budgets) = (books.ledger, books.budgets);
    let roster = Arc::clone(&app.roster);
    let reply = match request {
        UsageRequest::Table { since_ms, until_ms, by, days } => {
            let asked = asked(since_ms, until_ms, by, days)?;
            blocking::disk(move || table(&ledger, &roster, by, &asked)).await?
        },
        UsageRequest::Rows { since_ms, until_ms, most } => {
            blocking::disk(move || {
                let rows = ledger.rows(since_ms, until_ms, most.min(MAX_ROWS) as usize)?;
                Ok(UsageReply::Rows(rows.iter().map(|one| row(one, &roster)).collect()))
            })
            .await?
        },
        UsageRequest::BudgetSet(spec) => {
            let from = Arc::clone(app);
            blocking::disk(move || {
                let budget = budget(&spec, &from)?;
                let name = Arc::clone(&budget.name);
                budgets.set(budget)?;
                let mut all = standings(&budgets, &roster);
                all.retain(|one| *one.budget.name == *name);
                Ok(UsageReply::Budgets(all))
            })
            .await?
        },
        UsageRequest::Budgets => UsageReply::Budgets(standings(&budgets, &roster)),
        UsageRequest::BudgetDelete { name } => {
            blocking::disk(move || {
                budgets.delete(&name)?;
                Ok(UsageReply::Budgets(standings(&budgets, &roster)))
            })
            .await?
        },
        UsageRequest::Monitor => {
            blocking::disk(move || monitor(&ledger, &budgets, &roster)).await?
        },
        UsageRequest::MetricsToken { days } => {
            let (token, expires_at) = app.proxy.keys.mint_metrics(days)?;
            let url = format!("{}/metrics", app.url);
            UsageReply::Token(MetricsToken { url, token: Secret(token), expires_at })
        },
        UsageRequest::NotifyTest => UsageReply::Notified(notices::test(app).await?),
        UsageRequest::ProbeStart { accounts, stale_s, model } => {
            super::probes::start(app, &accounts, stale_s, model).await?;
            UsageReply::Probes(super::probes::shown(app).await?)
        },
        UsageRequest::TokenCreate { name, seconds, dir } => {
            super::tokens::create(app, name, seconds, dir).await?
        },
        UsageRequest::Tokens => super::tokens::list(app)?,
        UsageRequest::TokenRevoke { name } => super::tokens::revoke(app, name).await?,
        UsageRequest::ProbeShow => UsageReply::Probes(super::probes::shown(app).await?),
        UsageRequest::ProbeStop => {
            app.probes.stop();
            UsageReply::Probes(super::probes::shown(app).await?)
        },
    };
    Ok(Reply::Usage(Box::new(reply)))
}

/// What `status` says of budgets and the ledger, one line each.
pub(super) fn notes(app: &App) -> Vec<String> {
    let books = &app.proxy.traces.books;
    let used_up = standings(&books.budgets, &app.roster).into_iter().filter(|one| one.exceeded);
    let mut notes: Vec<String> = used_up
        .map(|one| {
            let name = one.budget.name;
            format!("the budget `{name}` is used up; `cmactl budget list` says until when")
        })
        .collect();
    let health = books.ledger.health();
    if health.failing {
        notes.push(format!(
            "{} requests could not be written to `usage/`: look at that folder and the disk",
            health.lost
        ));
    }
    notes
}

fn asked(since: u64, until: u64, by: UsageBy, days: Vec<u64>) -> Result<Asked, Fault> {
    if days.len() > MAX_DAYS || !days.is_sorted() {
        return Err(Fault::new(
            ErrorCode::BadRequest,
            "the days of the question are too many, or in no order",
            "ask for a shorter time",
        ));
    }
    let by = match by {
        UsageBy::Model => By::Model,
        UsageBy::Account => By::Account,
        UsageBy::Project => By::Project,
        UsageBy::Outcome => By::Outcome,
        UsageBy::Day => By::Day,
        UsageBy::Thread => By::Thread,
        UsageBy::Client => By::Client,
    };
    Ok(Asked { since, until, by, days })
}

fn table(
    ledger: &Ledger,
    roster: &Roster,
    by: UsageBy,
    asked: &Asked,
) -> Result<UsageReply, Fault> {
    let mut table = ledger.table(asked)?;
    let mut notes = Vec::new();
    if table.damaged > 0 {
        notes.push(format!("{} blocks of the ledger are damaged and not counted", table.damaged));
    }
    let health = ledger.health();
    if health.dropped + health.lost > 0 {
        notes.push(format!(
            "{} requests since the daemon's start are not in the ledger ({} too many at once, {} refused \
             by the disk)",
            health.dropped + health.lost,
            health.dropped,
            health.lost
        ));
    }
    if by == UsageBy::Day {
        table.groups.sort_by(|one, other| (one.0.len(), &one.0).cmp(&(other.0.len(), &other.0)));
    } else {
        let weight = |sums: &Sums| (sums.input + sums.output, sums.requests());
        table.groups.sort_by(|one, other| {
            weight(&other.1).cmp(&weight(&one.1)).then_with(|| one.0.cmp(&other.0))
        });
    }
    if table.groups.len() > MAX_GROUPS {
        notes.push(format!(
            "only the {MAX_GROUPS} largest of {} groups are shown",
            table.groups.len()
        ));
        table.groups.truncate(MAX_GROUPS);
    }
    if table.total.unpriced > 0 {
        notes.push(format!(
            "{} requests are of a model without a known price: their estimate is a range",
            table.total.unpriced
        ));
    }
    let groups = table.groups.into_iter().map(|(key, group)| {
        let name = (by == UsageBy::Account).then(|| called(roster, &key)).flatten();
        UsageGroup { key, name, sums: sums(&group) }
    });
    Ok(UsageReply::Table(UsageTable {
        by,
        since_ms: asked.since,
        until_ms: asked.until,
        total: sums(&table.total),
        groups: groups.collect(),
        prices_dated: prices::table().dated().to_owned(),
        notes,
    }))
}

fn sums(sums: &Sums) -> UsageSums {
    let ended = |ended: Ended| sums.ended.get(ended as usize).copied().unwrap_or_default();
    UsageSums {
        requests: sums.requests(),
        complete: ended(Ended::Complete),
        failed: ended(Ended::Failed),
        cut: ended(Ended::Cut),
        abandoned: ended(Ended::Abandoned),
        blocked: ended(Ended::Blocked),
        attempts: sums.attempts,
        input_tokens: sums.input,
        cached_tokens: sums.cached,
        output_tokens: sums.output,
        reasoning_tokens: sums.reasoning,
        total_tokens: sums.input + sums.output,
        counted: sums.told,
        unpriced: sums.unpriced,
        cache_share: (sums.input > 0).then(|| share(sums.cached, sums.input)),
        cost_usd_low: dollars(sums.low),
        cost_usd_high: dollars(sums.high),
        first_byte_ms: sums.first_ms.checked_div(sums.begun),
        total_ms: sums.total_ms.checked_div(sums.requests()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
fn dollars(nano: u64) -> f64 {
    nano as f64 / NANO
}

fn called(roster: &Roster, id: &str) -> Option<String> {
    let record = roster.get(&AccountId::from_written(id))?;
    Some(roster::name(&record).to_owned())
}

fn row(row: &Row, roster: &Roster) -> UsageRow {
    let named = row.account.as_ref().and_then(|id| called(roster, id.as_str()));
    UsageRow {
        request: RequestId::of(row.id).to_string(),
        at_ms: row.at_ms,
        outcome: row.ended.word().to_owned(),
        status: row.status,
        client: row.client.word().to_owned(),
        token: row.token.as_ref().map(ToString::to_string),
        account: row.account.as_ref().map(ToString::to_string),
        account_name: named,
        project: row.project.as_ref().map(ToString::to_string),
        model: row.model.as_ref().map(ToString::to_string),
        thread: row.thread.as_ref().map(ToString::to_string),
        attempts: row.attempts,
        first_byte_ms: row.first_ms,
        total_ms: row.total_ms,
        input_tokens: row.usage.map(|usage| usage.input),
        cached_tokens: row.usage.map(|usage| usage.cached),
        output_tokens: row.usage.map(|usage| usage.output),
        reasoning_tokens: row.usage.map(|usage| usage.reasoning),
        cost_usd_low: dollars(row.cost.low),
        cost_usd_high: dollars(row.cost.high),
    }
}

fn monitor(ledger: &Ledger, budgets: &Budgets, roster: &Roster) -> Result<UsageReply, Fault> {
    let now = ledger::now_ms();
    let since = |ms: u64| {
        let since = now.saturating_sub(ms);
        ledger.table(&Asked { since, until: u64::MAX, by: By::Outcome, days: Vec::new() })
    };
    let (five, hour) = (since(5 * MINUTE)?, since(60 * MINUTE)?);
    let recent = ledger.rows(now.saturating_sub(24 * 60 * MINUTE), u64::MAX, RECENT)?;
    let health = ledger.health();
    Ok(UsageReply::Monitor(MonitorInfo {
        five_minutes: sums(&five.total),
        hour: sums(&hour.total),
        recent: recent.iter().map(|one| row(one, roster)).collect(),
        budgets: standings(budgets, roster),
        ledger: LedgerInfo {
            written: health.written,
            queued: health.queued,
            dropped: health.dropped,
            lost: health.lost,
        },
    }))
}

fn standings(budgets: &Budgets, roster: &Roster) -> Vec<BudgetInfo> {
    budgets.standings().iter().map(|standing| info(standing, roster)).collect()
}

fn info(standing: &Standing, roster: &Roster) -> BudgetInfo {
    let Standing { budget, period, spent, reserved } = standing;
    let (whose, of) = budgets::whose_words(&budget.whose);
    let over = |limit: Option<u64>, spent: u64| limit.is_some_and(|limit| spent >= limit);
    BudgetInfo {
        budget: BudgetSpec {
            name: budget.name.to_string(),
            whose: whose.to_owned(),
            of: of.to_owned(),
            window: budget.span.word().to_owned(),
            requests: budget.requests,
            tokens: budget.tokens,
            cost_usd: budget.cost.map(dollars),
        },
        of_name: match &budget.whose {
            Whose::Account(id) => called(roster, id.as_str()),
            Whose::All | Whose::Project(_) | Whose::Client(_) | Whose::Token(_) => None,
        },
        since_ms: period.from.millis(),
        until_ms: period.until.millis(),
        requests: spent.requests,
        tokens: spent.tokens,
        cost_usd: dollars(spent.cost),
        running: reserved.requests,
        exceeded: over(budget.requests, spent.requests)
            || over(budget.tokens, spent.tokens)
            || over(budget.cost, spent.cost),
    }
}

fn budget(spec: &BudgetSpec, app: &App) -> Result<Budget, Fault> {
    let bad =
        |what: String| Fault::new(ErrorCode::BadRequest, what, "see `cmactl budget limit --help`");
    let of = match spec.whose.as_str() {
        "account" => app.roster.select(&spec.of)?.id.clone(),
        "project" => app.projects.named(&spec.of)?.key,
        "client" if Client::ALL.iter().all(|client| client.word() != spec.of) => {
            return Err(bad(format!("`{}` is none of cli, own, custom", spec.of)));
        },
        "token" if !app.proxy.keys.tokens()?.named(&spec.of) => {
            return Err(tokens::unknown(&spec.of));
        },
        _ => spec.of.clone(),
    };
    let whose = budgets::whose_of(&spec.whose, &of)
        .ok_or_else(|| bad(format!("`{} {}` is nobody that can have a budget", spec.whose, of)))?;
    let span = budgets::span_of(&spec.window)
        .ok_or_else(|| bad(format!("`{}` is none of hour, day, week, month", spec.window)))?;
    Ok(Budget {
        name: spec.name.as_str().into(),
        whose,
        span,
        requests: spec.requests,
        tokens: spec.tokens,
        cost: spec.cost_usd.map(nano).transpose().map_err(bad)?,
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the range is checked before"
)]
fn nano(dollars: f64) -> Result<u64, String> {
    if (0.0..=1e9).contains(&dollars) {
        Ok((dollars * NANO).round() as u64)
    } else {
        Err(format!("{dollars} is no amount of dollars that can be a limit"))
    }
}
