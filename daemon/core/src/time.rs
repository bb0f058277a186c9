//! Two clocks, both handed in.
//!
//! Backoffs run on the monotonic clock; expiries and resets that upstream names are wall-clock
//! times. A [`Due`] has both, so that a laptop's sleep (monotonic stands still) and a wall clock
//! set back (wall repeats) each end a wait on time. All arithmetic saturates.

/// A length of time in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(u64);

impl Span {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// `ms` milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// `s` seconds.
    pub const fn from_secs(s: u64) -> Self {
        Self(s.saturating_mul(1000))
    }

    /// In milliseconds.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// `n` times as long.
    #[must_use]
    pub const fn times(self, n: u64) -> Self {
        Self(self.0.saturating_mul(n))
    }
}

/// A moment of the wall clock: milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Wall(u64);

impl Wall {
    /// From milliseconds since 1970.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// From seconds since 1970.
    pub const fn from_secs(s: u64) -> Self {
        Self(s.saturating_mul(1000))
    }

    /// Milliseconds since 1970.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// Seconds since 1970, rounded up: a reset shown is never before the real one.
    pub const fn secs(self) -> u64 {
        self.0.div_ceil(1000)
    }

    /// This moment plus `span`.
    #[must_use]
    pub const fn plus(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// This moment minus `span`.
    #[must_use]
    pub const fn minus(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.0))
    }

    /// How long until this moment; zero when it has passed.
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

/// A moment of the monotonic clock: milliseconds since some start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(u64);

impl Mono {
    /// From milliseconds since the clock's start.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the clock's start.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// This moment plus `span`.
    #[must_use]
    pub const fn plus(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// How long from `earlier` to this moment; zero when it lies before.
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock.
    pub mono: Mono,
    /// The wall clock.
    pub wall: Wall,
}

/// When a wait ends: at a moment of either clock, whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    mono: Mono,
    wall: Wall,
}

impl Due {
    /// After `span` from now.
    pub const fn after(now: Now, span: Span) -> Self {
        Self { mono: now.mono.plus(span), wall: now.wall.plus(span) }
    }

    /// At a wall-clock moment that upstream named, at most `cap` from now.
    pub fn at(now: Now, wall: Wall, cap: Span) -> Self {
        Self::after(now, wall.since(now.wall).min(cap))
    }

    /// Whether the wait is over.
    pub fn reached(self, now: Now) -> bool {
        now.mono >= self.mono || now.wall >= self.wall
    }

    /// What is left of the wait.
    pub fn left(self, now: Now) -> Span {
        self.mono.since(now.mono).min(self.wall.since(now.wall))
    }

    /// The wall-clock moment of its end, as shown to people.
    pub fn shown(self, now: Now) -> Wall {
        now.wall.plus(self.left(now))
    }

    /// Whether `self` ends later than `other`.
    pub fn later_than(self, other: Self) -> bool {
        self.mono > other.mono
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_clock_ends_a_wait() {
        let now = Now { mono: Mono::from_millis(1_000), wall: Wall::from_secs(1_000_000) };
        let due = Due::after(now, Span::from_secs(60));
        let slept = Now { wall: Wall::from_secs(1_000_061), ..now };
        assert!(!due.reached(now) && due.reached(slept));
        let set_back = Now { mono: Mono::from_millis(61_000), wall: Wall::from_secs(900_000) };
        assert!(due.reached(set_back));
        assert_eq!(due.left(set_back), Span::ZERO);
    }
}
