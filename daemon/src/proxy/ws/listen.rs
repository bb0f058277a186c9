//! Waiting for something while its client may hang up.

use super::socket::{Said, Socket, Text};
use std::{pin::pin, task::Poll};

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
