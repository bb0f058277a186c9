//! The thread that writes rows, and what bounds the folder it writes to.
//!
//! Rows are gathered for [`GATHER`] and written in one call. What was written survives a killed
//! daemon; what a loss of power takes is what the system hadn't put on its disk yet. A segment is
//! closed at its size or age, and the oldest ones go when they are too old or all of them too large.

use super::{
    Shared,
    row::Row,
    segment::{self, Segment},
};
use crate::{clock, config::Caps, dirs};
use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

/// How long rows wait for company: well below the 100 ms that a killed daemon may lose.
pub(super) const GATHER: Duration = Duration::from_millis(30);
/// Segments of this size are closed, or an eighth of the cap where that is less.
const SEGMENT: u64 = 8 * 1024 * 1024;
/// A segment that is older is closed, so that a whole one can go when its rows are too old.
const SEGMENT_AGE: u64 = 24 * 3600 * 1000;

/// The folder and the segment that is open.
#[derive(Debug)]
pub(super) struct Writer {
    folder: PathBuf,
    caps: Caps,
    open: Option<Segment>,
    /// When it was opened, in milliseconds since 1970.
    opened: u64,
    /// The number of the newest segment.
    newest: u64,
    /// Closed segments, oldest first, with their bytes.
    closed: Vec<(u64, u64)>,
    failing: bool,
}

impl Writer {
    pub(super) const fn new(folder: PathBuf, caps: Caps) -> Self {
        Self { folder, caps, open: None, opened: 0, newest: 0, closed: Vec::new(), failing: false }
    }

    /// Looks at what is there; the newest segment is gone on with.
    pub(super) fn look(&mut self) -> io::Result<()> {
        dirs::private_dir(&self.folder).map_err(|fault| io::Error::other(fault.to_string()))?;
        let numbers = segment::numbers(&self.folder)?;
        self.newest = numbers.last().copied().unwrap_or_default();
        for number in &numbers {
            let bytes = fs::metadata(segment::path(&self.folder, *number))?.len();
            self.closed.push((*number, bytes));
        }
        if let Some(number) = numbers.last()
            && let Some(segment) = Segment::resume(&self.folder, *number)?
        {
            self.closed.pop();
            self.open = Some(segment);
            self.opened = clock::wall().millis();
        }
        self.prune()
    }

    /// Writes rows; says how many are lost.
    pub(super) fn write(&mut self, rows: &[Row]) -> u64 {
        let (done, written) = match self.segment() {
            Ok(segment) => segment.append(rows),
            Err(error) => (0, Err(error)),
        };
        if let Err(error) = written {
            // Said once, not at every request.
            if !std::mem::replace(&mut self.failing, true) {
                tracing::warn!(%error, folder = %self.folder.display(), "usage can't be written down");
            }
            self.close();
        } else {
            self.failing = false;
        }
        (rows.len() - done) as u64
    }

    /// The segment to write to.
    fn segment(&mut self) -> io::Result<&mut Segment> {
        let now = clock::wall().millis();
        let limit = SEGMENT.min(self.caps.bytes / 8);
        let full = |segment: &Segment| {
            segment.bytes() >= limit || now.saturating_sub(self.opened) > SEGMENT_AGE
        };
        // Somebody may have cleared the folder.
        if self.open.as_ref().is_some_and(|segment| full(segment) || !segment.path().exists()) {
            self.close();
            self.prune()?;
        }
        let segment = match self.open.take() {
            Some(segment) => segment,
            None => {
                if !self.folder.is_dir() {
                    dirs::private_dir(&self.folder)
                        .map_err(|fault| io::Error::other(fault.to_string()))?;
                }
                let segment = Segment::create(&self.folder, self.newest + 1)?;
                self.newest += 1;
                self.opened = now;
                segment
            },
        };
        Ok(self.open.insert(segment))
    }

    fn close(&mut self) {
        if let Some(segment) = self.open.take() {
            self.closed.push((self.newest, segment.bytes()));
        }
    }

    /// Removes the oldest segments, while they are too old or all are too large.
    fn prune(&mut self) -> io::Result<()> {
        let limit = SEGMENT.min(self.caps.bytes / 8);
        let oldest = SystemTime::now().checked_sub(Duration::from_secs(self.caps.days * 86_400));
        let mut bytes: u64 = self.closed.iter().map(|(_number, bytes)| bytes).sum();
        let mut gone = 0;
        for (number, size) in &self.closed {
            let path = segment::path(&self.folder, *number);
            let aged = match fs::metadata(&path).and_then(|meta| meta.modified()) {
                Ok(changed) => oldest.is_some_and(|oldest| changed < oldest),
                Err(_not_there) => true,
            };
            // The one that is about to be filled counts as full.
            if !aged && bytes + limit <= self.caps.bytes {
                break;
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {},
            }
            bytes = bytes.saturating_sub(*size);
            gone += 1;
        }
        self.closed.drain(..gone);
        Ok(())
    }
}

/// Runs until the ledger is closed and all is written.
pub(super) fn run(shared: &Arc<Shared>, mut writer: Writer) {
    if let Err(error) = writer.look() {
        tracing::warn!(%error, "the usage ledger can't be looked at");
    }
    loop {
        let (rows, asked, closed) = shared.next();
        if !rows.is_empty() {
            let lost = writer.write(&rows);
            shared.written.fetch_add(rows.len() as u64 - lost, Ordering::Relaxed);
            shared.lost.fetch_add(lost, Ordering::Relaxed);
        }
        shared.done(asked);
        if closed {
            return;
        }
    }
}
