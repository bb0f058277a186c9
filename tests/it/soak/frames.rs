//! The same over WebSockets: each client keeps its socket and goes on from its last answer, opens
//! another where it is told to, as the official CLI does, and sends everything there.

use super::{Weather, endures, world};
use cma_tests::{
    http::Door,
    sim::{Cut, Fault, Inside, Route, Strange},
    ws::said,
};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{Role, WebSocketConfig},
    },
};

/// The ways in which a frame's answer can fail before it is one, and leave the account as it is.
fn often() -> Vec<Fault> {
    let failed = |code: &str| Fault::SseFailed { code: code.into(), message: "no".into() };
    let cut = |by| Fault::CutMidStream { after: 2, by };
    let strange = |what| Fault::StrangeFrame { after: 2, what };
    vec![
        Fault::server_error(500, None),
        Fault::server_error(503, Some(1)),
        Fault::overloaded(),
        failed("server_error"),
        failed("server_is_overloaded"),
        failed("slow_down"),
        failed("a_code_of_tomorrow"),
        Fault::ResetBeforeHead,
        Fault::CloseBeforeHead,
        Fault::HangHead,
        cut(Cut::Reset),
        cut(Cut::Close),
        cut(Cut::CleanEnd),
        Fault::CloseFrame { after: 0, code: 1011 },
        strange(Strange::Binary),
        strange(Strange::Garbage),
        strange(Strange::Oversized),
        strange(Strange::Half),
        Fault::HangMidStream { after: 3 },
    ]
}

/// Those after which it rests, and for how long.
fn seldom() -> Vec<(Fault, Duration)> {
    let second = Duration::from_secs(1);
    let limited = Inside::failed("rate_limit_exceeded", "Please try again in 1s.");
    vec![
        (Fault::token_expired(), second / 10),
        (Fault::rate_limited(Some(1)), second),
        (Inside::before_the_answer(limited), second),
        (Fault::UsageLimitReached { resets_in: 2 * second }, 3 * second),
        (Fault::rate_limited(None), 5 * second),
    ]
}

async fn open(door: &Door, session: &str) -> Result<WebSocketStream<TcpStream>, String> {
    let told = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(door.addr).await.map_err(told)?;
    stream.write_all(&door.handshake(session).bytes()).await.map_err(told)?;
    // The daemon says nothing first.
    let (mut head, mut n) = ([0; 2048], 0);
    while !head[..n].ends_with(b"\r\n\r\n") {
        match stream.read(&mut head[n..]).await.map_err(told)? {
            0 => break,
            more => n += more,
        }
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(format!("no socket: {:?}", String::from_utf8_lossy(&head[..n])));
    }
    // The library's own buffer is 128 KiB for each socket.
    let config = WebSocketConfig::default().read_buffer_size(4096);
    Ok(WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await)
}

/// One turn: the event that ended it.
async fn turn(socket: &mut WebSocketStream<TcpStream>, frame: &Value) -> Result<Value, String> {
    let told = |error: tokio_tungstenite::tungstenite::Error| error.to_string();
    socket.send(Message::text(frame.to_string())).await.map_err(told)?;
    loop {
        let Some(message) = socket.next().await else { return Err("no more came".to_owned()) };
        let Message::Text(text) = message.map_err(told)? else { continue };
        let event: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let kind = event["type"].as_str().unwrap_or_default();
        if ["response.completed", "response.failed", "error"].contains(&kind) {
            return Ok(event);
        }
    }
}

/// A client's turns, one after another until then.
async fn turns(door: Door, session: String, until: Instant, whole: Arc<AtomicU64>) -> Vec<String> {
    let (mut wrong, mut socket, mut last) = (Vec::new(), None, None::<String>);
    while Instant::now() < until {
        let open = match socket.take() {
            Some(open) => Ok(open),
            None => open(&door, &session).await,
        };
        let mut open = match open {
            Ok(open) => open,
            Err(why) => {
                wrong.push(why);
                continue;
            },
        };
        let mut frame = json!({
            "type": "response.create", "model": "gpt-5.5", "stream": true,
            "input": [said("hello")], "tools": [], "tool_choice": "auto", "store": false,
            "prompt_cache_key": session,
            "client_metadata": { "session_id": session, "thread_id": session },
        });
        if let Some(last) = last.take() {
            frame["previous_response_id"] = last.into();
        }
        match turn(&mut open, &frame).await {
            Ok(event) if event["type"] == "response.completed" => {
                whole.fetch_add(1, Ordering::Relaxed);
                last = event["response"]["id"].as_str().map(str::to_owned);
                socket = Some(open);
            },
            // The next one has everything, on another socket.
            Ok(event) if event["error"]["code"] == "previous_response_not_found" => {},
            Ok(event) => wrong.push(event.to_string()),
            Err(why) => wrong.push(why),
        }
    }
    wrong
}

#[test]
fn sockets_go_on_while_upstream_fails_and_nothing_is_left() {
    let world = world();
    endures(&world, Weather::new(&world, Route::Frame, often(), seldom()), turns);
}
