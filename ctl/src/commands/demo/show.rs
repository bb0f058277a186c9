//! What happens on the stage, made of events and answers, and how it is drawn.
//!
//! No process and no socket here: events in, news and a frame out.

use super::traffic::Answer;
use crate::render::{Tone, bar, clean, pressure, put};
use cma_proto::{
    error::{ErrorCode, Refusal},
    message::{Change, Event, WindowInfo},
};
use serde::Serialize;
use std::time::{Duration, Instant};

/// One account of the demo.
#[derive(Debug)]
pub(super) struct Seat {
    id: String,
    name: String,
    percent: f64,
    served: u64,
    /// Why it can't serve now.
    resting: Option<String>,
    ran_dry: bool,
}

impl Seat {
    pub(super) fn new(id: &str, name: &str) -> Self {
        Self {
            id: id.to_owned(),
            name: clean(name),
            percent: 0.0,
            served: 0,
            resting: None,
            ran_dry: false,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn ran_dry(&self) -> bool {
        self.ran_dry
    }

    fn level(&self) -> Level {
        Level { account: self.name.clone(), used_percent: self.percent }
    }
}

/// Something worth telling; one line of `--json` each.
#[derive(Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum News {
    /// The stage is set.
    Started { client: String, requests: u32, url: String },
    /// The demo does what a person would type.
    Command { line: String },
    /// The daemon delivered an answer.
    Served { request: u64, account: String, windows: Vec<Level> },
    /// An account can serve no more.
    Limit { account: String, reason: String },
    /// What it would have served goes to another.
    Moved { from: String, to: String, reason: String },
    /// The client saw an error.
    Failed { request: u32, error: String },
}

/// How full an account's window is.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Level {
    account: String,
    used_percent: f64,
}

impl News {
    /// Whether it stays on the screen above the picture.
    pub(super) const fn is_prominent(&self) -> bool {
        match self {
            Self::Started { .. } | Self::Command { .. } | Self::Moved { .. } => true,
            Self::Failed { .. } => true,
            Self::Served { .. } | Self::Limit { .. } => false,
        }
    }
}

/// The end of the story.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "summary")]
pub(super) struct Summary {
    requests: u32,
    answered: u32,
    errors: u32,
    accounts: usize,
    ran_dry: Vec<String>,
    moves: u32,
    /// Median of the daemon's time to the first byte, the simulated upstream's included.
    first_byte_ms_p50: Option<u64>,
    seconds: f64,
}

/// The state of the show.
#[derive(Debug)]
pub(super) struct Show {
    seats: Vec<Seat>,
    serving: Option<usize>,
    /// An account that failed or ran dry, until another has served instead.
    leaving: Option<(usize, String)>,
    requests: u32,
    answered: u32,
    errors: u32,
    first_error: Option<String>,
    first_bytes: Vec<u64>,
    moves: u32,
    began: Instant,
}

impl Show {
    pub(super) fn new(seats: Vec<Seat>, requests: u32) -> Self {
        Self {
            seats,
            serving: None,
            leaving: None,
            requests,
            answered: 0,
            errors: 0,
            first_error: None,
            first_bytes: Vec::new(),
            moves: 0,
            began: Instant::now(),
        }
    }

    pub(super) fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// Whether the daemon has told who served each answer that the client got.
    pub(super) fn is_told(&self) -> bool {
        self.served() >= u64::from(self.answered)
    }

    /// Answers delivered by the daemon.
    pub(super) fn served(&self) -> u64 {
        self.seats.iter().map(|seat| seat.served).sum()
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn seat(&self, id: &str) -> Option<usize> {
        self.seats.iter().position(|seat| seat.id == id)
    }

    /// Takes in what the daemon says.
    pub(super) fn hear(&mut self, event: &Event) -> Vec<News> {
        match &event.change {
            Change::Snapshot { status } => {
                let states = status.accounts.iter().flat_map(|account| {
                    let used = self.used(&account.id, &account.windows);
                    let state = self.state(&account.id, &account.state, account.reason.as_deref());
                    used.into_iter().chain(state)
                });
                states.collect()
            },
            Change::Quota { account, windows } => self.used(account, windows).into_iter().collect(),
            Change::State { account, state, reason, .. } => {
                self.state(account, state, reason.as_deref()).into_iter().collect()
            },
            Change::Retry { account, reason, .. } => {
                if let Some(seat) = self.seat(account) {
                    self.leaving.get_or_insert((seat, clean(reason)));
                }
                Vec::new()
            },
            Change::Served { account: Some(account), first_byte_ms, .. } => {
                self.first_bytes.extend(first_byte_ms);
                self.delivered(account)
            },
            Change::Served { account: None, .. }
            | Change::Accounts { .. }
            | Change::Pin { .. }
            | Change::Phase { .. } => Vec::new(),
        }
    }

    fn used(&mut self, id: &str, windows: &[WindowInfo]) -> Option<News> {
        let primary = windows.iter().find(|window| window.name == "primary");
        let percent = primary.or(windows.first())?.used_percent;
        let index = self.seat(id)?;
        self.seats.get_mut(index)?.percent = percent;
        (percent >= 100.0).then(|| self.dry(index, "its window is used up")).flatten()
    }

    fn state(&mut self, id: &str, state: &str, reason: Option<&str>) -> Option<News> {
        let index = self.seat(id)?;
        if state == "cooling" {
            let reason = clean(reason.unwrap_or("cooling"));
            self.seats.get_mut(index)?.resting = Some(reason.clone());
            return self.dry(index, &reason);
        }
        if state == "ready" {
            self.seats.get_mut(index)?.resting = None;
        }
        None
    }

    fn dry(&mut self, index: usize, reason: &str) -> Option<News> {
        let seat = self.seats.get_mut(index).filter(|seat| !seat.ran_dry)?;
        seat.ran_dry = true;
        seat.resting.get_or_insert_with(|| reason.to_owned());
        let account = seat.name.clone();
        self.leaving = Some((index, reason.to_owned()));
        Some(News::Limit { account, reason: reason.to_owned() })
    }

    fn delivered(&mut self, id: &str) -> Vec<News> {
        let Some(index) = self.seat(id) else { return Vec::new() };
        let mut news = Vec::new();
        self.serving = Some(index);
        if let Some((from, reason)) = self.leaving.take_if(|(from, _)| *from != index) {
            self.moves += 1;
            let (from, to) = (self.name(from), self.name(index));
            news.push(News::Moved { from, to, reason });
        }
        if let Some(seat) = self.seats.get_mut(index) {
            seat.served += 1;
        }
        news.push(News::Served {
            request: self.served(),
            account: self.name(index),
            windows: self.seats.iter().map(Seat::level).collect(),
        });
        news
    }

    fn name(&self, index: usize) -> String {
        self.seats.get(index).map(|seat| seat.name.clone()).unwrap_or_default()
    }

    /// Takes in what the client saw.
    pub(super) fn count(&mut self, answer: &Answer) -> Option<News> {
        if answer.ok {
            self.answered += 1;
            return None;
        }
        self.errors += 1;
        let error = clean(answer.error.as_deref().unwrap_or("no reason given"));
        self.first_error.get_or_insert_with(|| error.clone());
        Some(News::Failed { request: answer.n, error })
    }

    /// A piece of news as one line (two for the first).
    pub(super) fn line(&self, news: &News) -> String {
        let at = Tone::Dim.paint(format!("{:>5.1} s", self.elapsed().as_secs_f64()));
        match news {
            News::Started { client, requests, url } => format!(
                "Three simulated accounts, one real daemon on a temporary root, no network.\n\
                 {requests} requests by {client} to {url}\n\n",
            ),
            News::Command { line } => {
                format!("{at}  {}\n", Tone::Strong.paint(format!("$ {line}")))
            },
            News::Served { request, account, windows } => {
                let level = |level: &Level| {
                    format!("   {} {:>3.0} %", level.account, level.used_percent.min(100.0))
                };
                let levels: String = windows.iter().map(level).collect();
                format!("{at}  request {request:>2} served by {account}{levels}\n")
            },
            News::Limit { account, reason } => {
                format!("{at}  {}\n", Tone::Warn.paint(format!("limit hit on {account}: {reason}")))
            },
            News::Moved { from, to, .. } => {
                let dry = self.seats.iter().any(|seat| seat.name == *from && seat.ran_dry);
                let what = if dry { "limit hit on" } else { "trouble on" };
                let said = Tone::Warn.paint(format!("▲ {what} {from} → moved to {to}"));
                format!("{at}  {said}   the client noticed nothing\n")
            },
            News::Failed { request, error } => {
                let said = format!("✗ request {request} failed at the client: {error}");
                format!("{at}  {}\n", Tone::Bad.paint(said))
            },
        }
    }

    /// The picture: one line an account, one for the whole. At most 78 columns.
    pub(super) fn frame(&self) -> String {
        let mut text = "\n".to_owned();
        for (index, seat) in self.seats.iter().enumerate() {
            let (arrow, name) = if self.serving == Some(index) {
                (Tone::Good.paint("▶"), Tone::Strong.paint(short(&seat.name, 8)))
            } else {
                (" ".to_owned(), short(&seat.name, 8))
            };
            let bar = pressure(seat.percent).paint(bar(seat.percent, 20));
            let state = match &seat.resting {
                Some(reason) => Tone::Warn.paint(short(reason, 24)),
                None if self.serving == Some(index) => Tone::Good.paint("serves"),
                None => String::new(),
            };
            put!(
                text,
                "  {arrow} {name} {bar} {:>4.0} %  {:>3} served  {state}\n",
                seat.percent.min(100.0),
                seat.served
            );
        }
        let errors = match self.errors {
            0 => Tone::Good.paint("0 errors"),
            n => Tone::Bad.paint(format!("{n} errors")),
        };
        let done = self.answered + self.errors;
        let share = f64::from(done) * 100.0 / f64::from(self.requests.max(1));
        put!(
            text,
            "\n    {} {} {done:>3} of {} requests   {errors}   {:.1} s\n",
            short("all", 8),
            Tone::Dim.paint(bar(share, 20)),
            self.requests,
            self.elapsed().as_secs_f64()
        );
        text
    }

    pub(super) fn summary(&self) -> Summary {
        let dry = self.seats.iter().filter(|seat| seat.ran_dry).map(|seat| seat.name.clone());
        let mut sorted = self.first_bytes.clone();
        sorted.sort_unstable();
        Summary {
            requests: self.requests,
            answered: self.answered,
            errors: self.errors,
            accounts: self.seats.len(),
            ran_dry: dry.collect(),
            moves: self.moves,
            first_byte_ms_p50: sorted.get(sorted.len() / 2).copied(),
            seconds: (self.elapsed().as_secs_f64() * 10.0).round() / 10.0,
        }
    }

    /// The summary as text.
    pub(super) fn closing(&self) -> String {
        let Summary { requests, answered, errors, accounts, ran_dry, moves, seconds, .. } =
            self.summary();
        let tone = if errors == 0 { Tone::Good } else { Tone::Bad };
        let seen = tone.paint(format!("{errors} errors seen by the client"));
        let dry = match ran_dry.as_slice() {
            [] => String::new(),
            names => format!(" ({})", names.join(", ")),
        };
        let first = self.summary().first_byte_ms_p50.map(|ms| match ms {
            0 => ", first byte p50 under 1 ms".to_owned(),
            ms => format!(", first byte p50 {ms} ms"),
        });
        format!(
            "\n{answered} of {requests} requests answered in {seconds:.1} s, {seen}.\n\
             {} of {accounts} accounts ran dry{dry}, {moves} moves to another account{}.\n",
            ran_dry.len(),
            first.unwrap_or_default()
        )
    }

    /// Whether the client, which sent that many requests, got all it asked for.
    pub(super) fn verdict(&self, sent: u32) -> Result<(), Refusal> {
        let hint = "run `cmactl demo --client builtin --plain` and report what it prints";
        let refuse = |said: String| Err(Refusal::new(ErrorCode::Negative, said, hint));
        if self.errors > 0 {
            let first = self.first_error.as_deref().unwrap_or_default();
            return refuse(format!("the client saw {} errors, first: {first}", self.errors));
        }
        if self.answered < sent.max(1) {
            return refuse(format!("the client got {} answers to {sent} requests", self.answered));
        }
        Ok(())
    }
}

/// Exactly `width` characters of a text.
fn short(text: &str, width: usize) -> String {
    let text: String = match text.chars().count() > width {
        true => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    };
    format!("{text:<width$}")
}

#[cfg(test)]
mod tests;
