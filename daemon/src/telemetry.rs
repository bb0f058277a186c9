//! The structured log: JSON lines in the root's `log/`, off the event loop, without a secret.
//!
//! No code logs a credential; types that hold one have no `Debug` that shows it. The writer is the
//! second lock on that door: whatever looks like a token in a finished line is masked.

use crate::fault::Fault;
use cma_proto::endpoint::Root;
use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};
use tracing::{Level, level_filters::LevelFilter};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{filter::Targets, fmt::MakeWriter, layer::SubscriberExt as _};

/// At a start, a log larger than this makes way; one older log is kept.
const ROTATE_AT: u64 = 10 * 1024 * 1024;
/// Lines waiting for the disk; more are dropped and counted, a request never waits for the log.
const WAITING: usize = 4096;
/// They tell of single frames and headers.
const LIBRARIES: [&str; 5] = ["h2", "hyper", "hyper_util", "reqwest", "rustls"];
/// What begins a token.
const TOKENS: [&[u8]; 4] = [b"eyJ", b"at-cma-", b"Bearer ", b"rt-"];

/// Starts logging. What is logged after the guard's drop is lost.
///
/// # Errors
/// [`cma_proto::error::ErrorCode::Store`] when the log can't be opened.
pub(crate) fn start(root: &Root, level: Level) -> Result<WorkerGuard, Fault> {
    let path = root.log_file();
    let file = open(&path).map_err(|error| Fault::file(&path, "open", &error))?;
    let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(WAITING).finish(file);
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(Masked(writer))
        .with_max_level(LevelFilter::from_level(level))
        .finish()
        // What libraries say of each frame is not for our log, whatever level is wanted of us.
        .with(Targets::new().with_default(level).with_targets(
            LIBRARIES.map(|name| (name, LevelFilter::from_level(level).min(LevelFilter::INFO))),
        ));
    // Only tests in one process could start it twice; the first one stays.
    drop(tracing::subscriber::set_global_default(subscriber));
    std::panic::set_hook(Box::new(|info| {
        // The payload may hold anything; the place says enough.
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panic");
    }));
    Ok(guard)
}

fn open(path: &Path) -> io::Result<File> {
    if std::fs::metadata(path).is_ok_and(|meta| meta.len() > ROTATE_AT) {
        std::fs::rename(path, path.with_extension("old.jsonl"))?;
    }
    let mut options = File::options();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Masks tokens in finished lines.
struct Masked(NonBlocking);

struct MaskedLine<'a>(&'a NonBlocking);

impl<'a> MakeWriter<'a> for Masked {
    type Writer = MaskedLine<'a>;

    fn make_writer(&'a self) -> MaskedLine<'a> {
        MaskedLine(&self.0)
    }
}

impl Write for MaskedLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut writer = self.0.clone();
        match mask(line) {
            Some(masked) => writer.write_all(&masked)?,
            None => writer.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line without what looks like a token; `None` when there is nothing to mask.
fn mask(line: &[u8]) -> Option<Vec<u8>> {
    let mut masked: Option<Vec<u8>> = None;
    for token in TOKENS {
        let mut from = 0;
        loop {
            let text = masked.as_deref().unwrap_or(line);
            let Some(at) = memchr::memmem::find(text.get(from..).unwrap_or_default(), token) else {
                break;
            };
            let start = from + at + token.len();
            let end = text
                .iter()
                .skip(start)
                .position(|byte| !byte.is_ascii_alphanumeric() && !b"-_.~+/=".contains(byte))
                .map_or(text.len(), |length| start + length);
            if end - start >= 8 {
                let mut line = text.to_vec();
                line.splice(start..end, *b"[masked]");
                masked = Some(line);
            }
            from = start;
        }
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_masked_wherever_they_stand() {
        let masked =
            |line: &str| mask(line.as_bytes()).map(|line| String::from_utf8(line).unwrap());
        assert_eq!(masked("{\"a\":\"plain\"}"), None);
        let line =
            masked("x eyJhbGciOiJub25lIn0.e30.c2ln y at-cma-AAAAAAAAAA.BB z Bearer abcdefghij")
                .unwrap();
        assert_eq!(line, "x eyJ[masked] y at-cma-[masked] z Bearer [masked]");
        assert_eq!(masked("start-up eyJ rt-1"), None);
    }
}
