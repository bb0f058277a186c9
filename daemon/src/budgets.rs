//! The person's budgets: kept on disk, counted in memory.
//!
//! What may be spent is decided by [`cma_core::budget`]; here are its clock, its calendar (the
//! machine's own time zone: a day ends at midnight, a week on Sunday) and its file. What was spent is
//! not kept twice: at a start it is added up from the ledger. A request's way sees one lock that is
//! held for as long as it takes to compare a few numbers.

use crate::{
    clock,
    fault::Fault,
    ledger::{
        Ledger,
        row::{Client, Row},
    },
    store::Store,
};
use cma_core::{
    budget::{Asker, Blocked, Book, Budget, Hold, Measure, Period, Span, Spend, Standing, Whose},
    identity::AccountId,
    time::Wall,
};
use cma_proto::error::ErrorCode;
use jiff::{Timestamp, ToSpan as _, Zoned, civil::Weekday, tz::TimeZone};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

/// More are no way to keep an eye on money.
const MAX_BUDGETS: usize = 100;
/// Letters of a name.
const MAX_NAME: usize = 64;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(crate) struct Budgets(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    book: Mutex<Book>,
    /// Read when the first budget needs it: a start has no time for it.
    zone: OnceLock<TimeZone>,
    store: Store,
    path: PathBuf,
    ledger: Ledger,
    /// Held for the whole of a change, disk included.
    writer: Mutex<()>,
}

/// A request's part of all budgets that count it. Dropping it unsettled gives it back.
#[derive(Debug)]
pub(crate) struct Reservation {
    budgets: Budgets,
    hold: Mutex<Option<Hold>>,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    budgets: Vec<Kept>,
}

/// A budget as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    name: String,
    /// `all`, `project`, `account`, `client`, `token`.
    whose: String,
    /// Its key, id or name; empty for all.
    #[serde(default)]
    of: String,
    span: String,
    requests: Option<u64>,
    tokens: Option<u64>,
    /// Nanodollars.
    cost: Option<u64>,
}

impl Budgets {
    /// Reads a root's budgets, and adds up from the ledger what was spent. A locked root's are read
    /// when it is open ([`Self::read_in`]); until then nothing is served.
    ///
    /// # Errors
    /// [`ErrorCode::Store`] when the file is damaged: a limit must not be lost silently.
    pub(crate) fn load(root: &Path, store: Store, ledger: Ledger) -> Result<Self, Fault> {
        let budgets = Self(Arc::new(Inner {
            book: Mutex::default(),
            zone: OnceLock::new(),
            store,
            path: root.join("budgets.json"),
            ledger,
            writer: Mutex::new(()),
        }));
        budgets.read_in()?;
        Ok(budgets)
    }

    /// Reads all budgets. Blocks on the disk.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn read_in(&self) -> Result<(), Fault> {
        if self.0.store.is_locked() {
            return Ok(());
        }
        let _writer = self.0.writer.lock();
        let file = self.0.store.get::<File>(&self.0.path)?.unwrap_or_default();
        let budgets: Vec<Budget> = file.budgets.iter().filter_map(Kept::budget).collect();
        if budgets.len() < file.budgets.len() {
            return Err(Fault::new(
                ErrorCode::Store,
                format!("`{}` has a budget that makes no sense", self.0.path.display()),
                "remove that file, then set your budgets again",
            ));
        }
        self.enter(budgets)
    }

    /// Reserves for a request, before its account is chosen.
    ///
    /// # Errors
    /// The budget that keeps it out.
    pub(crate) fn reserve(
        &self,
        project: Option<&str>,
        client: Client,
        token: Option<&str>,
    ) -> Result<Reservation, Blocked> {
        let mut book = self.0.book.lock();
        let hold = if book.is_empty() {
            None
        } else {
            let asker = Asker { project, client: client.word(), token };
            Some(book.reserve(clock::wall(), asker, &|span, at| self.period(span, at))?)
        };
        Ok(Reservation { budgets: self.clone(), hold: Mutex::new(hold) })
    }

    /// How all stand now, by name.
    pub(crate) fn standings(&self) -> Vec<Standing> {
        self.0.book.lock().standings(clock::wall(), &|span, at| self.period(span, at))
    }

    /// Sets a budget; one of the same name is replaced. What was spent before counts. Blocks on the
    /// disk.
    ///
    /// # Errors
    /// [`ErrorCode::BadRequest`] for a name or limits that make no sense.
    pub(crate) fn set(&self, budget: Budget) -> Result<(), Fault> {
        check(&budget)?;
        let _writer = self.0.writer.lock();
        let mut kept: Vec<Kept> =
            self.standings().iter().map(|one| Kept::of(&one.budget)).collect();
        kept.retain(|one| *one.name != *budget.name);
        if kept.len() >= MAX_BUDGETS {
            return Err(Fault::new(
                ErrorCode::TooLarge,
                format!("there are {MAX_BUDGETS} budgets already"),
                "delete one with `cmactl budget delete NAME`",
            ));
        }
        kept.push(Kept::of(&budget));
        self.0.store.put(&self.0.path, &File { budgets: kept })?;
        self.enter(vec![budget])
    }

    /// Takes a budget away. Blocks on the disk.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub(crate) fn delete(&self, name: &str) -> Result<(), Fault> {
        let _writer = self.0.writer.lock();
        let mut kept: Vec<Kept> =
            self.standings().iter().map(|one| Kept::of(&one.budget)).collect();
        let before = kept.len();
        kept.retain(|one| one.name != name);
        if kept.len() == before {
            return Err(unknown(name));
        }
        self.0.store.put(&self.0.path, &File { budgets: kept })?;
        self.0.book.lock().remove(name);
        Ok(())
    }

    /// Takes budgets in, with what the ledger knows of their periods.
    fn enter(&self, budgets: Vec<Budget>) -> Result<(), Fault> {
        let now = clock::wall();
        let periods: Vec<Period> =
            budgets.iter().map(|budget| self.period(budget.span, now)).collect();
        let Some(from) = periods.iter().map(|period| period.from.millis()).min() else {
            return Ok(());
        };
        let mut spent = vec![Spend::default(); budgets.len()];
        let mut lately = Vec::new();
        // A request counts when it ends; one that ran long began before.
        self.0.ledger.spent(from.saturating_sub(RAN), |row| {
            let spend = came_to(row);
            let ended = Wall::from_millis(row.at_ms.saturating_add(row.total_ms));
            for ((budget, period), spent) in budgets.iter().zip(&periods).zip(&mut spent) {
                if row.was_sent() && ended >= period.from && counts(&budget.whose, row) {
                    spent.requests += spend.requests;
                    spent.tokens = spent.tokens.saturating_add(spend.tokens);
                    spent.cost = spent.cost.saturating_add(spend.cost);
                }
            }
            if spend.tokens > 0 {
                lately.push(spend);
                lately.drain(..lately.len().saturating_sub(LATELY));
            }
        })?;
        let mut book = self.0.book.lock();
        for (budget, spent) in budgets.into_iter().zip(spent) {
            book.set(now, budget, spent, &|span, at| self.period(span, at));
        }
        lately.into_iter().for_each(|spend| book.learn(spend));
        Ok(())
    }

    fn period(&self, span: Span, at: Wall) -> Period {
        period(self.0.zone.get_or_init(TimeZone::system), span, at).unwrap_or_else(|| {
            // A moment that no calendar knows: hours of the clock itself.
            let from = at.millis() / RAN * RAN;
            Period { from: Wall::from_millis(from), until: Wall::from_millis(from + RAN) }
        })
    }
}

/// A turn runs for an hour at most.
const RAN: u64 = 3_600_000;
/// Requests that the first estimate is made of.
const LATELY: usize = 32;

impl Reservation {
    /// One with nothing reserved.
    pub(crate) fn none(budgets: &Budgets) -> Self {
        Self { budgets: budgets.clone(), hold: Mutex::new(None) }
    }

    /// Reserves with the account that was chosen, instead of one that was before.
    ///
    /// # Errors
    /// The account's budget that keeps the request from it.
    pub(crate) fn with(&self, account: &AccountId) -> Result<(), Blocked> {
        let mut hold = self.hold.lock();
        let Some(hold) = hold.as_mut() else { return Ok(()) };
        let calendar = |span, at| self.budgets.period(span, at);
        self.budgets.0.book.lock().reserve_with(clock::wall(), hold, account, &calendar)
    }

    /// Pays what the request came to; none for one that was never sent.
    pub(crate) fn settle(&self, came_to: Option<Spend>) {
        if let Some(hold) = self.hold.lock().take() {
            let calendar = |span, at| self.budgets.period(span, at);
            self.budgets.0.book.lock().settle(clock::wall(), hold, came_to, &calendar);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.settle(None);
    }
}

/// What a request came to, for budgets: unknown prices count by their upper bound.
pub(crate) fn came_to(row: &Row) -> Spend {
    let tokens = row.usage.map_or(0, cma_core::usage::Usage::total);
    Spend { requests: 1, tokens, cost: row.cost.high }
}

fn counts(whose: &Whose, row: &Row) -> bool {
    match whose {
        Whose::All => true,
        Whose::Project(key) => row.project.as_ref() == Some(key),
        Whose::Account(id) => row.account.as_ref() == Some(id),
        Whose::Client(name) => row.client.word() == &**name,
        Whose::Token(name) => row.token.as_ref() == Some(name),
    }
}

fn period(zone: &TimeZone, span: Span, at: Wall) -> Option<Period> {
    let now = Timestamp::from_millisecond(i64::try_from(at.millis()).ok()?).ok()?;
    let now = now.to_zoned(zone.clone());
    let (from, until): (Zoned, Zoned) = match span {
        Span::Hour => {
            let from = now.with().minute(0).second(0).subsec_nanosecond(0).build().ok()?;
            (from.clone(), from.checked_add(1.hour()).ok()?)
        },
        Span::Day => {
            let from = now.start_of_day().ok()?;
            (from.clone(), from.tomorrow().ok()?.start_of_day().ok()?)
        },
        Span::Week => {
            let back = now.weekday().since(Weekday::Monday);
            let from = now.checked_sub(i32::from(back).days()).ok()?.start_of_day().ok()?;
            (from.clone(), from.checked_add(7.days()).ok()?.start_of_day().ok()?)
        },
        Span::Month => {
            let from = now.first_of_month().ok()?.start_of_day().ok()?;
            (from.clone(), from.checked_add(1.month()).ok()?.start_of_day().ok()?)
        },
    };
    let wall =
        |at: &Zoned| u64::try_from(at.timestamp().as_millisecond()).ok().map(Wall::from_millis);
    let (from, until) = (wall(&from)?, wall(&until)?);
    // Where clocks are put back, an hour comes twice and its beginning may be the later one.
    (from <= at && at < until).then_some(Period { from, until })
}

/// Whose requests a budget counts, as it is kept and shown: the kind, and which.
pub(crate) fn whose_words(whose: &Whose) -> (&'static str, &str) {
    match whose {
        Whose::All => ("all", ""),
        Whose::Project(key) => ("project", key),
        Whose::Account(id) => ("account", id.as_str()),
        Whose::Client(name) => ("client", name),
        Whose::Token(name) => ("token", name),
    }
}

/// The other way round.
pub(crate) fn whose_of(kind: &str, of: &str) -> Option<Whose> {
    match kind {
        "all" if of.is_empty() => Some(Whose::All),
        "project" if !of.is_empty() => Some(Whose::Project(of.into())),
        "account" if !of.is_empty() => Some(Whose::Account(AccountId::from_written(of))),
        "client" if !of.is_empty() => Some(Whose::Client(of.into())),
        "token" if !of.is_empty() => Some(Whose::Token(of.into())),
        _ => None,
    }
}

/// A length of time from its word.
pub(crate) fn span_of(word: &str) -> Option<Span> {
    Span::ALL.into_iter().find(|span| span.word() == word)
}

impl Kept {
    fn of(budget: &Budget) -> Self {
        let (whose, of) = whose_words(&budget.whose);
        Self {
            name: budget.name.to_string(),
            whose: whose.to_owned(),
            of: of.to_owned(),
            span: budget.span.word().to_owned(),
            requests: budget.requests,
            tokens: budget.tokens,
            cost: budget.cost,
        }
    }

    fn budget(&self) -> Option<Budget> {
        Some(Budget {
            name: self.name.as_str().into(),
            whose: whose_of(&self.whose, &self.of)?,
            span: span_of(&self.span)?,
            requests: self.requests,
            tokens: self.tokens,
            cost: self.cost,
        })
    }
}

fn check(budget: &Budget) -> Result<(), Fault> {
    let bad = |what: &str| {
        Fault::new(
            ErrorCode::BadRequest,
            what,
            "say it like `cmactl budget limit NAME --window day --tokens 2M`",
        )
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if budget.name.is_empty() || budget.name.len() > MAX_NAME || !budget.name.chars().all(fits) {
        return Err(bad("a budget's name is of letters, digits, `.`, `_` and `-`, 64 at most"));
    }
    if budget.requests.or(budget.tokens).or(budget.cost).is_none() {
        return Err(bad("a budget limits requests, tokens or cost"));
    }
    Ok(())
}

/// There is no such budget.
pub(crate) fn unknown(name: &str) -> Fault {
    Fault::new(
        ErrorCode::NotFound,
        format!("there is no budget `{name}`"),
        "run `cmactl budget list` to see them",
    )
}

/// An amount as a person reads it.
pub(crate) fn amount(measure: Measure, number: u64) -> String {
    match measure {
        Measure::Requests => format!("{number} requests"),
        Measure::Tokens => format!("{number} tokens"),
        Measure::Cost => format!("${}.{:02}", number / 1_000_000_000, number / 10_000_000 % 100),
    }
}

/// The one line that a client gets, on which the official CLI stops.
pub(crate) fn line(blocked: &Blocked) -> String {
    let Blocked { name, span, measure, limit, used: _, until } = blocked;
    let zone = TimeZone::system();
    let at = i64::try_from(until.millis())
        .ok()
        .and_then(|at| Timestamp::from_millisecond(at).ok())
        .map_or_else(String::new, |at| at.to_zoned(zone).strftime("%F %H:%M").to_string());
    format!(
        "cma: the budget `{name}` ({} a {}) is used up until {at}. Run `cmactl budget list` to see it, or \
         `cmactl budget delete {name}` to go on.",
        amount(*measure, *limit),
        span.word()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Wall {
        let at: Timestamp = text.parse().unwrap();
        Wall::from_millis(at.as_millisecond().try_into().unwrap())
    }

    #[test]
    fn periods_are_those_of_the_persons_own_calendar() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let check = |span, now: &str, from: &str, until: &str| {
            let period = period(&zone, span, at(now)).unwrap();
            assert_eq!((period.from, period.until), (at(from), at(until)), "{span:?} of {now}");
        };
        // Midnight there is 22:00 or 23:00 UTC.
        check(Span::Hour, "2026-07-15T10:59:59Z", "2026-07-15T10:00:00Z", "2026-07-15T11:00:00Z");
        check(Span::Day, "2026-07-15T22:30:00Z", "2026-07-15T22:00:00Z", "2026-07-16T22:00:00Z");
        // 2026-07-15 is a Wednesday.
        check(Span::Week, "2026-07-15T12:00:00Z", "2026-07-12T22:00:00Z", "2026-07-19T22:00:00Z");
        check(Span::Month, "2026-12-31T12:00:00Z", "2026-11-30T23:00:00Z", "2026-12-31T23:00:00Z");
        // The day on which clocks go forward has 23 hours.
        check(Span::Day, "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z");
        // A Sunday belongs to the week that began on Monday.
        check(Span::Week, "2026-07-19T12:00:00Z", "2026-07-12T22:00:00Z", "2026-07-19T22:00:00Z");
    }

    /// The figure of docs/usage.md comes from a release build of this.
    #[test]
    fn ten_budgets_cost_a_request_microseconds() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let calendar = |span, at| period(&zone, span, at).unwrap();
        let mut book = Book::default();
        let now = at("2026-07-15T10:00:00Z");
        let account = AccountId::from_written("a");
        for number in 0..10_usize {
            let whose = match number % 4 {
                0 => Whose::All,
                1 => Whose::Project("p".into()),
                2 => Whose::Client("cli".into()),
                _ => Whose::Account(account.clone()),
            };
            let many = Some(u64::MAX / 4);
            let (name, span) = (format!("b{number}").into(), Span::ALL[number % 4]);
            let budget = Budget { name, whose, span, requests: many, tokens: many, cost: many };
            book.set(now, budget, Spend::default(), &calendar);
        }
        let asker = Asker { project: Some("p"), client: "cli", token: None };
        let times = 20_000;
        let begun = std::time::Instant::now();
        for _ in 0..times {
            let mut hold = book.reserve(now, asker, &calendar).unwrap();
            book.reserve_with(now, &mut hold, &account, &calendar).unwrap();
            let came_to = Spend { requests: 1, tokens: 1000, cost: 1 };
            book.settle(now, hold, Some(came_to), &calendar);
        }
        let each = begun.elapsed() / times;
        println!("ten budgets cost a request {each:?}, its end included");
        assert!(book.standings(now, &calendar).iter().all(|one| one.spent.requests == 20_000));
        let limit = if cfg!(debug_assertions) { 500 } else { 10 };
        assert!(each < std::time::Duration::from_micros(limit), "{each:?}");
    }

    #[test]
    fn the_line_says_what_until_when_and_what_to_type() {
        let blocked = Blocked {
            name: "day".into(),
            span: Span::Day,
            measure: Measure::Cost,
            limit: 12_500_000_000,
            used: 0,
            until: at("2026-07-15T22:00:00Z"),
        };
        let line = line(&blocked);
        for part in ["`day`", "$12.50 a day", "2026-07-1", "`cmactl budget delete day`"] {
            assert!(line.contains(part), "{line}");
        }
        assert!(!line.contains('\n'));
    }
}
