//! The daemon's two clocks, read here and nowhere else.
//!
//! The monotonic one stands still while the machine sleeps; the wall clock goes on, and may be set.
//! Tests shift the wall clock alone, which is both: `CMA_CLOCK_SHIFT` names a file with a number of
//! milliseconds, read many times a second. It counts with simulated upstreams only.
//!
//! A read is cheap and a request used to need fifty: for as long as a task is polled by [`Stopped`],
//! each clock is read once and stands.

use crate::config::Config;
use cma_core::time::{Mono, Now, Wall};
use std::{
    cell::Cell,
    pin::Pin,
    sync::atomic::{AtomicI64, Ordering},
    task::{Context, Poll},
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
        Now { mono: Mono::from_millis(millis(since(self.start).as_millis())), wall: wall() }
    }
}

thread_local! {
    /// What the clocks showed at the first look of this poll; `None` while they run.
    static STANDS: Cell<Option<Stand>> = const { Cell::new(None) };
}

/// Clocks that stand, as far as they were looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Stand {
    mono: Option<Instant>,
    wall: Option<Wall>,
}

/// A task for which the clocks stand while it is polled. For tasks whose polls take microseconds.
#[derive(Debug)]
pub(crate) struct Stopped<F>(pub(crate) F);

impl<F: Future + Unpin> Future for Stopped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        /// Lets them run again, after a panic too.
        struct Run;
        impl Drop for Run {
            fn drop(&mut self) {
                STANDS.set(None);
            }
        }
        STANDS.set(Some(Stand::default()));
        let _run = Run;
        Pin::new(&mut self.0).poll(context)
    }
}

/// The monotonic clock, for what is measured or due in milliseconds.
pub(crate) fn mono() -> Instant {
    let Some(stand) = STANDS.get() else { return Instant::now() };
    stand.mono.unwrap_or_else(|| {
        let now = Instant::now();
        STANDS.set(Some(Stand { mono: Some(now), ..stand }));
        now
    })
}

/// How long ago that was, by [`mono`].
pub(crate) fn since(then: Instant) -> Duration {
    mono().saturating_duration_since(then)
}

/// The wall clock.
pub(crate) fn wall() -> Wall {
    let Some(stand) = STANDS.get() else { return read_wall() };
    stand.wall.unwrap_or_else(|| {
        let now = read_wall();
        STANDS.set(Some(Stand { wall: Some(now), ..stand }));
        now
    })
}

fn read_wall() -> Wall {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Both clocks before and after a while.
    fn looks() -> [(Instant, Wall); 2] {
        [0, 20].map(|ms| {
            std::thread::sleep(Duration::from_millis(ms));
            (mono(), wall())
        })
    }

    #[test]
    fn clocks_stand_within_a_poll_and_run_between_two() {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut polled = || {
            let looked = Stopped(Box::pin(async { looks() }));
            match std::pin::pin!(looked).poll(&mut context) {
                Poll::Ready(looks) => looks,
                Poll::Pending => unreachable!("it waits for nothing"),
            }
        };
        let ([first, later], [next, _]) = (polled(), polled());
        assert_eq!(first, later);
        assert!(next.0 - first.0 >= Duration::from_millis(20), "{first:?} {next:?}");
        let [before, after] = looks();
        assert!(after.0 > before.0 && after.1 > before.1, "outside they run");
    }

    #[test]
    fn clocks_run_again_after_a_panic() {
        let broken = std::panic::catch_unwind(|| {
            let mut context = Context::from_waker(std::task::Waker::noop());
            let broken = Stopped(Box::pin(async {
                mono();
                std::panic::resume_unwind(Box::new(()));
            }));
            std::pin::pin!(broken).poll(&mut context)
        });
        assert!(broken.is_err());
        let [before, after] = looks();
        assert!(after.0 > before.0);
    }
}
