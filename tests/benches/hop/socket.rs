//! WebSocket turns: one socket a client, one small frame up, nine frames down, again and again.
//!
//! nginx tunnels bytes here and looks at none; the daemon reads each message, chooses an account for each
//! turn and counts its tokens. The client and the upstream are as bare as the others: frames are made
//! before, and looked for by their last bytes. With [`super::programs`] they are programs instead.

use super::{stats::a_second, upstream::nanos};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What every turn's last frame ends with.
pub(crate) const END: &[u8] = b"\"total_tokens\":15}}}";
const LAST: &str = r#"{"type":"response.completed","response":{"id":"resp_1","usage":{"input_tokens":10,"output_tokens":5,"total_tokens":15}}}"#;
/// The word of a turn whose upstream reads and writes frames by a library.
pub(crate) const BY_LIBRARY: &str = "by-library";
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A text frame with a length that fits in two bytes.
fn frame(text: &str, masked: bool) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut out = vec![0x81];
    let length = u16::try_from(text.len()).expect("a frame of the bench is short");
    match u8::try_from(length) {
        Ok(short @ 0..=125) => out.push(mask | short),
        _ => {
            out.push(mask | 126);
            out.extend_from_slice(&length.to_be_bytes());
        },
    }
    if masked {
        // A mask of zeros leaves the bytes as they are.
        out.extend_from_slice(&[0; 4]);
    }
    out.extend_from_slice(text.as_bytes());
    out
}

/// One turn's answer, event by event.
pub(crate) fn events() -> Vec<String> {
    let mut out = vec![r#"{"type":"response.created","response":{"id":"resp_1"}}"#.to_owned()];
    for n in 0..7 {
        let pad = "x".repeat(150);
        out.push(format!(r#"{{"type":"response.output_text.delta","n":{n},"delta":"{pad}"}}"#));
    }
    out.push(LAST.to_owned());
    out
}

/// All frames of one turn's answer.
pub(crate) fn answer() -> Vec<u8> {
    events().iter().flat_map(|event| frame(event, false)).collect()
}

/// One frame that carries when it was sent.
pub(crate) fn stamped() -> Vec<u8> {
    let text = format!(r#"{{"type":"response.output_text.delta","sent":"{:020}"}}"#, nanos());
    frame(&text, false)
}

/// The last frame alone.
pub(crate) fn completed() -> Vec<u8> {
    frame(LAST, false)
}

/// The server's word that it speaks WebSocket from here on.
pub(crate) fn accepted(head: &str) -> String {
    let key = head
        .lines()
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
        })
        .unwrap_or_default();
    let print = ring::digest::digest(
        &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes(),
    );
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-accept: {}\r\n\r\n",
        BASE64_STANDARD.encode(print)
    )
}

fn handshake(port: u16, key: &str, query: &str) -> String {
    format!(
        "GET /codex/responses{query} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n\
         connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: {KEY}\r\nopenai-beta: responses_websockets=2026-02-06\r\n\
         originator: codex_exec\r\nuser-agent: codex_exec/0.169.0\r\nversion: 0.169.0\r\n\
         session-id: 01a1fbd6-6c17-7ff2-91b4-c91887dfa3a7\r\nx-codex-routing-hint: model=gpt-5.5\r\n\r\n"
    )
}

/// A turn's only frame up: everything is in it, as in a thread's first turn.
pub(crate) fn turn(query: &str) -> Vec<u8> {
    frame(&turn_text(query), true)
}

/// What that frame carries.
pub(crate) fn turn_text(query: &str) -> String {
    let pad = "y".repeat(700);
    format!(
        r#"{{"type":"response.create","model":"gpt-5.5","input":[{{"type":"message","role":"user","content":[{{"type":"input_text","text":"{query}{pad}"}}]}}],"stream":true,"store":false}}"#
    )
}

/// One socket, one turn at a time.
pub(crate) struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Socket {
    pub(crate) fn connect(port: u16, key: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
        stream.write_all(handshake(port, key, "").as_bytes()).expect("asked");
        let mut buffer = vec![0; 64 * 1024];
        let n = stream.read(&mut buffer).expect("answered");
        assert!(buffer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&buffer[..n]));
        Self { stream, buffer }
    }

    /// Sends a turn, and gives the time to its first frame in microseconds.
    pub(crate) fn ask(&mut self, turn: &[u8]) -> f64 {
        let begun = Instant::now();
        self.stream.write_all(turn).expect("sent");
        let mut n = self.stream.read(&mut self.buffer).expect("answered");
        let first = begun.elapsed();
        while !self.buffer[..n].ends_with(END) {
            let more = self.stream.read(&mut self.buffer[n..]).expect("the rest");
            assert!(more > 0, "closed: {}", String::from_utf8_lossy(&self.buffer[..n]));
            n += more;
        }
        first.as_secs_f64() * 1e6
    }
}

/// A socket on which nothing was said after its handshake.
pub(crate) async fn connected(port: u16, key: &str) -> tokio::net::TcpStream {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
    stream.set_nodelay(true).expect("no delay");
    stream.write_all(handshake(port, key, "").as_bytes()).await.expect("asked");
    let mut buffer = vec![0; 4096];
    let n = stream.read(&mut buffer).await.expect("answered");
    assert!(buffer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&buffer[..n]));
    stream
}

/// One turn to its end.
async fn exchange(stream: &mut tokio::net::TcpStream, frame: &[u8], buffer: &mut [u8]) {
    stream.write_all(frame).await.expect("sent");
    let mut n = 0;
    while !buffer[..n].ends_with(END) {
        let more = stream.read(&mut buffer[n..]).await.expect("answered");
        assert!(more > 0, "closed: {}", String::from_utf8_lossy(&buffer[..n]));
        n += more;
    }
}

/// Turns a second with `clients` sockets in a closed loop for a time, after a turn on each: the daemon
/// connects to upstream for a socket's first one, nginx before it.
pub(crate) fn rate(port: u16, key: &str, clients: usize, time: Duration) -> f64 {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let frame = &turn("");
    let (done, took) = runtime.block_on(async {
        let mut sockets = Vec::new();
        for _ in 0..clients {
            let (mut stream, mut buffer) = (connected(port, key).await, vec![0; 16 * 1024]);
            exchange(&mut stream, frame, &mut buffer).await;
            sockets.push((stream, buffer));
        }
        let begun = Instant::now();
        let tasks = sockets.into_iter().map(|(mut stream, mut buffer)| async move {
            let mut done = 0_u64;
            while begun.elapsed() < time {
                exchange(&mut stream, frame, &mut buffer).await;
                done += 1;
            }
            done
        });
        let done: u64 = super::client::join(tasks).await.into_iter().sum();
        (done, begun.elapsed())
    });
    a_second(done, took)
}

/// Ages of messages that come 10 ms apart on one socket, in microseconds.
pub(crate) fn ages(port: u16, key: &str) -> Vec<f64> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut stream = connected(port, key).await;
        stream.write_all(&turn("slowly")).await.expect("sent");
        let (mut ages, mut seen, mut buffer) = (Vec::new(), Vec::new(), vec![0; 16 * 1024]);
        while !seen.ends_with(END) {
            let n = stream.read(&mut buffer).await.expect("answered");
            let now = nanos();
            assert!(n > 0, "closed");
            seen.extend_from_slice(&buffer[..n]);
            while let Some(at) = memchr::memmem::find(&seen, b"\"sent\":\"") {
                let Some(digits) = seen.get(at + 8..at + 28) else { break };
                let sent: u64 = String::from_utf8_lossy(digits).parse().unwrap_or(now);
                #[expect(clippy::cast_precision_loss, reason = "microseconds")]
                ages.push(now.saturating_sub(sent) as f64 / 1e3);
                seen.drain(..at + 28);
            }
        }
        ages
    })
}
