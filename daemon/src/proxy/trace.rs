//! What happened to a request, in memory: counters, the last few hundred traces, and news of each
//! for whoever listens. Written after the fact, never on a request's way.

use super::{
    books::{Books, Open},
    moved,
};
use crate::actor::Made;
use crate::clock;
use cma_core::{identity::AccountId, usage::Usage};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};
use tokio::{sync::broadcast, time::Instant};

/// Traces kept for `why`.
const KEPT: usize = 512;
/// News a slow listener may be behind.
const NEWS: usize = 256;

/// Numbers since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) active: AtomicU32,
    pub(crate) connections: AtomicU32,
    pub(crate) served: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// Names a request: this start of the daemon, and the n-th request of it. Written only where it is
/// shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestId {
    start: u16,
    number: u64,
}

impl RequestId {
    /// The daemon's start and the number in it.
    pub(crate) const fn parts(self) -> (u16, u64) {
        (self.start, self.number)
    }

    /// The id of these parts.
    pub(crate) const fn of((start, number): (u16, u64)) -> Self {
        Self { start, number }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{:04x}-{}", self.start, self.number)
    }
}

/// One request from its head to its end.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    pub(crate) id: RequestId,
    pub(crate) at: u64,
    /// The same in milliseconds.
    pub(crate) at_ms: u64,
    pub(crate) started: Instant,
    pub(crate) session: Option<Arc<str>>,
    /// The thread, as the pool names it.
    pub(crate) thread: Option<Arc<str>>,
    pub(crate) model: Option<Arc<str>>,
    pub(crate) account: Option<AccountId>,
    /// How its account was chosen.
    pub(crate) choice: Option<Box<Made>>,
    pub(crate) attempts: Vec<String>,
    pub(crate) tried: u32,
    pub(crate) status: u16,
    pub(crate) outcome: &'static str,
    pub(crate) first_byte_ms: Option<u64>,
    pub(crate) total_ms: u64,
    pub(crate) usage: Option<Usage>,
    /// What has to be closed at the end.
    pub(crate) open: Option<Arc<Open>>,
}

impl Trace {
    /// Its end: all of it, but for the names that whoever had it still knows its request by.
    pub(crate) fn take(&mut self) -> Self {
        let (choice, open) = (self.choice.take(), self.open.take());
        let attempts = std::mem::take(&mut self.attempts);
        Self { choice, open, attempts, ..self.clone() }
    }
}

/// A trace as it is kept: in one piece with what else is kept. Five hundred small pieces would each
/// hold a page of what a burst of streams used.
#[derive(Debug)]
struct Kept {
    trace: Trace,
    choice: Option<Made>,
}

impl Kept {
    fn of(mut trace: Trace) -> Self {
        let choice = trace.choice.take().map(|made| *made);
        Self { trace, choice }
    }

    fn trace(&self) -> Trace {
        Trace { choice: self.choice.clone().map(Box::new), ..self.trace.clone() }
    }
}

/// News of a request, while it runs and at its end.
#[derive(Debug, Clone)]
pub(crate) enum News {
    Retry { request: RequestId, account: AccountId, reason: Arc<str> },
    Served(Arc<Trace>),
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Traces {
    pub(crate) counters: Counters,
    pub(crate) threads: moved::Known,
    pub(crate) books: Books,
    prefix: u16,
    next: AtomicU64,
    kept: Mutex<VecDeque<Kept>>,
    news: broadcast::Sender<News>,
}

impl Traces {
    pub(crate) fn new(prefix: u16, threads: moved::Known, books: Books) -> Self {
        let (news, _nobody_yet) = broadcast::channel(NEWS);
        Self {
            counters: Counters::default(),
            threads,
            books,
            prefix,
            next: AtomicU64::new(1),
            kept: Mutex::new(VecDeque::with_capacity(KEPT)),
            news,
        }
    }

    /// A new trace with an id of its own.
    pub(crate) fn begin(&self, session: Option<Arc<str>>, model: Option<Arc<str>>) -> Trace {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let at_ms = clock::wall().millis();
        Trace {
            id: RequestId { start: self.prefix, number },
            at: at_ms / 1000,
            at_ms,
            started: clock::mono(),
            session,
            thread: None,
            model,
            account: None,
            choice: None,
            attempts: Vec::new(),
            tried: 0,
            status: 0,
            outcome: "abandoned",
            first_byte_ms: None,
            total_ms: 0,
            usage: None,
            open: None,
        }
    }

    /// Keeps a finished trace and tells of it.
    pub(crate) fn end(&self, mut trace: Trace) {
        trace.total_ms = millis(&trace.started);
        moved::ended(&self.threads, &trace);
        self.books.end(&mut trace);
        let complete = trace.outcome == "complete";
        let counter = if complete { &self.counters.served } else { &self.counters.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(
            request = %trace.id,
            session = trace.session.as_deref(),
            account = trace.account.as_ref().map(AccountId::as_str),
            status = trace.status,
            outcome = trace.outcome,
            attempts = trace.tried,
            total_ms = trace.total_ms,
            "served"
        );
        if self.news.receiver_count() > 0 {
            let _nobody_listens = self.news.send(News::Served(Arc::new(trace.clone())));
        }
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(Kept::of(trace));
    }

    /// Counts a retry and tells of it.
    pub(crate) fn retry(&self, trace: &mut Trace, account: &AccountId, reason: &str) {
        self.counters.retried.fetch_add(1, Ordering::Relaxed);
        tracing::info!(request = %trace.id, account = %account, reason, "attempt failed");
        trace.attempts.push(format!("{account}: {reason}"));
        if self.news.receiver_count() > 0 {
            let _nobody_listens = self.news.send(News::Retry {
                request: trace.id,
                account: account.clone(),
                reason: reason.into(),
            });
        }
    }

    /// A kept trace; the newest for an empty id.
    pub(crate) fn find(&self, id: &str) -> Option<Trace> {
        let kept = self.kept.lock();
        if id.is_empty() || id == "last" {
            return kept.back().map(Kept::trace);
        }
        kept.iter().rev().find(|kept| kept.trace.id.to_string() == id).map(Kept::trace)
    }

    /// News from now on.
    pub(crate) fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }
}

/// Milliseconds since then.
pub(crate) fn millis(since: &Instant) -> u64 {
    u64::try_from(clock::since(*since).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{budgets::Budgets, config::Caps, ledger::Ledger, store::Store};
    use cma_core::select::{Bar, Choice, Excluded, Key};
    use cma_proto::endpoint::Root;
    use std::time::Duration;

    /// What of a trace can be long, in bytes.
    fn bytes(trace: &Trace) -> usize {
        let text = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
        let attempts: usize = trace.attempts.iter().map(String::capacity).sum();
        let out = trace.choice.as_ref().map_or(0, |made| size_of_val(&*made.choice.out));
        size_of::<Trace>() + text(&trace.session) + text(&trace.thread) + attempts + out
    }

    /// Ten million requests in a release build (`cargo test --release -p cmad any_number`).
    #[test]
    fn any_number_of_requests_leaves_a_few_traces() {
        let count: u64 = if cfg!(debug_assertions) { 50_000 } else { 10_000_000 };
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let ledger = Ledger::start(dir.path(), Caps { days: 0, bytes: 0 }).unwrap();
        let budgets = Budgets::load(dir.path(), Store::new(&root), ledger.clone()).unwrap();
        let traces = Traces::new(1, Arc::default(), Books::new(ledger, budgets));
        // The longest that a client and upstream can make of it.
        let long: Arc<str> = "x".repeat(256).into();
        let id = AccountId::from_written("0123456789ab");
        let out = Excluded { bar: Bar::Full, until: None, quota: true };
        let key = Key {
            held: 2,
            away: 0,
            pin: 1,
            affinity: 2,
            token: 0,
            shaky: 0,
            taste: 1,
            reserve: 0,
            ranks: [0; 3],
            order: 0,
            strategy: cma_core::strategy::Strategy::Balanced,
        };
        let choice = Choice {
            key,
            second: None,
            able: 1,
            out: vec![(id.clone(), out); 32].into(),
            warm: None,
            forced: false,
        };
        let mut most = 0;
        for number in 1..=count {
            let mut trace = traces.begin(Some(Arc::clone(&long)), Some(Arc::clone(&long)));
            trace.choice = Some(Box::new(Made { choice: choice.clone(), took: Duration::ZERO }));
            trace.attempts = vec![format!("{id}: {}", &long[..128]); 8];
            traces.end(trace);
            if number.is_multiple_of(1 + count / 100) {
                let kept = traces.kept.lock();
                most = most.max(kept.iter().map(|kept| bytes(&kept.trace())).sum::<usize>());
                assert!(kept.len() <= KEPT);
            }
        }
        println!("{count} requests, at most {most} bytes of traces");
        assert!(most > 0 && most < 4 << 20, "{most}");
        assert!(traces.find(&format!("r0001-{count}")).is_some());
        assert!(traces.find("r0001-1").is_none());
    }
}
