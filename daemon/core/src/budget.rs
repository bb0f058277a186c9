//! Budgets: how much may be spent in a time, and by whom.
//!
//! A request reserves what one of its kind is thought to come to, and pays what it really came to at
//! its end. So requests that run at once see each other: a budget is overshot by at most what one
//! request comes to above its estimate, and by nothing where requests are counted. Nothing here reads
//! a clock or knows a calendar: where an hour or a month begins is told by whoever asks.
//!
//! Invariants, each a property test below:
//! - What is reserved and not yet paid is never negative and is nothing when nothing runs.
//! - No request is let in by a budget that is used up.
//! - A budget counted in requests is never overshot, whatever runs at once.
//! - What is paid in a time is what the requests that ended in it came to.

use crate::{identity::AccountId, time::Wall};
use std::sync::Arc;

/// What a request with nothing to go by is thought to come to: a first turn of the official CLI is
/// its instructions and tools, about ten thousand tokens (0.169.0, observed).
const FIRST_TOKENS: u64 = 10_000;
/// The same in nanodollars, at two dollars for a million tokens.
const FIRST_COST: u64 = FIRST_TOKENS * 2_000;
/// A new request weighs an eighth in the average: it follows a change of work within a dozen turns.
const WEIGHT: u64 = 8;

/// The length of time that a budget is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Span {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A week, from Monday.
    Week,
    /// A month.
    Month,
}

impl Span {
    /// All of them, shortest first.
    pub const ALL: [Self; 4] = [Self::Hour, Self::Day, Self::Week, Self::Month];

    /// As it is typed.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }
}

/// One hour, day, week or month: from its beginning to the beginning of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// Its first moment.
    pub from: Wall,
    /// The first moment after it.
    pub until: Wall,
}

impl Period {
    const fn has(self, now: Wall) -> bool {
        self.from.millis() <= now.millis() && now.millis() < self.until.millis()
    }
}

/// Tells the period of that length around a moment.
pub type Calendar<'a> = &'a dyn Fn(Span, Wall) -> Period;

/// Whose requests count.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whose {
    /// All.
    All,
    /// Those of a project, by its key.
    Project(Arc<str>),
    /// Those that an account serves.
    Account(AccountId),
    /// Those of a kind of client, by its name.
    Client(Arc<str>),
    /// Those that come with a token, by its name.
    Token(Arc<str>),
}

/// What was spent, or may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spend {
    /// Requests that were sent to an account.
    pub requests: u64,
    /// Tokens read and written.
    pub tokens: u64,
    /// Nanodollars that they would cost at the API, by the upper bound where that isn't known.
    pub cost: u64,
}

impl Spend {
    const fn add(&mut self, more: Self) {
        self.requests = self.requests.saturating_add(more.requests);
        self.tokens = self.tokens.saturating_add(more.tokens);
        self.cost = self.cost.saturating_add(more.cost);
    }

    const fn sub(&mut self, less: Self) {
        self.requests = self.requests.saturating_sub(less.requests);
        self.tokens = self.tokens.saturating_sub(less.tokens);
        self.cost = self.cost.saturating_sub(less.cost);
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// [`Spend::requests`].
    Requests,
    /// [`Spend::tokens`].
    Tokens,
    /// [`Spend::cost`].
    Cost,
}

impl Measure {
    const ALL: [Self; 3] = [Self::Requests, Self::Tokens, Self::Cost];

    const fn of(self, spend: Spend) -> u64 {
        match self {
            Self::Requests => spend.requests,
            Self::Tokens => spend.tokens,
            Self::Cost => spend.cost,
        }
    }
}

/// A person's limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Its name.
    pub name: Arc<str>,
    /// Whose requests count.
    pub whose: Whose,
    /// For how long.
    pub span: Span,
    /// What may be spent; none where that isn't limited.
    pub requests: Option<u64>,
    /// The same in tokens.
    pub tokens: Option<u64>,
    /// The same in nanodollars.
    pub cost: Option<u64>,
}

impl Budget {
    const fn limit(&self, measure: Measure) -> Option<u64> {
        match measure {
            Measure::Requests => self.requests,
            Measure::Tokens => self.tokens,
            Measure::Cost => self.cost,
        }
    }
}

/// Who makes a request.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Its project's key.
    pub project: Option<&'a str>,
    /// Its client's kind.
    pub client: &'a str,
    /// The name of the token that it came with.
    pub token: Option<&'a str>,
}

/// Why a request may not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// The budget's name.
    pub name: Arc<str>,
    /// What it is for.
    pub span: Span,
    /// What of it is used up.
    pub measure: Measure,
    /// The limit.
    pub limit: u64,
    /// What is spent and reserved of it.
    pub used: u64,
    /// When the next period begins.
    pub until: Wall,
}

/// What a request has reserved. Every one is given back once, by [`Book::settle`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hold {
    estimate: Spend,
    /// Serial numbers of the budgets that count it.
    general: Vec<u64>,
    /// Those of the account that serves it.
    account: Vec<u64>,
}

/// A budget and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The budget.
    pub budget: Budget,
    /// The period that runs.
    pub period: Period,
    /// Spent in it.
    pub spent: Spend,
    /// Reserved by requests that run.
    pub reserved: Spend,
}

#[derive(Debug)]
struct Entry {
    serial: u64,
    standing: Standing,
}

/// All budgets.
#[derive(Debug, Default)]
pub struct Book {
    entries: Vec<Entry>,
    serials: u64,
    /// What requests have come to lately.
    mean: Option<Spend>,
}

impl Book {
    /// Whether there is no budget at all.
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes a budget in; one of the same name is replaced, and begins with `spent`.
    pub fn set(&mut self, now: Wall, budget: Budget, spent: Spend, calendar: Calendar<'_>) {
        self.remove(&budget.name);
        let period = calendar(budget.span, now);
        self.serials += 1;
        let standing = Standing { budget, period, spent, reserved: Spend::default() };
        self.entries.push(Entry { serial: self.serials, standing });
        self.entries
            .sort_by(|one, other| one.standing.budget.name.cmp(&other.standing.budget.name));
    }

    /// Takes a budget out; false when there is none of that name.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| *entry.standing.budget.name != *name);
        self.entries.len() < before
    }

    /// How all stand now, by name.
    pub fn standings(&mut self, now: Wall, calendar: Calendar<'_>) -> Vec<Standing> {
        self.entries.iter_mut().for_each(|entry| entry.roll(now, calendar));
        self.entries.iter().map(|entry| entry.standing.clone()).collect()
    }

    /// Reserves for a request, before its account is chosen.
    ///
    /// # Errors
    /// The budget that keeps it out, the one that does so longest. Nothing is reserved then.
    pub fn reserve(
        &mut self,
        now: Wall,
        asker: Asker<'_>,
        calendar: Calendar<'_>,
    ) -> Result<Hold, Blocked> {
        let estimate = self.estimate();
        let counts = |whose: &Whose| match whose {
            Whose::All => true,
            Whose::Project(key) => asker.project == Some(&**key),
            Whose::Client(name) => asker.client == &**name,
            Whose::Token(name) => asker.token == Some(&**name),
            Whose::Account(_) => false,
        };
        let general = self.take(now, estimate, counts, calendar)?;
        Ok(Hold { estimate, general, account: Vec::new() })
    }

    /// Reserves with the account that was chosen, instead of one that was before.
    ///
    /// # Errors
    /// The account's budget that keeps the request from it. Nothing is reserved with it then.
    pub fn reserve_with(
        &mut self,
        now: Wall,
        hold: &mut Hold,
        account: &AccountId,
        calendar: Calendar<'_>,
    ) -> Result<(), Blocked> {
        let before = std::mem::take(&mut hold.account);
        self.give_back(&before, hold.estimate, None);
        let counts = |whose: &Whose| matches!(whose, Whose::Account(id) if id == account);
        hold.account = self.take(now, hold.estimate, counts, calendar)?;
        Ok(())
    }

    /// Ends a reservation. `came_to` is none for a request that was never sent.
    pub fn settle(
        &mut self,
        now: Wall,
        hold: Hold,
        came_to: Option<Spend>,
        calendar: Calendar<'_>,
    ) {
        if came_to.is_some() {
            self.entries.iter_mut().for_each(|entry| entry.roll(now, calendar));
        }
        let Hold { estimate, general, account } = hold;
        self.give_back(&general, estimate, came_to);
        self.give_back(&account, estimate, came_to);
        if let Some(spend) = came_to {
            self.learn(spend);
        }
    }

    /// Lets the estimate of a request follow what one came to.
    pub fn learn(&mut self, spend: Spend) {
        if spend.tokens == 0 {
            return;
        }
        let near = |mean: u64, new: u64| {
            (mean.saturating_mul(WEIGHT - 1).saturating_add(new)).div_ceil(WEIGHT)
        };
        self.mean = Some(self.mean.map_or(spend, |mean| Spend {
            requests: 1,
            tokens: near(mean.tokens, spend.tokens),
            cost: near(mean.cost, spend.cost),
        }));
    }

    fn estimate(&self) -> Spend {
        let first = Spend { requests: 1, tokens: FIRST_TOKENS, cost: FIRST_COST };
        Spend { requests: 1, ..self.mean.unwrap_or(first) }
    }

    fn take(
        &mut self,
        now: Wall,
        estimate: Spend,
        counts: impl Fn(&Whose) -> bool,
        calendar: Calendar<'_>,
    ) -> Result<Vec<u64>, Blocked> {
        let mut blocked: Option<Blocked> = None;
        let mut taken = Vec::new();
        for entry in self.entries.iter_mut().filter(|entry| counts(&entry.standing.budget.whose)) {
            entry.roll(now, calendar);
            match entry.blocks(estimate) {
                Some(why) if blocked.as_ref().is_none_or(|known| known.until < why.until) => {
                    blocked = Some(why);
                },
                Some(_) => {},
                None => taken.push(entry.serial),
            }
        }
        if let Some(blocked) = blocked {
            return Err(blocked);
        }
        for entry in self.entries.iter_mut().filter(|entry| taken.contains(&entry.serial)) {
            entry.standing.reserved.add(estimate);
        }
        Ok(taken)
    }

    fn give_back(&mut self, serials: &[u64], estimate: Spend, came_to: Option<Spend>) {
        for entry in self.entries.iter_mut().filter(|entry| serials.contains(&entry.serial)) {
            entry.standing.reserved.sub(estimate);
            entry.standing.spent.add(came_to.unwrap_or_default());
        }
    }
}

impl Entry {
    /// Goes on to the period that runs now. A clock that is set back gives nothing back.
    fn roll(&mut self, now: Wall, calendar: Calendar<'_>) {
        let Standing { budget, period, spent, .. } = &mut self.standing;
        if period.has(now) {
            return;
        }
        if now >= period.until {
            *spent = Spend::default();
        }
        *period = calendar(budget.span, now);
    }

    fn blocks(&self, estimate: Spend) -> Option<Blocked> {
        let Standing { budget, period, spent, reserved } = &self.standing;
        Measure::ALL.into_iter().find_map(|measure| {
            let limit = budget.limit(measure)?;
            let running = measure.of(*reserved);
            let used = measure.of(*spent).saturating_add(running);
            // With nothing else running a request may begin that ends above the limit: how much it
            // will be is not known.
            let fits = used.saturating_add(measure.of(estimate)) <= limit;
            let alone = running == 0 && measure != Measure::Requests;
            if used < limit && (fits || alone) {
                return None;
            }
            let (name, span) = (Arc::clone(&budget.name), budget.span);
            Some(Blocked { name, span, measure, limit, used, until: period.until })
        })
    }
}

#[cfg(test)]
mod tests;
