//! WebSocket turns between programs: a client and an upstream that read and write frames by a library,
//! and a client that reads each event, as the CLI and the backend do.
//!
//! Between bare ends ([`super::socket`]) a turn costs both ends together less than nginx, and the rate
//! is the proxy's alone. Here the ends have their share of the machine.

use super::{socket, stats::a_second};
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use std::{
    io,
    time::{Duration, Instant},
};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error, Message, Utf8Bytes, protocol::Role},
};

/// What a client reads of each event.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
}

/// The upstream's end, after the handshake: each message gets a whole answer.
pub(crate) async fn answer_turns(stream: TcpStream) -> io::Result<()> {
    let events: Vec<Utf8Bytes> = socket::events().into_iter().map(Into::into).collect();
    let mut stream = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let served: Result<(), Error> = async {
        while let Some(message) = stream.next().await {
            if !message?.is_text() {
                continue;
            }
            for event in &events {
                stream.feed(Message::Text(event.clone())).await?;
            }
            stream.flush().await?;
        }
        Ok(())
    }
    .await;
    served.map_err(io::Error::other)
}

/// One turn to its end.
async fn exchange(stream: &mut WebSocketStream<TcpStream>, turn: &Utf8Bytes) {
    stream.send(Message::Text(turn.clone())).await.expect("sent");
    loop {
        let message = stream.next().await.expect("more").expect("a message");
        let text = message.to_text().expect("a text");
        let event: Event = serde_json::from_str(text).expect("an event");
        if event.kind == "response.completed" {
            return;
        }
    }
}

/// As [`socket::rate`].
pub(crate) fn rate(port: u16, key: &str, clients: usize, time: Duration) -> f64 {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let turn: &Utf8Bytes = &socket::turn_text(socket::BY_LIBRARY).into();
    let (done, took) = runtime.block_on(async {
        let mut sockets = Vec::new();
        for _ in 0..clients {
            let stream = socket::connected(port, key).await;
            let mut stream = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
            exchange(&mut stream, turn).await;
            sockets.push(stream);
        }
        let begun = Instant::now();
        let tasks = sockets.into_iter().map(|mut stream| async move {
            let mut done = 0_u64;
            while begun.elapsed() < time {
                exchange(&mut stream, turn).await;
                done += 1;
            }
            done
        });
        let done: u64 = super::client::join(tasks).await.into_iter().sum();
        (done, begun.elapsed())
    });
    a_second(done, took)
}
