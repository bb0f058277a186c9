//! The bytes under a client's socket: what waits to leave.
//!
//! Messages are written here as frames, a run of upstream's as it came, and leave together with the
//! next flush, in the order in which they were given. The library adds its own (pongs, the close) by
//! writing; that never waits, for it is short and asked for by a client that has to read first.

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What grew beyond this for one message isn't kept, and neither is more of what has left.
const KEPT: usize = 4 * 1024;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Outbox<S = TokioIo<Upgraded>> {
    stream: S,
    waiting: Vec<u8>,
    /// Of what waits, this much has left.
    left: usize,
}

impl<S> Outbox<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, waiting: Vec::new(), left: 0 }
    }

    /// How many bytes wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() - self.left
    }

    #[cfg(test)]
    pub(super) fn stream_ref(&self) -> &S {
        &self.stream
    }

    /// Where whole frames are added.
    pub(super) fn frames(&mut self) -> &mut Vec<u8> {
        &mut self.waiting
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Outbox<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Outbox<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.waiting.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, waiting, left } = self.get_mut();
        let mut stream = Pin::new(stream);
        while *left < waiting.len() {
            let rest = waiting.get(*left..).unwrap_or_default();
            let Poll::Ready(n) = stream.as_mut().poll_write(context, rest) else {
                // Whoever reads slowly for long doesn't keep what has left.
                if *left > KEPT {
                    drop(waiting.drain(..*left));
                    *left = 0;
                }
                return Poll::Pending;
            };
            match n? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => *left += n,
            }
        }
        *left = 0;
        waiting.clear();
        if waiting.capacity() > KEPT {
            *waiting = Vec::new();
        }
        stream.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
