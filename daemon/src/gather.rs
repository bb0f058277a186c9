//! Small pieces leave in one plain write, and large bodies come in pieces.
//!
//! Decides nothing about what is written. A vectored write of a turn's sixteen pieces costs the kernel
//! about a microsecond more than a plain one of the same bytes (docs/performance.md), and copying them
//! together a tenth of that; from some size on it is the other way round, and the pieces leave as they are.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// What is copied together, in bytes at most.
const SMALL: usize = 16 * 1024;

/// What is read at once, in bytes at most. A sender of a large body waits for each read of twice as much,
/// and does nothing meanwhile: 2 MiB take half the time (docs/performance.md).
const PIECE: usize = 32 * 1024;

thread_local! {
    /// Nothing stays in it from one write to the next: one serves all connections.
    static TOGETHER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A stream whose small pieces are written together.
#[derive(Debug)]
pub(crate) struct Gather<S>(pub(crate) S);

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() <= PIECE {
            return Pin::new(&mut self.0).poll_read(context, buffer);
        }
        let mut part = (&mut self.0).take(PIECE as u64);
        Pin::new(&mut part).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.0);
        if let [only] = pieces {
            return stream.poll_write(context, only);
        }
        if pieces.iter().map(|piece| piece.len()).sum::<usize>() > SMALL {
            return stream.poll_write_vectored(context, pieces);
        }
        TOGETHER.with_borrow_mut(|together| {
            together.clear();
            for piece in pieces {
                together.extend_from_slice(piece);
            }
            stream.poll_write(context, together)
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    /// Counts how it was written to.
    #[derive(Debug, Default)]
    struct Seen {
        plain: Vec<usize>,
        vectored: Vec<usize>,
        bytes: Vec<u8>,
    }

    impl AsyncWrite for Seen {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            // As a socket that is nearly full.
            let taken = bytes.len().min(1_000);
            self.plain.push(taken);
            self.bytes.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
            pieces: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.vectored.push(pieces.len());
            pieces.iter().for_each(|piece| self.bytes.extend_from_slice(piece));
            Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn small_pieces_leave_together_and_a_partial_write_says_how_much_left() {
        let mut to = Gather(Seen::default());
        let (head, body) = ([b'h'; 700], [b'b'; 700]);
        let n = to.write_vectored(&[IoSlice::new(&head), IoSlice::new(&body)]).await.unwrap();
        assert_eq!((n, to.0.plain.as_slice()), (1_000, [1_000].as_slice()));
        let n = to.write_vectored(&[IoSlice::new(&body[300..])]).await.unwrap();
        assert_eq!((n, to.0.plain.as_slice()), (400, [1_000, 400].as_slice()));
        assert_eq!(to.0.bytes, [head, body].concat());
        assert!(to.0.vectored.is_empty());
    }

    #[tokio::test]
    async fn large_pieces_leave_as_they_are() {
        let mut to = Gather(Seen::default());
        let (head, body) = ([b'h'; 1], vec![b'b'; SMALL]);
        let n = to.write_vectored(&[IoSlice::new(&head), IoSlice::new(&body)]).await.unwrap();
        assert_eq!((n, to.0.vectored.as_slice()), (SMALL + 1, [2].as_slice()));
    }

    #[tokio::test]
    async fn what_is_read_is_what_came() {
        let mut from = Gather(&b"bytes"[..]);
        let mut read = String::new();
        from.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "bytes");
    }

    #[tokio::test]
    async fn a_large_body_comes_in_pieces_and_whole() {
        let body: Vec<u8> = (0..=250).cycle().take(3 * PIECE + 7).collect();
        let (mut from, mut buffer) = (Gather(&body[..]), vec![0; 4 * PIECE]);
        let mut read = Vec::new();
        loop {
            let n = from.read(&mut buffer).await.unwrap();
            assert!(n <= PIECE, "{n}");
            read.extend_from_slice(&buffer[..n]);
            if n == 0 {
                break;
            }
        }
        assert_eq!(read, body);
    }
}
