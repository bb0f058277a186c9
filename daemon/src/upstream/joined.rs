//! A connection of HTTP/1.1 whose chunks that arrive together are read as one (`cma_core::chunks` says why).
//!
//! Decides nothing: it is told when an answer begins, by whoever sends a request, and hands each read over.

use cma_core::chunks::Joiner;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Tells a connection that its next bytes are a new answer's.
#[derive(Debug, Clone, Default)]
pub(super) struct Begins(Arc<AtomicBool>);

impl Begins {
    /// To be told before a request is sent; what was answered before has been read.
    pub(super) fn tell(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Joined<S> {
    stream: S,
    joiner: Joiner,
    begins: Begins,
}

impl<S> Joined<S> {
    pub(super) fn new(stream: S) -> (Self, Begins) {
        let begins = Begins::default();
        (Self { stream, joiner: Joiner::default(), begins: begins.clone() }, begins)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Joined<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, joiner, begins } = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(stream).poll_read(context, buffer))?;
        let read = buffer.filled_mut().get_mut(before..).unwrap_or_default();
        if read.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if begins.0.load(Ordering::Acquire) {
            begins.0.store(false, Ordering::Release);
            joiner.begins();
        }
        let left = joiner.join(read);
        buffer.set_filled(before + left);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Joined<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
