//! The ledger: one row for each request, written after the fact.
//!
//! A request's end puts its row into a bounded queue and goes on; a thread of the ledger's own writes
//! what has gathered. When the queue is full the row is dropped and counted: no request ever waits
//! for the ledger. Rows say what a request was and cost, never a word of it, and hold no credential;
//! so they stay in clear (0600) in a sealed root, and are written while it is locked.

pub(crate) mod prices;
pub(crate) mod row;
mod segment;
pub(crate) mod table;
mod writer;

use crate::{clock, config::Caps, fault::Fault};
use cma_core::identity::AccountId;
use parking_lot::{Condvar, Mutex};
use row::Row;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use writer::Writer;

/// Rows that may wait: some seconds of the most that one machine serves, 15 MB at worst.
const QUEUE: usize = 65_536;
/// The writer's calls are few and flat.
const STACK: usize = 256 * 1024;
/// How long somebody who asks waits for what is queued to be written.
const FLUSH: Duration = Duration::from_secs(5);

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(crate) struct Ledger(Arc<Shared>);

/// What the ledger did since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Health {
    pub(crate) written: u64,
    /// Dropped because the queue was full.
    pub(crate) dropped: u64,
    /// Not written because the disk refused.
    pub(crate) lost: u64,
    /// The disk refused the last ones.
    pub(crate) failing: bool,
    /// Waiting now.
    pub(crate) queued: u64,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    keeps: bool,
    queue: Mutex<Queue>,
    /// The writer waits here for rows, those who flush for the writer.
    wake: Condvar,
    flushed: Condvar,
    written: AtomicU64,
    dropped: AtomicU64,
    lost: AtomicU64,
    failing: AtomicBool,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Queue {
    rows: Vec<Row>,
    /// How often a flush was asked for, and up to which of these all is written.
    asked: u64,
    done: u64,
    closed: bool,
}

impl Ledger {
    /// A ledger in a root's `usage/` folder. The folder is looked at beside the start, not in it.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn start(root: &Path, caps: Caps) -> Result<Self, Fault> {
        let shared = Arc::new(Shared::new(root, caps.days > 0));
        if shared.keeps {
            let (own, writer) = (Arc::clone(&shared), Writer::new(shared.folder.clone(), caps));
            let thread = std::thread::Builder::new()
                .name("ledger".to_owned())
                .stack_size(STACK)
                .spawn(move || writer::run(&own, writer))
                .map_err(|error| Fault::internal(format!("no thread for the ledger: {error}")))?;
            *shared.thread.lock() = Some(thread);
        }
        Ok(Self(shared))
    }

    /// Puts a row into the queue; it is dropped when that is full.
    pub(crate) fn push(&self, row: Row) {
        if !self.0.keeps {
            return;
        }
        let mut queue = self.0.queue.lock();
        if queue.rows.len() >= QUEUE || queue.closed {
            drop(queue);
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.rows.push(row);
        // A writer that gathers wakes by itself.
        let first = queue.rows.len() == 1;
        drop(queue);
        if first {
            self.0.wake.notify_one();
        }
    }

    /// Waits until what ended before is written. Blocks.
    pub(crate) fn flush(&self) {
        if !self.0.keeps {
            return;
        }
        let mut queue = self.0.queue.lock();
        queue.asked += 1;
        let mine = queue.asked;
        self.0.wake.notify_one();
        let late = |queue: &mut Queue| queue.done < mine && !queue.closed;
        self.0.flushed.wait_while_for(&mut queue, late, FLUSH);
    }

    /// Writes what is queued and ends. Blocks.
    pub(crate) fn close(&self) {
        self.0.queue.lock().closed = true;
        self.0.wake.notify_one();
        let thread = self.0.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the ledger's thread panicked");
        }
    }

    /// What it did since the start.
    pub(crate) fn health(&self) -> Health {
        Health {
            written: self.0.written.load(Ordering::Relaxed),
            dropped: self.0.dropped.load(Ordering::Relaxed),
            lost: self.0.lost.load(Ordering::Relaxed),
            failing: self.0.failing.load(Ordering::Relaxed),
            queued: self.0.queue.lock().rows.len() as u64,
        }
    }

    /// Sums of the rows that began in a time. Blocks on the disk.
    pub(crate) fn table(&self, asked: &table::Asked) -> Result<table::Table, Fault> {
        self.flush();
        table::table(&self.0.folder, asked)
    }

    /// The newest rows that began in a time, newest first. Blocks on the disk.
    pub(crate) fn rows(&self, since: u64, until: u64, most: usize) -> Result<Vec<Row>, Fault> {
        self.flush();
        table::rows(&self.0.folder, since, until, most)
    }

    /// What was spent since a moment, request by request. Blocks on the disk.
    pub(crate) fn spent(&self, since: u64, each: impl FnMut(&Row)) -> Result<(), Fault> {
        self.flush();
        table::each(&self.0.folder, (since, u64::MAX), each)
    }
}

impl Shared {
    fn new(root: &Path, keeps: bool) -> Self {
        Self {
            folder: root.join("usage"),
            keeps,
            queue: Mutex::default(),
            wake: Condvar::new(),
            flushed: Condvar::new(),
            written: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            thread: Mutex::new(None),
        }
    }

    /// Waits for rows; gives them with the flush that they satisfy, and whether it is over.
    fn next(&self) -> (Vec<Row>, u64, bool) {
        let mut queue = self.queue.lock();
        let idle =
            |queue: &mut Queue| queue.rows.is_empty() && queue.asked == queue.done && !queue.closed;
        self.wake.wait_while(&mut queue, idle);
        let gathering = |queue: &mut Queue| queue.asked == queue.done && !queue.closed;
        self.wake.wait_while_for(&mut queue, gathering, writer::GATHER);
        let rows = std::mem::take(&mut queue.rows);
        (rows, queue.asked, queue.closed)
    }

    fn done(&self, asked: u64) {
        self.queue.lock().done = asked;
        self.flushed.notify_all();
    }
}

/// Every row of a root's ledger that began since a moment, whoever writes to it. Blocks on the disk.
///
/// # Errors
/// Of the disk.
pub(crate) fn each(root: &Path, since: u64, each: impl FnMut(&Row)) -> Result<(), Fault> {
    table::each(&root.join("usage"), (since, u64::MAX), each)
}

/// Writes rows of made-up requests of the last day, for measurements. Nobody else may have the root.
///
/// # Errors
/// Of the disk.
pub(crate) fn fill(root: &Path, count: u64) -> Result<(), Fault> {
    let folder = root.join("usage");
    let mut writer = Writer::new(folder.clone(), Caps { days: 92, bytes: u64::MAX / 2 });
    writer.look().map_err(|error| Fault::file(&folder, "open", &error))?;
    // All within 23 hours before now.
    let begin = now_ms().saturating_sub(23 * 3_600_000);
    let mut lost = 0;
    for first in (0..count).step_by(FILLED) {
        let end = count.min(first + FILLED as u64);
        let made: Vec<Row> = (first..end)
            .map(|number| made_up(number, begin + 23 * 3_600_000 * number / count))
            .collect();
        lost += writer.write(&made);
    }
    if lost > 0 {
        return Err(Fault::new(
            cma_proto::error::ErrorCode::Store,
            format!("{lost} rows can't be written to `{}`", folder.display()),
            "free some disk space, then try again",
        ));
    }
    Ok(())
}

/// Rows written at once by [`fill`].
const FILLED: usize = 2_000;

fn made_up(number: u64, at_ms: u64) -> Row {
    let name = |what: &str, of: u64| Some(format!("{what}-{}", number % of).into());
    let usage =
        cma_core::usage::Usage { input: 20_000, cached: 18_000, output: 400, reasoning: 200 };
    Row {
        at_ms,
        id: (0, number),
        total_ms: 9_000,
        first_ms: Some(700),
        status: 200,
        attempts: 1,
        ended: row::Ended::Complete,
        client: row::Client::Cli,
        token: None,
        account: Some(AccountId::from_written(&format!("{:012x}", number % 8))),
        project: name("project", 40),
        model: name("gpt-5.5", 1),
        thread: name("01900000-0000-7000-8000", 3_000),
        usage: Some(usage),
        cost: prices::table().cost(Some("gpt-5.5"), usage),
    }
}

/// An account's name in a row.
fn account(id: Option<&Arc<str>>) -> Option<AccountId> {
    id.map(|id| AccountId::from_written(id))
}

/// Milliseconds since 1970, for whoever asks for "until now".
pub(crate) fn now_ms() -> u64 {
    clock::wall().millis()
}

#[cfg(test)]
mod tests;
