//! How much of each thread the upstream has cached: what a move to another account would lose.
//!
//! Bounded in number and age, like the memory of where threads ran. Losing an entry makes a thread
//! look cold, nothing else.

use crate::time::{Mono, Span};
use std::{collections::BTreeMap, sync::Arc};

/// Upstream keeps a prompt's prefix for minutes without a request and for an hour at most
/// (OpenAI's guide to prompt caching).
pub const LIFE: Span = Span::from_secs(3600);
/// As many threads as are remembered with their account.
const CAPACITY: usize = 4096;

/// Thread → tokens that its next request finds cached.
#[derive(Debug, Clone, Default)]
pub struct Warmth {
    threads: BTreeMap<Arc<str>, (u32, Mono)>,
}

impl Warmth {
    /// Tokens of a thread that are cached where it ran last.
    pub fn of(&self, thread: &str, now: Mono) -> u32 {
        match self.threads.get(thread) {
            Some((tokens, at)) if now.since(*at) <= LIFE => *tokens,
            Some(_) | None => 0,
        }
    }

    /// A thread's request was answered: this much of it is cached from here on.
    pub fn set(&mut self, thread: &Arc<str>, tokens: u32, now: Mono) {
        if self.threads.len() >= CAPACITY && !self.threads.contains_key(thread) {
            self.threads.retain(|_thread, (_tokens, at)| now.since(*at) <= LIFE);
            if self.threads.len() >= CAPACITY {
                // All of them live: the half that was used longest ago goes.
                let mut ages: Vec<Mono> = self.threads.values().map(|(_, at)| *at).collect();
                ages.sort_unstable();
                let median = ages.get(ages.len() / 2).copied().unwrap_or_default();
                let mut spare = CAPACITY / 2;
                self.threads.retain(|_thread, (_tokens, at)| {
                    let keep = *at >= median && spare > 0;
                    spare -= usize::from(keep);
                    keep
                });
            }
        }
        self.threads.insert(Arc::clone(thread), (tokens, now));
    }

    /// Threads remembered.
    pub fn len(&self) -> usize {
        self.threads.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_cools_and_stays_bounded() {
        let mut warmth = Warmth::default();
        for n in 0..2 * CAPACITY as u64 {
            warmth.set(&format!("t{n}").into(), 7, Mono::from_millis(n));
            assert!(warmth.len() <= CAPACITY);
        }
        let now = Mono::from_millis(2 * CAPACITY as u64);
        assert_eq!(warmth.of(&format!("t{}", 2 * CAPACITY - 1), now), 7);
        assert_eq!(warmth.of("t0", now), 0);
        let later = now.plus(LIFE.times(2));
        assert_eq!(warmth.of(&format!("t{}", 2 * CAPACITY - 1), later), 0);
    }
}
