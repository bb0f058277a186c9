//! Remembers every request, every broken rule and the counts.
//!
//! It decides nothing and is bounded three ways: by the number of requests, by
//! the size of one body, and by the size of all bodies together; the oldest
//! requests give way. Counts are never dropped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::config::SimConfig;
use super::state::Shared;

/// Broken rules kept; a loop of one mistake should not fill the memory.
const MAX_VIOLATIONS: usize = 1000;

/// What all bodies in the record may take together.
const MAX_BODIES: usize = 128 << 20;

/// One request as it arrived and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Seen {
    /// Counts from 1.
    pub number: u64,
    /// When it had arrived whole, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query, without the question mark.
    pub query: String,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Whose token it carried.
    pub account: Option<String>,
    /// The decoded body: JSON where it is JSON, else text, null if there was
    /// none or it was too large to keep.
    pub body: Value,
    /// The size of the body on the wire.
    pub wire_bytes: usize,
    /// The status answered, if a head was sent.
    pub status: Option<u16>,
    /// What became of it.
    pub outcome: Outcome,
    /// The tokens that its answer says it used, if that is sent to its end.
    pub tokens: Option<Tokens>,
}

/// Tokens of one answer: cached ones are part of the input, reasoning ones of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
pub struct Tokens {
    /// Read.
    pub input: u64,
    /// Of these from the cache.
    pub cached: u64,
    /// Written.
    pub output: u64,
    /// Of these for reasoning.
    pub reasoning: u64,
}

impl Seen {
    /// The first value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Still being served.
    Open,
    /// Answered with a whole body, or a stream that says the turn failed.
    Answered,
    /// Answered with a stream up to its last event.
    Completed,
    /// The answer was cut short by a fault.
    Cut,
    /// Never answered, by a fault.
    Dropped,
    /// The client went away first.
    ClientGone,
}

/// What was counted.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Stats {
    /// Connections accepted.
    pub connections: u64,
    /// Requests received (without those to the control routes).
    pub requests: u64,
    /// Requests whose token was never issued here.
    pub unknown_tokens: u64,
    /// Broken rules, also those no longer kept.
    pub violations: u64,
    /// WebSockets opened.
    pub sockets: u64,
    /// WebSockets open now.
    pub sockets_open: u64,
    /// Frames that began a turn, prewarms too.
    pub frames: u64,
    /// Pings that were answered. Each WebSocket is pinged once, at its beginning.
    pub pongs: u64,
    /// By the name of the account.
    pub accounts: BTreeMap<String, AccountStats>,
}

/// What was counted for one account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AccountStats {
    /// Responses begun with a 200.
    pub served: u64,
    /// Responses streamed up to `response.completed`.
    pub completed: u64,
    /// Refresh requests with a token of this account.
    pub refresh_requests: u64,
    /// Refresh tokens rotated.
    pub refreshed: u64,
    /// Spent refresh tokens answered again within the grace.
    pub replayed: u64,
    /// Spent refresh tokens presented outside the grace.
    pub reused: u64,
    /// Refreshes refused for any reason but reuse.
    pub refresh_refused: u64,
    /// Families of tokens that ended.
    pub families_revoked: u64,
    /// Requests answered 401 for their access token.
    pub unauthorized: u64,
    /// Responses refused because a window was full.
    pub limited: u64,
    /// Scripted faults that applied.
    pub faults: u64,
    /// Pictures, searches, files and the like that were done.
    pub errands: u64,
    /// Reset credits used.
    pub credits_used: u64,
    /// The most refreshes going on at once.
    pub refreshes_at_once: u32,
    /// The most responses going on at once.
    pub responses_at_once: u32,
}

#[derive(Debug)]
pub(super) struct Record {
    seen: VecDeque<Seen>,
    sizes: VecDeque<usize>,
    bodies: usize,
    keep: usize,
    strict: bool,
    violations: Vec<String>,
    stats: Stats,
}

impl Record {
    pub(super) fn new(config: &SimConfig) -> Self {
        Self {
            seen: VecDeque::new(),
            sizes: VecDeque::new(),
            bodies: 0,
            keep: config.keep_requests.max(1),
            strict: config.strict,
            violations: Vec::new(),
            stats: Stats::default(),
        }
    }

    pub(super) fn connection(&mut self) {
        self.stats.connections += 1;
    }

    /// Adds a request; `size` is what its body takes. Answers its number.
    pub(super) fn begin(&mut self, mut seen: Seen, size: usize) -> u64 {
        self.stats.requests += 1;
        seen.number = self.stats.requests;
        self.seen.push_back(seen);
        self.sizes.push_back(size);
        self.bodies += size;
        while self.seen.len() > self.keep || (self.bodies > MAX_BODIES && self.seen.len() > 1) {
            self.seen.pop_front();
            self.bodies -= self.sizes.pop_front().unwrap_or(0);
        }
        self.stats.requests
    }

    pub(super) fn owned_by(&mut self, number: u64, account: &str) {
        if let Some(seen) = self.find(number) {
            seen.account = Some(account.to_owned());
        }
    }

    /// Notes what an answer is going to say it used.
    pub(super) fn told(&mut self, number: u64, tokens: Tokens) {
        if let Some(seen) = self.find(number) {
            seen.tokens = Some(tokens);
        }
    }

    pub(super) fn settle(&mut self, number: u64, status: Option<u16>, outcome: Outcome) {
        let Some(seen) = self.find(number) else { return };
        seen.status = status.or(seen.status);
        seen.outcome = outcome;
        let account = seen.account.clone();
        if let (Outcome::Completed, Some(account)) = (outcome, account) {
            self.account(&account).completed += 1;
        }
    }

    pub(super) fn breach(&mut self, what: String) {
        if !self.strict {
            return;
        }
        self.stats.violations += 1;
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(what);
        }
    }

    /// Counts something.
    pub(super) fn count(&mut self, add: impl FnOnce(&mut Stats)) {
        add(&mut self.stats);
    }

    pub(super) fn unknown_token(&mut self) {
        self.stats.unknown_tokens += 1;
    }

    pub(super) fn account(&mut self, name: &str) -> &mut AccountStats {
        self.stats.accounts.entry(name.to_owned()).or_default()
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.iter().cloned().collect()
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.violations.clone()
    }

    pub(super) fn stats(&self) -> Stats {
        self.stats.clone()
    }

    fn find(&mut self, number: u64) -> Option<&mut Seen> {
        let first = self.seen.front()?.number;
        let at = usize::try_from(number.checked_sub(first)?).ok()?;
        self.seen.get_mut(at)
    }
}

/// The record of a request that is being served.
///
/// Dropped unsettled it says that the client went away, which is the only way
/// a handler or a body is dropped before its end.
#[derive(Debug)]
pub(super) struct Open {
    shared: Arc<Shared>,
    pub(super) number: u64,
    settled: bool,
}

impl Open {
    pub(super) fn new(shared: Arc<Shared>, number: u64) -> Self {
        Self { shared, number, settled: false }
    }

    /// Notes the status of a head whose body is still to come.
    pub(super) fn head(&self, status: u16) {
        self.shared.state.lock().record.settle(self.number, Some(status), Outcome::Open);
    }

    pub(super) fn settle(&mut self, status: Option<u16>, outcome: Outcome) {
        self.settled = true;
        self.shared.state.lock().record.settle(self.number, status, outcome);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.settled {
            self.settle(None, Outcome::ClientGone);
        }
    }
}
