//! Small pieces leave in one plain write, small writes of many sockets leave one behind the other, and large bodies
//! come in pieces.
//!
//! Decides nothing about what is written. A vectored write of a turn's sixteen pieces costs the kernel
//! about a microsecond more than a plain one of the same bytes (docs/performance.md), and copying them
//! together a tenth of that; from some size on it is the other way round, and the pieces leave as they are.
//!
//! A write to somebody who sleeps wakes him, and waking another processor is dearer than the write. While many
//! requests are under way, each of their writes would do so: a peer has slept again by the next one. So of a round
//! (what the runtime does between two looks for news) the first write leaves at once, for nobody may follow, and
//! the others at the round's end or when [`TOGETHER`] of them wait. One request alone never waits.
//!
//! Invariants: a socket's bytes leave in the order in which they were given. What was taken leaves even if its owner
//! is dropped, unless he gave up on a peer that doesn't read. A peer that doesn't read is felt by the next write or flush.
//! Where no round ends (a thread whose runtime isn't [`in_rounds`]) every write leaves at once.

use parking_lot::Mutex;
use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// What is copied together, in bytes at most.
const SMALL: usize = 16 * 1024;

/// What is read at once, in bytes at most. A sender of a large body waits for each read of twice as much,
/// and does nothing meanwhile: 2 MiB take half the time (docs/performance.md).
const PIECE: usize = 32 * 1024;

/// How many writes may come, of whatever kind, before those that wait leave: rounds have no end while there is always
/// something to do. More brings nothing (docs/performance.md).
const TOGETHER: usize = 8;

/// What grew beyond this for one write isn't kept.
const KEPT: usize = 4 * 1024;

thread_local! {
    /// Whether this thread's rounds have an end.
    static ENDS: Cell<bool> = const { Cell::new(false) };
    /// Whether something was written in this round.
    static WRITTEN: Cell<bool> = const { Cell::new(false) };
    /// Writes since something waits.
    static SINCE: Cell<usize> = const { Cell::new(0) };
    /// What leaves at its end.
    static WAITING: RefCell<Vec<Arc<dyn Leaves>>> = const { RefCell::new(Vec::new()) };
    /// Empty: what was written with, and will be again.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Has a runtime's rounds end.
pub(crate) fn in_rounds(builder: &mut tokio::runtime::Builder) {
    builder.on_thread_park(|| {
        ENDS.set(true);
        end_round();
    });
}

/// Sends what waits on this thread, and has a round begin.
pub(crate) fn end_round() {
    WRITTEN.set(false);
    all_leave();
}

fn all_leave() {
    SINCE.set(0);
    let mut waiting = WAITING.take();
    waiting.drain(..).for_each(Leaves::leave);
    // Who was woken meanwhile came to a new list.
    WAITING.with_borrow_mut(|new| {
        waiting.append(new);
        *new = waiting;
    });
}

fn spare() -> Vec<u8> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(KEPT / 2))
}

/// Somebody whose bytes wait.
trait Leaves: Send + Sync {
    fn leave(self: Arc<Self>);
}

/// A stream whose small pieces are written together.
#[derive(Debug)]
pub(crate) struct Gather<S: AsyncWrite + Unpin>(Arc<Shared<S>>);

/// The end of the round needs it too.
#[derive(Debug)]
struct Shared<S> {
    /// Whether the line is stuck or has failed. Each look at a connection asks, so it needs no lock.
    troubled: AtomicBool,
    line: Mutex<Line<S>>,
}

#[derive(Debug)]
struct Line<S> {
    stream: S,
    /// What was taken and hasn't left.
    unsent: Vec<u8>,
    /// Of that, this much has.
    left: usize,
    /// The peer doesn't read: the rest leaves when it does, and until then nothing more is taken.
    stuck: bool,
    /// Who waits for that.
    owner: Option<Waker>,
    /// Why nothing leaves any more; not told yet.
    failed: Option<io::Error>,
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    pub(crate) fn new(stream: S) -> Self {
        let line =
            Line { stream, unsent: Vec::new(), left: 0, stuck: false, owner: None, failed: None };
        Self(Arc::new(Shared { troubled: AtomicBool::new(false), line: Mutex::new(line) }))
    }
}

impl<S: AsyncWrite + Unpin + Send + 'static> Shared<S> {
    fn write(
        self: &Arc<Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let since = SINCE.get();
        if since >= TOGETHER {
            all_leave();
        } else if since > 0 {
            SINCE.set(since + 1);
        }
        let mut line = self.line.lock();
        ready!(line.poll_free(context))?;
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let waits = !line.unsent.is_empty();
        if waits && line.unsent.len() + length > SMALL {
            line.leave(self);
            ready!(line.poll_free(context))?;
            return line.write(context, pieces, length);
        }
        if !waits {
            let first = !WRITTEN.replace(true);
            if first || length > SMALL || !ENDS.get() {
                return line.write(context, pieces, length);
            }
            line.unsent = spare();
            SINCE.set(SINCE.get().max(1));
            WAITING.with_borrow_mut(|waiting| waiting.push(Arc::clone(self) as Arc<dyn Leaves>));
        }
        pieces.iter().for_each(|piece| line.unsent.extend_from_slice(piece));
        Poll::Ready(Ok(length))
    }
}

impl<S: AsyncWrite + Unpin + Send + 'static> Leaves for Shared<S> {
    fn leave(self: Arc<Self>) {
        self.line.lock().leave(&self);
    }
}

/// A peer reads again.
impl<S: AsyncWrite + Unpin + Send + 'static> Wake for Shared<S> {
    fn wake(self: Arc<Self>) {
        if ENDS.get() {
            WAITING.with_borrow_mut(|waiting| waiting.push(self));
        } else {
            self.leave();
        }
    }
}

impl<S: AsyncWrite + Unpin> Line<S> {
    /// Whether more can be taken; if not, whoever asks is told when.
    fn poll_free(&mut self, context: &Context<'_>) -> Poll<io::Result<()>> {
        if let Some(failed) = self.failed.take() {
            return Poll::Ready(Err(failed));
        }
        if self.stuck {
            self.owner = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes at once, as much as the peer takes.
    fn write(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
        length: usize,
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        if let [only] = pieces {
            return stream.poll_write(context, only);
        }
        if length > SMALL {
            return stream.poll_write_vectored(context, pieces);
        }
        let mut together = spare();
        pieces.iter().for_each(|piece| together.extend_from_slice(piece));
        let written = stream.poll_write(context, &together);
        keep(together);
        written
    }

    /// Writes what waits. A peer that takes only a part wakes `shared` for the rest.
    fn leave(&mut self, shared: &Arc<Shared<S>>)
    where
        S: Send + 'static,
    {
        let mut sent = self.poll_sent(&mut Context::from_waker(Waker::noop()));
        if sent.is_pending() {
            let waker = Waker::from(Arc::clone(shared));
            sent = self.poll_sent(&mut Context::from_waker(&waker));
        }
        self.stuck = sent.is_pending();
        if let Poll::Ready(sent) = sent {
            self.failed = sent.err().or(self.failed.take());
            self.left = 0;
            keep(std::mem::take(&mut self.unsent));
            if let Some(owner) = self.owner.take() {
                owner.wake();
            }
        }
        shared.troubled.store(self.stuck || self.failed.is_some(), Ordering::Release);
    }

    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.left < self.unsent.len() {
            let rest = self.unsent.get(self.left..).unwrap_or_default();
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.left += n,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// As much as one round writes with.
fn keep(mut used: Vec<u8>) {
    used.clear();
    if (1..=KEPT).contains(&used.capacity()) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < TOGETHER {
                spare.push(used);
            }
        });
    }
}

impl<S: AsyncWrite + Unpin> Drop for Gather<S> {
    fn drop(&mut self) {
        let mut line = self.0.line.lock();
        if line.stuck {
            // Its owner knew that the peer doesn't read. Who would be woken for the rest holds the stream: now
            // nobody is.
            let _unread = line.poll_sent(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() <= PIECE {
            return Pin::new(&mut self.0.line.lock().stream).poll_read(context, buffer);
        }
        // A large body may keep its round from ending.
        if SINCE.get() > 0 {
            all_leave();
        }
        let stream = &mut self.0.line.lock().stream;
        let mut part = stream.take(PIECE as u64);
        Pin::new(&mut part).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin + Send + 'static> AsyncWrite for Gather<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.write(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.troubled.load(Ordering::Acquire) {
            return self.0.line.lock().poll_free(context);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut line = self.0.line.lock();
        if !line.stuck {
            line.leave(&self.0);
        }
        ready!(line.poll_free(context))?;
        Pin::new(&mut line.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncWriteExt as _, DuplexStream};

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
        let mut to = Gather::new(Seen::default());
        let (head, body) = ([b'h'; 700], [b'b'; 700]);
        let n = to.write_vectored(&[IoSlice::new(&head), IoSlice::new(&body)]).await.unwrap();
        assert_eq!((n, to.0.line.lock().stream.plain.as_slice()), (1_000, [1_000].as_slice()));
        let n = to.write_vectored(&[IoSlice::new(&body[300..])]).await.unwrap();
        let seen = &to.0.line.lock().stream;
        assert_eq!((n, seen.plain.as_slice()), (400, [1_000, 400].as_slice()));
        assert_eq!(seen.bytes, [head, body].concat());
        assert!(seen.vectored.is_empty());
    }

    #[tokio::test]
    async fn large_pieces_leave_as_they_are() {
        let mut to = Gather::new(Seen::default());
        let (head, body) = ([b'h'; 1], vec![b'b'; SMALL]);
        let n = to.write_vectored(&[IoSlice::new(&head), IoSlice::new(&body)]).await.unwrap();
        assert_eq!((n, to.0.line.lock().stream.vectored.as_slice()), (SMALL + 1, [2].as_slice()));
    }

    /// In a runtime whose rounds end, behind the first of them.
    fn in_a_round<T>(test: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        in_rounds(&mut builder);
        builder.enable_all().build().unwrap().block_on(async {
            next_round().await;
            test.await
        })
    }

    async fn next_round() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }

    /// Everything that has come, without waiting.
    fn come(from: &mut DuplexStream) -> String {
        let (mut bytes, mut nobody) = ([0; 4096], Context::from_waker(Waker::noop()));
        let mut all = String::new();
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *from).poll_read(&mut nobody, &mut buffer) {
                Poll::Ready(read) if !buffer.filled().is_empty() => {
                    read.unwrap();
                    all.push_str(std::str::from_utf8(buffer.filled()).unwrap());
                },
                Poll::Ready(_end) => return all + "!",
                Poll::Pending => return all,
            }
        }
    }

    /// Sockets that take so many bytes before they are read, and the first write of a round gone.
    async fn pairs<const N: usize>(size: usize) -> [(Gather<DuplexStream>, DuplexStream); N] {
        let (near, _far) = tokio::io::duplex(9);
        Gather::new(near).write_all(b"first").await.unwrap();
        std::array::from_fn(|_| {
            let (near, far) = tokio::io::duplex(size);
            (Gather::new(near), far)
        })
    }

    #[test]
    fn of_a_round_the_first_leaves_at_once_and_the_others_at_its_end() {
        in_a_round(async {
            let (near, mut far) = tokio::io::duplex(64);
            let mut first = Gather::new(near);
            first.write_all(b"first").await.unwrap();
            assert_eq!(come(&mut far), "first");
            let [(mut near, mut other)] = pairs(64).await;
            near.write_all(b"one ").await.unwrap();
            let two = [IoSlice::new(b"two "), IoSlice::new(b"three")];
            assert_eq!(near.write_vectored(&two).await.unwrap(), 9);
            near.flush().await.unwrap();
            first.write_all(b" again").await.unwrap();
            assert_eq!((come(&mut far), come(&mut other)), (String::new(), String::new()));
            next_round().await;
            assert_eq!((&*come(&mut far), &*come(&mut other)), (" again", "one two three"));
            near.write_all(b"a new one").await.unwrap();
            assert_eq!(come(&mut other), "a new one");
        });
    }

    #[test]
    fn no_more_than_so_many_wait_for_one_another() {
        in_a_round(async {
            let mut pairs: [_; TOGETHER + 1] = pairs(64).await;
            for (at, (near, _far)) in pairs.iter_mut().enumerate() {
                near.write_all(&[b'a' + u8::try_from(at).unwrap()]).await.unwrap();
            }
            let come: Vec<_> = pairs.iter_mut().map(|(_near, far)| come(far)).collect();
            assert_eq!(come.concat(), "abcdefgh");
            assert_eq!(come.last().unwrap(), "", "the next one's turn");
        });
    }

    #[test]
    fn what_is_large_leaves_at_once_and_behind_what_waits() {
        in_a_round(async {
            let [(mut near, mut far)] = pairs(2 * SMALL).await;
            near.write_all(b"small").await.unwrap();
            near.write_all(&[b'l'; SMALL]).await.unwrap();
            let all = come(&mut far);
            assert_eq!((all.len(), &all[..6]), (SMALL + 5, "smalll"));
        });
    }

    #[test]
    fn what_waits_never_waits_for_a_large_body() {
        in_a_round(async {
            let [(mut small, mut far), (mut large, mut sink)] = pairs(2 * SMALL).await;
            small.write_all(b"small").await.unwrap();
            for _ in 1..TOGETHER {
                assert_eq!(come(&mut far), "");
                large.write_all(&[b'l'; SMALL + 1]).await.unwrap();
                come(&mut sink);
            }
            large.write_all(&[b'l'; SMALL + 1]).await.unwrap();
            assert_eq!(come(&mut far), "small");
            come(&mut sink);

            small.write_all(b"again").await.unwrap();
            sink.write_all(b"large").await.unwrap();
            assert_eq!(large.read(&mut vec![0; 2 * PIECE]).await.unwrap(), 5);
            assert_eq!(come(&mut far), "again");
        });
    }

    #[test]
    fn a_peer_that_does_not_read_is_felt_and_gets_everything_later() {
        in_a_round(async {
            let [(mut near, mut far)] = pairs(4).await;
            near.write_all(b"0123456789").await.unwrap();
            near.flush().await.unwrap();
            next_round().await;
            let waits = Duration::from_millis(5);
            assert!(tokio::time::timeout(waits, near.flush()).await.is_err());
            assert!(tokio::time::timeout(waits, near.write(b"x")).await.is_err());
            let reader = async {
                let mut read = [0; 13];
                far.read_exact(&mut read).await.unwrap();
                String::from_utf8(read.to_vec()).unwrap()
            };
            let writer = async {
                near.flush().await.unwrap();
                near.write_all(b"abc").await.unwrap();
            };
            let (read, ()) = tokio::join!(reader, writer);
            assert_eq!(read, "0123456789abc");
        });
    }

    #[test]
    fn what_was_taken_leaves_without_its_owner() {
        in_a_round(async {
            let [(mut whole, mut here), (mut part, mut late)] = pairs(4).await;
            whole.write_all(b"0123").await.unwrap();
            part.write_all(b"0123456").await.unwrap();
            drop((whole, part));
            next_round().await;
            assert_eq!((&*come(&mut here), &*come(&mut late)), ("0123!", "0123"));
            next_round().await;
            assert_eq!(come(&mut late), "456!");
        });
    }

    #[test]
    fn who_gave_up_on_a_peer_leaves_nothing_behind() {
        in_a_round(async {
            let [(mut near, mut far)] = pairs(4).await;
            near.write_all(b"0123456").await.unwrap();
            next_round().await;
            let weak = Arc::downgrade(&near.0);
            drop(near);
            assert_eq!(weak.strong_count(), 0);
            assert_eq!(come(&mut far), "0123!");
        });
    }

    #[test]
    fn a_failure_is_told_with_the_next_write() {
        in_a_round(async {
            let [(mut near, far)] = pairs(4).await;
            near.write_all(b"0123").await.unwrap();
            drop(far);
            next_round().await;
            let failed = near.write(b"4").await.unwrap_err();
            assert_eq!(failed.kind(), io::ErrorKind::BrokenPipe);
        });
    }

    #[test]
    fn an_end_comes_behind_what_waits() {
        in_a_round(async {
            let [(mut near, mut far)] = pairs(4).await;
            near.write_all(b"0123456").await.unwrap();
            let mut end = std::pin::pin!(near.shutdown());
            let waits = tokio::time::timeout(Duration::from_millis(5), &mut end).await;
            assert!(waits.is_err());
            assert_eq!(come(&mut far), "0123");
            end.await.unwrap();
            assert_eq!(come(&mut far), "456!");
        });
    }

    #[tokio::test]
    async fn what_is_read_is_what_came() {
        let mut from = Gather::new(io::Cursor::new(b"bytes".to_vec()));
        let mut read = String::new();
        from.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "bytes");
    }

    #[tokio::test]
    async fn a_large_body_comes_in_pieces_and_whole() {
        let body: Vec<u8> = (0..=250).cycle().take(3 * PIECE + 7).collect();
        let (mut from, mut buffer) =
            (Gather::new(io::Cursor::new(body.clone())), vec![0; 4 * PIECE]);
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
