//! Waiting for something while its client may hang up.

use super::{
    frame,
    session::say,
    socket::{Said, Socket, Text},
};
use std::{pin::pin, task::Poll, time::Duration};

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

/// The same for what may take hours. A client gives a socket up that is silent for five minutes, whatever
/// it waits for, and any event ends that silence (0.169.0, observed): it gets one that says nothing, each
/// time that so much has gone by.
pub(super) async fn outlasting<T>(
    local: &mut Socket,
    next: &mut Option<Text>,
    each: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    // Nearly each is there at once, and needs no timer.
    if let Poll::Ready(done) = futures_util::poll!(work.as_mut()) {
        return Some(done);
    }
    loop {
        let part = tokio::time::timeout(each, work.as_mut());
        match listening(local, next, part).await? {
            Ok(done) => return Some(done),
            Err(_elapsed) => say(local, frame::keepalive()).await.ok()?,
        }
    }
}
