//! Raw clients: a kept connection each, no parser in the way of the clock.

use super::{stats::a_second, upstream::nanos};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const END: &[u8] = b"\r\n0\r\n\r\n";

/// A whole request as bytes.
pub(crate) fn request(port: u16, key: &str, body: usize, query: &str) -> Vec<u8> {
    let path = "/codex/responses";
    let mut bytes = format!(
        "POST {path}{query} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\naccept: text/event-stream\r\noriginator: codex_exec\r\n\
         user-agent: codex_exec/0.169.0\r\nversion: 0.169.0\r\nsession-id: 01a1fbd6-6c17-7ff2-91b4-c91887dfa3a7\r\n\
         x-codex-routing-hint: model=gpt-5.5\r\ncontent-length: {body}\r\n\r\n"
    )
    .into_bytes();
    bytes.resize(bytes.len() + body, b'x');
    bytes
}

/// One connection, one request at a time.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
        Self { stream, buffer: vec![0; 64 * 1024] }
    }

    /// Sends, and gives the time to the first byte and to the end, in microseconds.
    pub(crate) fn ask(&mut self, request: &[u8]) -> (f64, f64) {
        let begun = Instant::now();
        self.stream.write_all(request).expect("sent");
        let mut n = self.stream.read(&mut self.buffer).expect("answered");
        let first = begun.elapsed();
        assert!(
            self.buffer.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&self.buffer[..n])
        );
        while !self.buffer[..n].ends_with(END) {
            let more = self.stream.read(&mut self.buffer[n..]).expect("the rest");
            assert!(more > 0, "cut");
            n += more;
        }
        (first.as_secs_f64() * 1e6, begun.elapsed().as_secs_f64() * 1e6)
    }
}

/// Requests a second with `clients` connections in a closed loop for a time.
pub(crate) fn rate(port: u16, request: &[u8], clients: usize, time: Duration) -> f64 {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let begun = Instant::now();
    let done: u64 = runtime.block_on(async {
        let tasks = (0..clients).map(|_| async {
            let mut stream =
                tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
            stream.set_nodelay(true).expect("no delay");
            let mut buffer = vec![0; 16 * 1024];
            let mut done = 0;
            while begun.elapsed() < time {
                stream.write_all(request).await.expect("sent");
                let mut n = 0;
                loop {
                    let more = stream.read(&mut buffer[n..]).await.expect("answered");
                    assert!(more > 0, "cut");
                    n += more;
                    if buffer[..n].ends_with(END) {
                        break;
                    }
                }
                assert!(
                    buffer.starts_with(b"HTTP/1.1 200"),
                    "{}",
                    String::from_utf8_lossy(&buffer[..n])
                );
                done += 1;
            }
            done
        });
        join(tasks).await.into_iter().sum()
    });
    a_second(done, begun.elapsed())
}

/// What streams showed.
pub(crate) struct Streamed {
    /// Age of each event at arrival, in microseconds.
    pub(crate) ages: Vec<f64>,
    /// Events that never came.
    pub(crate) lost: usize,
}

/// Opens `count` streams, evenly over `arriving`, and reads them to their ends.
pub(crate) fn streams(
    port: u16,
    request: &[u8],
    count: usize,
    events: usize,
    arriving: Duration,
    halfway: impl FnOnce(),
) -> Streamed {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let tasks = (0..count).map(|n| async move {
            let share = f64::from(u32::try_from(n).unwrap_or(0))
                / f64::from(u32::try_from(count).unwrap_or(1));
            tokio::time::sleep(arriving.mul_f64(share)).await;
            stream(port, request).await.unwrap_or_default()
        });
        let watch = async {
            tokio::time::sleep(arriving + Duration::from_secs(1)).await;
            halfway();
        };
        let (all, ()) = tokio::join!(join(tasks), watch);
        let ages: Vec<f64> = all.into_iter().flatten().collect();
        Streamed { lost: (count * events).saturating_sub(ages.len()), ages }
    })
}

async fn stream(port: u16, request: &[u8]) -> std::io::Result<Vec<f64>> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    stream.write_all(request).await?;
    let mut buffer = [0; 4096];
    let (mut ages, mut tail) = (Vec::new(), Vec::new());
    loop {
        let n = stream.read(&mut buffer).await?;
        let now = nanos();
        if n == 0 {
            return Ok(ages);
        }
        tail.extend_from_slice(&buffer[..n]);
        let mut from = 0;
        while let Some(at) = memchr::memmem::find(&tail[from..], b"\"sent\":\"") {
            let start = from + at + 8;
            let Some(digits) = tail.get(start..start + 20) else { break };
            let sent: u64 = String::from_utf8_lossy(digits).parse().unwrap_or(now);
            #[expect(clippy::cast_precision_loss, reason = "microseconds")]
            ages.push(now.saturating_sub(sent) as f64 / 1e3);
            from = start + 20;
        }
        let ended = tail.ends_with(END);
        let keep = from.max(tail.len().saturating_sub(64));
        tail.drain(..keep.min(tail.len()));
        if ended {
            return Ok(ages);
        }
    }
}

/// Runs all at once on this thread.
pub(crate) async fn join<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    use futures_util::stream::{FuturesUnordered, StreamExt as _};
    futures.collect::<FuturesUnordered<_>>().collect().await
}
