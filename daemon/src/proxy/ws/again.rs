//! A turn that its client was told to send again with everything, on another socket: what was tried and
//! learned so far goes on with it, so that it is one request for its budgets, its trace and its last
//! word.
//!
//! Kept by thread, since nothing else is the same of both; for a minute, since the official CLI comes
//! back at once (0.169.0, observed).

use super::{doubt::Doubts, socket::Text};
use crate::proxy::course::{Refusals, Word};
use cma_core::{
    event::Kind,
    pool::Refused,
    quota,
    time::{Span, Wall},
};
use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use parking_lot::Mutex;
use serde_json::Value;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::Instant;

/// A client that comes later begins anew.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Turns remembered; each has one entry for moments only.
const MAX_KEPT: usize = 256;
/// As for a turn over HTTP: the CLI tells minutes.
const SAME_TIME: Span = Span::from_secs(60);

/// The last error that upstream said.
#[derive(Debug, Clone)]
pub(super) struct Last {
    /// What came before it on its connection and was held back: limits are told with it.
    pub(super) before: Vec<Text>,
    /// As the client would get it.
    pub(super) frame: Text,
    pub(super) word: Word,
    /// Whether it only says that there were too many requests.
    throttled: bool,
    /// What it says, in the shape of an HTTP answer's body.
    body: Value,
}

impl Last {
    /// An error as the client would get it; `word` says whether the CLI stops on what it says.
    pub(super) fn new(
        frame: Text,
        (status, headers): (Option<StatusCode>, &HeaderMap),
        word: Word,
        body: Value,
    ) -> Self {
        let throttled = status == Some(StatusCode::TOO_MANY_REQUESTS) && !word.stops;
        // Without a time to wait for, the CLI gives up on any 429 (0.169.0, observed).
        let stops = word.stops || (throttled && !headers.contains_key(RETRY_AFTER));
        Self { before: Vec::new(), frame, word: Word { stops, ..word }, throttled, body }
    }

    /// With what was held back before it.
    pub(super) fn after(self, before: Vec<Text>) -> Self {
        Self { before, ..self }
    }

    /// Whether it is the pool's word as well, with all it says beside the time (whose credits are
    /// gone, which windows are full): its account is the only one, or the first to come back.
    pub(super) fn speaks_for(&self, refused: &Refused, now: Wall) -> bool {
        let reset = quota::reset_in_error(&self.body, now);
        let first = reset
            .zip(refused.retry_at)
            .is_some_and(|(reset, first)| reset.since(first) <= SAME_TIME);
        self.word.stops && (refused.reasons.len() == 1 || self.throttled || first)
    }
}

/// What goes on with a turn.
#[derive(Debug, Clone, Default)]
pub(super) struct Carried {
    pub(super) tried: u32,
    pub(super) attempts: Vec<String>,
    pub(super) reason: String,
    pub(super) last: Option<Last>,
    /// How often a beginning was silent.
    pub(super) silences: u32,
    pub(super) doubts: Doubts,
    pub(super) refusals: Refusals,
}

/// Turns that are to come back.
#[derive(Debug, Default)]
pub(super) struct Again(Mutex<VecDeque<(Arc<str>, Instant, Carried)>>);

impl Again {
    /// Keeps what is to go on with a thread's next turn. Of what was held back before an error that is
    /// what tells of limits: a preamble repeats its request, and clients that never come back would
    /// leave it here.
    pub(super) fn keep(&self, thread: Option<&Arc<str>>, mut carried: Carried) {
        let Some(thread) = thread else { return };
        if let Some(last) = &mut carried.last {
            let tells =
                |text: &Text| matches!(Kind::of(text.as_bytes()), Kind::Limits | Kind::Metadata);
            last.before.retain(tells);
        }
        let mut kept = self.0.lock();
        kept.retain(|(of, at, _)| of != thread && at.elapsed() < KEPT_FOR);
        if kept.len() >= MAX_KEPT {
            kept.pop_front();
        }
        kept.push_back((Arc::clone(thread), Instant::now(), carried));
    }

    /// What goes on with a thread's turn.
    pub(super) fn take(&self, thread: Option<&Arc<str>>) -> Option<Carried> {
        let mut kept = self.0.lock();
        let at = kept.iter().position(|(of, _, _)| Some(of) == thread)?;
        let (_, since, carried) = kept.remove(at)?;
        (since.elapsed() < KEPT_FOR).then_some(carried)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_thread_finds_what_it_left_once() {
        let (again, one): (Again, Arc<str>) = (Again::default(), "one".into());
        again.keep(Some(&one), Carried { tried: 1, ..Carried::default() });
        again.keep(Some(&one), Carried { tried: 2, ..Carried::default() });
        again.keep(None, Carried::default());
        assert!(again.take(Some(&"other".into())).is_none() && again.take(None).is_none());
        assert_eq!(again.take(Some(&one)).map(|it| it.tried), Some(2));
        assert!(again.take(Some(&one)).is_none());
        for n in 0..2 * MAX_KEPT {
            again.keep(Some(&n.to_string().into()), Carried::default());
        }
        assert_eq!(again.0.lock().len(), MAX_KEPT);
    }

    #[test]
    fn a_word_is_the_pools_when_its_account_comes_back_first() {
        let at = |secs| Some(Wall::from_secs(secs));
        let refused = |names: &[&str], retry_at| Refused {
            retry_at,
            quota: true,
            unreached: false,
            tried: false,
            reasons: names.iter().map(|name| ((*name).into(), String::new())).collect(),
            plan: None,
        };
        let last = |stops, throttled, resets: u64| Last {
            before: Vec::new(),
            frame: Text::from_static("{}"),
            word: Word { stops, bars: true, attempt: 1 },
            throttled,
            body: json!({"error": {"type": "usage_limit_reached", "resets_at": resets}}),
        };
        let now = Wall::from_secs(1_000);
        let both = refused(&["a", "b"], at(2_000));
        assert!(last(true, false, 9_000).speaks_for(&refused(&["a"], at(9_000)), now));
        assert!(last(true, false, 2_001).speaks_for(&both, now));
        assert!(last(true, true, 9_000).speaks_for(&both, now));
        assert!(!last(true, false, 9_000).speaks_for(&both, now));
        assert!(!last(false, false, 2_000).speaks_for(&both, now));
    }
}
