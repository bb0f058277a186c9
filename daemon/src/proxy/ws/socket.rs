//! One end of a WebSocket: messages in and out, with the library behind it.
//!
//! Decides nothing. Bounds what a message may have, answers pings, and lets no text in or out that
//! isn't one. Of a peer that pings and doesn't read, nothing more is read.
//!
//! What nearly every message is, a text in one frame from upstream to the client, doesn't pass the
//! library: it is taken from what was read ahead of it and put into the outbox as it stands. That is a
//! third of the instructions of an answer's way down (docs/performance.md).

use super::{
    ahead::{Ahead, Next},
    outbox::Outbox,
};
use bytes::Bytes;
use cma_core::plain;
use futures_util::{Sink as _, SinkExt as _, Stream as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::{
    ops::Deref,
    pin::Pin,
    string::FromUtf8Error,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite};
pub(super) use tokio_websockets::CloseCode;
use tokio_websockets::{
    ClientBuilder, Config, Limits, Message, ServerBuilder, WebSocketStream, proto::ProtocolError,
};

/// As much may wait for the peer before it has to read: a few events.
const WAITS: usize = 8 * 1024;

/// The text of a message. It was checked once, where it came in.
#[derive(Debug, Clone)]
pub(super) struct Text(Message);

impl Text {
    /// Words of ours.
    #[cfg(test)]
    pub(super) fn from_static(text: &'static str) -> Self {
        Self(Message::text(text))
    }
}

impl Default for Text {
    fn default() -> Self {
        Self(Message::text(""))
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.as_text().unwrap_or_default()
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Message::text(text))
    }
}

impl TryFrom<Bytes> for Text {
    type Error = FromUtf8Error;

    fn try_from(bytes: Bytes) -> Result<Self, FromUtf8Error> {
        String::from_utf8(bytes.into()).map(Self::from)
    }
}

impl From<Text> for Bytes {
    fn from(Text(message): Text) -> Self {
        message.into_payload().into()
    }
}

/// What a peer says.
#[derive(Debug)]
pub(super) enum Said {
    Text(Text),
    Binary,
    /// A ping or a pong. Whatever it asks for is done.
    Sign,
    Close,
}

/// Why there is no further message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The connection ended.
    Cut,
    TooLarge,
    NotText,
    /// What came is no frame.
    NoFrame,
}

impl From<tokio_websockets::Error> for Ended {
    fn from(error: tokio_websockets::Error) -> Self {
        match error {
            tokio_websockets::Error::Protocol(ProtocolError::InvalidUtf8) => Self::NotText,
            tokio_websockets::Error::Protocol(_) => Self::NoFrame,
            tokio_websockets::Error::PayloadTooLong { .. } => Self::TooLarge,
            _ => Self::Cut,
        }
    }
}

/// See the module's documentation. The end towards a client if nothing else is said.
#[derive(Debug)]
pub(super) struct Socket<S = Outbox> {
    stream: WebSocketStream<S>,
    /// An answer of ours to a ping may not have left.
    owes: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// The next message, read by the library.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<Said, Ended>> {
        ready!(self.poll_owed(context))?;
        let said = ready!(Pin::new(&mut self.stream).poll_next(context));
        Poll::Ready(match said {
            Some(Ok(message)) if message.is_text() => Ok(Said::Text(Text(message))),
            Some(Ok(message)) if message.is_binary() => Ok(Said::Binary),
            Some(Ok(message)) if message.is_close() => Ok(Said::Close),
            Some(Ok(_ping_or_pong)) => {
                self.owes = true;
                Ok(Said::Sign)
            },
            Some(Err(error)) => Err(error.into()),
            None => Err(Ended::Cut),
        })
    }

    /// Sends what a ping asked for, before anything more is read.
    fn poll_owed(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        if self.owes {
            ready!(self.poll_flush(context))?;
            self.owes = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what was given.
    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        Pin::new(&mut self.stream).poll_flush(context).map_err(Into::into)
    }

    /// As [`Self::poll_flush`].
    pub(super) async fn flush(&mut self) -> Result<(), Ended> {
        std::future::poll_fn(|context| self.poll_flush(context)).await
    }

    /// Says why it ends. After what was no message, that was said already: then it leaves now.
    pub(super) async fn close(&mut self, code: CloseCode, reason: &str) -> Result<(), Ended> {
        match self.stream.send(Message::close(Some(code), reason)).await {
            Err(tokio_websockets::Error::AlreadyClosed) => self.flush().await,
            sent => Ok(sent?),
        }
    }
}

impl Socket {
    /// The end towards a client. `max` bounds its messages, in bytes.
    pub(super) fn local(upgraded: Upgraded, max: usize) -> Self {
        Self::over(TokioIo::new(upgraded), max)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<Outbox<S>> {
    fn over(stream: S, max: usize) -> Self {
        let builder = ServerBuilder::new().config(config()).limits(limits(max));
        Self { stream: builder.serve(Outbox::new(stream)), owes: false }
    }

    /// The next message.
    pub(super) fn poll_said(&mut self, context: &mut Context<'_>) -> Poll<Result<Said, Ended>> {
        self.poll_read(context)
    }

    /// Whether a message can be given to it now.
    pub(super) fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let waits = self.stream.get_ref().len();
        if waits < WAITS { Poll::Ready(Ok(())) } else { self.poll_flush(context) }
    }

    /// Takes a message; it leaves with the next flush.
    pub(super) fn give(&mut self, text: &str) {
        plain::write(text, self.stream.get_mut().frames());
    }

    /// Sends a message.
    pub(super) async fn send(&mut self, text: &str) -> Result<(), Ended> {
        self.give(text);
        self.flush().await
    }

    /// The bytes below the messages.
    pub(super) fn bytes(&mut self) -> &mut Outbox<S> {
        self.stream.get_mut()
    }
}

impl Socket<Ahead> {
    /// The end towards upstream. `max` bounds its messages, in bytes.
    pub(super) fn upstream(upgraded: Upgraded, max: usize) -> Self {
        Self::over(TokioIo::new(upgraded), max)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<Ahead<S>> {
    fn over(stream: S, max: usize) -> Self {
        let builder = ClientBuilder::new().config(config()).limits(limits(max));
        Self { stream: builder.take_over(Ahead::new(stream)), owes: false }
    }

    /// The next message.
    pub(super) fn poll_said(&mut self, context: &mut Context<'_>) -> Poll<Result<Said, Ended>> {
        ready!(self.poll_owed(context))?;
        let ahead = self.stream.get_mut();
        if ready!(ahead.poll_next(context)) == Next::Plain
            && let Some((text, whole)) = plain::first(ahead.bytes())
        {
            let text = Text::from(text.to_owned());
            ahead.taken(whole);
            return Poll::Ready(Ok(Said::Text(text)));
        }
        self.poll_read(context)
    }

    /// Gives a client the messages that come next, as far as they are there, plain and such that
    /// `is_one` holds of them; whether there was any. What comes next otherwise is for
    /// [`Self::poll_said`].
    pub(super) fn poll_pass<T: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        to: &mut Socket<Outbox<T>>,
        is_one: impl Fn(&str) -> bool,
        context: &mut Context<'_>,
    ) -> Poll<bool> {
        if ready!(self.poll_owed(context)).is_err() {
            return Poll::Ready(false);
        }
        let ahead = self.stream.get_mut();
        if ready!(ahead.poll_next(context)) == Next::Odd {
            return Poll::Ready(false);
        }
        let run = plain::run(ahead.bytes(), is_one);
        let frames = ahead.bytes().get(..run).unwrap_or_default();
        to.stream.get_mut().frames().extend_from_slice(frames);
        ahead.taken(run);
        Poll::Ready(run > 0)
    }

    /// Sends a message.
    pub(super) async fn send(&mut self, text: Text) -> Result<(), Ended> {
        Ok(self.stream.send(text.0).await?)
    }
}

/// A message leaves in one frame, as it came.
fn config() -> Config {
    Config::default().frame_size(usize::MAX).flush_threshold(WAITS)
}

fn limits(max: usize) -> Limits {
    Limits::default().max_payload_len(Some(max))
}

#[cfg(test)]
mod tests;
