//! Turns over WebSockets: how many a second, and how old their messages are when they arrive.
//!
//! nginx passes them on as a tunnel of bytes; the daemon as messages, each of which it looks at.

use super::{Bench, parts::ratio, stats::percentile, upstream::nanos};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{SinkExt as _, StreamExt as _, future::join_all};
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

/// Sockets of the closed loop, as many as clients over HTTP.
const SOCKETS: usize = 64;
/// Messages of a turn of which the age is taken, and the time between two.
const EVENTS: u32 = 300;
const GAP_MS: u32 = 3;

type Wire = WebSocketStream<TcpStream>;

/// The frame of a turn with that many messages, so far apart.
fn frame(events: u32, gap_ms: u32) -> String {
    let text = "x".repeat(600);
    format!(
        "{{\"type\":\"response.create\",\"model\":\"gpt-5.5\",\"stream\":true,\"input\":[{{\"type\":\"message\",\"text\":\"{text}\"}}],\"store\":false,\"events\":{events},\"gap\":{gap_ms} }}"
    )
}

async fn open(port: u16, key: &str) -> Wire {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
    stream.set_nodelay(true).expect("no delay");
    let head = format!(
        "GET /codex/responses HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n\
         connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         openai-beta: responses_websockets=2026-02-06\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.expect("an answer"));
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    WebSocketStream::from_raw_socket(stream, Role::Client, None).await
}

/// One turn; the age of its messages in microseconds.
async fn turn(wire: &mut Wire, frame: &str, ages: &mut Vec<f64>) {
    wire.send(Message::text(frame)).await.expect("sent");
    loop {
        let Some(Ok(Message::Text(text))) = wire.next().await else { panic!("cut") };
        if text.contains("response.completed") {
            return;
        }
        let sent =
            text.split_once("\"sent\":\"").and_then(|(_, rest)| rest.get(..20)?.parse().ok());
        if let Some(sent) = sent {
            #[expect(clippy::cast_precision_loss, reason = "less than a second")]
            ages.push(nanos().saturating_sub(sent) as f64 / 1e3);
        }
    }
}

fn block<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

fn rate(port: u16, key: &str, time: Duration) -> f64 {
    let frame = frame(7, 0);
    block(async {
        let opened = join_all((0..SOCKETS).map(|_| open(port, key))).await;
        let begun = Instant::now();
        let loops = opened.into_iter().map(|mut wire| {
            let frame = frame.as_str();
            async move {
                let mut done = 0_u32;
                while begun.elapsed() < time {
                    turn(&mut wire, frame, &mut Vec::new()).await;
                    done += 1;
                }
                done
            }
        });
        let done: u32 = join_all(loops).await.into_iter().sum();
        f64::from(done) / begun.elapsed().as_secs_f64()
    })
}

/// See the module's documentation.
pub(crate) fn sockets(bench: &Bench) {
    let ways = bench.ways();
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    let mut added: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    for round in 0..bench.rounds.min(3) {
        let mut straight = 0.0;
        for (way, (name, port)) in ways.iter().enumerate() {
            rates[way].push(rate(*port, &bench.key, Duration::from_secs(2)));
            let mut ages = Vec::new();
            block(async {
                let mut wire = open(*port, &bench.key).await;
                turn(&mut wire, &frame(10, 1), &mut Vec::new()).await;
                turn(&mut wire, &frame(EVENTS, GAP_MS), &mut ages).await;
            });
            let p50 = percentile(&ages, 0.5);
            if way == 0 {
                straight = p50;
            }
            added[way].push(p50 - straight);
            println!(
                "round {round}: {name} {:.0} turns/s, message p50 {p50:.0} p99 {:.0} us",
                rates[way][round],
                percentile(&ages, 0.99)
            );
        }
    }
    ratio("turns/s over WebSockets", &ways, &rates);
    ratio("added time per message p50", &ways, &added);
}

/// The upstream's side: a turn has as many messages as its frame says.
pub(crate) async fn serve(mut stream: TcpStream, head: &str) -> std::io::Result<()> {
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim().to_owned())
    });
    let text = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key.unwrap_or_default());
    let hash = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {}\r\n\r\n",
        BASE64_STANDARD.encode(hash)
    );
    stream.write_all(answer.as_bytes()).await?;
    let mut wire = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let pad = "x".repeat(120);
    while let Some(Ok(message)) = wire.next().await {
        let Message::Text(frame) = message else { continue };
        let number = |name: &str| -> u32 {
            let rest = frame.rsplit_once(name).map_or("", |(_, rest)| rest);
            rest.split([',', ' ']).next().and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        let (events, gap) = (number("\"events\":"), number("\"gap\":"));
        let created = "{\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}";
        wire.feed(Message::text(created)).await.map_err(std::io::Error::other)?;
        for _ in 0..events {
            if gap > 0 {
                wire.flush().await.map_err(std::io::Error::other)?;
                tokio::time::sleep(Duration::from_millis(gap.into())).await;
            }
            let event = format!(
                "{{\"type\":\"response.output_text.delta\",\"sent\":\"{:020}\",\"delta\":\"{pad}\"}}",
                nanos()
            );
            wire.feed(Message::text(event)).await.map_err(std::io::Error::other)?;
        }
        let completed = "{\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"usage\":{\"input_tokens\":10,\"output_tokens\":5,\"total_tokens\":15}}}";
        wire.send(Message::text(completed)).await.map_err(std::io::Error::other)?;
    }
    Ok(())
}
