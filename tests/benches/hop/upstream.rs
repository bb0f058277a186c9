//! The fastest upstream there is: one thread, no parser, answers made before. It must never be what
//! is measured.
//!
//! `POST …?events=N&gap=MS` streams N events, MS apart, each carrying its send time in nanoseconds of
//! the machine's monotonic clock; anything else gets eight events in one write.

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader, Write as _},
    process::ChildStdout,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// The machine's monotonic clock in nanoseconds, the same in every process.
pub(crate) fn nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Reads the port that a started upstream printed.
pub(crate) fn announced_port(stdout: ChildStdout) -> u16 {
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    line.trim().parse().expect("a port")
}

/// Serves until it is killed.
pub(crate) fn serve() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let listener: TcpListener = socket.listen(2048).expect("listening");
        println!("{}", listener.local_addr().expect("an address").port());
        std::io::stdout().flush().expect("told");
        let answer: &'static [u8] = Box::leak(whole_answer().into_bytes().into_boxed_slice());
        let tasks = tokio_util::task::TaskTracker::new();
        while let Ok((stream, _)) = listener.accept().await {
            drop(tasks.spawn(async move {
                let _client_gone = connection(stream, answer).await;
            }));
        }
    });
}

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
    x-codex-primary-used-percent: 12.5\r\nx-codex-primary-window-minutes: 300\r\n\
    x-codex-primary-reset-at: 4102444800\r\nx-request-id: req_1\r\ntransfer-encoding: chunked\r\n\r\n";

fn chunk(out: &mut String, event: &str) {
    let _infallible = write!(out, "{:x}\r\n{event}\r\n", event.len());
}

fn whole_answer() -> String {
    let mut out = HEAD.to_owned();
    for n in 0..7 {
        let pad = "x".repeat(150);
        chunk(
            &mut out,
            &format!(
                "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",\"n\":{n},\"delta\":\"{pad}\"}}\n\n"
            ),
        );
    }
    chunk(&mut out, COMPLETED);
    out.push_str("0\r\n\r\n");
    out
}

const COMPLETED: &str = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"usage\":{\"input_tokens\":10,\"output_tokens\":5,\"total_tokens\":15}}}\n\n";

/// The beginning of a stream as the backend makes it: no client shows any of it.
const PREAMBLE: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}\n\nevent: response.in_progress\ndata: {\"type\":\"response.in_progress\",\"response\":{\"id\":\"r\"}}\n\n";
/// The beginning of one that shows something at once.
const SHOWN: &str = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n";

async fn connection(mut stream: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer: Vec<u8> = Vec::with_capacity(16 * 1024);
    let mut scratch = vec![0_u8; 16 * 1024];
    loop {
        let head = loop {
            if let Some(at) = memchr::memmem::find(&buffer, b"\r\n\r\n") {
                break at + 4;
            }
            let n = stream.read(&mut scratch).await?;
            if n == 0 {
                return Ok(());
            }
            buffer.extend_from_slice(&scratch[..n]);
        };
        if memchr::memmem::find(&buffer[..head], b"ebsocket").is_some() {
            let accepted = super::socket::accepted(&String::from_utf8_lossy(&buffer[..head]));
            stream.write_all(accepted.as_bytes()).await?;
            // The first turn says how it wants to be served.
            let n = stream.peek(&mut scratch).await?;
            if n > 8 && has_word(&scratch[..n], super::socket::BY_LIBRARY) {
                return super::programs::answer_turns(stream).await;
            }
            return socket(stream).await;
        }
        let (length, plan, first) = {
            let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
            let number = |name: &str, end: char| -> Option<u64> {
                let rest = text.split_once(name)?.1;
                rest.split([end, ' ', '&']).find(|p| !p.is_empty())?.trim().parse().ok()
            };
            let plan = number("events=", '&').zip(number("gap=", ' '));
            let first = [("first=held", PREAMBLE), ("first=shown", SHOWN)];
            let first = first.into_iter().find(|(word, _)| text.contains(word)).map(|it| it.1);
            (number("content-length:", '\r').unwrap_or(0), plan, first)
        };
        let mut left = length.saturating_sub((buffer.len() - head) as u64);
        if scratch.len() < 256 * 1024 && left > 64 * 1024 {
            scratch.resize(256 * 1024, 0);
        }
        while left > 0 {
            let n = stream.read(&mut scratch).await?;
            if n == 0 {
                return Ok(());
            }
            left = left.saturating_sub(n as u64);
        }
        buffer.clear();
        match plan {
            None => stream.write_all(answer).await?,
            Some((events, gap)) => {
                stream.write_all(HEAD.as_bytes()).await?;
                let mut ticks = tokio::time::interval(Duration::from_millis(gap.max(1)));
                if let Some(first) = first {
                    ticks.tick().await;
                    let mut out = String::new();
                    chunk(&mut out, first);
                    stream.write_all(out.as_bytes()).await?;
                }
                for _ in 0..events {
                    ticks.tick().await;
                    let mut out = String::new();
                    chunk(
                        &mut out,
                        &format!(
                            "data: {{\"type\":\"response.output_text.delta\",\"sent\":\"{:020}\"}}\n\n",
                            nanos()
                        ),
                    );
                    stream.write_all(out.as_bytes()).await?;
                }
                if first.is_some() {
                    // The event is to come alone.
                    ticks.tick().await;
                }
                stream.write_all(last().as_bytes()).await?;
            },
        }
    }
}

/// How a stream of events ends.
fn last() -> String {
    let mut out = String::new();
    chunk(&mut out, COMPLETED);
    out + "0\r\n\r\n"
}

/// Turns over a WebSocket: whatever comes masked by zeros and ends like a request is one.
async fn socket(mut stream: TcpStream) -> std::io::Result<()> {
    let answer = super::socket::answer();
    let mut scratch = vec![0_u8; 16 * 1024];
    let mut seen = 0;
    loop {
        let n = stream.read(&mut scratch[seen..]).await?;
        if n == 0 {
            return Ok(());
        }
        seen += n;
        // The daemon masks with what it likes, so that only the length tells.
        let Some(length) = frame_length(&scratch[..seen]) else { continue };
        if seen < length {
            continue;
        }
        if scratch[0] & 0x0f == 8 {
            return Ok(());
        }
        if has_word(&scratch[..length], "slowly") {
            let mut ticks = tokio::time::interval(Duration::from_millis(10));
            for _ in 0..300 {
                ticks.tick().await;
                stream.write_all(&super::socket::stamped()).await?;
            }
            stream.write_all(&super::socket::completed()).await?;
        } else {
            stream.write_all(&answer).await?;
        }
        seen = 0;
    }
}

/// Where a masked frame ends, once its head is there.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let told = bytes.get(1)? & 0x7f;
    assert!(told != 127, "a frame of the bench is short");
    if told == 126 {
        let length = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
        return Some(8 + usize::from(length));
    }
    Some(6 + usize::from(told))
}

/// Whether a masked frame has a word near its beginning.
fn has_word(frame: &[u8], word: &str) -> bool {
    memchr::memmem::find(&unmasked(frame), word.as_bytes()).is_some()
}

/// What a masked frame carries, as far as a word in it goes.
fn unmasked(frame: &[u8]) -> Vec<u8> {
    let at = if frame[1] & 0x7f == 126 { 4 } else { 2 };
    let mask: [u8; 4] = frame[at..at + 4].try_into().expect("a mask");
    frame[at + 4..].iter().take(400).enumerate().map(|(n, byte)| byte ^ mask[n % 4]).collect()
}
