//! `logs`: the daemon's log file, read by this program itself, so that it works while the daemon
//! is down, which is when it is needed.
//!
//! Following survives rotation (another file under the name) and truncation. A line is shown when
//! it is whole; one that is no JSON is shown as it is.

use super::{Context, end_on_interrupt};
use crate::{
    error::{self, Failure},
    render::{SCHEMA, Screen, Tone, clean, time::Clock},
};
use serde_json::{Map, Value};
use std::{
    fs::{File, Metadata},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

/// How often a followed file is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How much is read at once, forwards and backwards.
const BLOCK: u64 = 64 * 1024;

pub(super) fn logs(
    context: &Context,
    lines: usize,
    follow: bool,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let path = context.root.log_file();
    let failed = |error: io::Error| error::file(&path, &error, "run `cmactl daemon start`");
    let clock = Clock::local();
    if follow {
        end_on_interrupt();
    }
    let mut tail = match Tail::open(&path, lines) {
        Ok(tail) => Some(tail),
        Err(error) if follow && error.kind() == io::ErrorKind::NotFound => {
            screen.notes(&[format!("`{}` is not there yet", path.display())])?;
            None
        },
        Err(error) => return Err(failed(error).into()),
    };
    loop {
        if let Some(tail) = &mut tail {
            // What is written from here on is for who follows.
            let end = if follow { u64::MAX } else { tail.end };
            while let Some(lines) = tail.read(end).map_err(failed)? {
                lines.iter().try_for_each(|line| shown(line, screen, &clock))?;
            }
            if !follow {
                tail.rest().iter().try_for_each(|line| shown(line, screen, &clock))?;
                return Ok(ExitCode::SUCCESS);
            }
            tail.turn().map_err(failed)?;
        } else {
            tail = Tail::open(&path, usize::MAX).ok();
        }
        thread::sleep(LOOK);
    }
}

fn shown(line: &str, screen: &mut Screen, clock: &Clock) -> Result<(), Failure> {
    if screen.json() { screen.raw(&json(line)) } else { screen.text(&human(line, clock)) }
}

/// A file that is read from near its end and may go on growing.
struct Tail {
    path: PathBuf,
    file: File,
    position: u64,
    /// The file's length when it was opened, which the last lines are counted from.
    end: u64,
    /// The beginning of a line whose end is not written yet.
    pending: Vec<u8>,
}

impl Tail {
    fn open(path: &Path, lines: usize) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        let position = start_of_last(&mut file, end, lines)?;
        file.seek(SeekFrom::Start(position))?;
        Ok(Self { path: path.to_owned(), file, position, end, pending: Vec::new() })
    }

    /// The next whole lines before `end`; none at the end of what is written.
    fn read(&mut self, end: u64) -> io::Result<Option<Vec<String>>> {
        let left = end.saturating_sub(self.position).min(BLOCK);
        let read = (&mut self.file).take(left).read_to_end(&mut self.pending)?;
        if read == 0 {
            return Ok(None);
        }
        self.position += read as u64;
        let whole = self.pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let rest = self.pending.split_off(whole);
        let whole = std::mem::replace(&mut self.pending, rest);
        Ok(Some(String::from_utf8_lossy(&whole).lines().map(ToOwned::to_owned).collect()))
    }

    /// A last line that never got its end.
    fn rest(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }

    /// Goes over to the new file after a rotation, and to the beginning after a truncation.
    fn turn(&mut self) -> io::Result<()> {
        let there = match self.path.metadata() {
            Ok(there) => there,
            // Between two files: the next look finds it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let here = self.file.metadata()?;
        if !same_file(&there, &here) {
            // What was written to the old one after the last read would be lost otherwise.
            if here.len() <= self.position {
                *self = Self::open(&self.path, usize::MAX)?;
            }
        } else if here.len() < self.position {
            self.file.seek(SeekFrom::Start(0))?;
            self.position = 0;
            self.pending.clear();
        }
        Ok(())
    }
}

#[cfg(unix)]
fn same_file(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn same_file(a: &Metadata, b: &Metadata) -> bool {
    a.created().ok() == b.created().ok()
}

/// Where the last `lines` lines begin.
fn start_of_last(file: &mut File, end: u64, lines: usize) -> io::Result<u64> {
    match lines {
        0 => return Ok(end),
        usize::MAX => return Ok(0),
        _ => {},
    }
    let (mut from, mut left, mut block) = (end, lines, Vec::new());
    while from > 0 {
        let size = BLOCK.min(from);
        from -= size;
        block.clear();
        file.seek(SeekFrom::Start(from))?;
        file.take(size).read_to_end(&mut block)?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = from + index as u64 + 1;
            // The newline that ends the file opens no line.
            if after == end {
                continue;
            }
            left = left.saturating_sub(1);
            if left == 0 {
                return Ok(after);
            }
        }
    }
    Ok(0)
}

/// The line with its schema number, otherwise untouched.
fn json(line: &str) -> String {
    match serde_json::from_str::<Map<String, Value>>(line) {
        Ok(object) if object.is_empty() => format!("{{\"schema\":{SCHEMA}}}\n"),
        Ok(_object) => {
            let fields = line.trim().strip_prefix('{').unwrap_or_default();
            format!("{{\"schema\":{SCHEMA},{fields}\n")
        },
        Err(_no_json) => {
            let unreadable = Value::from(line);
            format!("{{\"schema\":{SCHEMA},\"unreadable\":{unreadable}}}\n")
        },
    }
}

/// `2026-02-13 14:03:27.123 INFO  cmad::proxy: message key=value`
fn human(line: &str, clock: &Clock) -> String {
    let Ok(mut object) = serde_json::from_str::<Map<String, Value>>(line) else {
        return format!("{}\n", clean(line));
    };
    let mut take = |name: &str| object.remove(name).map(|value| word(&value)).unwrap_or_default();
    let (at, level, target) = (take("timestamp"), take("level"), take("target"));
    let mut fields = match object.remove("fields") {
        Some(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let message = fields.remove("message").map(|value| word(&value)).unwrap_or_default();
    if let Some(Value::Object(mut span)) = object.remove("span") {
        span.remove("name");
        fields.extend(span);
    }
    object.remove("spans");
    fields.extend(object);
    let tone = match level.as_str() {
        "ERROR" => Tone::Bad,
        "WARN" => Tone::Warn,
        "INFO" => Tone::Good,
        _ => Tone::Dim,
    };
    let fields: String =
        fields.iter().map(|(name, value)| format!(" {}={}", clean(name), word(value))).collect();
    let led = [
        (!at.is_empty()).then(|| Tone::Dim.paint(clock.date_time(&at))),
        (!level.is_empty()).then(|| tone.paint(format!("{level:<5}"))),
        (!target.is_empty()).then(|| Tone::Dim.paint(format!("{target}:"))),
        Some(message + &Tone::Dim.paint(fields)),
    ];
    let led: Vec<String> = led.into_iter().flatten().collect();
    led.join(" ") + "\n"
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => clean(text),
        other => clean(&other.to_string()),
    }
}

#[cfg(test)]
mod tests;
