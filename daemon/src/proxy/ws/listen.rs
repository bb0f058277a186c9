//! Waiting for something while its client may hang up.

use super::{
    frame,
    session::{Leave, say},
    socket::{Said, Socket, Text},
};
use crate::clock;
use std::{pin::pin, task::Poll, time::Duration};
use tokio::time::Instant;

/// Longest silence of ours. What an attempt may take before it is given up comes to that.
const SILENCE: Duration = Duration::from_secs(100);

/// Waits for something; `None` as soon as the client has gone. A frame that it sends meanwhile waits in
/// `next`, and nothing more is read then.
pub(super) async fn listening<T>(
    local: &mut Socket,
    next: &mut Option<Text>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        if let Poll::Ready(done) = work.as_mut().poll(context) {
            return Poll::Ready(Some(done));
        }
        while next.is_none() {
            match local.poll_said(context) {
                Poll::Pending => break,
                Poll::Ready(Ok(Said::Text(text))) => *next = Some(text),
                Poll::Ready(Ok(Said::Sign)) => {},
                Poll::Ready(_gone_or_broken) => return Poll::Ready(None),
            }
        }
        Poll::Pending
    })
    .await
}

/// When a client was last told that somebody is there. It gives a socket up that is silent for five
/// minutes, whatever it waits for, and any event ends that silence (0.169.0, observed): it gets one that
/// says nothing, each time that so much has gone by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    at: Instant,
    each: Duration,
}

impl Heard {
    /// From now on, where answers may be silent for `stall`.
    pub(super) fn new(stall: Duration) -> Self {
        Self { at: clock::mono(), each: SILENCE.min(stall / 3) }
    }

    /// Says so when it is time.
    pub(super) async fn again(&mut self, local: &mut Socket) -> Result<(), Leave> {
        if clock::since(self.at) < self.each {
            return Ok(());
        }
        self.at = clock::mono();
        say(local, frame::keepalive()).await
    }

    fn due(&self) -> Instant {
        self.at + self.each
    }
}

/// As [`listening`], for what may take hours.
pub(super) async fn outlasting<T>(
    local: &mut Socket,
    next: &mut Option<Text>,
    heard: &mut Heard,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    // Nearly each is there at once, and needs no timer.
    if let Poll::Ready(done) = futures_util::poll!(work.as_mut()) {
        return Some(done);
    }
    loop {
        let part = tokio::time::timeout_at(heard.due(), work.as_mut());
        match listening(local, next, part).await? {
            Ok(done) => return Some(done),
            Err(_elapsed) => heard.again(local).await.ok()?,
        }
    }
}
