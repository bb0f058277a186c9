//! What people do: threads that begin, go on and end.

use super::upstream::{DAY, HOUR};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// When, in milliseconds since the start.
    pub at: u64,
    /// Of which thread.
    pub thread: u32,
    /// Tokens of its input.
    pub input: u64,
    /// Of these, what was said before in the same thread: the part that can be cached.
    pub prefix: u64,
    /// Tokens of its answer.
    pub output: u64,
    /// How long the answer takes, in milliseconds.
    pub lasts: u64,
}

/// A workload by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Threads begin at any hour of any day.
    Steady,
    /// Office hours, several threads at once, then nothing.
    Bursty,
    /// One person who works in the morning of one continent and in the evening of another.
    TwoTimezone,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Steady, Self::Bursty, Self::TwoTimezone];

    /// As it is typed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Bursty => "bursty",
            Self::TwoTimezone => "two-timezone",
        }
    }

    /// The one of that name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// When a thread begins, as a moment of the week.
    fn begin(self, rng: &mut fastrand::Rng, days: u64) -> u64 {
        let day = rng.u64(0..days);
        let within = |rng: &mut fastrand::Rng, from: u64, to: u64| {
            day * DAY + rng.u64(from * HOUR..to * HOUR)
        };
        match self {
            Self::Steady => within(rng, 0, 24),
            Self::Bursty => {
                // Five days a week, at the full hours from nine to five.
                let day = day % 7 % 5 + day / 7 * 7;
                let hour = rng.u64(9..17);
                day * DAY + hour * HOUR + rng.u64(0..10 * 60_000)
            },
            Self::TwoTimezone if rng.bool() => within(rng, 6, 11),
            Self::TwoTimezone => within(rng, 18, 23),
        }
    }
}

/// One request as somebody wrote it down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// When, in milliseconds of any clock.
    pub at: u64,
    /// The name of its thread.
    pub thread: Arc<str>,
    /// Tokens of its input.
    pub input: u64,
    /// Tokens of its answer.
    pub output: u64,
    /// How long the answer took, in milliseconds.
    pub lasts: u64,
}

/// All requests, in order of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// In order.
    pub asks: Vec<Ask>,
    /// What all of it costs with a perfect cache, in tokens of fresh input.
    pub demand: u64,
}

impl Traffic {
    /// A generated week.
    pub fn week(workload: Workload, accounts: usize, seed: u64) -> Self {
        // So many threads a week and account that the accounts are just about enough for them.
        Self::generate(workload, 7, 42 * accounts.max(1), seed)
    }

    /// Threads over some days.
    pub fn generate(workload: Workload, days: u64, threads: usize, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut asks = Vec::new();
        for thread in 0..u32::try_from(threads).unwrap_or(u32::MAX) {
            let mut at = workload.begin(&mut rng, days);
            // The instructions, the tools, the first files.
            let (mut said, mut prefix) = (rng.u64(9_000..16_000), 0);
            for _turn in 0..rng.u32(8..70) {
                let (output, lasts) = (rng.u64(100..1200), rng.u64(2_000..25_000));
                asks.push(Ask { at, thread, input: said, prefix, output, lasts });
                prefix = said + output;
                said = prefix + rng.u64(300..5_000);
                if said > 180_000 {
                    // The CLI compacts it: a new beginning.
                    (said, prefix) = (20_000, 0);
                }
                // Tools run for seconds; now and then a person reads for minutes.
                let pause = if rng.u32(0..12) == 0 { 120_000..1_500_000 } else { 1_000..30_000 };
                at += lasts + rng.u64(pause);
            }
        }
        Self::of(asks)
    }

    /// Requests that were recorded: a JSON object a line with `at` (seconds), `thread`, `input`,
    /// `output` and, where known, `lasts_ms`.
    ///
    /// # Errors
    /// The first line that is none, from 1, and what is wrong with it.
    pub fn recorded(text: &str) -> Result<Self, String> {
        let mut made = Vec::new();
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let bad = |what: &str| format!("line {}: {what}", n + 1);
            let line: Value =
                serde_json::from_str(line).map_err(|_not_json| bad("it is no JSON object"))?;
            let number = |name: &str| line.get(name).and_then(Value::as_u64);
            let at = line
                .get("at")
                .and_then(Value::as_f64)
                .ok_or_else(|| bad("it has no `at` in seconds"))?;
            let name = line
                .get("thread")
                .and_then(Value::as_str)
                .ok_or_else(|| bad("it has no `thread`"))?;
            let input = number("input").ok_or_else(|| bad("it has no `input` in tokens"))?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a float saturates"
            )]
            let at = (at * 1000.0) as u64;
            made.push(Made {
                at,
                thread: name.into(),
                input,
                output: number("output").unwrap_or(0),
                lasts: number("lasts_ms").unwrap_or(8_000),
            });
        }
        Self::made(made).ok_or_else(|| "it holds no request".to_owned())
    }

    /// Requests that were made, in any order; none without any.
    pub fn made(mut made: Vec<Made>) -> Option<Self> {
        made.sort_by(|one, other| (one.at, &one.thread).cmp(&(other.at, &other.thread)));
        let start = made.first()?.at;
        // What each thread has said, by its name.
        let mut threads: BTreeMap<Arc<str>, (u32, u64)> = BTreeMap::new();
        let asks = made.into_iter().map(|Made { at, thread, input, output, lasts }| {
            let next = u32::try_from(threads.len()).unwrap_or(u32::MAX);
            let (thread, said) = threads.entry(thread).or_insert((next, 0));
            let before = std::mem::replace(said, input.saturating_add(output));
            let (at, prefix) = (at.saturating_sub(start), before.min(input));
            Ask { at, thread: *thread, input, prefix, output, lasts }
        });
        Some(Self::of(asks.collect()))
    }

    fn of(mut asks: Vec<Ask>) -> Self {
        asks.sort_by_key(|ask| (ask.at, ask.thread));
        let demand = asks.iter().map(|ask| super::upstream::cost(ask, ask.prefix)).sum();
        Self { asks, demand }
    }

    /// Days it lasts, a week at least: as long as the windows that matter.
    pub fn days(&self) -> u64 {
        self.asks.last().map_or(7, |last| last.at.div_ceil(DAY)).max(7)
    }
}
