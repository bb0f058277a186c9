//! What a request leaves behind: its ledger row, what its budgets pay, and the sums that `/metrics`
//! shows.
//!
//! A request is admitted once, before anything is sent, and closed once, whatever way it ends: by its
//! trace's end, or by being dropped before it had one. Nothing here waits: the row goes into a queue,
//! the rest is memory.

use super::{
    Proxy,
    keys::Launch,
    relay::Answer,
    respond,
    trace::{Trace, millis},
};
use crate::{
    budgets::{self, Budgets, Reservation},
    ledger::{
        Ledger, prices,
        row::{Client, Ended, Row},
    },
};
use cma_core::{budget::Blocked, identity::AccountId, usage::Usage};
use cma_proto::error::ErrorCode;
use http::StatusCode;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::time::Instant;

/// Series kept for `/metrics`; what more there are is one.
const MAX_SERIES: usize = 1_000;
/// Bounds of the histograms, in milliseconds: a loopback answer to a turn of ten minutes.
pub(crate) const BOUNDS: [u64; 12] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 600_000];

/// Where requests are written down.
#[derive(Debug, Clone)]
pub(crate) struct Books {
    pub(crate) ledger: Ledger,
    pub(crate) budgets: Budgets,
    totals: Arc<Mutex<Totals>>,
}

/// The account that served, and the model.
pub(crate) type Served = (Option<AccountId>, Option<Arc<str>>);

/// Sums since the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    /// By account, model and end.
    pub(crate) requests: BTreeMap<(Served, Ended), u64>,
    /// By account and model.
    pub(crate) tokens: BTreeMap<Served, Usage>,
    /// Nanodollars, by account: the lower and the upper bound.
    pub(crate) cost: BTreeMap<Option<AccountId>, (u64, u64)>,
    pub(crate) first: Histogram,
    pub(crate) total: Histogram,
}

/// How often something took how long.
#[derive(Debug, Clone, Default)]
pub(crate) struct Histogram {
    /// By [`BOUNDS`], not added up; the last one has no bound.
    pub(crate) counts: [u64; BOUNDS.len() + 1],
    pub(crate) sum_ms: u64,
}

impl Histogram {
    fn add(&mut self, ms: u64) {
        let at = BOUNDS.partition_point(|bound| *bound < ms);
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
        self.sum_ms = self.sum_ms.saturating_add(ms);
    }
}

impl Totals {
    fn add(&mut self, row: &Row) {
        let full = self.requests.len() >= MAX_SERIES;
        let named = (row.account.clone(), row.model.clone());
        // A client can make up names of models.
        let named = if full && !self.tokens.contains_key(&named) { (named.0, None) } else { named };
        *self.requests.entry((named.clone(), row.ended)).or_default() += 1;
        if let Some(usage) = row.usage {
            let account = named.0.clone();
            let sum = self.tokens.entry(named).or_default();
            sum.input = sum.input.saturating_add(usage.input);
            sum.cached = sum.cached.saturating_add(usage.cached);
            sum.output = sum.output.saturating_add(usage.output);
            sum.reasoning = sum.reasoning.saturating_add(usage.reasoning);
            let (low, high) = self.cost.entry(account).or_default();
            *low = low.saturating_add(row.cost.low);
            *high = high.saturating_add(row.cost.high);
        }
        if let Some(first) = row.first_ms {
            self.first.add(first);
        }
        self.total.add(row.total_ms);
    }
}

impl Books {
    pub(crate) fn new(ledger: Ledger, budgets: Budgets) -> Self {
        Self { ledger, budgets, totals: Arc::default() }
    }

    /// The sums since the start.
    pub(crate) fn totals(&self) -> Totals {
        self.totals.lock().clone()
    }

    fn keep(&self, row: Row) {
        self.totals.lock().add(&row);
        self.ledger.push(row);
    }

    /// Writes a trace's end down. One that was never admitted has no project and no budget.
    pub(crate) fn end(&self, trace: &mut Trace) {
        let open = trace.open.take();
        let (project, client, token) = open.as_ref().map_or((None, Client::Custom, None), |open| {
            (open.project.clone(), open.client, open.token.clone())
        });
        let mut row = Row {
            at_ms: trace.at_ms,
            id: trace.id.parts(),
            total_ms: trace.total_ms,
            first_ms: trace.first_byte_ms,
            status: trace.status,
            attempts: trace.tried,
            ended: Ended::of(trace.outcome),
            client,
            token,
            account: trace.account.clone(),
            project,
            model: trace.model.clone(),
            thread: trace.session.clone(),
            usage: trace.usage,
            cost: prices::Cost::default(),
        };
        if let Some(usage) = row.usage {
            row.cost = prices::table().cost(row.model.as_deref(), usage);
        }
        if let Some(open) = open {
            open.ended.store(true, Ordering::Relaxed);
            open.reservation.settle(row.was_sent().then(|| budgets::came_to(&row)));
        }
        self.keep(row);
    }
}

/// A request that was admitted and hasn't ended. When nobody ends it, its client went away before
/// there was anything to deliver.
#[derive(Debug)]
pub(crate) struct Open {
    books: Books,
    project: Option<Arc<str>>,
    client: Client,
    token: Option<Arc<str>>,
    reservation: Reservation,
    ended: AtomicBool,
    id: (u16, u64),
    at_ms: u64,
    started: Instant,
    model: Option<Arc<str>>,
    thread: Option<Arc<str>>,
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.ended.load(Ordering::Relaxed) {
            return;
        }
        self.books.keep(Row {
            at_ms: self.at_ms,
            id: self.id,
            total_ms: millis(&self.started),
            first_ms: None,
            status: 0,
            attempts: 0,
            ended: Ended::Abandoned,
            client: self.client,
            token: self.token.take(),
            account: None,
            project: self.project.take(),
            model: self.model.take(),
            thread: self.thread.take(),
            usage: None,
            cost: prices::Cost::default(),
        });
    }
}

/// Opens the books for a request: its project, its client, and its part of the budgets. What is opened
/// is closed by the trace's end, or by being dropped.
///
/// # Errors
/// The budget that keeps it out; [`refused`] ends its trace then.
pub(crate) fn open(proxy: &Proxy, trace: &mut Trace, launch: &Launch) -> Result<(), Blocked> {
    let books = &proxy.traces.books;
    let client = match (launch.pid, &launch.bearer) {
        (_, Some(_bearer)) => Client::Own,
        (0, None) => Client::Custom,
        (_, None) => Client::Cli,
    };
    let project = launch.bounds.books().cloned();
    let reserved = books.budgets.reserve(project.as_deref(), client, launch.token.as_deref());
    let (reservation, blocked) = match reserved {
        Ok(reservation) => (reservation, Ok(())),
        Err(blocked) => (Reservation::none(&books.budgets), Err(blocked)),
    };
    trace.open = Some(Arc::new(Open {
        books: books.clone(),
        project,
        client,
        token: launch.token.clone(),
        reservation,
        ended: AtomicBool::new(false),
        id: trace.id.parts(),
        at_ms: trace.at_ms,
        started: trace.started,
        model: trace.model.clone(),
        thread: trace.session.clone(),
    }));
    blocked
}

/// Opens the books for a request that is answered over HTTP, or answers it when a budget is used up.
pub(crate) fn admit(proxy: &Proxy, trace: &mut Trace, launch: &Launch) -> Option<Answer> {
    let blocked = open(proxy, trace, launch).err()?;
    Some(self::blocked(proxy, trace, &blocked))
}

/// Reserves with the account that was chosen.
///
/// # Errors
/// The account's budget that is used up: another account may serve.
pub(crate) fn with(trace: &Trace, account: &AccountId) -> Result<(), Blocked> {
    trace.open.as_ref().map_or(Ok(()), |open| open.reservation.with(account))
}

/// Closes the books of a request that its client sends again in another shape, without a row: the
/// next one is the request that counts, and what was tried for this one goes on with it. Returns
/// whether they were open.
pub(crate) fn again(trace: &mut Trace) -> bool {
    let Some(open) = trace.open.take_if(|open| !open.ended.load(Ordering::Relaxed)) else {
        return false;
    };
    open.ended.store(true, Ordering::Relaxed);
    true
}

/// The answer to a request that a budget keeps out; ends its trace.
pub(crate) fn blocked(proxy: &Proxy, trace: &mut Trace, blocked: &Blocked) -> Answer {
    respond::stop(ErrorCode::Exhausted, &refused(proxy, trace, blocked))
}

/// Ends the trace of a request that a budget keeps out; gives the line for its client.
pub(crate) fn refused(proxy: &Proxy, trace: &mut Trace, blocked: &Blocked) -> String {
    let line = budgets::line(blocked);
    trace.status = StatusCode::BAD_REQUEST.as_u16();
    trace.outcome = Ended::Blocked.word();
    trace.attempts.push(line.clone());
    proxy.traces.end(trace.clone());
    // The clone has ended it.
    trace.open = None;
    line
}
