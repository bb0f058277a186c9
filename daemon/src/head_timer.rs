//! One timer for all the heads that a connection waits for.
//!
//! hyper makes a timer for each head and drops it when that has come: two moves in the runtime's wheel for a
//! request, and nearly none ever fires. Here the one of a connection stays where it is and is moved when it
//! fires, if what is due then is later. It decides nothing about heads; that is hyper's, with its bound.

use hyper::rt::{Sleep, Timer};
use parking_lot::Mutex;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// Of one connection, which waits for one head at a time.
#[derive(Debug, Clone, Default)]
pub(crate) struct HeadTimer(Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>);

/// Until a time.
#[derive(Debug)]
struct Due {
    at: tokio::time::Instant,
    timer: HeadTimer,
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Due { at: deadline.into(), timer: self.clone() })
    }
}

impl Sleep for Due {}

impl Future for Due {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut timer = self.timer.0.lock();
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(self.at)));
        while timer.as_mut().poll(context).is_ready() {
            if timer.deadline() >= self.at {
                return Poll::Ready(());
            }
            timer.as_mut().reset(self.at);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_is_due_when_it_was_said_and_one_timer_serves_them() {
        let timer = HeadTimer::default();
        let begun = tokio::time::Instant::now();
        for seconds in [1, 2, 5] {
            // One that isn't waited for to its end moves nothing.
            let at = (tokio::time::Instant::now() + Duration::from_secs(seconds)).into_std();
            let mut left = timer.sleep_until(at + Duration::from_secs(1));
            std::future::poll_fn(|context| {
                assert!(left.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
            drop(left);
            timer.sleep_until(at + Duration::from_secs(2)).await;
        }
        assert_eq!(begun.elapsed().as_secs(), 3 + 4 + 7);
    }
}
