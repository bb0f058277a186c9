//! Adding rows up.
//!
//! One pass over the segments that can have rows of the time asked for, one after another through
//! one buffer. Names are translated to groups once a segment, so a row costs a few additions.

use super::{
    row::{Client, Ended, Kept, NOBODY, Row},
    segment,
};
use crate::fault::Fault;
use cma_core::usage::Usage;
use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

/// Groups of one table; what more there are is one group.
const MAX_GROUPS: usize = 10_000;
/// Slots of the kinds of clients; those of tokens come behind.
const KINDS: usize = 256;
/// How that one is called.
const OTHERS: &str = "(others)";
/// By how much a clock may have been set between a row and the time of its file.
const ROOM: Duration = Duration::from_secs(2 * 3600);

/// What rows are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Account,
    Project,
    Model,
    Thread,
    Outcome,
    Client,
    /// By the moments given with it.
    Day,
}

/// A table that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Requests that began at or after it, in milliseconds since 1970.
    pub(crate) since: u64,
    /// And before it.
    pub(crate) until: u64,
    pub(crate) by: By,
    /// Where days begin, in order.
    pub(crate) days: Vec<u64>,
}

/// Sums of some rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sums {
    /// By [`Ended`].
    pub(crate) ended: [u64; Ended::ALL.len()],
    pub(crate) input: u64,
    pub(crate) cached: u64,
    pub(crate) output: u64,
    pub(crate) reasoning: u64,
    /// Nanodollars.
    pub(crate) low: u64,
    pub(crate) high: u64,
    /// Requests whose stream told its tokens.
    pub(crate) told: u64,
    /// Of these, those of a model without a price.
    pub(crate) unpriced: u64,
    pub(crate) attempts: u64,
    pub(crate) total_ms: u64,
    /// Requests that had a first byte, and how long these waited for it in all.
    pub(crate) begun: u64,
    pub(crate) first_ms: u64,
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Table {
    /// By the group's name; a day's is its beginning.
    pub(crate) groups: Vec<(String, Sums)>,
    pub(crate) total: Sums,
    /// Blocks that the disk damaged.
    pub(crate) damaged: u32,
    /// When the oldest row that is kept began.
    pub(crate) oldest: Option<u64>,
}

impl Sums {
    /// Requests.
    pub(crate) fn requests(&self) -> u64 {
        self.ended.iter().sum()
    }

    fn add(&mut self, row: &Kept) {
        if let Some(count) = self.ended.get_mut(usize::from(row.ended)) {
            *count += 1;
        } else {
            self.ended[Ended::Failed as usize] += 1;
        }
        self.input += u64::from(row.input);
        self.cached += u64::from(row.cached);
        self.output += u64::from(row.output);
        self.reasoning += u64::from(row.reasoning);
        self.low = self.low.saturating_add(row.low);
        self.high = self.high.saturating_add(row.high);
        self.told += u64::from(row.told());
        self.unpriced += u64::from(row.told() && !row.priced());
        self.attempts += u64::from(row.attempts);
        self.total_ms += u64::from(row.total_ms);
        if let Some(first) = row.first_ms() {
            self.begun += 1;
            self.first_ms += u64::from(first);
        }
    }
}

/// Adds rows to a table.
struct Adder<'a> {
    asked: &'a Asked,
    names: HashMap<Arc<str>, usize>,
    table: Table,
    /// The group of each number; a name's number means something in one segment only.
    slots: Vec<usize>,
    nobody: Option<usize>,
}

/// No group yet.
const UNSET: usize = usize::MAX;

impl Adder<'_> {
    fn add(&mut self, row: &Kept, names: &[Option<Arc<str>>]) {
        let oldest = self.table.oldest.unwrap_or(u64::MAX);
        self.table.oldest = Some(oldest.min(row.at_ms));
        if row.at_ms < self.asked.since || row.at_ms >= self.asked.until {
            return;
        }
        let group = match self.asked.by {
            By::Account => self.of_name(row.names.account, names),
            By::Project => self.of_name(row.names.project, names),
            By::Model => self.of_name(row.names.model, names),
            By::Thread => self.of_name(row.names.thread, names),
            By::Outcome => {
                self.of_slot(row.ended.into(), || Ended::from_number(row.ended).word().to_owned())
            },
            By::Client if row.names.token != NOBODY => {
                let number = row.names.token as usize;
                self.of_slot(KINDS + number, || {
                    let name = names.get(number).and_then(|name| name.as_deref());
                    format!("token:{}", name.unwrap_or("?"))
                })
            },
            By::Client => self
                .of_slot(row.client.into(), || Client::from_number(row.client).word().to_owned()),
            By::Day => {
                let days = &self.asked.days;
                let slot = days.partition_point(|day| *day <= row.at_ms);
                let day = slot.checked_sub(1).and_then(|day| days.get(day)).copied();
                self.of_slot(slot, || day.unwrap_or_default().to_string())
            },
        };
        if let Some((_name, sums)) = self.table.groups.get_mut(group) {
            sums.add(row);
        }
        self.table.total.add(row);
    }

    fn of_name(&mut self, number: u32, names: &[Option<Arc<str>>]) -> usize {
        if number == NOBODY {
            return match self.nobody {
                Some(group) => group,
                None => {
                    let group = self.group("");
                    self.nobody = Some(group);
                    group
                },
            };
        }
        let name = || names.get(number as usize).and_then(|name| name.as_deref()).unwrap_or("?");
        if number as usize >= names.len() {
            return self.group(name());
        }
        self.of_slot(number as usize, || name().to_owned())
    }

    fn of_slot(&mut self, slot: usize, name: impl FnOnce() -> String) -> usize {
        match self.slots.get(slot) {
            Some(group) if *group != UNSET => return *group,
            Some(_) => {},
            None => self.slots.resize(slot + 1, UNSET),
        }
        let group = self.group(&name());
        if let Some(known) = self.slots.get_mut(slot) {
            *known = group;
        }
        group
    }

    fn group(&mut self, name: &str) -> usize {
        if let Some(group) = self.names.get(name) {
            return *group;
        }
        let name = if self.names.len() >= MAX_GROUPS { OTHERS } else { name };
        if let Some(group) = self.names.get(name) {
            return *group;
        }
        let group = self.table.groups.len();
        self.names.insert(name.into(), group);
        self.table.groups.push((name.to_owned(), Sums::default()));
        group
    }
}

/// Sums of the rows of a folder.
pub(super) fn table(folder: &Path, asked: &Asked) -> Result<Table, Fault> {
    let mut adder = Adder {
        asked,
        names: HashMap::new(),
        table: Table::default(),
        slots: Vec::new(),
        nobody: None,
    };
    let mut buffer = Vec::new();
    for path in segments(folder, asked.since)? {
        if load(&path, &mut buffer)? {
            adder.slots.clear();
            let read = segment::read(&buffer, |row, names| adder.add(row, names));
            adder.table.damaged += read.damaged;
        }
    }
    Ok(adder.table)
}

/// The newest rows of a time, newest first.
pub(super) fn rows(folder: &Path, since: u64, until: u64, most: usize) -> Result<Vec<Row>, Fault> {
    let mut kept: VecDeque<Row> = VecDeque::new();
    each(folder, (since, until), |row| {
        if kept.len() >= most {
            kept.pop_front();
        }
        kept.push_back(row.clone());
    })?;
    Ok(kept.into_iter().rev().collect())
}

/// Every row of a time, in the order in which they ended.
pub(super) fn each(
    folder: &Path,
    (since, until): (u64, u64),
    mut each: impl FnMut(&Row),
) -> Result<(), Fault> {
    let mut buffer = Vec::new();
    for path in segments(folder, since)? {
        if load(&path, &mut buffer)? {
            segment::read(&buffer, |kept, names| {
                if (since..until).contains(&kept.at_ms) {
                    each(&row(kept, names));
                }
            });
        }
    }
    Ok(())
}

fn row(kept: &Kept, names: &[Option<Arc<str>>]) -> Row {
    let name = |number: u32| names.get(number as usize).cloned().flatten();
    Row {
        at_ms: kept.at_ms,
        id: (kept.prefix, kept.number),
        total_ms: kept.total_ms.into(),
        first_ms: kept.first_ms().map(u64::from),
        status: kept.status,
        attempts: kept.attempts.into(),
        ended: Ended::from_number(kept.ended),
        client: Client::from_number(kept.client),
        token: name(kept.names.token),
        account: super::account(name(kept.names.account).as_ref()),
        project: name(kept.names.project),
        model: name(kept.names.model),
        thread: name(kept.names.thread),
        usage: kept.told().then(|| Usage {
            input: kept.input.into(),
            cached: kept.cached.into(),
            output: kept.output.into(),
            reasoning: kept.reasoning.into(),
        }),
        cost: super::prices::Cost { low: kept.low, high: kept.high, priced: kept.priced() },
    }
}

/// The segments that can have rows of a time, oldest first.
fn segments(folder: &Path, since: u64) -> Result<Vec<PathBuf>, Fault> {
    let numbers = match segment::numbers(folder) {
        Ok(numbers) => numbers,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Fault::file(folder, "read", &error)),
    };
    let newest = numbers.last().copied();
    // A segment that was last written before the time has no row of it.
    let since = UNIX_EPOCH + Duration::from_millis(since);
    let wanted = |number: &u64| {
        let changed = fs::metadata(segment::path(folder, *number)).and_then(|meta| meta.modified());
        Some(*number) == newest || changed.is_ok_and(|changed| changed + ROOM >= since)
    };
    let numbers = numbers.into_iter().filter(wanted);
    Ok(numbers.map(|number| segment::path(folder, number)).collect())
}

/// Reads a segment into the buffer; false when it is gone.
fn load(path: &Path, buffer: &mut Vec<u8>) -> Result<bool, Fault> {
    buffer.clear();
    let read = File::open(path).and_then(|mut file| file.read_to_end(buffer));
    match read {
        Ok(_bytes) => Ok(true),
        // Rotation took it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Fault::file(path, "read", &error)),
    }
}
