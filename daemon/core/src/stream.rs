//! The beginning of a stream of server-sent events, read until it shows something or fails.
//!
//! It decides whether what came so far may be thrown away, because no client would miss it, or says
//! what went wrong instead. It never changes a byte, and it says the same for every way of splitting
//! the same bytes. An event counts when it is whole (its empty line is there): clients drop one that
//! isn't, so a cut within the first visible event can still be hidden.
//!
//! It keeps the part of a line that has come and the text of a fault; whoever feeds it bounds both by
//! bounding what is held.

use crate::event::{Fault, Kind};

/// What the beginning turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// A part of the answer, or its proper end: it is shown from here on.
    Answer,
    /// A failure before anything of the answer.
    Fault(Fault),
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Beginning {
    /// The part of a line that has come.
    line: Vec<u8>,
    /// The kind of the event that is being read.
    kind: Option<Kind>,
    /// Its data, where it is read further.
    data: Vec<u8>,
    /// Whether anything came that belongs into such a stream.
    known: bool,
}

impl Beginning {
    /// Takes the next bytes in. After something was found the rest of them is not read.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Option<Found> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at_checked(end)?;
            bytes = rest.get(1..).unwrap_or_default();
            let found = if self.line.is_empty() {
                self.take(line)
            } else {
                self.line.extend_from_slice(line);
                let line = std::mem::take(&mut self.line);
                self.take(&line)
            };
            if found.is_some() {
                return found;
            }
        }
        self.line.extend_from_slice(bytes);
        None
    }

    /// Whether anything came that belongs into a stream of events: an event with a type, a comment,
    /// the part of an event that may yet become one.
    pub fn is_a_stream(&self) -> bool {
        self.known
            || self.kind.is_some_and(|kind| kind != Kind::Garbage)
            || self.line.starts_with(b"data:")
    }

    fn take(&mut self, line: &[u8]) -> Option<Found> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return self.dispatch();
        }
        self.known |= line.starts_with(b":");
        let data = line.strip_prefix(b"data:")?;
        let data = data.strip_prefix(b" ").unwrap_or(data);
        match self.kind {
            None => self.read(data),
            // An event in several lines: upstream doesn't, others may. What it is is looked at once
            // more when all of them are there, and not at each: there may be a hundred thousand.
            Some(Kind::Garbage | Kind::Failed | Kind::Error) => {
                self.data.push(b'\n');
                self.data.extend_from_slice(data);
            },
            Some(_known) => {},
        }
        None
    }

    fn read(&mut self, data: &[u8]) {
        let kind = Kind::of(data);
        self.kind = Some(kind);
        if kind.is_fault() || kind == Kind::Garbage {
            self.data = data.to_vec();
        }
    }

    fn dispatch(&mut self) -> Option<Found> {
        let (mut kind, data) = (self.kind.take()?, std::mem::take(&mut self.data));
        if kind == Kind::Garbage {
            kind = Kind::of(&data);
        }
        self.known |= kind != Kind::Garbage;
        if kind.is_fault() {
            return Some(Found::Fault(Fault::read(&data)));
        }
        (!kind.is_before_the_answer()).then_some(Found::Answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use proptest::prelude::*;

    const CREATED: &str =
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{}}\n\n";
    const LIMITS: &str = "data: {\"type\":\"codex.rate_limits\",\"rate_limits\":{}}\r\n\r\n";
    const DELTA: &str = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"hi\"}\n\n";
    const FAILED: &str = "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":\
                          {\"error\":{\"code\":\"slow_down\",\"message\":\"m\"}}}\n\n";

    fn read(text: &str) -> (Option<Found>, bool) {
        let mut beginning = Beginning::default();
        (beginning.feed(text.as_bytes()), beginning.is_a_stream())
    }

    #[test]
    fn the_preamble_is_held_and_the_answer_is_not() {
        let preamble = format!("{CREATED}: ping\n\n{LIMITS}data: [DONE]\n\n");
        assert_eq!(read(&preamble), (None, true));
        assert_eq!(read(&format!("{preamble}{DELTA}{FAILED}")).0, Some(Found::Answer));
        let done = "data: {\"type\":\"response.completed\"}\n\n";
        assert_eq!(read(&format!("{CREATED}{done}")).0, Some(Found::Answer));
        let early = "data: {\"type\":\"response.incomplete\"}\n\n";
        assert_eq!(read(&format!("{CREATED}{early}")).0, Some(Found::Answer));
    }

    #[test]
    fn a_failure_before_the_answer_is_found() {
        let Some(Found::Fault(fault)) = read(&format!("{CREATED}{FAILED}{DELTA}")).0 else {
            panic!("no fault")
        };
        assert_eq!(fault.code, "slow_down");
        let lines = "data: {\"type\":\"error\",\ndata: \"code\":\"server_error\"}\n\n";
        let Some(Found::Fault(fault)) = read(lines).0 else { panic!("no fault") };
        assert_eq!(fault.code, "server_error");
    }

    #[test]
    fn an_event_counts_when_it_is_whole() {
        let cut = DELTA.strip_suffix("\n").unwrap();
        assert_eq!(read(cut).0, None);
        let failed = FAILED.strip_suffix("\n").unwrap();
        assert_eq!(read(failed).0, None);
    }

    #[test]
    fn what_is_no_stream_is_told() {
        for text in ["<!DOCTYPE html>\n<html>\n\n", "{\"id\":1}", "data: {broken\n\n", ""] {
            assert_eq!(read(text), (None, false), "{text}");
        }
        assert_eq!(read(&format!("data: {{broken\n\n{DELTA}")), (Some(Found::Answer), true));
    }

    #[test]
    fn a_first_event_that_is_longer_than_any_hold_is_one() {
        let long = format!("data: {{\"item\":\"{}", "x".repeat(100_000));
        assert_eq!(read(&long), (None, true));
        assert_eq!(read(&format!("{long}\",\"type\":\"response.x\"}}\n")), (None, true));
        assert_eq!(read(&format!("{long}\"}}\n")), (None, false));
    }

    #[test]
    fn every_split_of_every_stream_of_the_corpus_says_the_same() {
        let found = |parts: &[&[u8]]| {
            let mut beginning = Beginning::default();
            let found = parts.iter().find_map(|part| beginning.feed(part));
            (found, beginning.is_a_stream())
        };
        for (name, bytes) in fixtures::streams() {
            let whole = found(&[&bytes]);
            let fails = name.starts_with("failed_") || name.starts_with("own_");
            assert_eq!(matches!(whole.0, Some(Found::Fault(_))), fails, "{name}: {whole:?}");
            assert!(whole.0.is_some() && whole.1, "{name}: {whole:?}");
            for (at, halves) in fixtures::halves(&bytes).enumerate() {
                assert_eq!(found(&halves), whole, "{name} at {at}");
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(found(&single), whole, "{name} byte by byte");
        }
    }

    proptest! {
        #[test]
        fn every_split_says_the_same(
            cuts in proptest::collection::vec(0..400_usize, 0..12),
            failed in any::<bool>(),
        ) {
            let end = if failed { FAILED } else { DELTA };
            let text = format!("{CREATED}{LIMITS}{end}");
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            cuts.push(text.len());
            let (mut beginning, mut from, mut found) = (Beginning::default(), 0, None);
            for cut in cuts {
                found = found.or_else(|| beginning.feed(&text.as_bytes()[from..cut]));
                from = cut;
            }
            prop_assert_eq!((found, beginning.is_a_stream()), read(&text));
        }
    }
}
