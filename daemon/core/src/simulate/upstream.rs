//! What upstream does: windows that fill and empty, and a prompt cache for each account.

use super::{Scene, traffic::Ask, wall};
use crate::quota::{MAIN_LIMIT, Place, Window};
use std::collections::BTreeMap;

/// In milliseconds.
pub(super) const HOUR: u64 = 3_600_000;
/// In milliseconds.
pub(super) const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
const SHORT: u64 = 5 * HOUR;
/// Full short windows in a full long one.
const SHORTS_A_WEEK: u64 = 9;
/// How long a prompt's prefix stays cached (OpenAI's guide: up to an hour).
const CACHE_LIFE: u64 = 30 * 60_000;
/// Tokens before which upstream caches nothing (OpenAI's guide).
pub(super) const PROMPT: u64 = 1024;

/// What a request costs, in tokens of fresh input: cached input is a tenth, output eightfold
/// (OpenAI's price list for the models of the CLI).
pub(super) const fn cost(ask: &Ask, cached: u64) -> u64 {
    ask.input - cached + cached / 10 + 8 * ask.output
}

/// An account as upstream sees it.
#[derive(Debug, Clone)]
pub(super) struct Account {
    /// What the windows hold; none without limits.
    size: Option<(u64, u64)>,
    short: (u64, Option<u64>),
    long: (u64, u64),
    /// Weekly quota that ended unused, and that there was, of all weeks that ended.
    pub(super) lost: u64,
    pub(super) had: u64,
}

impl Account {
    /// The `n`-th account. Its week ends at another moment than those of the others, and it has
    /// been used until now as evenly as the rest.
    pub(super) fn new(
        n: usize,
        scene: Scene,
        demand: u64,
        days: u64,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let count = u64::try_from(scene.accounts.max(1)).unwrap_or(1);
        // Together they hold what is asked for, when nothing is lost.
        let week = demand * 7 / days / count;
        let long = week.max(1);
        let end = (WEEK / count * u64::try_from(n).unwrap_or(0) + rng.u64(HOUR..24 * HOUR)) % WEEK;
        let passed = WEEK - end;
        let used = long / 100 * (passed * 80 / WEEK + rng.u64(0..15)).min(95);
        Self {
            size: scene.limits.then_some((long / SHORTS_A_WEEK, long)),
            short: (0, None),
            long: (used, end),
            lost: 0,
            had: 0,
        }
    }

    /// Lets time pass: windows that have ended are empty.
    pub(super) fn pass(&mut self, at: u64) {
        if self.short.1.is_some_and(|end| end <= at) {
            self.short = (0, None);
        }
        let Some((_short, long)) = self.size else { return };
        while self.long.1 <= at {
            self.lost += long.saturating_sub(self.long.0);
            self.had += long;
            self.long = (0, self.long.1 + WEEK);
        }
    }

    /// When it can serve again, when it can't.
    pub(super) fn out_until(&mut self, at: u64) -> Option<u64> {
        self.pass(at);
        let (short, long) = self.size?;
        if self.long.0 >= long {
            return Some(self.long.1);
        }
        self.short.1.filter(|_end| self.short.0 >= short)
    }

    /// Takes what a request cost.
    pub(super) fn spend(&mut self, at: u64, cost: u64) {
        self.pass(at);
        self.short.0 += cost;
        // The short window begins with its first request.
        self.short.1.get_or_insert(at + SHORT);
        self.long.0 += cost;
    }

    /// What the headers of an answer say: whole percents.
    pub(super) fn windows(&self, at: u64) -> Vec<Window> {
        let Some((short, long)) = self.size else { return Vec::new() };
        let window = |place, used: u64, size: u64, minutes, end: u64| Window {
            limit: MAIN_LIMIT.into(),
            model: None,
            place,
            used_percent: f64::from(
                u32::try_from(used * 100 / size.max(1)).unwrap_or(100).min(100),
            ),
            minutes: Some(minutes),
            resets: Some(wall(end)),
            seen: wall(at),
        };
        let first = self.short.1.map(|end| window(Place::Primary, self.short.0, short, 300, end));
        let second = window(Place::Secondary, self.long.0, long, 10_080, self.long.1);
        first.into_iter().chain([second]).collect()
    }
}

/// Thread and account → what of the thread is cached there, and since when.
#[derive(Debug, Default)]
pub(super) struct Cache(BTreeMap<(u32, usize), (u64, u64)>);

impl Cache {
    /// Tokens of a request that its account had cached; from here on it has all of it.
    pub(super) fn take(&mut self, ask: &Ask, account: usize) -> u64 {
        let known =
            self.0.insert((ask.thread, account), (ask.input + ask.output, ask.at + ask.lasts));
        let fresh = known.filter(|(_, at)| ask.at.saturating_sub(*at) <= CACHE_LIFE);
        fresh.map_or(0, |(tokens, _)| tokens.min(ask.prefix)).saturating_sub(PROMPT)
    }
}
