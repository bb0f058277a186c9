//! One end of a WebSocket: messages in and out, with the library behind it.
//!
//! Decides nothing. Bounds what a message may have, answers pings, and lets no text in or out that
//! isn't one. Of a peer that pings and doesn't read, nothing more is read.

use bytes::Bytes;
use futures_util::{Sink as _, SinkExt as _, Stream as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::{
    ops::Deref,
    pin::Pin,
    string::FromUtf8Error,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncRead;
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

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Socket {
    stream: WebSocketStream<TokioIo<Upgraded>>,
    /// An answer of ours to a ping may not have left.
    owes: bool,
}

impl Socket {
    /// The end towards a client. `max` bounds its messages, in bytes.
    pub(super) fn local(upgraded: Upgraded, max: usize) -> Self {
        let builder = ServerBuilder::new().config(config()).limits(limits(max));
        Self { stream: builder.serve(TokioIo::new(upgraded)), owes: false }
    }

    /// The end towards upstream. `max` bounds its messages, in bytes.
    pub(super) fn upstream(upgraded: Upgraded, max: usize) -> Self {
        let builder = ClientBuilder::new().config(config()).limits(limits(max));
        Self { stream: builder.take_over(TokioIo::new(upgraded)), owes: false }
    }

    /// The next message.
    pub(super) fn poll_said(&mut self, context: &mut Context<'_>) -> Poll<Result<Said, Ended>> {
        if self.owes {
            ready!(self.poll_flush(context))?;
            self.owes = false;
        }
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

    /// Whether a message can be given to it now.
    pub(super) fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        Pin::new(&mut self.stream).poll_ready(context).map_err(Into::into)
    }

    /// Takes a message; it leaves with the next flush.
    pub(super) fn give(&mut self, text: Text) -> Result<(), Ended> {
        Pin::new(&mut self.stream).start_send(text.0).map_err(Into::into)
    }

    /// Sends what was given.
    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        Pin::new(&mut self.stream).poll_flush(context).map_err(Into::into)
    }

    /// As [`Self::poll_flush`].
    pub(super) async fn flush(&mut self) -> Result<(), Ended> {
        std::future::poll_fn(|context| self.poll_flush(context)).await
    }

    /// Sends a message.
    pub(super) async fn send(&mut self, text: Text) -> Result<(), Ended> {
        Ok(self.stream.send(text.0).await?)
    }

    /// Says why it ends. After what was no message, that was said already: then it leaves now.
    pub(super) async fn close(&mut self, code: CloseCode, reason: &str) -> Result<(), Ended> {
        match self.stream.send(Message::close(Some(code), reason)).await {
            Err(tokio_websockets::Error::AlreadyClosed) => self.flush().await,
            sent => Ok(sent?),
        }
    }

    /// The bytes below the messages.
    pub(super) fn bytes(&mut self) -> &mut (impl AsyncRead + Unpin + use<>) {
        self.stream.get_mut()
    }
}

/// A message leaves in one frame, as it came.
fn config() -> Config {
    Config::default().frame_size(usize::MAX).flush_threshold(WAITS)
}

fn limits(max: usize) -> Limits {
    Limits::default().max_payload_len(Some(max))
}
