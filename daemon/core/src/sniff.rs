//! Reads along in a stream of server-sent events: usage, limits, how it ended.
//!
//! What the client gets never depends on it, and waits for little of it: only lines that can matter
//! are kept, up to a bound, and the last one is read when somebody asks; what was held of a stream's
//! beginning is read after it has left; a delta costs one search for its line end. The same events come
//! out for every way of splitting the same bytes. Pure.

use crate::{event::Fault, models, quota, skim::Skim, time::Wall, usage::Usage};
use bytes::Bytes;
use memchr::memmem::Finder;
use std::{
    borrow::Cow,
    sync::{Arc, LazyLock},
};

/// A line longer than this isn't kept: completed events carry the whole answer, megabytes at worst.
const MAX_LINE: usize = 4 * 1024 * 1024;
/// What an event's line begins with.
const DATA: &[u8] = b"data:";
/// How upstream begins one: what it is stands there, and needn't be searched for.
const FIRST: &[u8] = b"data: {\"type\"";
/// By this many bytes an event has told its type: upstream writes it first.
const TELLS_BY: usize = 96;

/// What a stream said.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Said {
    /// Tokens, from the final event.
    pub usage: Option<Usage>,
    /// Windows, from limit events.
    pub windows: Vec<quota::Window>,
    /// The final event.
    pub end: Option<End>,
    /// Whether events went by that could have been the final one: longer than any that is kept, or
    /// with their type not where upstream writes it.
    pub unclear: bool,
    /// The model that answered, from the final event.
    pub model: Option<Arc<str>>,
}

/// How a stream ended by its own word.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// With everything.
    Completed,
    /// Short of what was asked, by a limit of the request's.
    Incomplete,
    /// With what upstream said of it.
    Failed(Box<Fault>),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Sniffer {
    /// What came first and isn't read yet.
    waiting: Vec<Bytes>,
    line: Vec<u8>,
    skipping: bool,
    /// The last event that matters, not read yet.
    unread: Bytes,
    seen: Wall,
    said: Said,
}

impl Sniffer {
    /// One that read nothing; `seen` is when limits are taken to be told.
    pub fn new(seen: Wall) -> Self {
        Self {
            waiting: Vec::new(),
            line: Vec::new(),
            skipping: false,
            unread: Bytes::new(),
            seen,
            said: Said::default(),
        }
    }

    /// Takes in how the stream begins, to be read later. Before anything is fed.
    pub fn begins_with(&mut self, held: Vec<Bytes>) {
        self.waiting = held;
    }

    /// Takes the next bytes in.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.catch_up();
        self.take(bytes);
    }

    /// Takes in an event that came by itself, as over a WebSocket, to be read when somebody asks. It is
    /// in memory already, whatever its size: who reads messages bounds them.
    pub fn event(&mut self, data: Bytes) {
        let before = std::mem::replace(&mut self.unread, data);
        self.read(&before);
    }

    fn catch_up(&mut self) {
        for piece in std::mem::take(&mut self.waiting) {
            self.take(&piece);
        }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        loop {
            if self.line.is_empty() && !self.skipping {
                bytes = from_event(bytes);
            }
            let Some(end) = memchr::memchr(b'\n', bytes) else { break };
            let (line, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            if self.skipping {
                self.skipping = false;
            } else if self.line.is_empty() {
                match tells(line) {
                    Tells::End | Tells::Limits => self.keep(line.to_vec()),
                    Tells::Little => {},
                    Tells::Nothing => self.said.unclear = true,
                }
            } else {
                self.line.extend_from_slice(line);
                match tells(&self.line) {
                    Tells::End | Tells::Limits if self.line.len() <= MAX_LINE => {
                        let line = std::mem::take(&mut self.line);
                        self.keep(line);
                    },
                    Tells::Little => {},
                    Tells::End | Tells::Limits | Tells::Nothing => self.said.unclear = true,
                }
                self.line.clear();
            }
        }
        if self.skipping || bytes.is_empty() {
            return;
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() < TELLS_BY {
            return;
        }
        let told = tells(&self.line);
        let little = told == Tells::Little;
        if self.line.len() > MAX_LINE || little || told == Tells::Nothing {
            self.said.unclear |= !little;
            self.line.clear();
            self.skipping = true;
        }
    }

    /// Whether the event that ends a response went by, or one that could have been it.
    pub fn has_ended(&mut self) -> bool {
        if let [all] = &*self.waiting
            && ends(all)
        {
            return true;
        }
        self.catch_up();
        let last = std::mem::take(&mut self.unread);
        self.read(&last);
        self.said.end.is_some() || self.said.unclear
    }

    /// What the stream said.
    pub fn said(mut self) -> Said {
        self.catch_up();
        let last = std::mem::take(&mut self.unread);
        self.read(&last);
        self.said
    }

    fn keep(&mut self, line: Vec<u8>) {
        let line = Bytes::from(line);
        if line.starts_with(DATA) {
            self.event(line.slice(DATA.len()..));
        }
    }

    fn read(&mut self, data: &[u8]) {
        let Some(Event { kind: Some(kind), model, usage }) = Event::read(data) else { return };
        if let Some(model) = model.filter(|model| model.len() <= models::MAX_NAME) {
            self.said.model = Some(model.into());
        }
        match &*kind {
            "response.completed" => {
                self.said.usage = usage;
                self.said.end = Some(End::Completed);
            },
            "response.incomplete" => {
                self.said.usage = usage;
                self.said.end = Some(End::Incomplete);
            },
            "response.failed" | "error" => {
                self.said.end = Some(End::Failed(Box::new(Fault::read(data))));
            },
            "codex.rate_limits" => {
                let Ok(event) = serde_json::from_slice(data) else { return };
                self.said.windows.extend(quota::from_event(&event, self.seen));
                self.said.windows.truncate(64);
            },
            _ => {},
        }
    }
}

/// What is read of an event that may matter: a final event repeats the whole answer.
#[derive(Default)]
struct Event<'a> {
    kind: Option<Cow<'a, str>>,
    model: Option<Cow<'a, str>>,
    usage: Option<Usage>,
}

impl<'a> Event<'a> {
    fn read(data: &'a [u8]) -> Option<Self> {
        let (mut event, mut answered) = (Self::default(), false);
        Skim::whole(data, |skim, name| match name {
            b"type" => skim.text(&mut event.kind),
            b"response" if !std::mem::replace(&mut answered, true) => {
                skim.optional(|response, name| match name {
                    b"model" => response.text(&mut event.model),
                    b"usage" if event.usage.is_none() => {
                        event.usage = tokens(response)?;
                        Some(())
                    },
                    b"usage" => None,
                    _ => response.pass(),
                })
            },
            b"response" => None,
            _ => skim.pass(),
        })?;
        Some(event)
    }
}

/// What was used, or nothing where there is `null`.
fn tokens(skim: &mut Skim<'_>) -> Option<Option<Usage>> {
    if skim.null() {
        return Some(None);
    }
    let (mut input, mut cached, mut output, mut reasoning) = (None, None, None, None);
    skim.object(|usage, name| match name {
        b"input_tokens" => usage.count(&mut input),
        b"output_tokens" => usage.count(&mut output),
        b"input_tokens_details" => usage.optional(|details, name| match name {
            b"cached_tokens" => details.count(&mut cached),
            _ => details.pass(),
        }),
        b"output_tokens_details" => usage.optional(|details, name| match name {
            b"reasoning_tokens" => details.count(&mut reasoning),
            _ => details.pass(),
        }),
        _ => usage.pass(),
    })?;
    let [input, cached, output, reasoning] =
        [input, cached, output, reasoning].map(Option::unwrap_or_default);
    Some(Some(Usage { input, cached, output, reasoning }))
}

/// From the beginning of a line on: what is left from the first event on, or from the last line's beginning
/// where there is none. Most lines are no event, and say nothing.
fn from_event(bytes: &[u8]) -> &[u8] {
    static NEXT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\ndata:"));
    if bytes.starts_with(DATA) {
        return bytes;
    }
    let next = NEXT.find(bytes).or_else(|| memchr::memrchr(b'\n', bytes));
    next.and_then(|at| bytes.get(at + 1..)).unwrap_or(bytes)
}

/// What a line, or the beginning of one, tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tells {
    /// It is an event that ends a response.
    End,
    /// It is about limits.
    Limits,
    /// It is no event, or one of those that say nothing here.
    Little,
    /// It is an event of which the type isn't seen.
    Nothing,
}

/// Whether a line, or the beginning of one, is an event that says something. Deltas are many: this
/// is one search in a hundred bytes.
fn tells(line: &[u8]) -> Tells {
    static TYPE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"type\""));
    let head = line.get(..line.len().min(TELLS_BY)).unwrap_or_default();
    if !head.starts_with(DATA) {
        return Tells::Little;
    }
    let value = if let Some(value) = head.strip_prefix(FIRST) {
        value
    } else {
        let Some(at) = TYPE.find(head) else { return Tells::Nothing };
        head.get(at + 6..).unwrap_or_default()
    };
    let value = value.trim_ascii_start().strip_prefix(b":").unwrap_or_default().trim_ascii_start();
    // A part of the answer, as nearly all are.
    if value.starts_with(b"\"response.o") {
        return Tells::Little;
    }
    let ends: [&[u8]; 4] = [
        b"\"response.completed\"",
        b"\"response.incomplete\"",
        b"\"response.failed\"",
        b"\"error\"",
    ];
    if ends.iter().any(|kind| value.starts_with(kind)) {
        Tells::End
    } else if value.starts_with(b"\"codex.rate_limits\"") {
        Tells::Limits
    } else {
        Tells::Little
    }
}

/// Whether the last line of these bytes is plainly the event that ends a response; what it says is
/// not looked at.
fn ends(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii_end();
    let last = memchr::memrchr(b'\n', text).map_or(0, |at| at + 1);
    let line = text.get(last..).unwrap_or_default();
    bytes.ends_with(b"\n") && line.ends_with(b"}") && tells(line) == Tells::End
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use proptest::prelude::*;

    const STREAM: &str = concat!(
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}\n\n",
        "data: {\"type\":\"response.output_text.delta\",\"delta\":\"",
        "a long delta that says response.completed only after the first ninety-six bytes of the line\"}\n\n",
        "data: {\"type\":\"codex.rate_limits\",\"rate_limits\":{\"primary\":{\"used_percent\":7}}}\r\n\r\n",
        "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"model\":\"m-1\",\"usage\":",
        "{\"input_tokens\":10,\"input_tokens_details\":{\"cached_tokens\":4},\"output_tokens\":5,",
        "\"output_tokens_details\":{\"reasoning_tokens\":3},\"total_tokens\":15}}}\n\n",
    );

    fn said(parts: &[&[u8]]) -> Said {
        let mut sniffer = Sniffer::new(Wall::from_secs(1));
        for part in parts {
            sniffer.feed(part);
        }
        sniffer.said()
    }

    fn begun(bytes: &[u8]) -> Sniffer {
        let mut sniffer = Sniffer::new(Wall::from_secs(1));
        sniffer.begins_with(vec![Bytes::copy_from_slice(bytes)]);
        sniffer
    }

    #[test]
    fn what_was_held_says_the_same_later() {
        let all = STREAM.as_bytes();
        assert_eq!(begun(all).said(), said(&[all]));
        for at in 0..all.len() {
            let (first, rest) = all.split_at(at);
            let mut sniffer = begun(first);
            assert!(!sniffer.has_ended() || rest.iter().all(u8::is_ascii_whitespace), "at {at}");
            sniffer.feed(rest);
            assert!(sniffer.has_ended());
            assert_eq!(sniffer.said(), said(&[all]));
        }
        assert!(begun(all).has_ended());
        assert!(!begun(b"data: {\"type\":\"response.completed\"}").has_ended());
        assert!(!begun(b"data: {\"type\":\"response.created\"}\n\n").has_ended());
    }

    #[test]
    fn usage_limits_and_end_are_read() {
        let said = said(&[STREAM.as_bytes()]);
        assert_eq!(said.usage, Some(Usage { input: 10, cached: 4, output: 5, reasoning: 3 }));
        assert_eq!(said.model.as_deref(), Some("m-1"));
        assert_eq!((said.end, said.windows.len()), (Some(End::Completed), 1));
        assert!(!said.unclear);
    }

    #[test]
    fn an_event_by_itself_says_what_its_line_says() {
        let (mut alone, mut lines) =
            (Sniffer::new(Wall::from_secs(1)), Sniffer::new(Wall::from_secs(1)));
        for line in STREAM.lines().filter(|line| line.starts_with("data:")) {
            alone.event(Bytes::copy_from_slice(&line.as_bytes()[DATA.len()..]));
            lines.feed(line.as_bytes());
            lines.feed(b"\n");
        }
        let said = alone.said();
        assert_eq!(said, lines.said());
        assert_eq!((said.end, said.windows.len()), (Some(End::Completed), 1));
        // A final message repeats the whole answer, however long that was.
        let long = format!(
            "{{\"type\":\"response.completed\",\"response\":{{\"output\":\"{}\",\"usage\":{{\"input_tokens\":7}}}}}}",
            "x".repeat(MAX_LINE)
        );
        let mut alone = Sniffer::new(Wall::from_secs(1));
        alone.event(long.into());
        let said = alone.said();
        assert_eq!(said.end, Some(End::Completed));
        assert_eq!(said.usage.map(|usage| usage.input), Some(7));
    }

    #[test]
    fn what_could_have_been_the_end_is_not_taken_for_a_missing_one() {
        let late = format!("data: {{\"item\":\"{}\",\"type\":\"x\"}}\n\n", "x".repeat(200));
        assert!(said(&[late.as_bytes()]).unclear);
        assert!(said(&[&late.as_bytes()[..150], &late.as_bytes()[150..]]).unclear);
        let delta = "event: x\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n";
        assert!(!said(&[delta.as_bytes()]).unclear);
    }

    #[test]
    fn every_split_of_every_stream_of_the_corpus_says_the_same() {
        let mut windows = 0;
        for (name, bytes) in fixtures::streams() {
            let whole = said(&[&bytes]);
            let fails = ["failed_", "own_", "late_"].iter().any(|kind| name.starts_with(kind));
            assert_eq!(matches!(whole.end, Some(End::Failed(_))), fails, "{name}: {whole:?}");
            assert!(whole.end.is_some() && !whole.unclear, "{name}: {whole:?}");
            let completed = whole.end == Some(End::Completed);
            assert!(!completed || whole.usage.is_some(), "{name}: {whole:?}");
            windows += whole.windows.len();
            for (at, halves) in fixtures::halves(&bytes).enumerate() {
                assert_eq!(said(&halves), whole, "{name} at {at}");
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(said(&single), whole, "{name} byte by byte");
        }
        assert!(windows > 0, "some stream tells of limits");
    }

    #[test]
    fn the_end_of_every_stream_of_the_corpus_is_seen_alike_wherever_it_was_held() {
        for (name, bytes) in fixtures::streams() {
            let whole = said(&[&bytes]);
            // One that is asked after each byte, beside one for each way of holding the beginning.
            let mut fed = Sniffer::new(Wall::from_secs(1));
            for (at, [held, rest]) in fixtures::halves(&bytes).enumerate() {
                let mut sniffer = begun(held);
                assert_eq!(sniffer.has_ended(), fed.has_ended(), "{name} at {at}");
                sniffer.feed(rest);
                assert!(sniffer.has_ended(), "{name} at {at}");
                assert_eq!(sniffer.said(), whole, "{name} at {at}");
                fed.feed(&rest[..rest.len().min(1)]);
            }
            assert_eq!(fed.said(), whole, "{name} byte by byte");
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
            prop_assert_eq!(said(&parts), said(&[STREAM.as_bytes()]));
        }

        #[test]
        fn any_bytes_do_no_harm(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            drop(said(&parts));
        }
    }
}
