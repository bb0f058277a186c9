//! The bytes under upstream's socket, read ahead of the library.
//!
//! Between two messages, those that can be passed on as they are ([`cma_core::plain`]) are taken from
//! here. Everything else the library reads, and it is given one frame at a time: so it never has bytes of
//! the next one, and after each message what comes is here. In the middle of a message, whatever comes
//! is the library's.

use bytes::{Buf as _, BytesMut};
use cma_core::plain::Head;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::{
    cell::Cell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// As much is read ahead: as one TLS record. A message that is larger is the library's.
pub(super) const AHEAD: usize = 16 * 1024;
/// Of a large message, as much is read at once.
const AT_ONCE: usize = 64 * 1024;

thread_local! {
    /// An empty buffer for whoever reads next.
    static SPARE: Cell<BytesMut> = Cell::default();
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Ahead<S = TokioIo<Upgraded>> {
    stream: S,
    bytes: BytesMut,
    /// As much of what comes next is the library's: the rest of a frame.
    owed: usize,
    /// A message's first frame went to the library, and its last one didn't.
    within: bool,
    /// Met here, for the library to meet: a stream may tell it only once.
    failed: Option<io::Error>,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A message in one plain frame, all of it; whether it is text wasn't looked at.
    Plain,
    /// Something that the library has to read.
    Odd,
}

impl<S: AsyncRead + Unpin> Ahead<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, bytes: BytesMut::new(), owed: 0, within: false, failed: None }
    }

    /// Waits until it is clear what comes next.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        loop {
            if self.owed > 0 || self.within || self.failed.is_some() {
                return Poll::Ready(Next::Odd);
            }
            match Head::read(&self.bytes) {
                Some(head) if !head.is_plain || head.whole > AHEAD => {
                    return Poll::Ready(Next::Odd);
                },
                Some(head) if head.whole <= self.bytes.len() => return Poll::Ready(Next::Plain),
                _ => {},
            }
            match ready!(self.poll_more(context)) {
                Ok(1..) => {},
                // The library meets the end, too.
                Ok(0) => return Poll::Ready(Next::Odd),
                Err(error) => self.failed = Some(error),
            }
        }
    }

    /// What was read.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whole messages at its beginning were taken.
    pub(super) fn taken(&mut self, n: usize) {
        self.bytes.advance(n);
    }

    /// Reads more. While nothing comes, nothing is kept to read into: sockets of a thread share it.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.bytes.capacity() == 0 {
            self.bytes = SPARE.take();
        }
        self.bytes.reserve(AHEAD.saturating_sub(self.bytes.len()));
        let read = poll_read_buf(Pin::new(&mut self.stream), context, &mut self.bytes);
        if self.bytes.is_empty() {
            SPARE.set(std::mem::take(&mut self.bytes));
        }
        read
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(error) = this.failed.take() {
            return Poll::Ready(Err(error));
        }
        while this.owed == 0 {
            match Head::read(&this.bytes) {
                Some(head) => {
                    this.owed = head.whole;
                    this.within = head.goes_on.unwrap_or(this.within);
                },
                None if ready!(this.poll_more(context))? == 0 => {
                    // It ends here, within a head or before one.
                    this.owed = this.bytes.len();
                    break;
                },
                None => {},
            }
        }
        if !this.bytes.is_empty() {
            let n = this.owed.min(this.bytes.len()).min(buffer.remaining());
            buffer.put_slice(this.bytes.get(..n).unwrap_or_default());
            this.bytes.advance(n);
            this.owed -= n;
            return Poll::Ready(Ok(()));
        }
        let n = this.owed.min(AT_ONCE).min(buffer.remaining());
        if n == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(n));
        ready!(Pin::new(&mut this.stream).poll_read(context, &mut part))?;
        let n = part.filled().len();
        buffer.advance(n);
        this.owed -= n;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ahead<S> {
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
        pieces: &[io::IoSlice<'_>],
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
