//! What in a Responses request belongs to the account that made it, and the request without it.
//!
//! Upstream seals the model's reasoning, and what a compaction leaves of a thread, for the workspace
//! that they were made in (`encrypted_content`), and refuses them everywhere else with a 400
//! `invalid_encrypted_content`; some answers lack the code and only have the words (reported for the
//! official CLI, openai/codex issues 8145, 13724 and 35334, where the mismatch is said to be one of
//! the organization). A response id is only known to the connection that it was made on, and a turn
//! state to the account that gave it (Codex CLI 0.169.0, observed).
//!
//! A tool's result and a message between agents may hold sealed parts as well, beside open ones (the CLI
//! 0.169.0 has such parts, `function_call_output` and `agent_message`); the latter's is an agent's task.
//!
//! An edit takes whole items out, or puts a word in a sealed part's place, and leaves every other byte as
//! it is. Reasoning and results can be left out: the thread's messages and tool calls stay. A task can't,
//! and a compaction stands for all that came before it, so it is
//! left out only when that is asked for by name.
//!
//! Pure: bytes in, bytes out; the same for a body over HTTP and for a frame of a WebSocket.

mod scan;

use scan::Member;
use serde_json::Value;
use std::{borrow::Cow, fmt, ops::Range};

/// The code of upstream's refusal.
const CODE: &str = "invalid_encrypted_content";
/// What the model thought.
const REASONING: &[u8] = b"reasoning";
/// What a compaction leaves; the two longer names are older.
const COMPACTIONS: [&[u8]; 3] = [b"compaction", b"context_compaction", b"compaction_summary"];

/// What may be sealed in part, and as what that counts: a tool's result can be done without like
/// reasoning; a message between agents holds the whole task, and is left out like a compaction, only by
/// name.
const IN_PARTS: [(&[u8], Kind); 2] = [(b"output", Kind::Reasoning), (b"content", Kind::Compaction)];
/// Where a sealed item has what is sealed; a sealed part's kind as well.
const SEALED: &[u8] = b"encrypted_content";
/// What stands in its place: the model is told that there was something.
const LEFT_OUT: &[u8] =
    br#"{"type":"input_text","text":"(left out: it was sealed for another account)"}"#;

/// Names a sealed item without holding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(pub u64);

impl Mark {
    /// FNV-1a: tells one item of a thread from another, nothing more.
    fn of(sealed: &[u8]) -> Self {
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Self(sealed.iter().fold(0xcbf2_9ce4_8422_2325, step))
    }
}

/// Which sealed items of a kind to leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Leave {
    /// None.
    #[default]
    None,
    /// The one with that mark and all before it; none when it isn't there.
    Upto(Mark),
    /// All.
    All,
}

/// What to leave out of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Without {
    /// Reasoning, and sealed parts of other items.
    pub reasoning: Leave,
    /// Compactions.
    pub compaction: Leave,
    /// `x-codex-turn-state` in `client_metadata`, where a WebSocket has it.
    pub turn_state: bool,
    /// `previous_response_id`. Only for a request that carries the whole thread.
    pub previous_response: bool,
}

impl Without {
    /// Whether nothing is left out.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// What was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Items of reasoning.
    pub reasoning: u32,
    /// Sealed parts of other items.
    pub parts: u32,
    /// Compactions.
    pub compactions: u32,
    /// The turn state.
    pub turn_state: bool,
    /// The id of the response before.
    pub previous_response: bool,
}

impl Dropped {
    /// Whether nothing was.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// What was sealed, compactions aside.
    pub const fn sealed(&self) -> u32 {
        self.reasoning + self.parts
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let some = |n: u32, what: &str| match n {
            0 => None,
            1 => Some(format!("1 {what}")),
            n => Some(format!("{n} {what}s")),
        };
        let parts = [
            self.turn_state.then(|| "turn state".to_owned()),
            self.previous_response.then(|| "previous response id".to_owned()),
            some(self.reasoning, "reasoning item"),
            some(self.parts, "sealed part"),
            some(self.compactions, "compaction item"),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        f.write_str(if parts.is_empty() { "nothing" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

/// A request without some of its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stripped {
    /// The request.
    pub json: Vec<u8>,
    /// What was left out.
    pub dropped: Dropped,
    /// The last item of reasoning, or in parts, that was left out.
    pub reasoning: Option<Mark>,
    /// The last compaction that was left out.
    pub compaction: Option<Mark>,
    /// Compactions that are still in it.
    pub compactions_left: u32,
}

/// The text is no request that could be edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request is not the JSON that is expected")]
pub struct Unreadable;

/// Whether an error says that upstream can't read something sealed. `error` is the answer's body, or
/// an event that holds the error.
pub fn is_foreign(error: &Value) -> bool {
    let nested = ["/error", "/response/error"].into_iter().find_map(|at| error.pointer(at));
    let error = nested.unwrap_or(error);
    let text = |name: &str| error.get(name).and_then(Value::as_str);
    if text("code") == Some(CODE) || text("type") == Some(CODE) {
        return true;
    }
    let said = text("message").or_else(|| text("detail")).unwrap_or_default();
    text("code").is_none()
        && said.starts_with("The encrypted content")
        && said.contains("could not be verified")
}

/// Takes parts out of a request.
///
/// # Errors
/// [`Unreadable`] when it isn't an object with an `input` array, or names a member twice.
pub fn strip(json: &[u8], without: &Without) -> Result<Stripped, Unreadable> {
    let start = scan::skip(json, 0);
    let top = scan::members(json, start).ok_or(Unreadable)?;
    let input = one(json, &top, b"input")?.ok_or(Unreadable)?;
    let items = scan::elements(json, input.value.start).ok_or(Unreadable)?;
    let kinds: Vec<Item> =
        items.iter().map(|item| Item::of(json, item)).collect::<Result<_, _>>()?;
    let mut dropped = Dropped::default();
    let reasoning = Left::new(without.reasoning, &kinds, Kind::Reasoning);
    let compaction = Left::new(without.compaction, &kinds, Kind::Compaction);
    let left = [&reasoning, &compaction];
    let mut out = Vec::with_capacity(items.len());
    let mut compactions_left = 0;
    for (at, (range, item)) in items.iter().zip(&kinds).enumerate() {
        match item.kind {
            kind if !item.parts.is_empty() && left.iter().any(|left| left.has(kind, at)) => {
                dropped.parts += u32::try_from(item.parts.len()).unwrap_or(u32::MAX);
                out.push(Cow::Owned(item.without_parts(json, range)));
            },
            Kind::Reasoning if reasoning.takes(at) => dropped.reasoning += 1,
            Kind::Compaction if compaction.takes(at) => dropped.compactions += 1,
            kind => {
                compactions_left += u32::from(kind == Kind::Compaction);
                out.push(Cow::Borrowed(json.get(range.clone()).unwrap_or_default()));
            },
        }
    }
    let mut cuts = Cuts::default();
    if dropped.sealed() + dropped.compactions > 0 {
        cuts.replace(input.value.clone(), joined(&out));
    }
    if without.previous_response && one(json, &top, b"previous_response_id")?.is_some() {
        dropped.previous_response = true;
        cuts.remove(json, start, &top, b"previous_response_id");
    }
    if without.turn_state
        && let Some(metadata) = one(json, &top, b"client_metadata")?
        && let Some(inner) = scan::members(json, metadata.value.start)
        && one(json, &inner, b"x-codex-turn-state")?.is_some()
    {
        dropped.turn_state = true;
        cuts.remove(json, metadata.value.start, &inner, b"x-codex-turn-state");
    }
    Ok(Stripped {
        json: cuts.apply(json),
        dropped,
        reasoning: reasoning.last(&kinds),
        compaction: compaction.last(&kinds),
        compactions_left,
    })
}

/// What an item of the input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Or a result that is sealed in parts.
    Reasoning,
    Compaction,
    /// Not sealed.
    Open,
}

#[derive(Debug)]
struct Item {
    kind: Kind,
    mark: Mark,
    /// Where its sealed parts stand, when it isn't sealed as a whole.
    parts: Vec<Range<usize>>,
}

impl Item {
    fn of(json: &[u8], range: &Range<usize>) -> Result<Self, Unreadable> {
        let open = Self { kind: Kind::Open, mark: Mark(0), parts: Vec::new() };
        // An input may hold plain strings.
        let Some(members) = scan::members(json, range.start) else { return Ok(open) };
        let sealed = one(json, &members, SEALED)?.and_then(|m| quoted(json, &m.value));
        let kind = one(json, &members, b"type")?.and_then(|member| quoted(json, &member.value));
        let (Some(sealed), Some(kind)) = (sealed, kind) else {
            return Ok(Self::in_parts(json, &members).unwrap_or(open));
        };
        let kind = match kind {
            kind if kind == REASONING => Kind::Reasoning,
            kind if COMPACTIONS.contains(&kind) => Kind::Compaction,
            _ => return Ok(open),
        };
        Ok(Self { kind, mark: Mark::of(sealed), parts: Vec::new() })
    }

    /// An item that is sealed in parts, if it is one.
    fn in_parts(json: &[u8], members: &[Member]) -> Option<Self> {
        let (mut parts, mut last) = (Vec::new(), None);
        for (name, kind) in IN_PARTS {
            let Ok(Some(list)) = one(json, members, name) else { continue };
            for part in scan::elements(json, list.value.start).unwrap_or_default() {
                let Some(inner) = scan::members(json, part.start) else { continue };
                let text =
                    |name| one(json, &inner, name).ok()?.and_then(|one| quoted(json, &one.value));
                if text(b"type") == Some(SEALED)
                    && let Some(sealed) = text(SEALED)
                {
                    last = Some((kind, Mark::of(sealed)));
                    parts.push(part);
                }
            }
        }
        let (kind, mark) = last?;
        Some(Self { kind, mark, parts })
    }

    /// It with a word in the place of each sealed part.
    fn without_parts(&self, json: &[u8], range: &Range<usize>) -> Vec<u8> {
        let mut cuts = Cuts::default();
        for part in &self.parts {
            let within =
                part.start.saturating_sub(range.start)..part.end.saturating_sub(range.start);
            cuts.replace(within, LEFT_OUT.to_vec());
        }
        cuts.apply(json.get(range.clone()).unwrap_or_default())
    }
}

/// Which items of one kind are left out: those up to a place.
#[derive(Debug)]
struct Left {
    kind: Kind,
    /// The last one's place.
    upto: Option<usize>,
}

impl Left {
    fn new(leave: Leave, items: &[Item], kind: Kind) -> Self {
        let upto = match leave {
            Leave::None => None,
            Leave::Upto(mark) => {
                items.iter().rposition(|item| item.kind == kind && item.mark == mark)
            },
            Leave::All => items.iter().rposition(|item| item.kind == kind),
        };
        Self { kind, upto }
    }

    fn takes(&self, at: usize) -> bool {
        self.upto.is_some_and(|upto| at <= upto)
    }

    fn has(&self, kind: Kind, at: usize) -> bool {
        self.kind == kind && self.takes(at)
    }

    fn last(&self, items: &[Item]) -> Option<Mark> {
        let item = items.get(self.upto?)?;
        (item.kind == self.kind).then_some(item.mark)
    }
}

/// The member of that name. A name that stands there twice means what its reader makes of it.
fn one<'a>(json: &[u8], all: &'a [Member], name: &[u8]) -> Result<Option<&'a Member>, Unreadable> {
    let mut found = all.iter().filter(|member| json.get(member.key.clone()) == Some(name));
    let first = found.next();
    if found.next().is_some() { Err(Unreadable) } else { Ok(first) }
}

/// What stands between a string's quotes.
fn quoted<'a>(json: &'a [u8], value: &Range<usize>) -> Option<&'a [u8]> {
    json.get(value.clone())?.strip_prefix(b"\"")?.strip_suffix(b"\"")
}

fn joined(items: &[Cow<'_, [u8]>]) -> Vec<u8> {
    let mut array = vec![b'['];
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            array.push(b',');
        }
        array.extend_from_slice(item);
    }
    array.push(b']');
    array
}

/// Places to be written anew. They never overlap: each is another member of one object.
#[derive(Debug, Default)]
struct Cuts(Vec<(Range<usize>, Vec<u8>)>);

impl Cuts {
    fn replace(&mut self, range: Range<usize>, by: Vec<u8>) {
        self.0.push((range, by));
    }

    /// Takes a member out of the object that begins at `start`, with one of the commas around it.
    fn remove(&mut self, json: &[u8], start: usize, members: &[Member], name: &[u8]) {
        let named = |member: &Member| json.get(member.key.clone()) == Some(name);
        let Some(at) = members.iter().position(named) else { return };
        let Some(member) = members.get(at) else { return };
        let before = at.checked_sub(1).and_then(|at| members.get(at));
        let range = match (before, members.get(at + 1)) {
            (Some(before), _) => before.value.end..member.value.end,
            // Up to the quote before the next one's name.
            (None, Some(next)) => start + 1..next.key.start.saturating_sub(1),
            (None, None) => start + 1..member.value.end,
        };
        self.replace(range, Vec::new());
    }

    fn apply(mut self, json: &[u8]) -> Vec<u8> {
        self.0.sort_by_key(|(range, _by)| range.start);
        let mut out = Vec::with_capacity(json.len());
        let mut at = 0;
        for (range, by) in &self.0 {
            out.extend_from_slice(json.get(at..range.start).unwrap_or_default());
            out.extend_from_slice(by);
            at = range.end;
        }
        out.extend_from_slice(json.get(at..).unwrap_or_default());
        out
    }
}

#[cfg(test)]
mod tests;
