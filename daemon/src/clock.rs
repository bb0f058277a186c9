//! The daemon's two clocks, read here and nowhere else.

use cma_core::time::{Mono, Now, Wall};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Reads both clocks; the monotonic one counts from its own start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now(self) -> Now {
        Now { mono: Mono::from_millis(millis(self.start.elapsed().as_millis())), wall: wall() }
    }
}

/// The wall clock.
pub(crate) fn wall() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall::from_millis(millis(since.as_millis()))
}

/// Seconds since 1970, rounded down: for times that lie behind us.
pub(crate) fn unix() -> u64 {
    wall().millis() / 1000
}

fn millis(ms: u128) -> u64 {
    u64::try_from(ms).unwrap_or(u64::MAX)
}
