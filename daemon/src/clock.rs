//! The daemon's two clocks, read here and nowhere else.
//!
//! The monotonic one stands still while the machine sleeps; the wall clock goes on, and may be set.
//! Tests shift the wall clock alone, which is both: `CMA_CLOCK_SHIFT` names a file with a number of
//! milliseconds, read many times a second. It counts with simulated upstreams only.

use crate::config::Config;
use cma_core::time::{Mono, Now, Wall};
use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::Instant;

/// By how many milliseconds the wall clock is off, in a test.
static SHIFT: AtomicI64 = AtomicI64::new(0);
/// How often a test's file is read.
const LOOK: Duration = Duration::from_millis(10);

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
    let shift = SHIFT.load(Ordering::Relaxed);
    Wall::from_millis(millis(since.as_millis()).saturating_add_signed(shift))
}

/// Seconds since 1970, rounded down: for times that lie behind us.
pub(crate) fn unix() -> u64 {
    wall().millis() / 1000
}

/// Follows a test's file, if there is one and the upstreams are simulated.
pub(crate) fn follow_test(config: &Config) {
    let Some(path) = std::env::var_os("CMA_CLOCK_SHIFT").filter(|_path| config.is_simulated())
    else {
        return;
    };
    let look = move || {
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if let Ok(shift) = text.trim().parse() {
                SHIFT.store(shift, Ordering::Relaxed);
            }
            std::thread::sleep(LOOK);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("clock".to_owned()).spawn(look) {
        tracing::warn!(%error, "the clock of a test can't be followed");
    }
}

fn millis(ms: u128) -> u64 {
    u64::try_from(ms).unwrap_or(u64::MAX)
}
