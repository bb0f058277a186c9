//! Waiting for something while its client may hang up.

use super::link::Socket;
use futures_util::Stream as _;
use std::{
    pin::{Pin, pin},
    task::Poll,
};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// Waits for something; `None` as soon as the client has gone. A frame that it sends meanwhile waits in
/// `next`, and nothing more is read then.
pub(super) async fn listening<T>(
    local: &mut Socket,
    next: &mut Option<Utf8Bytes>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        if let Poll::Ready(done) = work.as_mut().poll(context) {
            return Poll::Ready(Some(done));
        }
        while next.is_none() {
            match Pin::new(&mut *local).poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(Message::Text(text)))) => *next = Some(text),
                Poll::Ready(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {},
                Poll::Ready(_gone_or_broken) => return Poll::Ready(None),
            }
        }
        Poll::Pending
    })
    .await
}
