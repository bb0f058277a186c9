use super::*;
use crate::proxy::{fixtures, ws::ahead::AHEAD};
use cma_core::{event::Kind, sse::Events};
use futures_util::StreamExt as _;
use proptest::prelude::*;
use std::{collections::VecDeque, future::poll_fn, io};
use tokio::io::ReadBuf;

/// A peer that says this, piece by piece, and takes as much at a time.
#[derive(Debug, Default)]
struct Peer {
    says: VecDeque<Vec<u8>>,
    /// How much it takes at once; nothing while that is 0.
    takes: usize,
    got: Vec<u8>,
    writes: usize,
    /// Told once at the end of what it says; nothing comes behind it.
    breaks: Option<io::ErrorKind>,
    broken: bool,
}

impl Peer {
    fn saying(pieces: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self { says: pieces.into_iter().collect(), takes: usize::MAX, ..Self::default() }
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(mut piece) = self.says.pop_front() else {
            return match self.breaks.take() {
                Some(kind) => {
                    self.broken = true;
                    Poll::Ready(Err(kind.into()))
                },
                None if self.broken => Poll::Pending,
                None => Poll::Ready(Ok(())),
            };
        };
        if piece.is_empty() {
            // A pause.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let rest = piece.split_off(piece.len().min(buffer.remaining()));
        buffer.put_slice(&piece);
        if !rest.is_empty() {
            self.says.push_front(rest);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.takes == 0 {
            return Poll::Pending;
        }
        let n = bytes.len().min(self.takes);
        self.got.extend_from_slice(&bytes[..n]);
        self.writes += 1;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

const MAX: usize = 64 * 1024;

/// A frame of upstream's, with any first byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    plain::write(&"x".repeat(payload.len()), &mut out);
    out[0] = first;
    let head = out.len() - payload.len();
    out[head..].copy_from_slice(payload);
    out
}

fn delta(text: &str) -> Vec<u8> {
    frame(0x81, format!(r#"{{"type":"response.output_text.delta","delta":"{text}"}}"#).as_bytes())
}

/// What a socket says, in words, to its end.
fn word(said: &Result<Said, Ended>) -> String {
    match said {
        Ok(Said::Text(text)) => text.to_string(),
        Ok(other) => format!("<{other:?}>"),
        Err(ended) => format!("<{ended:?}>"),
    }
}

/// What the library alone makes of these bytes.
async fn by_the_library(pieces: Vec<Vec<u8>>) -> Vec<String> {
    let builder = ClientBuilder::new().config(config()).limits(limits(MAX));
    let mut stream = builder.take_over(Peer::saying(pieces));
    let mut words = Vec::new();
    loop {
        let said = match stream.next().await {
            Some(Ok(message)) if message.is_text() => Ok(Said::Text(Text(message))),
            Some(Ok(message)) if message.is_binary() => Ok(Said::Binary),
            Some(Ok(message)) if message.is_close() => Ok(Said::Close),
            Some(Ok(_sign)) => Ok(Said::Sign),
            Some(Err(error)) => Err(error.into()),
            None => Err(Ended::Cut),
        };
        words.push(word(&said));
        if !matches!(said, Ok(Said::Text(_) | Said::Sign | Said::Binary)) {
            return words;
        }
    }
}

/// What comes of them here: the words as they were read or passed, and how many were passed.
async fn by_us(pieces: Vec<Vec<u8>>, passes: bool) -> (Vec<String>, usize) {
    by_us_over(Peer::saying(pieces), passes).await
}

async fn by_us_over(peer: Peer, passes: bool) -> (Vec<String>, usize) {
    let mut upstream = Socket::<Ahead<Peer>>::over(peer, MAX);
    let (mut words, mut passed) = (Vec::new(), 0);
    loop {
        let mut local = Socket::<Outbox<Peer>>::over(Peer::saying([]), MAX);
        let is_one = |text: &str| Kind::of(text.as_bytes()) == Kind::Visible;
        if passes && poll_fn(|context| upstream.poll_pass(&mut local, is_one, context)).await {
            local.flush().await.unwrap();
            let mut bytes = local.stream.get_ref().stream_ref().got.as_slice();
            while let Some((text, whole)) = plain::first(bytes) {
                words.push(text.to_owned());
                bytes = &bytes[whole..];
                passed += 1;
            }
            assert!(bytes.is_empty());
            continue;
        }
        let said = poll_fn(|context| upstream.poll_said(context)).await;
        words.push(word(&said));
        if !matches!(said, Ok(Said::Text(_) | Said::Sign | Said::Binary)) {
            return (words, passed);
        }
    }
}

/// An answer with everything that a server may do between and within its messages.
fn answer() -> Vec<u8> {
    let large = "l".repeat(AHEAD + 10);
    [
        frame(0x81, br#"{"type":"response.created"}"#),
        delta("one"),
        delta("two"),
        frame(0x89, b"ping"),
        delta("three é"),
        frame(0x01, br#"{"type":"response."#),
        frame(0x89, b"within"),
        frame(0x00, br#"output_text.delta"#),
        frame(0x80, br#"","delta":"in parts"}"#),
        delta("four"),
        delta(&large),
        delta(""),
        frame(0x82, b"binary"),
        delta("five"),
        frame(0x8A, b""),
        frame(0x81, br#"{"type":"response.completed"}"#),
        frame(0x88, &[0x03, 0xE8]),
    ]
    .concat()
}

#[tokio::test]
async fn what_comes_is_the_same_as_by_the_library_wherever_the_bytes_are_split() {
    let bytes = answer();
    let expected = by_the_library(vec![bytes.clone()]).await;
    assert_eq!(expected.len(), 15);
    assert_eq!(expected.last().unwrap(), "<Close>");
    let (words, passed) = by_us(vec![bytes.clone()], true).await;
    assert_eq!(words, expected);
    assert_eq!(passed, 6, "the deltas in one small frame");
    for at in (1..600).chain(bytes.len() - 200..bytes.len()) {
        let (one, two) = bytes.split_at(at);
        for passes in [true, false] {
            let pieces = vec![one.to_vec(), Vec::new(), two.to_vec()];
            assert_eq!(by_us(pieces, passes).await.0, expected, "split at {at}");
        }
    }
    let pieces = bytes.chunks(1).map(<[u8]>::to_vec).collect();
    assert_eq!(by_us(pieces, true).await.0, expected);
}

/// The events of the corpus as frames, as a WebSocket has them.
#[tokio::test]
async fn every_stream_of_the_corpus_is_the_same_wherever_its_frames_are_split() {
    for (name, bytes) in fixtures::streams() {
        let mut events = Events::new(MAX);
        events.feed(&bytes);
        let texts: Vec<String> =
            std::iter::from_fn(|| events.next_event()).map_while(Result::ok).collect();
        let mut frames: Vec<u8> =
            texts.iter().flat_map(|text| frame(0x81, text.as_bytes())).collect();
        frames.extend(frame(0x88, &[0x03, 0xE8]));
        let mut expected = texts;
        expected.push("<Close>".to_owned());
        for halves in fixtures::halves(&frames) {
            let [one, two] = halves.map(<[u8]>::to_vec);
            let pieces = vec![one, Vec::new(), two];
            let pieces: Vec<_> = pieces.into_iter().skip_while(Vec::is_empty).collect();
            assert_eq!(by_us(pieces, true).await.0, expected, "{name}");
        }
    }
}

#[tokio::test]
async fn what_is_no_message_ends_it_as_by_the_library() {
    let wrong: [&[u8]; 9] = [
        &[0xC1, 1, b'x'],
        &[0x83, 1, b'x'],
        &[0x80, 1, b'x'],
        &[0x81, 126, 0, 1, b'x'],
        &[0x81, 0x81, 0, 0, 0, 0, b'x'],
        &[0x81, 2, 0xC3, 0x28],
        &[0x81, 127, 0, 0, 0, 0, 1, 0, 0, 0],
        &[0x88, 1, 0],
        &[0x81, 10, b'c', b'u', b't'],
    ];
    for bytes in wrong {
        let bytes = [delta("one"), bytes.to_vec()].concat();
        let expected = by_the_library(vec![bytes.clone()]).await;
        for passes in [true, false] {
            assert_eq!(by_us(vec![bytes.clone()], passes).await.0, expected, "{bytes:?}");
            let pieces = bytes.chunks(1).map(<[u8]>::to_vec).collect();
            assert_eq!(by_us(pieces, passes).await.0, expected, "{bytes:?}");
        }
    }
}

#[tokio::test]
async fn an_error_that_is_told_only_once_ends_it_at_once() {
    for (rest, passes) in [(0, true), (0, false), (10, true), (10, false)] {
        let mut peer = Peer::saying([delta("one"), delta("two")[..rest].to_vec()]);
        peer.breaks = Some(io::ErrorKind::InvalidData);
        let both = by_us_over(peer, passes);
        let (words, _) =
            tokio::time::timeout(std::time::Duration::from_secs(5), both).await.unwrap();
        assert_eq!(words.last().unwrap(), "<Cut>", "{rest}");
        assert_eq!(words.len(), 2);
    }
}

#[tokio::test]
async fn what_is_given_leaves_in_its_order_and_together() {
    let mut local = Socket::<Outbox<Peer>>::over(Peer::saying([]), MAX);
    let run = [delta("one"), delta("two")].concat();
    let mut upstream = Socket::<Ahead<Peer>>::over(Peer::saying([run.clone()]), MAX);
    local.give("first");
    assert!(poll_fn(|context| upstream.poll_pass(&mut local, |_| true, context)).await);
    local.give("last");
    local.flush().await.unwrap();
    local.close(CloseCode::NORMAL_CLOSURE, "").await.unwrap();
    let expected = [frame(0x81, b"first"), run, frame(0x81, b"last")].concat();
    let peer = local.stream.get_ref().stream_ref();
    assert_eq!(peer.got[..expected.len()], expected);
    assert_eq!(peer.got[expected.len()..], frame(0x88, &[0x03, 0xE8]));
    assert_eq!(peer.writes, 2);
}

#[tokio::test]
async fn a_client_that_takes_little_gets_all_of_it_and_one_that_takes_nothing_makes_us_wait() {
    let mut local = Socket::<Outbox<Peer>>::over(Peer { takes: 7, ..Peer::default() }, MAX);
    let large = "l".repeat(3 * WAITS);
    local.send(&large).await.unwrap();
    assert_eq!(local.stream.get_ref().stream_ref().got, frame(0x81, large.as_bytes()));
    let mut local = Socket::<Outbox<Peer>>::over(Peer::default(), MAX);
    let ready = |local: &mut Socket<Outbox<Peer>>| {
        let waker = std::task::Waker::noop();
        local.poll_ready(&mut Context::from_waker(waker)).is_ready()
    };
    local.give(&large[..WAITS - 10]);
    assert!(ready(&mut local));
    local.give("more than that");
    assert!(!ready(&mut local));
}

proptest! {
    #[test]
    fn any_bytes_say_the_same_as_by_the_library(
        frames in prop::collection::vec((prop_oneof![Just(0x81_u8), any::<u8>()], prop::collection::vec(any::<u8>(), 0..200)), 0..8),
        tail in prop::collection::vec(any::<u8>(), 0..12),
        sizes in prop::collection::vec(1_usize..300, 1..6),
    ) {
        let mut bytes: Vec<u8> = frames.iter().flat_map(|(first, text)| frame(*first, text)).collect();
        bytes.extend(tail);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let expected = by_the_library(vec![bytes.clone()]).await;
            let (mut pieces, mut rest, mut sizes) = (Vec::new(), bytes.as_slice(), sizes.iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                pieces.push(piece.to_vec());
                rest = after;
            }
            let (words, _passed) = by_us(pieces, true).await;
            prop_assert_eq!(words, expected);
            Ok(())
        })?;
    }
}
