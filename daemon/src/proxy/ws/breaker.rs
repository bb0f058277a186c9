//! Whether a host's WebSockets are worth a try: one breaker for each host, since the accounts behind
//! it share it. Most accounts are behind the backend's own; a workspace may have another.
//!
//! It opens after some failures in a row, or at once when the host says that it has none or HTTP served a
//! turn that WebSockets lost. While it is open, turns go over HTTP. After its time one connection tries
//! again (half open); the others keep to HTTP until an answer has come over that one.

use http::HeaderValue;
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Failures in a row that open it. One may be chance, and the turn goes over HTTP either way.
const TRIPS_AT: u32 = 2;
/// How long it stays open at first; doubles with each failed try, up to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(15);
/// A host that came back is noticed within this.
const LONGEST: Duration = Duration::from_secs(600);

/// All of them, by host; `None` is the backend's own. As many as accounts name, at most.
#[derive(Debug, Default)]
pub(super) struct Breakers(Mutex<Vec<(Option<HeaderValue>, Breaker)>>);

impl Breakers {
    /// Whether a handshake with that host may be tried now.
    pub(super) fn allows(&self, host: Option<&HeaderValue>) -> bool {
        self.of(host, |breaker| breaker.allows(Instant::now()))
    }

    /// Whether the backend's own host has no WebSocket, so that a client needn't begin one.
    pub(super) fn has_none(&self) -> bool {
        self.of(None, |breaker| breaker.has_none(Instant::now()))
    }

    /// As [`Breaker::worked`].
    pub(super) fn worked(&self, host: Option<&HeaderValue>) {
        self.of(host, |breaker| breaker.worked(Instant::now()));
    }

    /// As [`Breaker::failed`].
    pub(super) fn failed(&self, host: Option<&HeaderValue>, none: bool) {
        self.of(host, |breaker| breaker.failed(Instant::now(), none));
    }

    /// As [`Breaker::lost`].
    pub(super) fn lost(&self, host: Option<&HeaderValue>) {
        self.of(host, |breaker| breaker.lost(Instant::now()));
    }

    /// As [`Breaker::useless`].
    pub(super) fn useless(&self, host: Option<&HeaderValue>, since: Instant) {
        self.of(host, |breaker| breaker.useless(since, Instant::now()));
    }

    fn of<T>(&self, host: Option<&HeaderValue>, act: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut all = self.0.lock();
        if let Some((_host, breaker)) = all.iter_mut().find(|(known, _)| known.as_ref() == host) {
            return act(breaker);
        }
        let mut breaker = Breaker::default();
        let told = act(&mut breaker);
        all.push((host.cloned(), breaker));
        told
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
struct Breaker {
    /// Failures in a row.
    failures: u32,
    /// Set while open.
    until: Option<Instant>,
    /// Whether the host itself said that it has no WebSocket.
    none: bool,
    /// When somebody began to try whether it may close.
    probe: Option<Instant>,
    /// When an answer last came over a connection that was new.
    proved: Option<Instant>,
    /// When it last opened.
    opened: Option<Instant>,
}

/// A probe that never told, because its turn was given up, is forgotten after this.
const PROBE: Duration = Duration::from_secs(30);

impl Breaker {
    /// Whether a handshake may be tried now.
    fn allows(&mut self, now: Instant) -> bool {
        let Some(until) = self.until else { return true };
        if now < until || self.probe.is_some_and(|begun| now < begun + PROBE) {
            return false;
        }
        self.probe = Some(now);
        true
    }

    /// Whether it is open because the host has no WebSocket, so that a client needn't begin one.
    fn has_none(&self, now: Instant) -> bool {
        self.none && self.is_open(now)
    }

    fn is_open(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// An answer came over a connection that was new. That a handshake comes about is not enough: what
    /// is on the way may pass nothing else.
    fn worked(&mut self, now: Instant) {
        *self = Self { proved: Some(now), ..Self::default() };
    }

    /// A turn's messages were lost, the first one `since` then, and HTTP served it: unless somebody else's
    /// came through meanwhile, nobody's do. What it opened for already is not news.
    fn useless(&mut self, since: Instant, now: Instant) {
        if self.proved.max(self.opened).is_some_and(|known| known >= since) {
            return;
        }
        self.failures = self.failures.max(TRIPS_AT - 1);
        self.failed(now, false);
    }

    /// The first message over a new connection was lost: half open, that is what it tried.
    fn lost(&mut self, now: Instant) {
        if self.until.is_some_and(|until| now >= until) {
            self.failed(now, false);
        }
    }

    /// A handshake failed for the host's reasons; `none` when the host says that it has no WebSocket.
    ///
    /// While open, that is news from before it opened: a dozen handshakes that were on their way then say
    /// no more than the one that opened it.
    fn failed(&mut self, now: Instant, none: bool) {
        if self.is_open(now) {
            self.none |= none;
            return;
        }
        self.failures = self.failures.saturating_add(1).max(if none { TRIPS_AT } else { 1 });
        (self.probe, self.none) = (None, none);
        if self.failures >= TRIPS_AT {
            let doublings = (self.failures - TRIPS_AT).min(16);
            self.until = Some(now + FIRST.saturating_mul(1 << doublings).min(LONGEST));
            self.opened = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_opens_closes_and_lets_one_try() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        breaker.failed(start, false);
        assert!(breaker.allows(start) && !breaker.is_open(start), "one failure is chance");
        breaker.failed(start, false);
        assert!(!breaker.allows(start) && breaker.is_open(start));
        let later = start + FIRST;
        assert!(breaker.allows(later), "one tries");
        assert!(!breaker.allows(later), "the others wait for it");
        breaker.failed(later, false);
        assert!(!breaker.allows(later + FIRST), "it stays open longer");
        assert!(breaker.allows(later + FIRST * 2));
        breaker.worked(later);
        assert!(breaker.allows(later) && breaker.allows(later));
        breaker.useless(start, later);
        assert!(!breaker.is_open(later), "somebody else's came through");
        let lost = later + FIRST;
        breaker.useless(lost, lost + FIRST);
        assert!(breaker.is_open(lost + FIRST), "HTTP served");
        breaker.useless(lost, lost + FIRST);
        assert!(!breaker.is_open(lost + FIRST * 2), "one incident is one, whoever tells");
        let tried = lost + FIRST * 2;
        assert!(breaker.allows(tried));
        breaker.lost(tried);
        assert!(breaker.is_open(tried + FIRST), "it stays open longer");
        breaker.worked(later);
        assert!(!breaker.has_none(later));
        breaker.failed(later, true);
        assert!(breaker.has_none(later) && !breaker.has_none(later + FIRST));
        assert!(!breaker.allows(later), "a host without WebSockets is believed at once");
    }

    /// A host that is restarted fails all handshakes that are on their way, at once.
    #[test]
    fn a_dozen_failures_at_once_are_one_incident() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        (0..12).for_each(|_| breaker.failed(now, false));
        assert!(breaker.is_open(now) && breaker.allows(now + FIRST));
        (0..12).for_each(|_| breaker.failed(now + FIRST, false));
        assert!(!breaker.allows(now + FIRST * 2) && breaker.allows(now + FIRST * 3));
        breaker.worked(now);
        breaker.failed(now, false);
        breaker.failed(now, false);
        breaker.failed(now, true);
        assert!(breaker.has_none(now), "what the host says of itself counts meanwhile");
    }

    #[test]
    fn a_host_says_nothing_of_another() {
        let (all, other) = (Breakers::default(), HeaderValue::from_static("eu.example"));
        all.failed(Some(&other), true);
        assert!(!all.allows(Some(&other)) && all.allows(None) && !all.has_none());
        all.failed(None, true);
        assert!(!all.allows(None) && all.has_none());
        all.worked(Some(&other));
        assert!(all.allows(Some(&other)) && all.has_none());
    }

    proptest! {
        #[test]
        fn it_never_stays_open_for_longer_than_the_longest(
            steps in proptest::collection::vec((0_u8..3, 0_u64..2000), 0..60)
        ) {
            let (mut breaker, mut now) = (Breaker::default(), Instant::now());
            for (step, seconds) in steps {
                now += Duration::from_secs(seconds);
                match step {
                    0 => breaker.failed(now, false),
                    1 => breaker.failed(now, true),
                    _ => drop(breaker.allows(now)),
                }
                prop_assert!(!breaker.is_open(now + LONGEST));
            }
            now += LONGEST + PROBE;
            prop_assert!(breaker.allows(now));
        }
    }
}
