//! One request as the ledger keeps it, and the bytes it is kept in.
//!
//! All rows have one length. Names (account, project, model, thread) are numbers into the segment's
//! own table of strings, so that a million rows are a million additions and no text is compared.

use super::prices::Cost;
use cma_core::identity::AccountId;
use cma_core::usage::Usage;
use std::sync::Arc;

/// Bytes of a row.
pub(super) const ROW: usize = 84;
/// The number that stands for no name.
pub(super) const NOBODY: u32 = u32::MAX;
/// Names of a row.
pub(super) const NAMES: usize = 5;
/// A time to the first byte that nobody saw.
const NEVER: u32 = u32::MAX;
/// The stream told its tokens.
const TOLD: u8 = 1;
/// The model's own price was known.
const PRICED: u8 = 2;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $word:ident = $number:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub(crate) enum $name { $($(#[$of])* $word = $number,)* }

        impl $name {
            /// All of them.
            pub(crate) const ALL: [Self; [$($number),*].len()] = [$(Self::$word),*];

            /// As it is shown.
            pub(crate) const fn word(self) -> &'static str {
                match self { $(Self::$word => $text),* }
            }

            /// From its number in a row; a number of a newer version is the first one's.
            pub(crate) fn from_number(number: u8) -> Self {
                Self::ALL.into_iter().find(|one| *one as u8 == number).unwrap_or(Self::ALL[0])
            }
        }
    };
}

words! {
    /// How a request ended.
    Ended {
        /// By an error, ours or upstream's.
        Failed = 0, "failed";
        /// With a whole answer.
        Complete = 1, "complete";
        /// In the middle of its answer.
        Cut = 2, "cut";
        /// By its client.
        Abandoned = 3, "abandoned";
        /// By a budget, before anything was sent.
        Blocked = 4, "blocked";
    }
}

words! {
    /// Who asked.
    Client {
        /// A program with a printed key.
        Custom = 0, "custom";
        /// A CLI that was started through the shim.
        Cli = 1, "cli";
        /// A CLI on its own login.
        Own = 2, "own";
    }
}

impl Ended {
    /// From a trace's word.
    pub(crate) fn of(word: &str) -> Self {
        Self::ALL.into_iter().find(|ended| ended.word() == word).unwrap_or(Self::Failed)
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// When it began, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// Its id: the daemon's start and the number in it.
    pub(crate) id: (u16, u64),
    pub(crate) total_ms: u64,
    pub(crate) first_ms: Option<u64>,
    pub(crate) status: u16,
    /// Attempts sent upstream.
    pub(crate) attempts: u32,
    pub(crate) ended: Ended,
    pub(crate) client: Client,
    /// The name of the token it came with.
    pub(crate) token: Option<Arc<str>>,
    pub(crate) account: Option<AccountId>,
    pub(crate) project: Option<Arc<str>>,
    pub(crate) model: Option<Arc<str>>,
    pub(crate) thread: Option<Arc<str>>,
    /// Tokens, where the stream told.
    pub(crate) usage: Option<Usage>,
    pub(crate) cost: Cost,
}

/// The numbers of a row's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) account: u32,
    pub(super) project: u32,
    pub(super) model: u32,
    pub(super) thread: u32,
    pub(super) token: u32,
}

/// A row as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) at_ms: u64,
    pub(super) number: u64,
    pub(super) total_ms: u32,
    first_ms: u32,
    pub(super) input: u32,
    pub(super) cached: u32,
    pub(super) output: u32,
    pub(super) reasoning: u32,
    pub(super) low: u64,
    pub(super) high: u64,
    pub(super) names: Names,
    pub(super) prefix: u16,
    pub(super) status: u16,
    pub(super) attempts: u16,
    pub(super) ended: u8,
    pub(super) client: u8,
    flags: u8,
}

impl Kept {
    pub(super) const fn told(&self) -> bool {
        self.flags & TOLD != 0
    }

    pub(super) const fn priced(&self) -> bool {
        self.flags & PRICED != 0
    }

    pub(super) const fn first_ms(&self) -> Option<u32> {
        if self.first_ms == NEVER { None } else { Some(self.first_ms) }
    }

    /// Reads a row's bytes.
    pub(super) fn read(bytes: &[u8; ROW]) -> Self {
        let mut at = Reader(bytes);
        let mut kept = Self {
            at_ms: at.u64(),
            number: at.u64(),
            low: at.u64(),
            high: at.u64(),
            total_ms: at.u32(),
            first_ms: at.u32(),
            input: at.u32(),
            cached: at.u32(),
            output: at.u32(),
            reasoning: at.u32(),
            names: Names {
                account: at.u32(),
                project: at.u32(),
                model: at.u32(),
                thread: at.u32(),
                token: NOBODY,
            },
            prefix: at.u16(),
            status: at.u16(),
            attempts: at.u16(),
            ended: at.u8(),
            client: at.u8(),
            flags: at.u8(),
        };
        // Its three bytes were empty before there were tokens: 0 is none.
        let [low, middle, high] = at.take();
        let token = u32::from_le_bytes([low, middle, high, 0]);
        kept.names.token = token.checked_sub(1).unwrap_or(NOBODY);
        kept
    }
}

impl Row {
    /// Writes the row's bytes.
    pub(super) fn write(&self, names: Names, out: &mut Vec<u8>) {
        let begun = out.len();
        let usage = self.usage.unwrap_or_default();
        for long in [self.at_ms, self.id.1, self.cost.low, self.cost.high] {
            out.extend(long.to_le_bytes());
        }
        let first = self.first_ms.map_or(NEVER, |first| short(first).min(NEVER - 1));
        let Usage { input, cached, output, reasoning } = usage;
        let tokens = [short(input), short(cached), short(output), short(reasoning)];
        let Names { account, project, model, thread, token } = names;
        let [input, cached, output, reasoning] = tokens;
        for word in [
            short(self.total_ms),
            first,
            input,
            cached,
            output,
            reasoning,
            account,
            project,
            model,
            thread,
        ] {
            out.extend(word.to_le_bytes());
        }
        let attempts = u16::try_from(self.attempts).unwrap_or(u16::MAX);
        for half in [self.id.0, self.status, attempts] {
            out.extend(half.to_le_bytes());
        }
        let told = if self.usage.is_some() { TOLD } else { 0 };
        let priced = if self.cost.priced { PRICED } else { 0 };
        out.extend([self.ended as u8, self.client as u8, told | priced]);
        // A segment has fewer names than three bytes count.
        let token = token.checked_add(1).unwrap_or_default().to_le_bytes();
        out.extend(token.iter().take(3));
        out.resize(begun + ROW, 0);
    }

    /// What of the row is named by numbers.
    pub(super) fn names(&self) -> [Option<&str>; NAMES] {
        [
            self.account.as_ref().map(AccountId::as_str),
            self.project.as_deref(),
            self.model.as_deref(),
            self.thread.as_deref(),
            self.token.as_deref(),
        ]
    }

    /// Whether an account was asked: what counts for a budget.
    pub(crate) const fn was_sent(&self) -> bool {
        self.account.is_some() && !matches!(self.ended, Ended::Blocked)
    }
}

fn short(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Takes numbers off the front of bytes that are long enough for them.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((head, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *head
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }
}
