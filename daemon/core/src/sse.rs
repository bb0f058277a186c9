//! Server-sent events out of bytes that come in pieces: one text for each event.
//!
//! The same bytes give the same texts for every way of splitting them. An event is bounded; comments,
//! names and the closing `[DONE]` are left out. Pure.

use std::collections::VecDeque;

/// See the module's documentation.
#[derive(Debug)]
pub struct Events {
    /// The line that isn't whole yet.
    line: Vec<u8>,
    /// The event that isn't whole yet.
    data: Vec<u8>,
    /// Events that nobody took yet.
    ready: VecDeque<Result<String, &'static str>>,
    /// Bytes that one event may have.
    max: usize,
    /// The rest of the line is of an event that was too large.
    skipping: bool,
}

impl Events {
    /// None so far; an event has at most `max` bytes.
    pub const fn new(max: usize) -> Self {
        Self { line: Vec::new(), data: Vec::new(), ready: VecDeque::new(), max, skipping: false }
    }

    /// The next event that is whole.
    ///
    /// # Errors
    /// In words, in the place of one that is too large or no text.
    pub fn next_event(&mut self) -> Option<Result<String, &'static str>> {
        self.ready.pop_front()
    }

    /// Takes the next bytes in.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (rest, after) = bytes.split_at(end);
            bytes = after.get(1..).unwrap_or_default();
            if std::mem::take(&mut self.skipping) || self.is_too_large(rest.len()) {
                continue;
            }
            if self.line.is_empty() {
                self.read(rest);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(rest);
                self.read(&line);
            }
        }
        if !self.skipping {
            self.skipping = self.is_too_large(bytes.len());
            if !self.skipping {
                self.line.extend_from_slice(bytes);
            }
        }
    }

    /// Whether so many more bytes of a line are too many; the event is let go then.
    fn is_too_large(&mut self, more: usize) -> bool {
        let too_large = self.line.len() + self.data.len() + more > self.max;
        if too_large {
            (self.line, self.data) = (Vec::new(), Vec::new());
            self.ready.push_back(Err("an event was too large"));
        }
        too_large
    }

    fn read(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(data) = line.strip_prefix(b"data:") {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
        } else if line.is_empty() && !self.data.is_empty() {
            let data = std::mem::take(&mut self.data);
            if data != b"[DONE]" {
                let text = String::from_utf8(data);
                self.ready.push_back(text.map_err(|_not_text| "an event is not text"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use proptest::prelude::*;

    const MAX_EVENT: usize = 1024;

    const STREAM: &str = concat!(
        ": a comment\n\nevent: response.created\ndata: {\"type\":\"response.created\"}\n\n",
        "data:{\"delta\":\"ö\"}\r\n\r\nid: 7\ndata: {\ndata: }\n\n",
        "data: [DONE]\n\ndata: never ended",
    );

    fn events(parts: &[&[u8]]) -> Vec<Result<String, &'static str>> {
        events_within(MAX_EVENT, parts)
    }

    fn events_within(max: usize, parts: &[&[u8]]) -> Vec<Result<String, &'static str>> {
        let mut events = Events::new(max);
        let mut all = Vec::new();
        for part in parts {
            events.feed(part);
            while let Some(event) = events.next_event() {
                all.push(event);
            }
        }
        all
    }

    #[test]
    fn events_are_told_apart() {
        let wanted = ["{\"type\":\"response.created\"}", "{\"delta\":\"ö\"}", "{\n}"];
        let wanted: Vec<_> = wanted.into_iter().map(|text| Ok(text.to_owned())).collect();
        assert_eq!(events(&[STREAM.as_bytes()]), wanted);
        assert_eq!(events(&[b"data: \xff\n\n"]), [Err("an event is not text")]);
    }

    #[test]
    fn an_event_without_an_end_is_not_kept_for_ever() {
        let part = vec![b'x'; MAX_EVENT / 2];
        let parts = [b"data: ".as_slice(), &part, &part, &part];
        assert_eq!(events(&parts), [Err("an event was too large")]);
    }

    #[test]
    fn every_split_of_every_stream_of_the_corpus_says_the_same() {
        for (name, bytes) in fixtures::streams() {
            let lines = bytes.split(|byte| *byte == b'\n');
            let told = lines.filter(|line| line.starts_with(b"data:")).count();
            // Within the second bound some of them are too large, which is told in their place.
            for max in [MAX_EVENT, 128] {
                let whole = events_within(max, &[&bytes]);
                assert!(told > 0 && whole.len() == told, "{name}: {whole:?}");
                assert!(max < MAX_EVENT || whole.iter().all(Result::is_ok), "{name}: {whole:?}");
                for (at, halves) in fixtures::halves(&bytes).enumerate() {
                    assert_eq!(events_within(max, &halves), whole, "{name} at {at} within {max}");
                }
                let single: Vec<&[u8]> = bytes.chunks(1).collect();
                assert_eq!(events_within(max, &single), whole, "{name} byte by byte within {max}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_split_says_the_same(cuts in proptest::collection::vec(0..STREAM.len(), 0..12)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let (mut parts, mut from) = (Vec::new(), 0);
            for cut in cuts.into_iter().chain([STREAM.len()]) {
                parts.push(&STREAM.as_bytes()[from..cut]);
                from = cut;
            }
            prop_assert_eq!(events(&parts), events(&[STREAM.as_bytes()]));
        }

        #[test]
        fn any_bytes_do_no_harm(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            drop(events(&parts));
        }
    }
}
